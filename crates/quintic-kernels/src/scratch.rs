//! Memory that workers keep between operations.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::memory::Buffer;

/// Memory of one worker, kept between operations.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    room: Option<Buffer>,
    section: Option<Buffer>,
    /// Memory that all workers of an operation share, while none has it.
    shared: Option<Buffer>,
}

impl Scratch {
    /// Room for `n` f32, contents unspecified.
    pub(crate) fn f32(&mut self, n: usize) -> *mut f32 {
        grown(&mut self.room, n)
    }

    /// Memory of at least so many bytes, with whatever was in it.
    pub(crate) fn take_shared(&mut self, n_bytes: usize) -> Buffer {
        match self.shared.take() {
            Some(buffer) if buffer.bytes().len() >= n_bytes => buffer,
            _ => Buffer::zeroed(n_bytes),
        }
    }

    /// Keeps it for the next operation.
    pub(crate) fn give_shared(&mut self, buffer: Buffer) {
        self.shared = Some(buffer);
    }

    /// Room for a section of a product's result, `n` f32, beside that of [`Scratch::f32`].
    pub(crate) fn section(&mut self, n: usize) -> *mut f32 {
        grown(&mut self.section, n)
    }
}

fn grown(buffer: &mut Option<Buffer>, n: usize) -> *mut f32 {
    let n_bytes = n * 4;
    if buffer
        .as_ref()
        .is_none_or(|buffer| buffer.bytes().len() < n_bytes)
    {
        *buffer = Some(Buffer::zeroed(n_bytes));
    }
    match buffer {
        Some(buffer) => buffer.as_mut_ptr().cast(),
        None => unreachable!("just allocated"),
    }
}

/// The scratch of a worker. Workers of a pool never share a number at a time, so there is
/// nothing to wait for.
pub(crate) fn scratch_of(scratch: &[Mutex<Scratch>], worker: usize) -> MutexGuard<'_, Scratch> {
    scratch[worker]
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}
