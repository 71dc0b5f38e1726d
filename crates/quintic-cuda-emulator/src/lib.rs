//! A stand-in for a GPU: [`EmulatedDevice`] runs the kernels of `quintic-cuda` on a CPU.
//!
//! The kernels' own sources are compiled as C++; every thread of a block runs by itself and meets
//! the others at barriers, shuffles and matrix instructions, which do what NVIDIA's PTX manual
//! says of their fragments. So indices, row boundaries, masks, the layout of fragments, missing
//! barriers and copies that nobody waited for are tested where there is no GPU. [`STAND_IN`] does
//! the same for the calls of the driver and of cuBLASLt. What is not tested: the instructions'
//! text, the libraries themselves, and speed.
//!
//! Memory is as hard to misuse as it can be made: new memory is not a number in every type, what
//! lies behind an allocation cannot be touched, and copies are checked against what was
//! allocated.

mod memory;

/// A folder with `libcuda.so.1` and `libcublasLt.so.13` that stand in for those of a GPU: with it
/// in `LD_LIBRARY_PATH`, a process that opens a CUDA device gets one that a CPU plays. The driver
/// layer of `quintic-cuda` is tested with it.
pub const STAND_IN: &str = env!("QUINTIC_STAND_IN");

use std::ffi::{CString, c_char, c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use quintic_cuda::device::{
    Address, Description, Device, Element, Launch, Product, Queue, Recording,
};
use quintic_cuda::{Error, Result};

use memory::Memory;

unsafe extern "C" {
    fn quintic_emulated_parameter_bytes(name: *const c_char) -> usize;
    fn quintic_emulated_launch(
        name: *const c_char,
        grid: *const u32,
        threads: u32,
        shared_bytes: u32,
        parameter: *const c_void,
        backwards: c_int,
    ) -> c_int;
}

/// Bytes of a kernel's parameter; `None` if there is no such kernel.
pub fn parameter_bytes(kernel: &str) -> Option<usize> {
    let name = CString::new(kernel).ok()?;
    // SAFETY: the name is a C string that lives through the call.
    match unsafe { quintic_emulated_parameter_bytes(name.as_ptr()) } {
        0 => None,
        bytes => Some(bytes),
    }
}

/// A device that is none. See the [crate](self) docs.
#[derive(Debug)]
pub struct EmulatedDevice {
    description: Description,
    memory: Memory,
    backwards: AtomicBool,
    recording: Mutex<Option<Vec<Work>>>,
    n_launches: AtomicUsize,
    n_replays: AtomicUsize,
}

/// What a recording holds.
#[derive(Clone, Debug)]
enum Work {
    Launch {
        kernel: String,
        grid: [u32; 3],
        block: u32,
        shared_bytes: u32,
        /// In words, so that it is aligned for every parameter.
        parameter: Vec<u64>,
        bytes: usize,
    },
    Product(Product),
    Copy(Address, Address, usize),
    Clear(Address, usize),
}

#[derive(Debug)]
struct Recorded(Vec<Work>);

impl Recording for Recorded {
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

impl EmulatedDevice {
    /// A device with that much memory.
    pub fn new(memory_bytes: usize) -> Self {
        EmulatedDevice {
            description: Description {
                ordinal: 0,
                name: "emulated on the CPU".to_owned(),
                capability: (9, 0),
                multiprocessors: 1,
                memory_bytes: memory_bytes as u64,
                shared_bytes_per_block: 227 * 1024,
            },
            memory: Memory::new(memory_bytes),
            backwards: AtomicBool::new(false),
            recording: Mutex::new(None),
            n_launches: AtomicUsize::new(0),
            n_replays: AtomicUsize::new(0),
        }
    }

    /// Runs blocks and the lanes of each the other way round from now on. No result may depend
    /// on it.
    pub fn run_backwards(&self, backwards: bool) {
        self.backwards.store(backwards, Ordering::Relaxed);
    }

    /// Kernels that ran, those of replays included.
    pub fn launches(&self) -> usize {
        self.n_launches.load(Ordering::Relaxed)
    }

    /// Recordings that were run.
    pub fn replays(&self) -> usize {
        self.n_replays.load(Ordering::Relaxed)
    }

    /// Bytes that are allocated.
    pub fn allocated_bytes(&self) -> usize {
        self.memory.used()
    }

    /// Records the work if that is asked for, else runs it.
    fn queue(&self, work: Work) -> Result<()> {
        let mut recording = self
            .recording
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match &mut *recording {
            Some(works) => {
                works.push(work);
                Ok(())
            }
            None => self.run(&work),
        }
    }

    fn run(&self, work: &Work) -> Result<()> {
        match work {
            Work::Launch { .. } => self.run_launch(work),
            Work::Product(product) => self.run_product(product),
            Work::Copy(from, to, bytes) => {
                let mut values = vec![0u8; *bytes];
                self.memory.read(*from, &mut values)?;
                self.memory.write(*to, &values)
            }
            Work::Clear(address, bytes) => self.memory.write(*address, &vec![0u8; *bytes]),
        }
    }

    fn run_launch(&self, work: &Work) -> Result<()> {
        let Work::Launch {
            kernel,
            grid,
            block,
            shared_bytes,
            parameter,
            bytes,
        } = work
        else {
            return Ok(());
        };
        if parameter_bytes(kernel) != Some(*bytes) {
            return Err(Error::Failed(format!(
                "launching {kernel}: its parameter has {:?} bytes, found {bytes}",
                parameter_bytes(kernel)
            )));
        }
        if *shared_bytes > self.description.shared_bytes_per_block {
            return Err(Error::Failed(format!(
                "launching {kernel}: {shared_bytes} bytes of shared memory"
            )));
        }
        let name = CString::new(kernel.as_str())
            .map_err(|_| Error::Failed(format!("no kernel {kernel}")))?;
        self.n_launches.fetch_add(1, Ordering::Relaxed);
        // SAFETY: name, grid and parameter live through the call, the parameter has the size and
        // alignment that the kernel reads; the caller vouches for the addresses in it.
        let code = unsafe {
            quintic_emulated_launch(
                name.as_ptr(),
                grid.as_ptr(),
                *block,
                *shared_bytes,
                parameter.as_ptr().cast(),
                c_int::from(self.backwards.load(Ordering::Relaxed)),
            )
        };
        match code {
            0 => Ok(()),
            _ => Err(Error::Failed(format!(
                "launching {kernel} in blocks of {block} threads: code {code}"
            ))),
        }
    }

    fn run_product(&self, product: &Product) -> Result<()> {
        let Product {
            tokens,
            columns,
            depth,
            ..
        } = *product;
        let is_half = product.result != Element::F32;
        if is_half && (product.accumulate || product.result != product.factors) {
            return Err(Error::Failed(format!("no such product: {product:?}")));
        }
        let x = self
            .memory
            .read_f32(product.x, product.factors, tokens * depth)?;
        let w = self
            .memory
            .read_f32(product.w, product.factors, columns * depth)?;
        let mut out = match product.accumulate {
            true => self
                .memory
                .read_f32(product.out, Element::F32, tokens * columns)?,
            false => vec![0.0; tokens * columns],
        };
        for (x, out) in x
            .chunks_exact(depth.max(1))
            .zip(out.chunks_exact_mut(columns.max(1)))
        {
            for (w, out) in w.chunks_exact(depth.max(1)).zip(out) {
                let sum = product.alpha * dot(x, w);
                *out = if product.accumulate { *out + sum } else { sum };
            }
        }
        self.memory.write_f32(product.out, product.result, &out)
    }
}

/// Sums in f32, eight at a time, as a device's are in some order.
fn dot(x: &[f32], w: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let (x_eights, x_rest) = x.as_chunks::<8>();
    let (w_eights, w_rest) = w.as_chunks::<8>();
    for (x, w) in x_eights.iter().zip(w_eights) {
        for lane in 0..8 {
            sums[lane] += x[lane] * w[lane];
        }
    }
    let rest: f32 = x_rest.iter().zip(w_rest).map(|(x, w)| x * w).sum();
    sums.iter().sum::<f32>() + rest
}

impl Device for EmulatedDevice {
    fn description(&self) -> &Description {
        &self.description
    }

    fn allocate(&self, bytes: usize) -> Result<Address> {
        self.memory.allocate(bytes)
    }

    unsafe fn release(&self, address: Address, _bytes: usize) {
        self.memory.release(address);
    }

    fn free_bytes(&self) -> Result<usize> {
        Ok(self.memory.free())
    }

    unsafe fn upload(&self, bytes: &[u8], to: Address) -> Result<()> {
        self.refuse_recording("uploading")?;
        self.memory.write(to, bytes)
    }

    unsafe fn download(&self, from: Address, bytes: &mut [u8]) -> Result<()> {
        self.refuse_recording("downloading")?;
        self.memory.read(from, bytes)
    }

    unsafe fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<()> {
        self.queue(Work::Copy(from, to, bytes))
    }

    unsafe fn clear(&self, address: Address, bytes: usize) -> Result<()> {
        self.queue(Work::Clear(address, bytes))
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        let bytes = launch.parameter.len();
        let mut parameter = vec![0u64; bytes.div_ceil(8)];
        // SAFETY: the words have room for the bytes, which do not overlap with them.
        unsafe {
            std::ptr::copy_nonoverlapping(
                launch.parameter.as_ptr(),
                parameter.as_mut_ptr().cast(),
                bytes,
            );
        }
        self.queue(Work::Launch {
            kernel: launch.kernel.to_owned(),
            grid: launch.grid,
            block: launch.block,
            shared_bytes: launch.shared_bytes,
            parameter,
            bytes,
        })
    }

    unsafe fn multiply(&self, product: &Product) -> Result<()> {
        self.queue(Work::Product(*product))
    }

    fn begin_recording(&self) -> Result<()> {
        self.refuse_recording("recording")?;
        *self
            .recording
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(Vec::new());
        Ok(())
    }

    fn end_recording(&self) -> Result<Arc<dyn Recording>> {
        let works = self
            .recording
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match works {
            Some(works) => Ok(Arc::new(Recorded(works))),
            None => Err(Error::Failed("nothing is being recorded".to_owned())),
        }
    }

    unsafe fn replay(&self, recording: &Arc<dyn Recording>) -> Result<()> {
        let Some(recorded) = recording.as_any().downcast_ref::<Recorded>() else {
            return Err(Error::Failed("a recording of another device".to_owned()));
        };
        self.n_replays.fetch_add(1, Ordering::Relaxed);
        recorded.0.iter().try_for_each(|work| self.run(work))
    }

    unsafe fn wait_for(&self, _queue: Queue) -> Result<()> {
        Ok(())
    }

    unsafe fn let_wait(&self, _queue: Queue) -> Result<()> {
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        Ok(())
    }
}

impl EmulatedDevice {
    /// What a CUDA stream refuses while it is captured.
    fn refuse_recording(&self, doing: &str) -> Result<()> {
        let recording = self
            .recording
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match *recording {
            Some(_) => Err(Error::Failed(format!("{doing} inside a recording"))),
            None => Ok(()),
        }
    }
}
