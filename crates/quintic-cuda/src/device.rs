//! What this crate asks of a device, and of whatever stands in for one.
//!
//! A device runs what it is given in the order in which it is given, on one queue (a CUDA
//! stream); a call returns when its work is queued, and only [`Device::download`] and
//! [`Device::wait`] wait for the queue. Errors of work that ran later may therefore come back
//! from a later call.

use std::fmt::Debug;
use std::sync::Arc;

use crate::Result;

/// An address in a device's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct Address(pub u64);

impl Address {
    /// No memory: an argument that a kernel does without.
    pub const NULL: Address = Address(0);

    /// The address `bytes` further on.
    #[must_use]
    pub fn offset(self, bytes: usize) -> Address {
        Address(self.0 + bytes as u64)
    }
}

/// Type of a number in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// IEEE single precision.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl Element {
    /// Bytes of one.
    pub fn bytes(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::Bf16 | Element::F16 => 2,
        }
    }

    /// `f32`, `bf16` or `f16`: the last part of the names of kernels.
    pub fn name(self) -> &'static str {
        match self {
            Element::F32 => "f32",
            Element::Bf16 => "bf16",
            Element::F16 => "f16",
        }
    }
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Its number among the process's devices.
    pub ordinal: usize,
    /// Its name, such as `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Compute capability, such as `(9, 0)`.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Shared memory that a block can be given, in bytes.
    pub shared_bytes_per_block: u32,
}

/// One launch of a kernel of `kernels/`.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Name of the `extern "C"` function.
    pub kernel: &'a str,
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block, along x.
    pub block: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// The kernel's one parameter, a structure that is passed by value: its bytes, at an address
    /// that is aligned as the structure asks.
    pub parameter: &'a [u8],
}

/// `out = alpha * x w^T`, or `out += alpha * x w^T`: all matrices are dense and row-major, sums
/// are f32.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Product {
    /// Rows of `x` and `out`.
    pub tokens: usize,
    /// Columns of `out`, rows of `w`.
    pub columns: usize,
    /// Columns of `x` and of `w`.
    pub depth: usize,
    /// `[tokens, depth]` of `factors`.
    pub x: Address,
    /// `[columns, depth]` of `factors`.
    pub w: Address,
    /// `[tokens, columns]` of `result`.
    pub out: Address,
    /// Type of both factors.
    pub factors: Element,
    /// Type of the result: that of the factors, or f32.
    pub result: Element,
    /// Factor of the product.
    pub alpha: f32,
    /// Whether the product is added to what `out` holds; then `result` is f32.
    pub accumulate: bool,
    /// Whether this shape will come again, so that the device should find out how it is best
    /// computed when it sees it first.
    pub tune: bool,
}

/// A sequence of launches, products and copies that was recorded and can be run again with the
/// same addresses. Dropping it frees what the device keeps for it.
pub trait Recording: Send + Sync + Debug {
    /// For the device that recorded it to know its own.
    fn as_any(&self) -> &dyn std::any::Any;
}

/// A queue of somebody else on the same device, such as torch's current stream: the value of a
/// `CUstream`; 0 is the legacy default stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue(pub u64);

/// A device. See the [module](self) docs.
///
/// # Safety of the unsafe methods
///
/// The caller vouches for addresses: that they lie in memory that [`Device::allocate`] of the
/// same device gave out and that was not released since, that what is read or written ends
/// inside it, and, for a launch, that the parameter is what the kernel of that name takes.
pub trait Device: Send + Sync + Debug {
    /// What it is.
    fn description(&self) -> &Description;

    /// Memory of that size, at a multiple of 256 bytes on a real device and of 16 on any;
    /// contents unspecified. May be called while recording.
    fn allocate(&self, bytes: usize) -> Result<Address>;

    /// Gives memory back that `allocate` gave out. Waits for work that may use it.
    ///
    /// # Safety
    ///
    /// See the [trait](Device); nothing queued later uses it.
    unsafe fn release(&self, address: Address, bytes: usize);

    /// Bytes of free memory.
    fn free_bytes(&self) -> Result<usize>;

    /// Copies from the host. `bytes` may be changed when the call returns. Large copies go
    /// through pinned buffers, so that reading `bytes` (from a file that is mapped, say) and
    /// copying overlap. Not while recording.
    ///
    /// # Safety
    ///
    /// See the [trait](Device).
    unsafe fn upload(&self, bytes: &[u8], to: Address) -> Result<()>;

    /// Waits for everything queued, then copies to the host. Not while recording.
    ///
    /// # Safety
    ///
    /// See the [trait](Device).
    unsafe fn download(&self, from: Address, bytes: &mut [u8]) -> Result<()>;

    /// Copies inside the device.
    ///
    /// # Safety
    ///
    /// See the [trait](Device).
    unsafe fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<()>;

    /// Sets bytes to zero.
    ///
    /// # Safety
    ///
    /// See the [trait](Device).
    unsafe fn clear(&self, address: Address, bytes: usize) -> Result<()>;

    /// Queues a kernel. An empty grid is nothing to do.
    ///
    /// # Safety
    ///
    /// See the [trait](Device).
    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()>;

    /// Queues a product. The first one of its shape may take long and wait if it is to be tuned;
    /// while recording nothing is.
    ///
    /// # Safety
    ///
    /// See the [trait](Device).
    unsafe fn multiply(&self, product: &Product) -> Result<()>;

    /// From now on, work is recorded and not run. No other thread may use the device until
    /// [`Device::end_recording`]; the caller sees to that.
    fn begin_recording(&self) -> Result<()>;

    /// What was recorded. If it failed, the device is not recording any more.
    fn end_recording(&self) -> Result<Arc<dyn Recording>>;

    /// Queues what was recorded.
    ///
    /// # Safety
    ///
    /// See the [trait](Device), for everything that was recorded.
    unsafe fn replay(&self, recording: &Arc<dyn Recording>) -> Result<()>;

    /// Makes later work wait for what stands in `queue` now.
    ///
    /// # Safety
    ///
    /// `queue` is a stream of this device's context.
    unsafe fn wait_for(&self, queue: Queue) -> Result<()>;

    /// Makes later work in `queue` wait for what was given to this device until now.
    ///
    /// # Safety
    ///
    /// `queue` is a stream of this device's context.
    unsafe fn let_wait(&self, queue: Queue) -> Result<()>;

    /// Waits until everything queued has run.
    fn wait(&self) -> Result<()>;
}
