//! How fast memory is read.

use std::alloc::{Layout, alloc, dealloc};
use std::hint::black_box;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use super::{Effort, Rate, iterations_for, rate};
#[cfg(target_arch = "x86_64")]
use crate::Isa;

/// Which pages a buffer asks the system for. It may not get them: this is advice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pages {
    /// Large pages, 2 MiB on x86-64.
    Huge,
    /// The smallest pages.
    Small,
}

/// Size and alignment of a huge page.
const HUGE_PAGE: usize = 2 << 20;

/// Bytes of one step of the reading loops.
const STEP: usize = 512;

/// Memory to read.
pub struct ReadBuffer {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the memory is the buffer's own, written once in `new` and only read after.
unsafe impl Sync for ReadBuffer {}

impl ReadBuffer {
    /// At least `bytes` of memory, every page of it written once, by `threads` threads, each
    /// the part that it will read; `None` if there is not as much.
    pub fn new(bytes: usize, pages: Pages, threads: NonZeroUsize) -> Option<Self> {
        let bytes = bytes.max(1).checked_next_multiple_of(HUGE_PAGE)?;
        let layout = Layout::from_size_align(bytes, HUGE_PAGE).ok()?;
        // SAFETY: the size is not zero.
        let start = NonNull::new(unsafe { alloc(layout) })?;
        let buffer = ReadBuffer { start, layout };
        advise(start.as_ptr(), bytes, pages);
        let per_thread = buffer.per_thread(bytes, threads);
        rate(threads, 0, |thread| {
            let last = thread + 1 == threads.get();
            let part_bytes = if last {
                bytes - thread * per_thread
            } else {
                per_thread
            };
            // SAFETY: threads write parts that do not overlap and lie inside the allocation;
            // nobody reads yet.
            unsafe { buffer.part(thread, per_thread).write_bytes(1, part_bytes) };
            0.0
        });
        Some(buffer)
    }

    /// Bytes of the buffer.
    pub fn n_bytes(&self) -> usize {
        self.layout.size()
    }

    fn per_thread(&self, bytes: usize, threads: NonZeroUsize) -> usize {
        bytes.min(self.n_bytes()) / threads / STEP * STEP
    }

    fn part(&self, thread: usize, per_thread: usize) -> *mut u8 {
        // SAFETY: no part begins behind the allocation's end.
        unsafe { self.start.as_ptr().add(thread * per_thread) }
    }

    /// Bytes read a second by all `threads` together, which share the first `bytes` of the
    /// buffer and read their parts over and over, once at least.
    pub fn read(&self, bytes: usize, threads: NonZeroUsize, effort: Effort) -> Rate {
        let per_thread = self.per_thread(bytes, threads);
        let read = reader();
        let pass = |thread: usize, passes: u64| {
            for _ in 0..passes {
                // SAFETY: the part lies inside the allocation and was written; the reader's
                // features were detected.
                unsafe { read(self.part(thread, per_thread), per_thread) };
            }
        };
        // One pass of a large buffer is long enough to be measured by itself.
        let passes = if per_thread >= 256 << 20 {
            1
        } else {
            iterations_for(effort.duration, 1, |passes| pass(0, passes))
        };
        rate(threads, effort.repetitions, |thread| {
            pass(thread, passes);
            (per_thread as u64 * passes) as f64
        })
    }
}

impl Drop for ReadBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and not used after.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

#[cfg(target_os = "linux")]
fn advise(start: *mut u8, bytes: usize, pages: Pages) {
    let advice = match pages {
        Pages::Huge => libc::MADV_HUGEPAGE,
        Pages::Small => libc::MADV_NOHUGEPAGE,
    };
    // SAFETY: the range is one allocation of whole pages; advice changes no contents. A
    // system without huge pages refuses, which leaves small ones.
    unsafe { libc::madvise(start.cast(), bytes, advice) };
}

#[cfg(not(target_os = "linux"))]
fn advise(_start: *mut u8, _bytes: usize, _pages: Pages) {}

/// Reads a multiple of [`STEP`] initialised bytes, aligned to it.
type Reader = unsafe fn(*const u8, usize);

/// The widest loads that this machine has.
fn reader() -> Reader {
    #[cfg(target_arch = "x86_64")]
    {
        if Isa::Avx512.is_available() {
            return x86::read_avx512;
        }
        if Isa::Avx2.is_available() {
            return x86::read_avx2;
        }
    }
    read_portable
}

/// # Safety
///
/// As [`Reader`].
unsafe fn read_portable(start: *const u8, bytes: usize) {
    // SAFETY: initialised and aligned, by the caller's word.
    let words = unsafe { std::slice::from_raw_parts(black_box(start).cast::<u64>(), bytes / 8) };
    let mut sums = [0u64; STEP / 8];
    for step in words.chunks_exact(STEP / 8) {
        for (sum, word) in sums.iter_mut().zip(step) {
            *sum ^= word;
        }
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::STEP;

    /// # Safety
    ///
    /// As [`super::Reader`]; AVX512F is available.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn read_avx512(start: *const u8, bytes: usize) {
        let start = black_box(start).cast::<__m512i>();
        let mut sums = [_mm512_setzero_si512(); 4];
        for step in 0..bytes / STEP {
            for load in 0..STEP / 64 {
                // SAFETY: inside the range, by the caller's word.
                let value = unsafe { _mm512_load_si512(start.add(step * (STEP / 64) + load)) };
                sums[load % 4] = _mm512_xor_si512(sums[load % 4], value);
            }
        }
        black_box(sums);
    }

    /// # Safety
    ///
    /// As [`super::Reader`]; AVX2 is available.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn read_avx2(start: *const u8, bytes: usize) {
        let start = black_box(start).cast::<__m256i>();
        let mut sums = [_mm256_setzero_si256(); 8];
        for step in 0..bytes / STEP {
            for load in 0..STEP / 32 {
                // SAFETY: inside the range, by the caller's word.
                let value = unsafe { _mm256_load_si256(start.add(step * (STEP / 32) + load)) };
                sums[load % 8] = _mm256_xor_si256(sums[load % 8], value);
            }
        }
        black_box(sums);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn buffers_are_read_whole_and_in_parts() {
        let effort = Effort {
            repetitions: 2,
            duration: Duration::from_micros(100),
        };
        let threads = NonZeroUsize::new(3).unwrap();
        for pages in [Pages::Huge, Pages::Small] {
            let buffer = ReadBuffer::new(3 << 20, pages, threads).unwrap();
            assert_eq!(buffer.n_bytes(), 4 << 20);
            for bytes in [32 << 10, 1 << 20, usize::MAX] {
                let rate = buffer.read(bytes, threads, effort);
                assert!(rate.median > 0.0 && rate.best.is_finite());
            }
        }
    }

    #[test]
    fn more_memory_than_there_is_gives_none() {
        assert!(ReadBuffer::new(usize::MAX, Pages::Small, NonZeroUsize::MIN).is_none());
        assert!(ReadBuffer::new(1 << 62, Pages::Small, NonZeroUsize::MIN).is_none());
    }

    /// The readers are called with nothing to check but that they stay inside: under them
    /// lies a buffer of exactly this size.
    #[test]
    fn every_reader_takes_the_smallest_range() {
        let buffer = ReadBuffer::new(1, Pages::Small, NonZeroUsize::MIN).unwrap();
        for bytes in [0, STEP, buffer.n_bytes()] {
            // SAFETY: inside the buffer, which was written; available as checked.
            unsafe {
                read_portable(buffer.start.as_ptr(), bytes);
                #[cfg(target_arch = "x86_64")]
                if Isa::Avx2.is_available() {
                    x86::read_avx2(buffer.start.as_ptr(), bytes);
                }
                reader()(buffer.start.as_ptr(), bytes);
            }
        }
    }
}
