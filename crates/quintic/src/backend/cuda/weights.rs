//! From a checkpoint's tensors to device memory, in the type that products read.

use quintic_cuda as cuda;
use quintic_cuda::device::{Address, Element};
use quintic_cuda::kernels;
use quintic_cuda::memory::Buffer;
use quintic_cuda::parameters::Convert;

use super::{Buckets, Cuda, Weights, failed, refuse_packed};
use crate::tensor::{DType, Tensor};
use crate::{Error, Result};

/// Bytes of a tensor that wait on the device for being converted.
const PIECE: usize = 64 << 20;

/// An embedding table in its own type.
#[derive(Debug)]
pub struct Table {
    pub(super) values: Buffer,
    pub(super) element: Element,
    pub(super) columns: usize,
}

/// RMSNorm gains in f32.
#[derive(Debug)]
pub struct Gain(pub(super) Buffer);

/// Weights of one product, `[columns, depth]`; of a gated one, all of the gate and then all of
/// the other half.
#[derive(Debug)]
pub struct Matrix {
    pub(super) values: Buffer,
    pub(super) columns: usize,
    pub(super) depth: usize,
    pub(super) gated: bool,
    /// Of its scale, in f16.
    pub(super) slot: usize,
}

/// A position bias: of each head, the strip from the farthest key before a query to the farthest
/// behind, times log2(e).
#[derive(Debug)]
pub struct Bias {
    pub(super) strip: Buffer,
    pub(super) n_heads: usize,
    pub(super) reach: usize,
}

fn element(tensor: &Tensor) -> Element {
    match tensor.dtype() {
        DType::F32 => Element::F32,
        DType::F16 => Element::F16,
        DType::BF16 => Element::Bf16,
        other => panic!("a weight of type {other}"),
    }
}

pub(super) fn table(cuda: &Cuda, table: &Tensor) -> Result<Table> {
    if table.dtype().is_quantized() {
        let wide = self::table(cuda, &table.widened());
        table.release();
        return wide;
    }
    let values = cuda.memory.upload(table.bytes()).map_err(failed)?;
    table.release();
    Ok(Table {
        values,
        element: element(table),
        columns: table.shape()[1],
    })
}

pub(super) fn matrix(cuda: &Cuda, weights: Weights, gain: Option<Tensor>) -> Result<Matrix> {
    // Kernels read floats of 16 and 32 bits: quantised weights become such on the way.
    let (parts, gated) = match weights.widened() {
        Weights::Stacked(parts) => (parts, false),
        Weights::Gated { gate, up } => (vec![gate, up], true),
        Weights::Packed(packed) => {
            return Err(refuse_packed().at(format!("tensor `{}`", packed.bytes.name())));
        }
    };
    let depth = parts[0].shape()[1];
    let columns: usize = parts.iter().map(|part| part.shape()[0]).sum();
    let gain = gain
        .map(|gain| cuda.memory.upload(&gain.to_f32()))
        .transpose()
        .map_err(failed)?;
    let values = cuda
        .memory
        .buffer(columns * depth * cuda.element.bytes())
        .map_err(failed)?;
    let mut done = 0;
    for part in &parts {
        let overflow = put(cuda, part, gain.as_ref(), &values, done).map_err(failed)?;
        if let Some(value) = overflow {
            return Err(Error::unsupported(format!(
                "a weight is {value} in magnitude, which f16 cannot hold (up to 65504)"
            ))
            .at(format!("tensor `{}`", part.name()))
            .hint("compute in bf16 or f32"));
        }
        done += part.n_elements();
        part.release();
    }
    let slot = match cuda.element {
        Element::F16 => cuda.scales.slot().ok_or_else(|| {
            Error::unsupported("the cuda backend has no room for so many products in f16")
        })?,
        _ => 0,
    };
    Ok(Matrix {
        values,
        columns,
        depth,
        gated,
        slot,
    })
}

/// Puts a tensor's values at `first` of `out`; says which finite one became infinite, if one did.
fn put(
    cuda: &Cuda,
    tensor: &Tensor,
    gain: Option<&Buffer>,
    out: &Buffer,
    first: usize,
) -> cuda::Result<Option<f32>> {
    let from = element(tensor);
    if from == cuda.element && gain.is_none() {
        out.write(first * from.bytes(), tensor.bytes())?;
        return Ok(None);
    }
    let overflow = match cuda.element {
        Element::F16 => Some(cuda.memory.upload(&[0u32])?),
        _ => None,
    };
    let depth = tensor.shape()[1];
    // Whole rows, so that columns keep their gains.
    let rows = (PIECE / (depth * from.bytes())).max(1);
    let mut done = first;
    for bytes in tensor.bytes().chunks(rows * depth * from.bytes()) {
        let piece = cuda.memory.upload(bytes)?;
        let count = bytes.len() / from.bytes();
        let p = Convert {
            src: piece.address(),
            dst: out.at(done, cuda.element),
            gain: gain.map_or(Address::NULL, Buffer::address),
            overflow: overflow.as_ref().map_or(Address::NULL, Buffer::address),
            count: count as u64,
            columns: depth as u32,
            ..Convert::default()
        };
        assert!((done + count) * cuda.element.bytes() <= out.bytes());
        // SAFETY: the piece holds `count` values, `out` has room for them, and a gain belongs to
        // each of the `depth` columns.
        unsafe { kernels::convert(cuda.device().as_ref(), from, cuda.element, &p)? };
        done += count;
    }
    match overflow {
        Some(flag) => {
            let bits: Vec<u32> = flag.read(0, 1)?;
            Ok((bits[0] != 0).then(|| f32::from_bits(bits[0])))
        }
        None => Ok(None),
    }
}

pub(super) fn bias(cuda: &Cuda, table: &Tensor, buckets: &Buckets) -> Result<Bias> {
    let n_heads = table.shape()[1];
    let reach = buckets.reach();
    let values = table.to_f32();
    let mut strip = Vec::with_capacity(n_heads * (2 * reach + 1));
    for head in 0..n_heads {
        for distance in -(reach as i64)..=reach as i64 {
            let value = values[buckets.of(distance) * n_heads + head];
            strip.push((f64::from(value) * std::f64::consts::LOG2_E) as f32);
        }
    }
    Ok(Bias {
        strip: cuda.memory.upload(&strip).map_err(failed)?,
        n_heads,
        reach,
    })
}
