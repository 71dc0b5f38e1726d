//! What the process has used, and what the machine has.

/// Largest resident set so far in bytes, memory-mapped pages included; `None` where the
/// system does not say.
pub(crate) fn peak_rss_bytes() -> Option<u64> {
    field("/proc/self/status", "VmHWM:")
}

/// Resident set in bytes.
pub(crate) fn rss_bytes() -> Option<u64> {
    field("/proc/self/status", "VmRSS:")
}

/// The machine's memory in bytes.
pub(crate) fn total_bytes() -> Option<u64> {
    field("/proc/meminfo", "MemTotal:")
}

/// Memory in bytes that can be had without pushing anything out.
pub(crate) fn available_bytes() -> Option<u64> {
    field("/proc/meminfo", "MemAvailable:")
}

/// A figure in kibibytes from one of the system's lists.
fn field(list: &str, label: &str) -> Option<u64> {
    let list = std::fs::read_to_string(list).ok()?;
    let line = list.lines().find_map(|line| line.strip_prefix(label))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}
