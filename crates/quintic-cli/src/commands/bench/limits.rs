//! What this machine can do at most, measured.

use std::num::NonZeroUsize;

use quintic::{Compute, ComputeType, Error, MatmulPrecision, Result, WeightType};
use quintic_kernels::Isa;
use quintic_kernels::machine::{Effort, Pages, Rate, ReadBuffer, Unit};
use serde_json::{Value, json};

use crate::memory;
use crate::sink::print;

/// The unit that products run on, and how many of its products make one of ours; `None` if it
/// is not measured.
pub(super) fn unit(isa: Isa, compute: &Compute) -> Option<(Unit, f64)> {
    // Most products are of bytes, whose peak is not measured.
    if compute.weights == WeightType::W8A8 {
        return None;
    }
    match (compute.dtype, compute.matmul_precision) {
        (ComputeType::F32, MatmulPrecision::High) if isa == Isa::Amx => {
            Some((Unit::of_bf16(isa)?, 3.0))
        }
        (ComputeType::Bf16, _) | (ComputeType::F32, MatmulPrecision::Medium) => {
            Some((Unit::of_bf16(isa)?, 1.0))
        }
        (ComputeType::F32 | ComputeType::F16, _) => Some((Unit::of_f32(isa), 1.0)),
    }
}

/// Bytes of the largest buffer: `mebibytes`, or less where memory is short.
fn large_buffer(mebibytes: NonZeroUsize) -> usize {
    let wanted = mebibytes.get().saturating_mul(1 << 20);
    match memory::available_bytes().map(|bytes| usize::try_from(bytes / 4)) {
        Some(Ok(share)) => wanted.min(share),
        _ => wanted,
    }
}

/// Memory as large as what a pass reads, to be read between passes: how fast that goes depends on the
/// size, since an outer cache may hold a part of it, and on what the machine's other users do.
pub(super) struct Reading {
    buffer: ReadBuffer,
    threads: NonZeroUsize,
    rates: Vec<f64>,
}

impl Reading {
    /// A buffer of `bytes` in huge pages, or of `mebibytes` if that is less.
    pub(super) fn new(bytes: u64, threads: NonZeroUsize, mebibytes: NonZeroUsize) -> Result<Self> {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        Ok(Reading {
            buffer: buffer(bytes.min(large_buffer(mebibytes)), Pages::Huge, threads)?,
            threads,
            rates: Vec::new(),
        })
    }

    /// Reads for a tenth of a second; after so many samples it does nothing.
    pub(super) fn sample(&mut self) {
        const SAMPLES: usize = 9;
        let effort = Effort {
            repetitions: 1,
            ..Effort::default()
        };
        if self.rates.len() < SAMPLES {
            let bytes = self.buffer.n_bytes();
            let rate = self.buffer.read(bytes, self.threads, effort);
            self.rates.push(rate.median);
        }
    }

    /// The median rate in bytes a second; `None` if nothing was read.
    pub(super) fn median(mut self) -> Option<f64> {
        self.rates.sort_by(f64::total_cmp);
        (!self.rates.is_empty()).then(|| super::median(&self.rates))
    }
}

fn buffer(bytes: usize, pages: Pages, threads: NonZeroUsize) -> Result<ReadBuffer> {
    ReadBuffer::new(bytes, pages, threads).ok_or_else(|| {
        Error::unsupported(format!(
            "the system has no {bytes} bytes of memory to measure reading with"
        ))
    })
}

struct Peak {
    unit: Unit,
    threads: NonZeroUsize,
    rate: Rate,
}

struct Read {
    what: String,
    bytes: usize,
    pages: Pages,
    threads: NonZeroUsize,
    rate: Rate,
}

/// `bench --machine`.
pub(super) fn run(threads: NonZeroUsize, mebibytes: NonZeroUsize, as_json: bool) -> Result<()> {
    let mut counts = vec![NonZeroUsize::MIN, threads];
    counts.dedup();
    let mut peaks = Vec::new();
    for &threads in &counts {
        for unit in Unit::ALL {
            if let Some(rate) = unit.peak(threads, Effort::default()) {
                if !as_json {
                    print(&peak_line(unit, threads, rate))?;
                }
                peaks.push(Peak {
                    unit,
                    threads,
                    rate,
                });
            }
        }
    }
    let large = large_buffer(mebibytes);
    let mut reads = Vec::new();
    for pages in [Pages::Huge, Pages::Small] {
        let memory = buffer(large, pages, threads)?;
        for &threads in &counts {
            for (what, bytes) in sizes(pages, threads, large) {
                let rate = memory.read(bytes, threads, Effort::default());
                let read = Read {
                    what,
                    bytes,
                    pages,
                    threads,
                    rate,
                };
                if !as_json {
                    print(&read_line(&read))?;
                }
                reads.push(read);
            }
        }
    }
    if as_json {
        print(&report(&peaks, &reads))?;
    }
    Ok(())
}

/// What is read: sizes for each level of the caches, and one for memory. Pages matter for the
/// last alone.
fn sizes(pages: Pages, threads: NonZeroUsize, large: usize) -> Vec<(String, usize)> {
    let n = threads.get();
    let mut sizes = Vec::new();
    if pages == Pages::Huge {
        for (name, per_thread) in [
            ("32 KiB a thread", 32 << 10),
            ("1 MiB a thread", 1 << 20),
            ("16 MiB a thread", 16 << 20),
        ] {
            if n * per_thread <= large {
                sizes.push((name.to_owned(), n * per_thread));
            }
        }
    }
    sizes.push((format!("{} MiB in all", large >> 20), large));
    sizes
}

fn peak_line(unit: Unit, threads: NonZeroUsize, rate: Rate) -> String {
    let what = match unit {
        Unit::Avx512Vnni => "GOP/s",
        _ => "GFLOP/s",
    };
    row(unit.name(), threads, rate, what)
}

fn read_line(read: &Read) -> String {
    let what = format!("read {}, {} pages", read.what, pages_name(read.pages));
    row(&what, read.threads, read.rate, "GB/s")
}

fn row(what: &str, threads: NonZeroUsize, rate: Rate, unit: &str) -> String {
    format!(
        "{what:34}  threads {threads:<3}  best {:9.1}  median {:9.1}  {unit}",
        rate.best / 1e9,
        rate.median / 1e9
    )
}

fn pages_name(pages: Pages) -> &'static str {
    match pages {
        Pages::Huge => "huge",
        Pages::Small => "small",
    }
}

fn report(peaks: &[Peak], reads: &[Read]) -> Value {
    let peaks: Vec<Value> = peaks
        .iter()
        .map(|peak| {
            json!({
                "unit": peak.unit.name(),
                "threads": peak.threads,
                "best_gops": peak.rate.best / 1e9,
                "median_gops": peak.rate.median / 1e9,
            })
        })
        .collect();
    let reads: Vec<Value> = reads
        .iter()
        .map(|read| {
            json!({
                "bytes": read.bytes,
                "pages": pages_name(read.pages),
                "threads": read.threads,
                "best_gb_per_s": read.rate.best / 1e9,
                "median_gb_per_s": read.rate.median / 1e9,
            })
        })
        .collect();
    json!({ "peaks": peaks, "reads": reads })
}
