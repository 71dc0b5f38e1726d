//! Zeroed, aligned memory.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::Arc;

use crate::arena::Slab;

/// Alignment of every buffer: a cache line, which is also the widest vector.
pub const ALIGNMENT: usize = 64;

/// Bytes that start out as zeros, aligned to [`ALIGNMENT`].
#[derive(Debug)]
pub struct Buffer {
    start: NonNull<u8>,
    n_bytes: usize,
    owner: Owner,
}

/// Who gives the memory back.
#[derive(Debug)]
enum Owner {
    Allocator(Layout),
    /// A slab, which ends with its last buffer.
    Slab(#[expect(dead_code, reason = "held, for the slab to live as long")] Arc<Slab>),
}

// SAFETY: the buffer owns its bytes, as a `Box<[u8]>` would.
unsafe impl Send for Buffer {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// `n_bytes` zeros from the allocator, for what lives as long as an operation or a few: the memory
    /// that the one before gave back is still in a cache. Packed weights are in memory of another kind.
    ///
    /// # Panics
    ///
    /// If the size does not fit into `isize`. Running out of memory ends the process, as it
    /// does for a `Vec`.
    pub fn zeroed(n_bytes: usize) -> Self {
        let layout = Self::layout(n_bytes);
        // SAFETY: the size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else {
            handle_alloc_error(layout)
        };
        Buffer {
            start,
            n_bytes: layout.size(),
            owner: Owner::Allocator(layout),
        }
    }

    /// Part of a slab.
    ///
    /// # Safety
    ///
    /// `n_bytes` from `start` on are zeros inside the slab, aligned to [`ALIGNMENT`], that nobody else uses.
    pub(crate) unsafe fn of_slab(slab: Arc<Slab>, start: NonNull<u8>, n_bytes: usize) -> Self {
        Buffer {
            start,
            n_bytes,
            owner: Owner::Slab(slab),
        }
    }

    /// At least `n_bytes`, in whole lines.
    #[allow(clippy::expect_used)]
    pub(crate) fn layout(n_bytes: usize) -> Layout {
        n_bytes
            .max(1)
            .checked_next_multiple_of(ALIGNMENT)
            .and_then(|size| Layout::from_size_align(size, ALIGNMENT).ok())
            .expect("a size in bytes")
    }

    /// The bytes, rounded up from what was asked for.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: so many bytes from here are the buffer's, initialised with zeros.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.n_bytes) }
    }

    /// The first byte. Writing through it is sound for whoever has the only access to what is
    /// written.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The first byte.
    pub fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Owner::Allocator(layout) = self.owner {
            // SAFETY: allocated by `alloc_zeroed` with this layout.
            unsafe { dealloc(self.start.as_ptr(), layout) }
        }
    }
}

/// Asks for the line at `address` to be brought into the second-level cache. Any address will
/// do: one that is not mapped does nothing.
#[inline(always)]
pub(crate) fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch reads nothing that could be seen.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// A pointer that threads of a pool may share: each writes to elements of its own.
#[derive(Debug)]
pub(crate) struct Shared<T>(*mut T);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<T> {}

// SAFETY: a pointer by itself is only a number; whoever writes through it says why no other
// thread touches the same element.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) fn new(pointer: *mut T) -> Self {
        Shared(pointer)
    }

    /// The pointer itself; a method, so that closures capture the wrapper.
    pub(crate) fn get(self) -> *mut T {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_zeroed_and_aligned() {
        for n_bytes in [0, 1, 63, 64, 65, 4097, 3 << 20] {
            let mut buffer = Buffer::zeroed(n_bytes);
            assert!(buffer.bytes().len() >= n_bytes);
            assert!(buffer.bytes().iter().all(|&byte| byte == 0));
            assert_eq!(buffer.as_mut_ptr() as usize % ALIGNMENT, 0);
        }
    }
}
