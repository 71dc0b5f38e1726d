//! A CUDA device through the driver's own libraries, which are loaded when a device is opened.
//!
//! A device has one non-blocking stream, and the primary context of its process: what torch or
//! another library of the same process allocates can be read here and the other way round.

mod graph;
mod libraries;
mod memory;
mod module;
mod product;
mod status;

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::result;
use cudarc::driver::sys;

use crate::device::{Address, Description, Device, Launch, Product, Queue, Recording};
use crate::{Error, Result};

pub use module::KernelImages;

use graph::Graph;
use memory::Staging;
use module::Module;
use product::Products;
use status::Done;

/// What is compiled into this crate.
pub const IMAGES: KernelImages = KernelImages {
    cubins: &[
        ("sm_80", include_bytes!("../../cubins/sm_80.cubin")),
        ("sm_90a", include_bytes!("../../cubins/sm_90a.cubin")),
    ],
    main: ("quintic.cu", include_str!("../../kernels/quintic.cu")),
    headers: &[
        ("port.cuh", include_str!("../../kernels/port.cuh")),
        (
            "parameters.cuh",
            include_str!("../../kernels/parameters.cuh"),
        ),
        ("rowwise.cuh", include_str!("../../kernels/rowwise.cuh")),
        (
            "attention_plain.cuh",
            include_str!("../../kernels/attention_plain.cuh"),
        ),
        (
            "attention_tiles.cuh",
            include_str!("../../kernels/attention_tiles.cuh"),
        ),
    ],
};

/// The oldest driver that is tried, as `cuDriverGetVersion` counts: CUDA 12.0.
const OLDEST_DRIVER: i32 = 12_000;

/// A device's primary context; kept for as long as anything of it is used.
#[derive(Debug)]
struct Context {
    device: sys::CUdevice,
    handle: sys::CUcontext,
}

// SAFETY: a context may be used from every thread that has made it current.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Makes the context this thread's.
    fn bind(&self) -> Result<()> {
        // SAFETY: the handle is retained until this is dropped.
        unsafe { result::ctx::set_current(self.handle) }.done("making the context current")
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once, by `CudaDevice::open`. A failure leaves nothing to be done.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// A stream of a context.
#[derive(Debug)]
struct Stream {
    handle: sys::CUstream,
    /// Recorded to order other streams' work and this one's.
    event: sys::CUevent,
    context: Arc<Context>,
}

// SAFETY: streams and events may be used from every thread with the context.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    fn new(context: &Arc<Context>) -> Result<Self> {
        context.bind()?;
        let handle = result::stream::create(result::stream::StreamKind::NonBlocking)
            .done("creating a stream")?;
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
            .done("creating an event")?;
        Ok(Stream {
            handle,
            event,
            context: Arc::clone(context),
        })
    }

    fn wait(&self) -> Result<()> {
        // SAFETY: the stream lives as long as this.
        unsafe { result::stream::synchronize(self.handle) }.done("waiting for the device")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: both were created by `new` and nobody has them any more. Failures leave
            // nothing to be done.
            unsafe {
                let _ = result::stream::synchronize(self.handle);
                let _ = result::event::destroy(self.event);
                let _ = result::stream::destroy(self.handle);
            }
        }
    }
}

/// A CUDA device. See the [module](self) docs.
#[derive(Debug)]
pub struct CudaDevice {
    description: Description,
    // Dropped in this order: what belongs to the context goes before it.
    products: Products,
    staging: Staging,
    module: Module,
    stream: Arc<Stream>,
    context: Arc<Context>,
}

/// Loads the driver. Once it is there, it stays.
fn initialise() -> Result<()> {
    libraries::driver()?;
    result::init().map_err(|error| {
        Error::Unavailable(format!(
            "the NVIDIA driver does not start: {}",
            status::text(error)
        ))
    })?;
    let mut version = 0;
    // SAFETY: writes one integer.
    unsafe { sys::cuDriverGetVersion(&raw mut version).result() }
        .done("asking for the driver's version")?;
    match version >= OLDEST_DRIVER {
        true => Ok(()),
        false => Err(Error::Unavailable(format!(
            "the NVIDIA driver is for CUDA {}.{}, expected {}.{} or later",
            version / 1000,
            version % 1000 / 10,
            OLDEST_DRIVER / 1000,
            OLDEST_DRIVER % 1000 / 10,
        ))),
    }
}

/// What the devices of this machine are.
///
/// # Errors
///
/// [`Error::Unavailable`] if there is no driver, or none that works.
pub fn devices() -> Result<Vec<Description>> {
    initialise()?;
    let count = result::device::get_count().done("counting devices")?;
    (0..count as usize).map(describe).collect()
}

fn handle(ordinal: usize) -> Result<sys::CUdevice> {
    let count = result::device::get_count().done("counting devices")? as usize;
    if ordinal >= count {
        return Err(Error::Unavailable(match count {
            0 => "the NVIDIA driver knows no device".to_owned(),
            1 => format!("there is no CUDA device {ordinal}, only device 0"),
            _ => format!("there is no CUDA device {ordinal}, only 0 to {}", count - 1),
        }));
    }
    result::device::get(ordinal as i32).done("opening a device")
}

fn describe(ordinal: usize) -> Result<Description> {
    let device = handle(ordinal)?;
    let attribute = |attribute| {
        // SAFETY: the handle is a device's.
        unsafe { result::device::get_attribute(device, attribute) }.done("describing a device")
    };
    use sys::CUdevice_attribute_enum as A;
    Ok(Description {
        ordinal,
        name: result::device::get_name(device).done("describing a device")?,
        capability: (
            attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? as u32,
            attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)? as u32,
        ),
        multiprocessors: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32,
        // SAFETY: the handle is a device's.
        memory_bytes: unsafe { result::device::total_mem(device) }.done("describing a device")?
            as u64,
        shared_bytes_per_block: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?
            as u32,
    })
}

impl CudaDevice {
    /// Opens a device with the kernels of `images`.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] if there is no driver, no such device, no cuBLASLt, or no way to
    /// kernels for it.
    pub fn open(ordinal: usize, images: &KernelImages) -> Result<Self> {
        initialise()?;
        let description = describe(ordinal)?;
        if description.capability < (8, 0) {
            let (major, minor) = description.capability;
            return Err(Error::Unavailable(format!(
                "{} has compute capability {major}.{minor}, expected 8.0 or later",
                description.name
            )));
        }
        libraries::cublaslt()?;
        let device = handle(ordinal)?;
        // SAFETY: the handle is a device's.
        let context = unsafe { result::primary_ctx::retain(device) }.done("opening a context")?;
        let context = Arc::new(Context {
            device,
            handle: context,
        });
        context.bind()?;
        let stream = Arc::new(Stream::new(&context)?);
        Ok(CudaDevice {
            products: Products::new(&stream, description.capability)?,
            staging: Staging::new(&stream)?,
            module: Module::load(&context, &description, images)?,
            description,
            stream,
            context,
        })
    }
}

impl CudaDevice {
    /// What is recorded is run later, when the host's memory may be somebody else's.
    fn refuse_recording(&self, doing: &str) -> Result<()> {
        match self.products.is_recording() {
            true => Err(Error::Failed(format!("{doing} inside a recording"))),
            false => Ok(()),
        }
    }
}

/// Opens a device with this crate's kernels.
///
/// # Errors
///
/// As [`CudaDevice::open`].
pub fn open(ordinal: usize) -> Result<Arc<dyn Device>> {
    Ok(Arc::new(CudaDevice::open(ordinal, &IMAGES)?))
}

impl Device for CudaDevice {
    fn description(&self) -> &Description {
        &self.description
    }

    fn allocate(&self, bytes: usize) -> Result<Address> {
        self.context.bind()?;
        // SAFETY: plain memory of the context.
        match unsafe { result::malloc_sync(bytes) } {
            Ok(address) => Ok(Address(address)),
            Err(result::DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                Err(Error::OutOfMemory {
                    bytes,
                    free: self.free_bytes().ok(),
                })
            }
            Err(error) => Err(error).done("allocating memory"),
        }
    }

    unsafe fn release(&self, address: Address, _bytes: usize) {
        // A failure here comes from work before, and shows where that is waited for.
        if self.context.bind().is_ok() && self.stream.wait().is_ok() {
            // SAFETY: the caller's; nothing queued uses it any more.
            let _ = unsafe { result::free_sync(address.0) };
        }
    }

    fn free_bytes(&self) -> Result<usize> {
        self.context.bind()?;
        let (free, _) = result::mem_get_info().done("asking for free memory")?;
        Ok(free)
    }

    unsafe fn upload(&self, bytes: &[u8], to: Address) -> Result<()> {
        self.refuse_recording("copying from the host")?;
        self.context.bind()?;
        // SAFETY: the caller's.
        unsafe { self.staging.upload(bytes, to) }
    }

    unsafe fn download(&self, from: Address, bytes: &mut [u8]) -> Result<()> {
        self.refuse_recording("copying to the host")?;
        self.context.bind()?;
        // SAFETY: the caller's.
        unsafe { self.staging.download(from, bytes) }
    }

    unsafe fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<()> {
        self.context.bind()?;
        // SAFETY: the caller's.
        unsafe { result::memcpy_dtod_async(to.0, from.0, bytes, self.stream.handle) }
            .done("copying inside the device")
    }

    unsafe fn clear(&self, address: Address, bytes: usize) -> Result<()> {
        self.context.bind()?;
        // SAFETY: the caller's.
        unsafe { result::memset_d8_async(address.0, 0, bytes, self.stream.handle) }
            .done("clearing memory")
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        self.context.bind()?;
        let function = self.module.function(launch.kernel, launch.shared_bytes)?;
        let [x, y, z] = launch.grid;
        let mut parameters = [launch.parameter.as_ptr().cast::<c_void>().cast_mut()];
        // SAFETY: the driver copies the parameter, whose size it knows from the kernel, before it
        // returns; the caller vouches for that and for the addresses inside.
        unsafe {
            result::launch_kernel(
                function,
                (x, y, z),
                (launch.block, 1, 1),
                launch.shared_bytes,
                self.stream.handle,
                &mut parameters,
            )
        }
        .done_with(|| format!("launching {}", launch.kernel))
    }

    unsafe fn multiply(&self, product: &Product) -> Result<()> {
        self.context.bind()?;
        // SAFETY: the caller's.
        unsafe { self.products.multiply(product) }
    }

    fn begin_recording(&self) -> Result<()> {
        self.context.bind()?;
        Graph::begin(&self.stream)?;
        self.products.set_recording(true);
        Ok(())
    }

    fn end_recording(&self) -> Result<Arc<dyn Recording>> {
        self.context.bind()?;
        self.products.set_recording(false);
        Ok(Arc::new(Graph::end(&self.stream)?))
    }

    unsafe fn replay(&self, recording: &Arc<dyn Recording>) -> Result<()> {
        self.context.bind()?;
        match recording.as_any().downcast_ref::<Graph>() {
            // SAFETY: the caller's.
            Some(graph) => unsafe { graph.launch(&self.stream) },
            None => Err(Error::Failed("a recording of another device".to_owned())),
        }
    }

    unsafe fn wait_for(&self, queue: Queue) -> Result<()> {
        self.context.bind()?;
        let theirs = queue.0 as sys::CUstream;
        // SAFETY: the caller vouches for their stream; the event and ours live as long as this.
        unsafe {
            result::event::record(self.stream.event, theirs)
                .and_then(|()| order(self.stream.handle, self.stream.event))
        }
        .done("waiting for another stream")
    }

    unsafe fn let_wait(&self, queue: Queue) -> Result<()> {
        self.context.bind()?;
        let theirs = queue.0 as sys::CUstream;
        // SAFETY: as in `wait_for`.
        unsafe {
            result::event::record(self.stream.event, self.stream.handle)
                .and_then(|()| order(theirs, self.stream.event))
        }
        .done("letting another stream wait")
    }

    fn wait(&self) -> Result<()> {
        self.context.bind()?;
        self.stream.wait()
    }
}

/// Makes later work in `stream` wait for `event`.
///
/// # Safety
///
/// Both are handles of the current context.
unsafe fn order(
    stream: sys::CUstream,
    event: sys::CUevent,
) -> std::result::Result<(), result::DriverError> {
    let plain = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
    // SAFETY: the caller's.
    unsafe { result::stream::wait_event(stream, event, plain) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_driver_the_error_says_what_was_looked_for() {
        match devices() {
            // A machine with a GPU is as it should be.
            Ok(devices) => assert!(devices.iter().all(|device| !device.name.is_empty())),
            Err(Error::Unavailable(what)) => {
                assert!(what.contains("NVIDIA driver"), "{what}");
            }
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_device_that_is_not_there_is_unavailable() {
        let error = CudaDevice::open(4096, &IMAGES).unwrap_err();
        assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
    }
}
