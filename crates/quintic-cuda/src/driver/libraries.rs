//! Where the libraries are.
//!
//! The loader of the system is asked first. Then the folders in which toolkits and the wheels of
//! PyPI put them are searched; a library that is found there is loaded by its path and kept, and
//! whoever asks for it by its name afterwards gets it.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use crate::{Error, Result};

/// A list of folders, separated by colons, that are searched before all others.
pub(super) const VARIABLE: &str = "QUINTIC_CUDA_LIBRARIES";

/// Names of libraries, the newest version first.
const CUBLASLT: &[&str] = &["libcublasLt.so.13", "libcublasLt.so.12"];
const NVRTC: &[&str] = &["libnvrtc.so.13", "libnvrtc.so.12"];

/// The driver's library, which only the system's loader can find.
pub(super) fn driver() -> Result<()> {
    static FOUND: OnceLock<Result<()>> = OnceLock::new();
    FOUND
        .get_or_init(|| {
            let found = ["libcuda.so.1", "libcuda.so"]
                .into_iter()
                .any(|name| keep(Path::new(name)));
            match found {
                true => Ok(()),
                false => Err(Error::Unavailable(
                    "there is no NVIDIA driver here: `libcuda.so.1` was not found".to_owned(),
                )),
            }
        })
        .clone()
}

/// cuBLASLt.
pub(super) fn cublaslt() -> Result<()> {
    static FOUND: OnceLock<Result<()>> = OnceLock::new();
    FOUND.get_or_init(|| find("cuBLASLt", CUBLASLT)).clone()
}

/// NVRTC, and what it opens by itself.
pub(super) fn nvrtc() -> Result<()> {
    static FOUND: OnceLock<Result<()>> = OnceLock::new();
    FOUND
        .get_or_init(|| {
            // It asks for its builtins by name, from no folder in particular.
            for folder in folders() {
                for builtins in files_that_begin(&folder, "libnvrtc-builtins.so.") {
                    keep(&builtins);
                }
            }
            find("NVRTC", NVRTC)
        })
        .clone()
}

fn find(what: &str, names: &[&str]) -> Result<()> {
    let folders = folders();
    let first = named_folders();
    let candidates = in_folders(&first, names)
        .into_iter()
        .chain(names.iter().map(PathBuf::from))
        .chain(in_folders(&folders, names));
    for candidate in candidates {
        if keep(&candidate) {
            return Ok(());
        }
    }
    Err(Error::Unavailable(format!(
        "{what} was not found: neither {} by the system's loader nor in {}; {VARIABLE} can name \
         its folder",
        names
            .iter()
            .map(|name| format!("`{name}`"))
            .collect::<Vec<_>>()
            .join(" nor "),
        match folders.is_empty() {
            true => "any folder known here".to_owned(),
            false => folders
                .iter()
                .map(|folder| folder.display().to_string())
                .collect::<Vec<_>>()
                .join(", "),
        }
    )))
}

/// Loads a library and never lets it go; whether that worked.
fn keep(path: &Path) -> bool {
    // SAFETY: CUDA's libraries have no initialiser that asks for anything.
    match unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) } {
        Ok(library) => {
            std::mem::forget(library);
            true
        }
        Err(_) => false,
    }
}

fn in_folders(folders: &[PathBuf], names: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in folders {
        found.extend(
            names
                .iter()
                .map(|name| folder.join(name))
                .filter(|path| path.is_file()),
        );
    }
    found
}

fn named_folders() -> Vec<PathBuf> {
    std::env::var_os(VARIABLE)
        .map(|list| std::env::split_paths(&list).collect())
        .unwrap_or_default()
}

/// Every folder that is searched, in this order; those that exist.
fn folders() -> Vec<PathBuf> {
    let mut roots = Vec::new();
    for variable in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
        roots.extend(std::env::var_os(variable).map(PathBuf::from));
    }
    if let Ok(program) = std::env::current_exe() {
        for ancestor in program.ancestors().skip(1) {
            // A program of an environment, or one that was built beside one.
            roots.push(ancestor.to_owned());
            roots.push(ancestor.join(".venv"));
        }
    }
    let mut toolkits: Vec<PathBuf> = ["CUDA_HOME", "CUDA_PATH"]
        .into_iter()
        .filter_map(|variable| std::env::var_os(variable).map(PathBuf::from))
        .collect();
    toolkits.extend(entries_that_begin(Path::new("/usr/local"), "cuda"));
    let mut found = named_folders();
    for root in roots {
        found.extend(wheel_folders(&root));
    }
    for toolkit in toolkits {
        found.push(toolkit.join("lib64"));
        found.push(toolkit.join("lib"));
    }
    let mut seen = std::collections::HashSet::new();
    found.retain(|folder| folder.is_dir() && seen.insert(folder.clone()));
    found
}

/// Where wheels put libraries below the root of a Python environment.
fn wheel_folders(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for python in entries_that_begin(&root.join("lib"), "python3") {
        let nvidia = python.join("site-packages").join("nvidia");
        // One folder for all since CUDA 13, one for each library before.
        for part in ["cu13", "cublas", "cuda_nvrtc"] {
            found.push(nvidia.join(part).join("lib"));
        }
    }
    found
}

fn entries_that_begin(folder: &Path, start: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(start))
        })
        .collect();
    // The newest version first.
    found.sort();
    found.reverse();
    found
}

fn files_that_begin(folder: &Path, start: &str) -> Vec<PathBuf> {
    let mut found = entries_that_begin(folder, start);
    found.retain(|path| path.is_file());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wheels_of_both_kinds_are_found_below_an_environment() {
        let root = std::env::temp_dir().join(format!("quintic-wheels-{}", std::process::id()));
        let site = root.join("lib/python3.12/site-packages/nvidia");
        for folder in ["cu13/lib", "cublas/lib"] {
            std::fs::create_dir_all(site.join(folder)).expect("a folder");
        }
        let found = wheel_folders(&root);
        assert!(found.contains(&site.join("cu13/lib")));
        assert!(found.contains(&site.join("cublas/lib")));
        std::fs::write(site.join("cublas/lib/libcublasLt.so.12"), "").expect("a file");
        assert_eq!(
            in_folders(&found, CUBLASLT),
            [site.join("cublas/lib/libcublasLt.so.12")]
        );
        std::fs::remove_dir_all(&root).expect("the folder goes");
    }

    #[test]
    fn a_file_that_is_no_library_is_not_kept() {
        assert!(!keep(Path::new(file!())));
        assert!(!keep(Path::new("libquintic-is-not-there.so.99")));
        let error = find("Nothing", &["libquintic-is-not-there.so.99"]).unwrap_err();
        let Error::Unavailable(what) = error else {
            panic!("{error:?}");
        };
        assert!(what.starts_with("Nothing was not found"), "{what}");
        assert!(what.contains("libquintic-is-not-there.so.99") && what.contains(VARIABLE));
    }
}
