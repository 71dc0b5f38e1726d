//! Filling the cache: blobs first, then the snapshot's links, the reference last.
//!
//! Every name appears by renaming, so another process sees a file whole or not at all, and
//! a snapshot that is interrupted lacks files rather than having broken ones.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use super::blob::{self, Job};
use super::client::Client;
use super::select::{Wanted, select};
use super::{DEFAULT_REVISION, HubOptions, RepoId, check_revision};
use crate::checkpoint::shards::read_bounded;
use crate::{Error, ErrorKind, Result};

/// Longest JSON file that is read to know what else to download.
const MAX_JSON_BYTES: u64 = 100_000_000;

/// Downloads what is missing and returns the snapshot's folder.
pub(super) fn download(
    id: &RepoId,
    cache: &Path,
    options: &HubOptions,
    env: &impl Fn(&str) -> Option<OsString>,
) -> Result<PathBuf> {
    let revision = options.revision.as_deref().unwrap_or(DEFAULT_REVISION);
    check_revision(revision)?;
    let client = Client::new(options, env);
    let listing = client.list(id, revision)?;
    let repo = cache.join(id.folder_name());
    let fetcher = Fetcher {
        client,
        options,
        id,
        commit: &listing.commit,
        repo: &repo,
    };
    let wanted = Wanted {
        subfolder: options.subfolder.as_deref(),
        variant: options.variant.as_deref(),
    };
    let mut read = |file: &str| read_bounded(&fetcher.fetch(file)?, MAX_JSON_BYTES);
    let files = select(&listing.files, &wanted, &mut read)
        .map_err(|error| error.at(format!("`{id}` on the hub")))?;
    for file in &files {
        fetcher.fetch(file)?;
    }
    if revision != listing.commit {
        write_ref(&repo.join("refs").join(revision), &listing.commit)?;
    }
    Ok(fetcher.snapshot())
}

struct Fetcher<'a> {
    client: Client,
    options: &'a HubOptions,
    id: &'a RepoId,
    commit: &'a str,
    repo: &'a Path,
}

impl Fetcher<'_> {
    fn snapshot(&self) -> PathBuf {
        self.repo.join("snapshots").join(self.commit)
    }

    /// The file in the snapshot, downloaded unless it is there.
    fn fetch(&self, file: &str) -> Result<PathBuf> {
        let n_parts = check_inside(file)?;
        let pointer = self.snapshot().join(file);
        if pointer.is_file() {
            return Ok(pointer);
        }
        let info = self.client.info(self.id, self.commit, file)?;
        let blob = self.repo.join("blobs").join(&info.etag);
        if !blob.is_file() {
            let job = Job {
                client: &self.client,
                options: self.options,
                id: self.id,
                commit: self.commit,
                file,
            };
            blob::fetch(&job, &info, &blob)?;
        }
        let folder = pointer.parent().unwrap_or(self.repo);
        std::fs::create_dir_all(folder)
            .map_err(|error| Error::io(folder, "make the folder", error))?;
        // From snapshots/<commit>/a/b up to the repository's folder, and into blobs.
        let mut target: PathBuf = std::iter::repeat_n("..", n_parts + 1).collect();
        target.extend(["blobs", &info.etag]);
        place(&pointer, &target, &blob)?;
        Ok(pointer)
    }
}

/// The number of parts of a path that stays inside the snapshot.
fn check_inside(file: &str) -> Result<usize> {
    let path = Path::new(file);
    let is_inside = path
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    if file.is_empty() || !is_inside || file.contains(['\\', '\0', ':']) {
        return Err(Error::new(
            ErrorKind::Download,
            format!("the hub lists a file `{file}`, expected a path inside the repository"),
        ));
    }
    Ok(path.components().count())
}

/// A link at `pointer`; where the system has none, a copy of the blob.
fn place(pointer: &Path, target: &Path, blob: &Path) -> Result<()> {
    let new = unused_name(pointer);
    let made = match link(target, &new) {
        Ok(()) => Ok(()),
        Err(_) => std::fs::copy(blob, &new).map(drop),
    };
    made.and_then(|()| std::fs::rename(&new, pointer))
        .map_err(|error| {
            let _ = std::fs::remove_file(&new);
            Error::io(pointer, "place the download", error)
        })
}

#[cfg(unix)]
fn link(target: &Path, pointer: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, pointer)
}

#[cfg(not(unix))]
fn link(_: &Path, _: &Path) -> std::io::Result<()> {
    // Links need a privilege on Windows that few have.
    Err(std::io::ErrorKind::Unsupported.into())
}

fn write_ref(path: &Path, commit: &str) -> Result<()> {
    let io = |error| Error::io(path, "write the reference", error);
    std::fs::create_dir_all(path.parent().unwrap_or(path)).map_err(io)?;
    let new = unused_name(path);
    std::fs::write(&new, commit).map_err(io)?;
    std::fs::rename(&new, path).map_err(io)
}

/// A name beside `path` that no other process or thread uses.
fn unused_name(path: &Path) -> PathBuf {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(
        ".new-{}-{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    ));
    path.with_file_name(name)
}
