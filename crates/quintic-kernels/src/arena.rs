//! Memory for what stays and is read in every pass, such as weights, on huge pages.
//!
//! On pages of 4 KiB, page walks take a tenth to a third of the rate at which memory is read. A mapping
//! gets huge pages only where it is advised before it is touched, which an allocator that hands out zeros
//! by writing them has no chance to; and most matrices of a small model are smaller than a huge page, so
//! that they have to share some.

use std::alloc::handle_alloc_error;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::MmapMut;

use crate::memory::Buffer;

/// Size and alignment of a huge page.
const HUGE: usize = 2 << 20;

/// What one mapping holds of smaller buffers. What nobody has written to takes addresses, not memory.
const SLAB: usize = 64 << 20;

/// A mapping that buffers share; it is given back with the last of them.
#[derive(Debug)]
pub(crate) struct Slab {
    /// Keeps the memory. Never borrowed: buffers have the addresses of their parts.
    _mapping: MmapMut,
    /// The first huge page.
    start: NonNull<u8>,
}

// SAFETY: the address by itself is only a number; a buffer answers for the bytes that are its own.
unsafe impl Send for Slab {}
// SAFETY: as above.
unsafe impl Sync for Slab {}

impl Slab {
    /// Room for `n_bytes` zeros; `None` if the system has none.
    fn new(n_bytes: usize) -> Option<Self> {
        let mut mapping = MmapMut::map_anon(n_bytes.checked_add(HUGE)?).ok()?;
        // Refusal costs speed only.
        #[cfg(target_os = "linux")]
        let _ = mapping.advise(memmap2::Advice::HugePage);
        let first = mapping.as_mut_ptr();
        let start = NonNull::new(first.wrapping_add(first.align_offset(HUGE)))?;
        Some(Slab {
            _mapping: mapping,
            start,
        })
    }
}

/// Hands out parts of slabs. Buffers do not come back one by one: a slab ends with its last buffer.
#[derive(Debug, Default)]
pub(crate) struct Arena {
    /// The slab that is being filled, and how many of its bytes are taken.
    current: Mutex<Option<(Arc<Slab>, usize)>>,
}

impl Arena {
    /// `n_bytes` zeros. Their pages get a place in memory from the thread that first writes to them.
    ///
    /// # Panics
    ///
    /// If the size does not fit into `isize`. Running out of memory ends the process, as it does for
    /// a `Vec`.
    pub(crate) fn zeroed(&self, n_bytes: usize) -> Buffer {
        let layout = Buffer::layout(n_bytes);
        let n_bytes = layout.size();
        let new = |room| match Slab::new(room) {
            Some(slab) => Arc::new(slab),
            None => handle_alloc_error(layout),
        };
        if n_bytes > SLAB / 8 {
            let slab = new(n_bytes);
            let start = slab.start;
            // SAFETY: the slab was made for this buffer.
            return unsafe { Buffer::of_slab(slab, start, n_bytes) };
        }
        // What is locked is replaced whole, so a panic elsewhere leaves nothing half done.
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let (slab, taken) = match current.take() {
            Some((slab, taken)) if taken + n_bytes <= SLAB => (slab, taken),
            _ => (new(SLAB), 0),
        };
        *current = Some((Arc::clone(&slab), taken + n_bytes));
        // SAFETY: inside the slab; sizes are whole lines, so every part is aligned.
        let start = unsafe { slab.start.add(taken) };
        // SAFETY: the mapping is of zeros, and nobody was given these bytes.
        unsafe { Buffer::of_slab(slab, start, n_bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ALIGNMENT;

    #[test]
    fn buffers_are_zeroed_aligned_and_apart() {
        let arena = Arena::default();
        let sizes = [0, 1, 64, 65, HUGE - 1, HUGE + 1, SLAB / 8, SLAB / 8 + 1];
        let mut buffers: Vec<Buffer> = (0..12)
            .flat_map(|_| sizes.map(|n| arena.zeroed(n)))
            .collect();
        for (number, buffer) in buffers.iter_mut().enumerate() {
            assert!(buffer.bytes().len() >= sizes[number % sizes.len()]);
            assert_eq!(buffer.as_mut_ptr() as usize % ALIGNMENT, 0);
            assert!(buffer.bytes().iter().all(|&byte| byte == 0));
            let n = buffer.bytes().len();
            // SAFETY: inside the buffer, which nobody else has.
            unsafe { buffer.as_mut_ptr().write_bytes(number as u8 + 1, n) };
        }
        drop(arena);
        for (number, buffer) in buffers.iter().enumerate() {
            assert!(buffer.bytes().iter().all(|&byte| byte == number as u8 + 1));
        }
    }

    #[test]
    fn a_slab_lives_as_long_as_a_buffer_of_it() {
        let arena = Arena::default();
        let (first, second) = (arena.zeroed(100), arena.zeroed(100));
        let slab = |arena: &Arena| {
            let current = arena.current.lock().unwrap();
            Arc::downgrade(&current.as_ref().unwrap().0)
        };
        let slab = slab(&arena);
        drop((arena, first));
        assert!(slab.upgrade().is_some());
        drop(second);
        assert!(slab.upgrade().is_none());
    }

    /// KiB on huge pages in the mapping that holds `address`, as the system counts them.
    #[cfg(target_os = "linux")]
    fn huge_kib(address: usize) -> u64 {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        for line in smaps.lines() {
            let range = line.split(' ').next().and_then(|range| {
                let (start, end) = range.split_once('-')?;
                let hex = |text| usize::from_str_radix(text, 16).ok();
                Some(hex(start)?..hex(end)?)
            });
            if let Some(range) = range {
                inside = range.contains(&address);
            } else if let (true, Some(rest)) = (inside, line.strip_prefix("AnonHugePages:")) {
                return rest.trim().trim_end_matches(" kB").parse().unwrap();
            }
        }
        panic!("no mapping of {address:#x}")
    }

    /// Advice that comes after the first touch changes nothing, which no other test would notice.
    #[test]
    #[cfg(target_os = "linux")]
    fn buffers_are_on_huge_pages_where_the_system_has_them() {
        const PAGES: usize = 16;
        let mut plain = MmapMut::map_anon((PAGES + 1) * HUGE).unwrap();
        if plain.advise(memmap2::Advice::HugePage).is_err() {
            return; // a system without them
        }
        plain.fill(1);
        let arena = Arena::default();
        let mut buffers: Vec<Buffer> = (0..2 * PAGES).map(|_| arena.zeroed(HUGE / 2)).collect();
        for buffer in &mut buffers {
            // SAFETY: inside the buffer, which nobody else has.
            unsafe { buffer.as_mut_ptr().write_bytes(1, HUGE / 2) };
        }
        // Memory may be in pieces; then the system has none to give to anybody.
        let (here, there) = (buffers[0].as_ptr() as usize, plain.as_ptr() as usize);
        assert!(huge_kib(here) > 0 || huge_kib(there) == 0);
    }
}
