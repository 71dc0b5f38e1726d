//! Copies between the host and the device.
//!
//! The driver copies small pieces of ordinary memory by itself, before it returns. Large ones go
//! through two buffers that it can reach without the processor: while one is being copied, the
//! other is filled from (or emptied to) the caller's memory.

use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::result;
use cudarc::driver::sys;

use super::Stream;
use super::status::Done;
use crate::Result;
use crate::device::Address;

/// Bytes of one of the two buffers.
const ROOM: usize = 32 << 20;
/// From here on, copies go through them.
const LARGE: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Staging {
    stream: Arc<Stream>,
    /// Made when it is first needed.
    buffers: Mutex<Option<[Pinned; 2]>>,
}

/// Host memory that the device reaches, and whether it is done with it.
#[derive(Debug)]
struct Pinned {
    start: *mut u8,
    event: sys::CUevent,
    /// The context has to be there when the memory goes.
    stream: Arc<Stream>,
}

// SAFETY: the memory belongs to this value alone.
unsafe impl Send for Pinned {}

impl Pinned {
    fn new(stream: &Arc<Stream>) -> Result<Self> {
        // SAFETY: memory of its own; the context is current.
        let start = unsafe { result::malloc_host(ROOM, 0) }.done("allocating pinned memory")?;
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
            .done("creating an event")?;
        Ok(Pinned {
            start: start.cast(),
            event,
            stream: Arc::clone(stream),
        })
    }

    /// The first `n` bytes.
    fn bytes(&mut self, n: usize) -> &mut [u8] {
        assert!(n <= ROOM);
        // SAFETY: ROOM bytes were allocated, nobody else refers to them, and the device is done
        // with them: the caller has waited.
        unsafe { std::slice::from_raw_parts_mut(self.start, n) }
    }

    /// Notes that the device uses it until the stream has come here.
    fn mark(&self) -> Result<()> {
        // SAFETY: event and stream are alive.
        unsafe { result::event::record(self.event, self.stream.handle) }.done("recording an event")
    }

    /// Waits for the last mark.
    fn wait(&self) -> Result<()> {
        // SAFETY: the event is alive; one that was never recorded is complete.
        unsafe { result::event::synchronize(self.event) }.done("waiting for a copy")
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.stream.context.bind().is_ok() {
            // SAFETY: allocated by `new`; copies have ended when the stream has.
            unsafe {
                let _ = result::stream::synchronize(self.stream.handle);
                let _ = result::event::destroy(self.event);
                let _ = result::free_host(self.start.cast());
            }
        }
    }
}

impl Staging {
    pub(super) fn new(stream: &Arc<Stream>) -> Result<Self> {
        Ok(Staging {
            stream: Arc::clone(stream),
            buffers: Mutex::new(None),
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut [Pinned; 2]) -> Result<T>) -> Result<T> {
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *buffers {
            Some(buffers) => work(buffers),
            none => {
                let new = [Pinned::new(&self.stream)?, Pinned::new(&self.stream)?];
                work(none.insert(new))
            }
        }
    }

    /// # Safety
    ///
    /// As [`Device::upload`](crate::device::Device::upload).
    pub(super) unsafe fn upload(&self, bytes: &[u8], to: Address) -> Result<()> {
        let stream = self.stream.handle;
        if bytes.len() < LARGE {
            // SAFETY: the caller's; the driver has read ordinary memory when it returns.
            return unsafe { result::memcpy_htod_async(to.0, bytes, stream) }
                .done("copying to the device");
        }
        self.with(|buffers| {
            for (at, piece) in bytes.chunks(ROOM).enumerate() {
                let buffer = &mut buffers[at % 2];
                buffer.wait()?;
                let pinned = buffer.bytes(piece.len());
                pinned.copy_from_slice(piece);
                // SAFETY: the caller's; the buffer is not touched before the mark is reached.
                unsafe { result::memcpy_htod_async(to.offset(at * ROOM).0, pinned, stream) }
                    .done("copying to the device")?;
                buffer.mark()?;
            }
            Ok(())
        })
    }

    /// # Safety
    ///
    /// As [`Device::download`](crate::device::Device::download).
    pub(super) unsafe fn download(&self, from: Address, bytes: &mut [u8]) -> Result<()> {
        let stream = self.stream.handle;
        if bytes.len() < LARGE {
            // SAFETY: the caller's; waited for before `bytes` is read.
            unsafe { result::memcpy_dtoh_async(bytes, from.0, stream) }
                .done("copying from the device")?;
            return self.stream.wait();
        }
        self.with(|buffers| {
            let n_pieces = bytes.len().div_ceil(ROOM);
            let start = |at: usize, len: usize, buffer: &mut Pinned| -> Result<()> {
                // The device may still read what an upload put there.
                buffer.wait()?;
                let pinned = buffer.bytes(len);
                // SAFETY: the caller's; nobody reads the buffer before the mark is reached.
                unsafe { result::memcpy_dtoh_async(pinned, from.offset(at * ROOM).0, stream) }
                    .done("copying from the device")?;
                buffer.mark()
            };
            let total = bytes.len();
            let length = |at: usize| ROOM.min(total - at * ROOM);
            start(0, length(0), &mut buffers[0])?;
            for at in 0..n_pieces {
                if at + 1 < n_pieces {
                    start(at + 1, length(at + 1), &mut buffers[(at + 1) % 2])?;
                }
                let buffer = &mut buffers[at % 2];
                buffer.wait()?;
                let n = length(at);
                bytes[at * ROOM..at * ROOM + n].copy_from_slice(buffer.bytes(n));
            }
            Ok(())
        })
    }
}
