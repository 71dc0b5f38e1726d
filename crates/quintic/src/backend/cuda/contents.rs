//! Activations on the device. One that could not be computed carries the reason with it.

use quintic_cuda as cuda;
use quintic_cuda::device::{Address, Element, Queue};
use quintic_cuda::kernels;
use quintic_cuda::memory::Buffer;
use quintic_cuda::parameters::{PlaceRows, PoolRows};

use super::{Cuda, DeviceOutput, Pool};
use crate::compute::ComputeType;

/// Device memory, or why there is none.
pub(super) type Contents = cuda::Result<Buffer>;

/// The residual stream, or logits: f32, `[tokens, columns]`.
#[derive(Debug)]
pub struct Stream {
    pub(super) tokens: usize,
    pub(super) columns: usize,
    contents: Contents,
}

impl Stream {
    pub(super) fn new(tokens: usize, columns: usize, contents: Contents) -> Self {
        Stream {
            tokens,
            columns,
            contents,
        }
    }

    /// The memory, or the error that kept it from being filled.
    pub(super) fn contents(&self) -> cuda::Result<&Buffer> {
        self.contents.as_ref().map_err(Clone::clone)
    }

    /// Notes an error.
    pub(super) fn fail(&mut self, result: cuda::Result<()>) {
        if let Err(error) = result {
            self.contents = Err(error);
        }
    }

    /// Rows of the stream.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

/// What flows into products and attention: the backend's element, `[tokens, columns]`.
#[derive(Debug)]
pub struct Operand {
    pub(super) tokens: usize,
    pub(super) columns: usize,
    /// The power of two that the contents were multiplied by.
    pub(super) scale: f32,
    contents: Contents,
}

impl Operand {
    pub(super) fn new(tokens: usize, columns: usize, contents: Contents) -> Self {
        Operand {
            tokens,
            columns,
            scale: 1.0,
            contents,
        }
    }

    pub(super) fn contents(&self) -> cuda::Result<&Buffer> {
        self.contents.as_ref().map_err(Clone::clone)
    }

    pub(super) fn fail(&mut self, result: cuda::Result<()>) {
        if let Err(error) = result {
            self.contents = Err(error);
        }
    }

    pub(super) fn check_shape(&self, tokens: usize, columns: usize) {
        assert_eq!(
            (self.tokens, self.columns),
            (tokens, columns),
            "the operand that a result goes to"
        );
    }
}

/// One vector a row, in host memory.
pub(super) fn pool(
    cuda: &Cuda,
    x: &Stream,
    row_starts: &[usize],
    pool: Pool,
) -> cuda::Result<Vec<f32>> {
    let rows = row_starts.len() - 1;
    assert!(row_starts[rows] <= x.tokens, "rows of a stream");
    let starts: Vec<u32> = row_starts.iter().map(|&start| start as u32).collect();
    let starts = cuda.memory.upload(&starts)?;
    let out = cuda.memory.buffer(rows * x.columns * 4)?;
    let p = PoolRows {
        x: x.contents()?.address(),
        row_starts: starts.address(),
        out: out.address(),
        columns: x.columns as u32,
        how: match pool {
            Pool::Mean => 0,
            Pool::First => 1,
            Pool::Last => 2,
        },
    };
    // SAFETY: the rows were checked to lie in the stream, `out` holds one vector each.
    unsafe { kernels::pool_rows(cuda.device().as_ref(), rows, &p)? };
    out.read(0, rows * x.columns)
}

/// The mark of a row of zeros.
const NO_TOKEN: u32 = u32::MAX;

/// Tokens of a stream to somebody else's memory.
///
/// # Safety
///
/// As [`Backend::write_stream`](crate::backend::Backend::write_stream).
pub(super) unsafe fn write(cuda: &Cuda, x: &Stream, out: &DeviceOutput<'_>) -> cuda::Result<()> {
    let rows: Vec<u32> = out.rows.iter().map(|row| row.unwrap_or(NO_TOKEN)).collect();
    for &row in rows.iter().filter(|&&row| row != NO_TOKEN) {
        assert!((row as usize) < x.tokens, "token {row} of {}", x.tokens);
    }
    let contents = x.contents()?;
    let rows = cuda.memory.upload(&rows)?;
    let p = PlaceRows {
        x: contents.address(),
        rows: rows.address(),
        out: Address(out.address),
        columns: x.columns as u32,
        out_type: 0,
    };
    let element = match out.dtype {
        ComputeType::F32 => Element::F32,
        ComputeType::Bf16 => Element::Bf16,
        ComputeType::F16 => Element::F16,
    };
    let device = cuda.device();
    // SAFETY: rows were checked to be tokens of the stream; the caller vouches for the queue and
    // for the memory, which nobody else writes to before its queue has been waited for.
    unsafe {
        device.wait_for(Queue(out.queue))?;
        kernels::place_rows(device.as_ref(), element, out.rows.len(), &p)?;
        device.let_wait(Queue(out.queue))
    }
}
