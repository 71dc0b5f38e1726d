//! Memory whose misuse is found: each allocation ends where a page begins that nobody may touch.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use quintic_cuda::device::{Address, Element};
use quintic_cuda::{Error, Result};

const PAGE: usize = 4096;
/// What kernels may rely on.
const ALIGNMENT: usize = 16;

#[derive(Debug)]
struct Block {
    /// Start and length of what was mapped, the last page forbidden.
    mapped: usize,
    mapped_bytes: usize,
    bytes: usize,
}

/// All allocations, by address.
#[derive(Debug)]
pub(crate) struct Memory {
    limit: usize,
    blocks: Mutex<BTreeMap<u64, Block>>,
}

impl Memory {
    pub(crate) fn new(limit: usize) -> Self {
        Memory {
            limit,
            blocks: Mutex::new(BTreeMap::new()),
        }
    }

    pub(crate) fn used(&self) -> usize {
        self.lock().values().map(|block| block.bytes).sum()
    }

    pub(crate) fn free(&self) -> usize {
        self.limit - self.used()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Block>> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn allocate(&self, bytes: usize) -> Result<Address> {
        let free = self.free();
        if bytes > free {
            return Err(Error::OutOfMemory {
                bytes,
                free: Some(free),
            });
        }
        let room = bytes.max(1).next_multiple_of(ALIGNMENT);
        let mapped_bytes = room.next_multiple_of(PAGE) + PAGE;
        // SAFETY: an anonymous mapping of fresh pages.
        let mapped = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(Error::OutOfMemory { bytes, free: None });
        }
        let mapped = mapped as usize;
        let guard = mapped + mapped_bytes - PAGE;
        // SAFETY: both ranges lie in the new mapping.
        unsafe {
            std::ptr::write_bytes(mapped as *mut u8, 0xff, mapped_bytes - PAGE);
            if libc::mprotect(guard as *mut libc::c_void, PAGE, libc::PROT_NONE) != 0 {
                return Err(Error::Failed("protecting a page".to_owned()));
            }
        }
        let address = Address((guard - room) as u64);
        self.lock().insert(
            address.0,
            Block {
                mapped,
                mapped_bytes,
                bytes,
            },
        );
        Ok(address)
    }

    pub(crate) fn release(&self, address: Address) {
        let block = self.lock().remove(&address.0);
        let Some(block) = block else {
            panic!("released, but never allocated: {address:?}");
        };
        // SAFETY: the mapping was made by `allocate` and is in nobody's hands any more.
        unsafe {
            libc::munmap(block.mapped as *mut libc::c_void, block.mapped_bytes);
        }
    }

    /// Checks that the bytes belong to one allocation.
    fn check(&self, address: Address, bytes: usize) -> Result<()> {
        let blocks = self.lock();
        let inside = blocks
            .range(..=address.0)
            .next_back()
            .is_some_and(|(start, block)| {
                (address.0 - start) as usize + bytes <= block.bytes.next_multiple_of(ALIGNMENT)
            });
        match inside || bytes == 0 {
            true => Ok(()),
            false => Err(Error::Failed(format!(
                "{bytes} bytes at {address:?} do not lie in an allocation"
            ))),
        }
    }

    pub(crate) fn read(&self, from: Address, bytes: &mut [u8]) -> Result<()> {
        self.check(from, bytes.len())?;
        // SAFETY: checked to lie in an allocation, which nobody may release meanwhile.
        unsafe {
            std::ptr::copy_nonoverlapping(from.0 as *const u8, bytes.as_mut_ptr(), bytes.len());
        }
        Ok(())
    }

    pub(crate) fn write(&self, to: Address, bytes: &[u8]) -> Result<()> {
        self.check(to, bytes.len())?;
        // SAFETY: as in `read`.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.0 as *mut u8, bytes.len());
        }
        Ok(())
    }

    pub(crate) fn read_f32(&self, from: Address, type_: Element, count: usize) -> Result<Vec<f32>> {
        let mut bytes = vec![0; count * type_.bytes()];
        self.read(from, &mut bytes)?;
        Ok(match type_ {
            Element::F32 => bytes
                .as_chunks::<4>()
                .0
                .iter()
                .map(|&b| f32::from_le_bytes(b))
                .collect(),
            Element::Bf16 => bytes
                .as_chunks::<2>()
                .0
                .iter()
                .map(|&b| half::bf16::from_le_bytes(b).to_f32())
                .collect(),
            Element::F16 => bytes
                .as_chunks::<2>()
                .0
                .iter()
                .map(|&b| half::f16::from_le_bytes(b).to_f32())
                .collect(),
        })
    }

    pub(crate) fn write_f32(&self, to: Address, type_: Element, values: &[f32]) -> Result<()> {
        let bytes: Vec<u8> = match type_ {
            Element::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Element::Bf16 => values
                .iter()
                .flat_map(|&v| half::bf16::from_f32(v).to_le_bytes())
                .collect(),
            Element::F16 => values
                .iter()
                .flat_map(|&v| half::f16::from_f32(v).to_le_bytes())
                .collect(),
        };
        self.write(to, &bytes)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let addresses: Vec<u64> = self.lock().keys().copied().collect();
        for address in addresses {
            self.release(Address(address));
        }
    }
}
