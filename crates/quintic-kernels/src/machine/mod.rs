//! What this machine can do at most: arithmetic in registers, and reading memory.
//!
//! A kernel's speed means little by itself; its share of these limits says how much is left.
//! Everything here is measured, never looked up: clocks and memory differ between machines
//! of one name, and inside one machine with the load of its neighbours.

mod bandwidth;
#[cfg(target_arch = "x86_64")]
mod peaks_x86;

#[cfg(not(target_arch = "x86_64"))]
use std::hint::black_box;
use std::num::NonZeroUsize;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use crate::Isa;

pub use bandwidth::{Pages, ReadBuffer};

/// Work a second, over repetitions of one measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// The fastest repetition: what the machine can do when it is left alone.
    pub best: f64,
    /// The median repetition.
    pub median: f64,
}

/// How often and how long each figure is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Repetitions; one more, not counted, comes first.
    pub repetitions: usize,
    /// Length of a repetition.
    pub duration: Duration,
}

impl Default for Effort {
    /// Seven repetitions of 50 ms.
    fn default() -> Self {
        Effort {
            repetitions: 7,
            duration: Duration::from_millis(50),
        }
    }
}

/// Runs `iterations` of a loop and returns the work done.
type Loop = fn(iterations: u64) -> f64;

/// One kind of multiply-add. A multiply-add is two operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unit {
    /// f32, as wide as the target's baseline: on x86-64 128 bits, not fused.
    PortableF32,
    /// f32, 256 bits wide, fused.
    Avx2F32,
    /// f32, 512 bits wide, fused.
    Avx512F32,
    /// Dot products of bf16 pairs into f32, 512 bits wide.
    Avx512Bf16,
    /// Dot products of four 8-bit integers into 32 bits, 512 bits wide.
    Avx512Vnni,
    /// Tile products of bf16 into f32.
    AmxBf16,
}

impl Unit {
    /// All of them.
    pub const ALL: [Unit; 6] = [
        Unit::PortableF32,
        Unit::Avx2F32,
        Unit::Avx512F32,
        Unit::Avx512Bf16,
        Unit::Avx512Vnni,
        Unit::AmxBf16,
    ];

    /// What a report calls it.
    pub fn name(self) -> &'static str {
        match self {
            Unit::PortableF32 => "portable f32",
            Unit::Avx2F32 => "avx2 f32",
            Unit::Avx512F32 => "avx512 f32",
            Unit::Avx512Bf16 => "avx512 bf16",
            Unit::Avx512Vnni => "avx512 vnni int8",
            Unit::AmxBf16 => "amx bf16",
        }
    }

    /// The unit that f32 products of an instruction set run on.
    pub fn of_f32(isa: Isa) -> Unit {
        match isa {
            Isa::Portable => Unit::PortableF32,
            Isa::Avx2 => Unit::Avx2F32,
            Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => Unit::Avx512F32,
        }
    }

    /// The unit that bf16 products of an instruction set run on; `None` where it is not
    /// measured.
    pub fn of_bf16(isa: Isa) -> Option<Unit> {
        match isa {
            Isa::Avx512Bf16 => Some(Unit::Avx512Bf16),
            Isa::Amx => Some(Unit::AmxBf16),
            // Without bf16 products these are f32 products.
            isa => Some(Unit::of_f32(isa)),
        }
    }

    /// The loop that keeps the unit busy; `None` if this machine does not have it.
    fn busy_loop(self) -> Option<Loop> {
        match self {
            #[cfg(target_arch = "x86_64")]
            unit => peaks_x86::busy_loop(unit),
            #[cfg(not(target_arch = "x86_64"))]
            Unit::PortableF32 => Some(portable_f32),
            #[cfg(not(target_arch = "x86_64"))]
            _ => None,
        }
    }

    /// Operations a second of all `threads` together, from registers; `None` if this machine
    /// does not have the unit.
    pub fn peak(self, threads: NonZeroUsize, effort: Effort) -> Option<Rate> {
        let busy = self.busy_loop()?;
        let iterations = iterations_for(effort.duration, 1000, |iterations| {
            busy(iterations);
        });
        Some(rate(threads, effort.repetitions, |_| busy(iterations)))
    }
}

#[cfg(not(target_arch = "x86_64"))]
/// Plain loops over twelve registers of the baseline, as wide as they may be.
fn portable_f32(iterations: u64) -> f64 {
    const SUMS: usize = 6;
    const LANES: usize = 8;
    let (factor, term) = (black_box(0.999f32), black_box(1e-3f32));
    let mut sums = [[0f32; LANES]; SUMS];
    for _ in 0..iterations {
        for sum in &mut sums {
            for lane in sum {
                *lane = *lane * factor + term;
            }
        }
    }
    black_box(sums);
    (iterations * (SUMS * LANES) as u64 * 2) as f64
}

/// Iterations that take about `duration` on this thread; `first` are tried first.
fn iterations_for(duration: Duration, first: u64, run: impl Fn(u64)) -> u64 {
    let mut iterations = first;
    loop {
        let started = Instant::now();
        run(iterations);
        let took = started.elapsed();
        if took * 8 >= duration || iterations >= 1 << 40 {
            let scale = duration.as_secs_f64() / took.as_secs_f64().max(1e-9);
            return ((iterations as f64 * scale) as u64).max(1);
        }
        iterations *= 4;
    }
}

/// Runs `work(thread)`, which returns the work it did, on `threads` threads that start
/// together; the clock runs from the first start to the last end.
fn rate(threads: NonZeroUsize, repetitions: usize, work: impl Fn(usize) -> f64 + Sync) -> Rate {
    let start = Barrier::new(threads.get());
    let runs: Vec<Vec<(Instant, Instant, f64)>> = std::thread::scope(|scope| {
        let (start, work) = (&start, &work);
        let running: Vec<_> = (0..threads.get())
            .map(|thread| {
                scope.spawn(move || {
                    pin(thread);
                    let repetition = |_| {
                        start.wait();
                        let from = Instant::now();
                        let done = work(thread);
                        (from, Instant::now(), done)
                    };
                    (0..=repetitions).map(repetition).collect()
                })
            })
            .collect();
        running
            .into_iter()
            .map(|thread| match thread.join() {
                Ok(runs) => runs,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect()
    });
    let mut rates: Vec<f64> = (1..=repetitions)
        .map(|repetition| {
            let runs = || runs.iter().map(|runs: &Vec<_>| runs[repetition]);
            let from = runs().map(|(from, ..)| from).min();
            let to = runs().map(|(_, to, _)| to).max();
            let work: f64 = runs().map(|(.., work)| work).sum();
            match (from, to) {
                (Some(from), Some(to)) => work / (to - from).as_secs_f64().max(1e-9),
                _ => 0.0,
            }
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    Rate {
        best: rates.last().copied().unwrap_or(0.0),
        median: rates.get(rates.len() / 2).copied().unwrap_or(0.0),
    }
}

/// Keeps the calling thread on the `idx`-th of the CPUs that it may use: two threads on one
/// core would measure half a machine. Left as it is where that cannot be done.
#[cfg(target_os = "linux")]
fn pin(idx: usize) {
    // SAFETY: a CPU set is plain bits, for which zeros are valid; the calls read and write
    // nothing but the set, whose size they are given; 0 is the calling thread.
    unsafe {
        let mut allowed: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut allowed) != 0 {
            return;
        }
        let cpus: Vec<usize> = (0..libc::CPU_SETSIZE as usize)
            .filter(|&cpu| libc::CPU_ISSET(cpu, &allowed))
            .collect();
        if cpus.is_empty() {
            return;
        }
        let mut one: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpus[idx % cpus.len()], &mut one);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &one);
    }
}

#[cfg(not(target_os = "linux"))]
fn pin(_idx: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Effort = Effort {
        repetitions: 3,
        duration: Duration::from_millis(1),
    };

    /// Nothing is said about how fast: only that every available unit runs, and that a
    /// missing one is not run.
    #[test]
    fn units_run_where_their_instruction_set_is() {
        let two = NonZeroUsize::new(2).unwrap();
        for unit in Unit::ALL {
            let needed = match unit {
                Unit::PortableF32 => Some(Isa::Portable),
                Unit::Avx2F32 => Some(Isa::Avx2),
                Unit::Avx512F32 => Some(Isa::Avx512),
                Unit::Avx512Bf16 => Some(Isa::Avx512Bf16),
                Unit::AmxBf16 => Some(Isa::Amx),
                Unit::Avx512Vnni => None,
            };
            let rate = unit.peak(two, QUICK);
            if let Some(isa) = needed {
                assert_eq!(rate.is_some(), isa.is_available(), "{unit:?}");
            }
            if let Some(rate) = rate {
                assert!(rate.median > 0.0, "{unit:?}");
                assert!(rate.best >= rate.median && rate.best.is_finite());
            }
        }
    }

    #[test]
    fn the_clock_runs_from_the_first_start_to_the_last_end() {
        let three = NonZeroUsize::new(3).unwrap();
        let slept = Duration::from_millis(2);
        let rate = rate(three, 3, |thread| {
            std::thread::sleep(slept * thread as u32);
            1.0
        });
        // Three units of work in no less than twice the sleep.
        assert!(rate.best <= 3.0 / (2.0 * slept.as_secs_f64()));
    }

    #[test]
    fn every_instruction_set_has_its_units() {
        assert_eq!(Unit::of_f32(Isa::Amx), Unit::Avx512F32);
        assert_eq!(Unit::of_bf16(Isa::Avx2), Some(Unit::Avx2F32));
        assert_eq!(Unit::of_bf16(Isa::Avx512Bf16), Some(Unit::Avx512Bf16));
    }
}
