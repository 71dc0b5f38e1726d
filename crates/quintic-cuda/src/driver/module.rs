//! The kernels, from a cubin that fits the device or compiled for it.

use std::collections::HashMap;
use std::ffi::{CString, c_char};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{result, sys};
use cudarc::nvrtc::sys as nvrtc;

use super::status::Done;
use super::{Context, libraries};
use crate::device::Description;
use crate::{Error, Result};

/// Shared memory that a kernel gets without being asked whether it may.
const PLAIN_SHARED: u32 = 48 * 1024;

/// Kernels as they are carried along: compiled, and as sources.
#[derive(Clone, Copy, Debug)]
pub struct KernelImages {
    /// Architecture, such as `sm_90a`, and what was compiled for it.
    pub cubins: &'static [(&'static str, &'static [u8])],
    /// Name and text of the source that includes the others.
    pub main: (&'static str, &'static str),
    /// Names and texts of those.
    pub headers: &'static [(&'static str, &'static str)],
}

/// What serves a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice<'a> {
    /// A cubin of that architecture.
    Cubin(&'a str),
    /// None: compile.
    Compile,
}

/// A cubin runs on devices of its major and at least its minor capability; one for an
/// architecture with an `a` on that one alone.
fn choose<'a>(
    (major, minor): (u32, u32),
    architectures: impl Iterator<Item = &'a str>,
) -> Choice<'a> {
    let mut best: Option<(u32, bool, &str)> = None;
    for name in architectures {
        let Some(digits) = name.strip_prefix("sm_") else {
            continue;
        };
        let special = digits.ends_with('a');
        let Ok(number) = digits.trim_end_matches('a').parse::<u32>() else {
            continue;
        };
        let fits = match special {
            true => (number / 10, number % 10) == (major, minor),
            false => number / 10 == major && number % 10 <= minor,
        };
        let better = best.is_none_or(|(known, a, _)| (number % 10, special) > (known, a));
        if fits && better {
            best = Some((number % 10, special, name));
        }
    }
    match best {
        Some((_, _, name)) => Choice::Cubin(name),
        None => Choice::Compile,
    }
}

/// A loaded module, and the functions that were asked for.
#[derive(Debug)]
pub(super) struct Module {
    handle: sys::CUmodule,
    functions: Mutex<HashMap<String, Function>>,
    context: Arc<Context>,
}

#[derive(Clone, Copy, Debug)]
struct Function {
    handle: sys::CUfunction,
    /// Dynamic shared memory that was allowed.
    shared_bytes: u32,
}

// SAFETY: modules and functions may be used from every thread with the context.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    pub(super) fn load(
        context: &Arc<Context>,
        description: &Description,
        images: &KernelImages,
    ) -> Result<Self> {
        let capability = description.capability;
        let architectures = images.cubins.iter().map(|(name, _)| *name);
        let compiled;
        let image: &[u8] = match choose(capability, architectures) {
            Choice::Cubin(chosen) => images
                .cubins
                .iter()
                .find(|(name, _)| *name == chosen)
                .map_or(&[], |(_, cubin)| *cubin),
            Choice::Compile => {
                let (major, minor) = capability;
                compiled = compile(images, &format!("sm_{major}{minor}"))
                    .map_err(|error| no_kernels(description, images, &error))?;
                &compiled
            }
        };
        // SAFETY: a cubin says how long it is.
        let handle = unsafe { result::module::load_data(image.as_ptr().cast()) }
            .done("loading the kernels")?;
        Ok(Module {
            handle,
            functions: Mutex::new(HashMap::new()),
            context: Arc::clone(context),
        })
    }

    /// A kernel, allowed so much shared memory.
    pub(super) fn function(&self, name: &str, shared_bytes: u32) -> Result<sys::CUfunction> {
        let mut functions = self
            .functions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let known = functions.get(name).copied();
        let mut function = match known {
            Some(function) => function,
            None => {
                let c_name = CString::new(name)
                    .map_err(|_| Error::Failed(format!("no kernel is named {name:?}")))?;
                // SAFETY: the module is loaded.
                let handle = unsafe { result::module::get_function(self.handle, c_name) }
                    .done_with(|| format!("looking for the kernel {name}"))?;
                Function {
                    handle,
                    shared_bytes: PLAIN_SHARED,
                }
            }
        };
        if shared_bytes > function.shared_bytes {
            let attribute =
                sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function belongs to the module.
            unsafe {
                sys::cuFuncSetAttribute(function.handle, attribute, shared_bytes as i32).result()
            }
            .done_with(|| format!("giving {name} {shared_bytes} bytes of shared memory"))?;
            function.shared_bytes = shared_bytes;
        }
        functions.insert(name.to_owned(), function);
        Ok(function.handle)
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: loaded by `load`; the stream has ended. A failure leaves nothing to be done.
            let _ = unsafe { result::module::unload(self.handle) };
        }
    }
}

fn no_kernels(description: &Description, images: &KernelImages, error: &Error) -> Error {
    let (major, minor) = description.capability;
    let names: Vec<&str> = images.cubins.iter().map(|(name, _)| *name).collect();
    Error::Unavailable(format!(
        "{} has compute capability {major}.{minor}, for which no kernels are compiled (there are {}), \
         and they could not be compiled now: {error}",
        description.name,
        names.join(", ")
    ))
}

/// A program of NVRTC's, destroyed in the end.
struct Program(nvrtc::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: created, and destroyed here alone.
        let _ = unsafe { nvrtc::nvrtcDestroyProgram(&raw mut self.0) };
    }
}

/// Compiles the sources for one architecture. Needs no device.
pub(super) fn compile(images: &KernelImages, architecture: &str) -> Result<Vec<u8>> {
    libraries::nvrtc()?;
    let text = |text: &str| {
        CString::new(text).map_err(|_| Error::Failed("a source with a zero byte".to_owned()))
    };
    let name = text(images.main.0)?;
    let source = text(images.main.1)?;
    let mut header_names = Vec::new();
    let mut header_texts = Vec::new();
    for (name, contents) in images.headers {
        header_names.push(text(name)?);
        header_texts.push(text(contents)?);
    }
    let pointers = |texts: &[CString]| -> Vec<*const c_char> {
        texts.iter().map(|text| text.as_ptr()).collect()
    };
    let (names, texts) = (pointers(&header_names), pointers(&header_texts));
    let mut program = Program(std::ptr::null_mut());
    // SAFETY: all texts live through the call.
    let status = unsafe {
        nvrtc::nvrtcCreateProgram(
            &raw mut program.0,
            source.as_ptr(),
            name.as_ptr(),
            names.len() as i32,
            texts.as_ptr(),
            names.as_ptr(),
        )
    };
    nvrtc_done(status, "reading the kernels")?;
    let options = [
        text(&format!("--gpu-architecture={architecture}"))?,
        text("--std=c++17")?,
    ];
    let options = pointers(&options);
    // SAFETY: the program was created; the options live through the call.
    let status =
        unsafe { nvrtc::nvrtcCompileProgram(program.0, options.len() as i32, options.as_ptr()) };
    if status != nvrtc::nvrtcResult::NVRTC_SUCCESS {
        return Err(Error::Failed(format!(
            "compiling the kernels for {architecture}: {}",
            log(&program)
        )));
    }
    let mut n_bytes = 0;
    nvrtc_done(
        // SAFETY: writes one number.
        unsafe { nvrtc::nvrtcGetCUBINSize(program.0, &raw mut n_bytes) },
        "asking for the compiled kernels",
    )?;
    let mut cubin = vec![0u8; n_bytes];
    nvrtc_done(
        // SAFETY: there is room for as many bytes as it said.
        unsafe { nvrtc::nvrtcGetCUBIN(program.0, cubin.as_mut_ptr().cast()) },
        "asking for the compiled kernels",
    )?;
    Ok(cubin)
}

fn nvrtc_done(status: nvrtc::nvrtcResult, doing: &str) -> Result<()> {
    match status {
        nvrtc::nvrtcResult::NVRTC_SUCCESS => Ok(()),
        other => Err(Error::Failed(format!("{doing}: {other:?}"))),
    }
}

/// What the compiler had to say.
fn log(program: &Program) -> String {
    let mut n_bytes = 0;
    // SAFETY: writes one number.
    let status = unsafe { nvrtc::nvrtcGetProgramLogSize(program.0, &raw mut n_bytes) };
    if status != nvrtc::nvrtcResult::NVRTC_SUCCESS {
        return "no log".to_owned();
    }
    let mut text = vec![0u8; n_bytes];
    // SAFETY: there is room for as many bytes as it said.
    let status = unsafe { nvrtc::nvrtcGetProgramLog(program.0, text.as_mut_ptr().cast()) };
    match status {
        nvrtc::nvrtcResult::NVRTC_SUCCESS => String::from_utf8_lossy(&text)
            .trim_end_matches('\0')
            .trim()
            .to_owned(),
        _ => "no log".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::IMAGES;
    use super::*;

    #[test]
    fn a_cubin_is_chosen_by_what_it_runs_on() {
        let ours = || IMAGES.cubins.iter().map(|(name, _)| *name);
        assert_eq!(choose((9, 0), ours()), Choice::Cubin("sm_90a"));
        assert_eq!(choose((8, 0), ours()), Choice::Cubin("sm_80"));
        assert_eq!(choose((8, 9), ours()), Choice::Cubin("sm_80"));
        // Neither newer nor older ones.
        for capability in [(7, 5), (10, 0), (12, 0), (9, 5)] {
            assert_eq!(
                choose(capability, ours()),
                Choice::Compile,
                "{capability:?}"
            );
        }
        let several = || ["sm_80", "sm_86", "sm_90", "sm_90a", "compute_90", "sm_x"].into_iter();
        assert_eq!(choose((8, 9), several()), Choice::Cubin("sm_86"));
        assert_eq!(choose((9, 0), several()), Choice::Cubin("sm_90a"));
        assert_eq!(choose((9, 5), several()), Choice::Cubin("sm_90"));
    }

    #[test]
    fn every_cubin_holds_every_kernel() {
        let kernels = IMAGES
            .main
            .1
            .lines()
            .filter_map(|line| line.strip_prefix("KERNEL("))
            .filter_map(|line| line.split(',').next());
        for kernel in kernels {
            for (architecture, cubin) in IMAGES.cubins {
                let name = format!(".text.{kernel}\0");
                assert!(
                    cubin
                        .windows(name.len())
                        .any(|bytes| bytes == name.as_bytes()),
                    "{kernel} in {architecture}"
                );
            }
        }
    }

    /// Where there is no NVRTC, it says so, and nothing else goes wrong.
    #[test]
    fn sources_compile_for_architectures_without_a_cubin() {
        for architecture in ["sm_90", "sm_120"] {
            match compile(&IMAGES, architecture) {
                Ok(cubin) => {
                    assert_eq!(&cubin[..4], b"\x7fELF", "{architecture}");
                    let name = b".text.attend_64_bf16\0";
                    assert!(cubin.windows(name.len()).any(|bytes| bytes == name));
                }
                Err(Error::Unavailable(what)) => {
                    assert!(what.starts_with("NVRTC was not found"), "{what}");
                    println!("not compiled for {architecture}: {what}");
                }
                Err(other) => panic!("{architecture}: {other}"),
            }
        }
    }
}
