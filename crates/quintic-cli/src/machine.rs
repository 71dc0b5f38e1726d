//! What this machine has: instruction sets, cores, caches, memory.

use quintic::{Error, Result};
use quintic_kernels::{ISA_VARIABLE, Isa};
use serde_json::{Map, Value, json};

use crate::memory;
use crate::show::size;

/// The instruction set that kernels use.
///
/// # Errors
///
/// [`ErrorKind::Unsupported`](quintic::ErrorKind::Unsupported) if `QUINTIC_ISA` names one that
/// there is not, or not here.
pub(crate) fn isa() -> Result<Isa> {
    Isa::choose().map_err(|e| {
        Error::unsupported(e.to_string()).at(format!("environment variable `{ISA_VARIABLE}`"))
    })
}

/// Cores that this process may use.
pub(crate) fn n_cores() -> std::num::NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(std::num::NonZeroUsize::MIN)
}

/// Everything `inspect --machine` says.
///
/// # Errors
///
/// As [`isa`].
pub(crate) fn report() -> Result<Map<String, Value>> {
    let chosen = isa()?;
    let forced = std::env::var(ISA_VARIABLE).is_ok_and(|name| !name.is_empty());
    let why = match forced {
        true => format!("named by {ISA_VARIABLE}"),
        false => "the best one that this machine has".to_owned(),
    };
    let available: Vec<_> = Isa::available().into_iter().map(Isa::name).collect();
    let mut report = Map::new();
    let mut say = |name: &str, value: Value| report.insert(name.to_owned(), value);
    if let Some(cpu) = cpu() {
        say("cpu", json!(cpu));
    }
    say("instruction_sets", json!(available));
    say("chosen", json!(chosen.name()));
    say("chosen_because", json!(why));
    say("cores", json!(n_cores()));
    say("cuda", cuda());
    let caches = caches();
    if !caches.is_empty() {
        say("caches", Value::Object(caches));
    }
    let memory = [
        ("total_bytes", memory::total_bytes()),
        ("available_bytes", memory::available_bytes()),
    ];
    let memory: Map<String, Value> = memory
        .into_iter()
        .filter_map(|(name, bytes)| Some((name.to_owned(), json!(bytes?))))
        .collect();
    if !memory.is_empty() {
        say("memory", Value::Object(memory));
    }
    Ok(report)
}

/// The CUDA devices, or why there are none.
fn cuda() -> Value {
    match quintic::backend::cuda::devices() {
        Ok(devices) => devices
            .iter()
            .map(|device| {
                let (major, minor) = device.capability;
                format!(
                    "cuda:{}: {}, compute capability {major}.{minor}, {}",
                    device.ordinal,
                    device.name,
                    size(device.memory_bytes)
                )
            })
            .collect(),
        Err(error) => json!(error.message()),
    }
}

fn cpu() -> Option<String> {
    let list = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = list.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Caches of the first core, innermost first, such as `L1 data: 32 KiB`. Empty where the
/// system does not list them.
fn caches() -> Map<String, Value> {
    let mut caches = Map::new();
    for idx in 0.. {
        let read = |file: &str| {
            let path = format!("/sys/devices/system/cpu/cpu0/cache/index{idx}/{file}");
            Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
        };
        let (Some(level), Some(size)) = (read("level"), read("size")) else {
            break;
        };
        let kind = match read("type").as_deref() {
            Some("Data") => " data",
            Some("Instruction") => " instructions",
            _ => "",
        };
        let shared = match read("shared_cpu_list") {
            Some(cores) if cores.contains(['-', ',']) => format!(", shared by cores {cores}"),
            _ => String::new(),
        };
        let size = match size.strip_suffix('K') {
            Some(kibibytes) => format!("{kibibytes} KiB"),
            None => size,
        };
        caches.insert(format!("L{level}{kind}"), json!(format!("{size}{shared}")));
    }
    caches
}
