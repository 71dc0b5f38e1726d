//! Device memory that comes back: buffers of passes are taken from those of passes before.
//!
//! Everything on a device happens in one order, so a buffer may be given out again as soon as its
//! owner is gone, though the work that was queued on it has not run yet. For the same reason a
//! recorded pass stays valid while the addresses that it uses are free, as long as they are not
//! given back to the device: a [`Lease`] keeps them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::Pod;

use crate::Result;
use crate::device::{Address, Device, Element};

/// Buffers are multiples of this, so that nearly equal sizes share.
const GRAIN: usize = 256;

/// A device's memory.
pub struct Memory {
    device: Arc<dyn Device>,
    free: Mutex<BTreeMap<usize, Vec<Address>>>,
    leases: AtomicUsize,
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

/// A promise that no address is given back to the device.
#[derive(Debug)]
pub struct Lease(Arc<Memory>);

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.leases.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Memory {
    /// The memory of `device`.
    pub fn new(device: Arc<dyn Device>) -> Arc<Self> {
        Arc::new(Memory {
            device,
            free: Mutex::new(BTreeMap::new()),
            leases: AtomicUsize::new(0),
        })
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// A buffer, contents unspecified.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory), also after all that is unused has been
    /// given back.
    pub fn buffer(self: &Arc<Self>, bytes: usize) -> Result<Buffer> {
        let room = bytes.max(1).next_multiple_of(GRAIN);
        let (address, room) = match self.unused(room) {
            Some(found) => found,
            None => match self.device.allocate(room) {
                Err(crate::Error::OutOfMemory { .. }) if self.trim() => {
                    (self.device.allocate(room)?, room)
                }
                result => (result?, room),
            },
        };
        Ok(Buffer {
            memory: Arc::clone(self),
            address,
            bytes,
            room,
        })
    }

    /// The smallest unused place that holds so much, if it is not much too large.
    fn unused(&self, room: usize) -> Option<(Address, usize)> {
        let mut free = self.lock();
        let (&found, addresses) = free.range_mut(room..=2 * room).next()?;
        let address = addresses.pop()?;
        if addresses.is_empty() {
            free.remove(&found);
        }
        Some((address, found))
    }

    /// A buffer with these contents. Not while recording.
    ///
    /// # Errors
    ///
    /// As [`Memory::buffer`] and [`Buffer::write`].
    pub fn upload<T: Pod>(self: &Arc<Self>, values: &[T]) -> Result<Buffer> {
        let buffer = self.buffer(size_of_val(values))?;
        buffer.write(0, values)?;
        Ok(buffer)
    }

    /// Keeps every address from being given back.
    pub fn lease(self: &Arc<Self>) -> Lease {
        self.leases.fetch_add(1, Ordering::AcqRel);
        Lease(Arc::clone(self))
    }

    /// Gives what is unused back to the device; whether there was anything. Nothing is while
    /// there are leases.
    pub fn trim(&self) -> bool {
        if self.leases.load(Ordering::Acquire) > 0 {
            return false;
        }
        let unused: Vec<(usize, Vec<Address>)> =
            std::mem::take(&mut *self.lock()).into_iter().collect();
        let mut any = false;
        for (room, addresses) in unused {
            for address in addresses {
                // SAFETY: `allocate` gave it out with this size, and no buffer has it.
                unsafe { self.device.release(address, room) };
                any = true;
            }
        }
        any
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<usize, Vec<Address>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.trim();
    }
}

/// Memory on a device; given back to [`Memory`] when dropped.
#[derive(Debug)]
pub struct Buffer {
    memory: Arc<Memory>,
    address: Address,
    bytes: usize,
    /// What was allocated for it.
    room: usize,
}

impl Buffer {
    /// Where it begins.
    pub fn address(&self) -> Address {
        self.address
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where its value number `index` of that type is.
    ///
    /// # Panics
    ///
    /// If that lies behind the end.
    pub fn at(&self, index: usize, element: Element) -> Address {
        let offset = index * element.bytes();
        assert!(offset <= self.bytes, "{offset} in {} bytes", self.bytes);
        self.address.offset(offset)
    }

    fn check(&self, offset: usize, bytes: usize) {
        assert!(
            offset + bytes <= self.bytes,
            "{bytes} bytes at {offset} of a buffer of {}",
            self.bytes
        );
    }

    /// Copies from the host to `offset` bytes behind the beginning. Not while recording.
    ///
    /// # Errors
    ///
    /// As the device's.
    ///
    /// # Panics
    ///
    /// If the buffer ends before.
    pub fn write<T: Pod>(&self, offset: usize, values: &[T]) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        self.check(offset, bytes.len());
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: the range lies in this buffer.
        unsafe {
            self.memory
                .device
                .upload(bytes, self.address.offset(offset))
        }
    }

    /// Waits, and copies from `offset` bytes behind the beginning to the host.
    ///
    /// # Errors
    ///
    /// As the device's.
    ///
    /// # Panics
    ///
    /// If the buffer ends before.
    pub fn read<T: Pod>(&self, offset: usize, count: usize) -> Result<Vec<T>> {
        let mut values = vec![T::zeroed(); count];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
        self.check(offset, bytes.len());
        if !bytes.is_empty() {
            // SAFETY: the range lies in this buffer.
            unsafe {
                self.memory
                    .device
                    .download(self.address.offset(offset), bytes)?;
            }
        }
        Ok(values)
    }

    /// Sets all of it to zero.
    ///
    /// # Errors
    ///
    /// As the device's.
    pub fn clear(&self) -> Result<()> {
        // SAFETY: the range is this buffer.
        unsafe { self.memory.device.clear(self.address, self.bytes) }
    }

    /// Copies `bytes` of `from`, beginning at `from_offset`, to `offset`.
    ///
    /// # Errors
    ///
    /// As the device's.
    ///
    /// # Panics
    ///
    /// If one of them ends before.
    pub fn copy_from(
        &self,
        offset: usize,
        from: &Buffer,
        from_offset: usize,
        bytes: usize,
    ) -> Result<()> {
        self.check(offset, bytes);
        from.check(from_offset, bytes);
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: both ranges lie in their buffers.
        unsafe {
            self.memory.device.copy(
                from.address.offset(from_offset),
                self.address.offset(offset),
                bytes,
            )
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut free = self.memory.lock();
        free.entry(self.room).or_default().push(self.address);
    }
}
