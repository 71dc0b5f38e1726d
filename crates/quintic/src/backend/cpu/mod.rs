//! The kernels of this machine's CPU.
//!
//! Weights are packed once, at load, straight from the memory map and part by part, so that
//! never more than one matrix stands in memory twice; the pages that were read are given
//! back. What is left of the file is the embedding table, of which a pass reads single rows.
//! Weights that were packed before ([`crate::packed`]) stay in their map, and so do quantised ones
//! ([`DType::is_quantized`]): a product expands them piece by piece. Only in f16 they are packed.

mod attention;
mod cache;

use std::sync::Arc;

use quintic_kernels::{
    self as kernels, Bytes, Element, Encoding, Fp8, Isa, Kernels, Operand, PackedMatrix,
    PackedShape, Parts, Plain, Precision, RelativeBias, Storage, StoredMatrix, StoredParts, Stream,
};

use super::choose::{log_sums, top};
use super::pool::pool;
use super::{Attention, Backend, Buckets, Chosen, Epilogue, PackedWeights, Pool, Weights, Widths};
use crate::compute::{Compute, ComputeType, MatmulPrecision};
use crate::config::Activation;
use crate::keep::{Site, Stack};
use crate::tensor::{DType, Tensor};
use crate::weight_type::WeightType;
use crate::{Error, Result};

pub use cache::KvCache;

/// A position bias: the strip of every head, for the kernels' attention.
#[derive(Debug)]
pub struct Bias(RelativeBias);

/// The CPU backend. See the [module](self) docs.
#[derive(Debug)]
pub struct Cpu {
    kernels: Kernels,
    compute: Compute,
    precision: Precision,
}

impl Cpu {
    /// The backend with the best instruction set of this machine, or with the one that the
    /// environment variable `QUINTIC_ISA` names.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if that is unknown or missing
    /// here, or if the system refuses threads.
    pub fn new(compute: &Compute) -> Result<Self> {
        let isa = Isa::choose()
            .map_err(|error| Error::unsupported(error.to_string()).at(kernels::ISA_VARIABLE))?;
        Self::with_isa(isa, compute)
    }

    /// The backend with a given instruction set.
    ///
    /// # Errors
    ///
    /// As [`Cpu::new`].
    pub fn with_isa(isa: Isa, compute: &Compute) -> Result<Self> {
        let threads = compute
            .threads
            .map_or_else(kernels::Pool::default_threads, usize::from);
        let kernels =
            Kernels::new(isa, threads).map_err(|error| Error::unsupported(error.to_string()))?;
        let precision = match (compute.dtype, compute.matmul_precision) {
            (ComputeType::Bf16, _) | (ComputeType::F32, MatmulPrecision::Medium) => Precision::Bf16,
            (ComputeType::F32, MatmulPrecision::High) => Precision::Split,
            (ComputeType::F32, MatmulPrecision::Highest) | (ComputeType::F16, _) => Precision::F32,
        };
        Ok(Cpu {
            kernels,
            compute: *compute,
            precision,
        })
    }

    /// How it computes.
    pub fn compute(&self) -> &Compute {
        &self.compute
    }

    /// What `prepare_product` makes of these weights, or without a site `prepare_matrix`, as it is stored.
    /// Their values are not read.
    ///
    /// # Panics
    ///
    /// If they are packed already, or quantised and so not packed.
    pub fn packed_shape(
        &self,
        site: Option<Site>,
        weights: &Weights,
        is_folded: bool,
    ) -> PackedShape {
        let (tensors, depth, gated) = match weights {
            Weights::Stacked(parts) => (parts.iter().collect(), parts[0].shape()[1], false),
            Weights::Gated { gate, up } => (vec![gate, up], gate.shape()[1], true),
            Weights::Packed(packed) => panic!("{} is packed already", packed.bytes.name()),
        };
        let n_parts = if gated { 1 } else { tensors.len() };
        PackedShape {
            storage: (self.integers(site)).unwrap_or_else(|| self.storage(&tensors, is_folded)),
            columns: tensors[..n_parts].iter().map(|part| part.shape()[0]).sum(),
            depth,
            gated,
        }
    }

    /// The integers that weights of this product are kept in, if they are.
    fn integers(&self, site: Option<Site>) -> Option<Storage> {
        let site = site?;
        if self.compute.keep.contains(site) {
            return None;
        }
        match self.compute.weights {
            WeightType::AsStored => None,
            WeightType::Int8 => Some(Storage::Int8),
            WeightType::Int4 => Some(Storage::Int4),
            WeightType::W8A8 if site.kind.needs_sixteen_bits() => Some(Storage::Int8Wide),
            WeightType::W8A8 => Some(Storage::Int8Dynamic),
        }
    }

    /// What multiplies with weights that are stored so: where 16 bits were asked for, what flows in may be
    /// integers of 16 bits as well, if that is faster here. It is closer to f32, too. The weights'
    /// bytes are the same, so that a packed model serves every machine.
    fn computed(&self, stored: PackedShape) -> PackedShape {
        let is_half = self.precision == Precision::Bf16 || self.compute.dtype == ComputeType::F16;
        let fits = stored.depth <= kernels::MAX_INT_DEPTH;
        let storage = match stored.storage {
            storage if !(is_half && fits && self.kernels.has_fast_bytes()) => storage,
            Storage::Int8 => Storage::Int8Wide,
            Storage::Int4 => Storage::Int4Wide,
            storage => storage,
        };
        PackedShape { storage, ..stored }
    }

    /// How weights of these tensors are kept, if not in integers.
    fn storage(&self, tensors: &[&Tensor], is_folded: bool) -> Storage {
        if self.compute.dtype == ComputeType::F16 {
            return Storage::F16;
        }
        let elements: Vec<Element> = tensors.iter().map(|tensor| element(tensor)).collect();
        let same = elements.windows(2).all(|pair| pair[0] == pair[1]);
        let element = if same { elements[0] } else { Element::F32 };
        match self.kernels.storage(self.precision, element) {
            // The product of a weight and a gain has more bits than either.
            Storage::Bf16 | Storage::F16
                if is_folded
                    && self.compute.dtype == ComputeType::F32
                    && self.precision != Precision::Bf16 =>
            {
                self.kernels.storage(self.precision, Element::F32)
            }
            storage => storage,
        }
    }

    /// Packs weights, and gives the pages that they were read from back.
    pub(crate) fn pack(
        &self,
        site: Option<Site>,
        weights: &Weights,
        gain: Option<&Tensor>,
    ) -> Result<PackedMatrix> {
        let gain = gain.map(Tensor::to_f32);
        let shape = self.computed(self.packed_shape(site, weights, gain.is_some()));
        check_depth(&shape)?;
        let tensors: Vec<&Tensor> = match weights {
            Weights::Gated { gate, up } => vec![gate, up],
            Weights::Stacked(parts) => parts.iter().collect(),
            Weights::Packed(_) => Vec::new(),
        };
        if shape.storage == Storage::F16 {
            for tensor in &tensors {
                check_f16(tensor)?;
            }
        }
        let plain: Vec<Plain<'_>> = tensors.iter().map(|tensor| plain(tensor)).collect();
        let parts = match shape.gated {
            false => Parts::Stacked(&plain),
            true => Parts::Gated {
                gate: plain[0],
                up: plain[1],
            },
        };
        let packed = self
            .kernels
            .pack(parts, shape.depth, shape.storage, gain.as_deref());
        for tensor in tensors {
            tensor.release();
        }
        Ok(packed)
    }

    /// Hidden states in the form that the head was packed for.
    fn head_operand(&self, x: &Stream) -> Operand {
        let mut operand = self.operand(x.tokens(), x.columns());
        self.cast(x, &mut operand);
        operand
    }

    /// Uses quantised weights where they are: packing would make them larger.
    fn stored(&self, weights: Weights, gain: Option<&Tensor>) -> PackedMatrix {
        let of = |tensor: Tensor| StoredMatrix {
            encoding: encoding(&tensor),
            rows: tensor.shape()[0],
            bytes: Arc::new(Stored(tensor)),
        };
        let (depth, parts) = match weights {
            Weights::Stacked(parts) => (
                parts[0].shape()[1],
                StoredParts::Stacked(parts.into_iter().map(of).collect()),
            ),
            Weights::Gated { gate, up } => (
                gate.shape()[1],
                StoredParts::Gated {
                    gate: of(gate),
                    up: of(up),
                },
            ),
            Weights::Packed(packed) => panic!("{} is packed already", packed.bytes.name()),
        };
        let rounds = self.precision == Precision::Bf16;
        PackedMatrix::stored(parts, depth, gain.map(Tensor::to_f32), rounds)
    }

    /// Uses packed weights where they are.
    fn adopt(&self, packed: PackedWeights) -> Result<PackedMatrix> {
        let place = format!("tensor `{}`", packed.bytes.name());
        if packed.layout != kernels::LAYOUT {
            return Err(Error::unsupported(format!(
                "packed in the layout `{}`, this version reads `{}`",
                packed.layout,
                kernels::LAYOUT
            ))
            .at(place)
            .hint("pack the model again"));
        }
        let matrix = packed.matrix;
        let Some(storage) = Storage::from_name(&matrix.storage) else {
            return Err(Error::checkpoint(format!(
                "unknown storage `{}` of packed weights, expected `f32`, `f16`, `bf16`, \
                 `bf16-split`, `int8`, `int8-dynamic`, `int8-wide` or `int4`",
                matrix.storage
            ))
            .at(place));
        };
        if !self.kernels.reads(self.precision, storage) {
            return Err(Error::unsupported(format!(
                "weights are packed as `{}`, which products of f32 in precision `{}` with {} do \
                 not read",
                storage.name(),
                self.compute.matmul_precision.name(),
                self.kernels.isa()
            ))
            .at(place)
            .hint("pack the model on a machine like this one, or with another precision"));
        }
        let shape = self.computed(PackedShape {
            storage,
            columns: matrix.columns,
            depth: matrix.depth,
            gated: matrix.gated,
        });
        check_depth(&shape).map_err(|error| error.at(&place))?;
        PackedMatrix::from_packed(shape, Arc::new(Stored(packed.bytes)))
            .map_err(|what| Error::checkpoint(what).at(place))
    }
}

/// Refuses products whose sums of integers could overflow.
fn check_depth(shape: &PackedShape) -> Result<()> {
    if shape.storage.sums_integers() && shape.depth > kernels::MAX_INT_DEPTH {
        return Err(Error::unsupported(format!(
            "a product sums {} terms, and sums of integers are exact for {} at most",
            shape.depth,
            kernels::MAX_INT_DEPTH
        ))
        .hint("keep that product out of the integers"));
    }
    Ok(())
}

/// Weights in a file, packed or not.
struct Stored(Tensor);

impl Bytes for Stored {
    fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }
}

fn element(tensor: &Tensor) -> Element {
    match tensor.dtype() {
        DType::F32 => Element::F32,
        DType::F16 => Element::F16,
        DType::BF16 => Element::Bf16,
        other => panic!("a weight of type {other}"),
    }
}

fn encoding(tensor: &Tensor) -> Encoding {
    let fp8 = |kind: Fp8| Encoding::Fp8 {
        kind,
        scale: tensor.scale(),
        nan_as_zero: tensor.reads_nan_as_zero(),
    };
    match tensor.dtype() {
        DType::F32 => Encoding::F32,
        DType::F16 => Encoding::F16,
        DType::BF16 => Encoding::Bf16,
        DType::F8E4M3 => fp8(Fp8::E4M3),
        DType::F8E5M2 => fp8(Fp8::E5M2),
        DType::Blocks(kind) => Encoding::Blocks(kind),
        other => panic!("a weight of type {other}"),
    }
}

fn plain(tensor: &Tensor) -> Plain<'_> {
    Plain {
        element: element(tensor),
        bytes: tensor.bytes(),
        rows: tensor.shape()[0],
    }
}

/// Refuses weights that would become infinite.
fn check_f16(tensor: &Tensor) -> Result<()> {
    if tensor.dtype() == DType::F16 {
        return Ok(());
    }
    let columns = tensor.shape()[1];
    let mut row = vec![0.0f32; columns];
    for first in (0..tensor.n_elements()).step_by(columns.max(1)) {
        tensor.read_f32(first, &mut row);
        for &value in &row {
            if value.is_finite() && half::f16::from_f32(value).is_infinite() {
                return Err(Error::unsupported(format!(
                    "a weight is {value}, which f16 cannot hold (up to 65504)"
                ))
                .at(format!("tensor `{}`", tensor.name()))
                .hint("compute in bf16 or f32"));
            }
        }
    }
    Ok(())
}

fn activation(activation: Activation) -> kernels::Activation {
    match activation {
        Activation::Relu => kernels::Activation::Relu,
        Activation::GeluTanh => kernels::Activation::GeluTanh,
        Activation::GeluErf => kernels::Activation::GeluErf,
        Activation::QuickGelu => kernels::Activation::QuickGelu,
        Activation::Silu => kernels::Activation::Silu,
        Activation::Tanh => kernels::Activation::Tanh,
        Activation::Sigmoid => kernels::Activation::Sigmoid,
        Activation::Linear => kernels::Activation::Linear,
    }
}

impl Backend for Cpu {
    type Table = Tensor;
    type Gain = Vec<f32>;
    type Matrix = PackedMatrix;
    type Bias = Bias;
    type Stream = Stream;
    type Operand = Operand;
    type KvCache = KvCache;
    type Logits = Stream;

    fn name(&self) -> &'static str {
        "cpu"
    }

    fn isa(&self) -> Option<&'static str> {
        Some(self.kernels.isa().name())
    }

    fn threads(&self) -> usize {
        self.kernels.pool().threads()
    }

    fn bytes_per_token(&self, widths: &Widths) -> u64 {
        let operands = widths.d_model + 4 * widths.inner + widths.d_ff;
        let streams = 3 * widths.d_model * size_of::<f32>();
        // What flows into one product, a byte a value.
        let codes = match self.compute.weights {
            WeightType::W8A8 => widths.d_model.max(widths.inner).max(widths.d_ff),
            _ => 0,
        };
        // The same, three parts of two bytes a value.
        let parts = match self.precision == Precision::F32 && self.kernels.has_fast_parts() {
            true => 6 * widths.d_model.max(widths.inner).max(widths.d_ff),
            false => 0,
        };
        (self
            .kernels
            .operand_bytes_per_token(self.precision, operands)
            + streams
            + codes
            + parts) as u64
    }

    fn folds_gains(&self) -> bool {
        self.compute.fold_norm_gains
    }

    fn prepare_table(&self, table: Tensor) -> Result<Tensor> {
        Ok(table)
    }

    fn prepare_gain(&self, gain: Tensor) -> Result<Vec<f32>> {
        Ok(gain.to_f32())
    }

    fn prepare_matrix(&self, weights: Weights, gain: Option<Tensor>) -> Result<PackedMatrix> {
        if let Weights::Packed(packed) = weights {
            assert!(gain.is_none(), "packed weights have their gain folded");
            return self.adopt(packed);
        }
        if weights.is_quantized() && self.compute.dtype != ComputeType::F16 {
            return Ok(self.stored(weights, gain.as_ref()));
        }
        self.pack(None, &weights.widened(), gain.as_ref())
    }

    fn prepare_product(
        &self,
        site: Site,
        weights: Weights,
        gain: Option<Tensor>,
    ) -> Result<PackedMatrix> {
        let matrix = match (&weights, self.integers(Some(site))) {
            (Weights::Packed(_), _) | (_, None) => self.prepare_matrix(weights, gain)?,
            (_, Some(_)) => self.pack(Some(site), &weights.widened(), gain.as_ref())?,
        };
        // A row has the same bits whatever runs beside it, so this cannot depend on how many rows there are: an encoder
        // mostly has many, a decoder's step few.
        let has_many_rows = site.stack == Stack::Encoder;
        match has_many_rows && self.precision == Precision::F32 && self.kernels.has_fast_parts() {
            true => Ok(matrix.in_parts()),
            false => Ok(matrix),
        }
    }

    fn prepare_bias(&self, table: Tensor, buckets: Buckets) -> Result<Bias> {
        let n_heads = table.shape()[1];
        let values = table.to_f32();
        Ok(Bias(RelativeBias::new(
            n_heads,
            buckets.reach(),
            |head, distance| values[buckets.of(distance) * n_heads + head],
        )))
    }

    fn operand(&self, tokens: usize, columns: usize) -> Operand {
        self.kernels.operand(self.precision, tokens, columns)
    }

    fn attention_operand(&self, tokens: usize, columns: usize) -> Operand {
        self.kernels.operand(Precision::F32, tokens, columns)
    }

    fn fused_operand(&self, tokens: usize, columns: usize, d_kv: usize) -> Operand {
        self.kernels
            .attention_operand(self.precision, tokens, columns, d_kv)
    }

    fn kv_cache(&self, rows: usize, n_heads: usize, d_kv: usize) -> KvCache {
        KvCache::new(rows, n_heads * d_kv, self.attention_operand(0, 0))
    }

    fn stream(&self, tokens: usize, columns: usize, values: &[f32]) -> Stream {
        let mut out = Stream::zeroed(tokens, columns);
        out.values_mut().copy_from_slice(values);
        out
    }

    fn embed(&self, table: &Tensor, ids: &[u32]) -> Stream {
        let d_model = table.shape()[1];
        let mut out = Stream::zeroed(ids.len(), d_model);
        for (&id, out) in ids.iter().zip(out.values_mut().chunks_exact_mut(d_model)) {
            table.read_f32(id as usize * d_model, out);
        }
        out
    }

    fn rms_norm(&self, x: &Stream, gain: Option<&Vec<f32>>, eps: f64, out: &mut Operand) {
        self.kernels
            .rms_norm(x, gain.map(Vec::as_slice), eps as f32, out);
    }

    fn rms_norm_last(&self, x: &Stream, gain: &Vec<f32>, eps: f64) -> Stream {
        self.kernels.rms_norm_f32(x, gain, eps as f32)
    }

    fn linear(&self, x: &Operand, w: &PackedMatrix, epilogue: Epilogue<'_, Self>) {
        let epilogue = match epilogue {
            Epilogue::Store(out) => kernels::Epilogue::Store(out),
            Epilogue::Add(out) => kernels::Epilogue::Add(out),
            Epilogue::Activate(act, out) => kernels::Epilogue::Activate(activation(act), out),
            Epilogue::Gate(act, out) => kernels::Epilogue::Gate(activation(act), out),
        };
        self.kernels.linear(x, w, epilogue);
    }

    fn attend(&self, attention: &Attention<'_, Self>, out: &mut Operand) {
        attention::attend(&self.kernels, attention, out);
    }

    fn attention_weights(&self, attention: &Attention<'_, Self>) -> Result<Vec<f32>> {
        Ok(attention::weights(&self.kernels, attention))
    }

    fn append_kv(
        &self,
        cache: &mut KvCache,
        kv: &Operand,
        first_column: usize,
        row_starts: &[usize],
    ) {
        let new = |tokens, columns| self.attention_operand(tokens, columns);
        cache.append(kv, first_column, row_starts, new);
    }

    fn arrange_kv(&self, cache: &mut KvCache, rows: &[Option<usize>]) {
        cache.arrange(rows);
    }

    fn truncate_kv(&self, cache: &mut KvCache, lengths: &[usize]) {
        cache.truncate(lengths);
    }

    fn cast(&self, x: &Stream, out: &mut Operand) {
        assert_eq!(
            (x.tokens(), x.columns()),
            (out.tokens(), out.columns()),
            "a stream as an operand"
        );
        for (token, row) in x.values().chunks_exact(x.columns().max(1)).enumerate() {
            for (column, &value) in row.iter().enumerate() {
                out.set(token, column, value);
            }
        }
    }

    fn logits(&self, x: &Stream, head: &PackedMatrix, scale: f32) -> Stream {
        let operand = self.head_operand(x);
        let mut out = Stream::zeroed(x.tokens(), head.shape().columns);
        self.kernels
            .linear(&operand, head, kernels::Epilogue::Scale(scale, &mut out));
        out
    }

    fn top(
        &self,
        x: &Stream,
        head: &PackedMatrix,
        scale: f32,
        k: usize,
    ) -> Result<Vec<Vec<Chosen>>> {
        let operand = self.head_operand(x);
        let found = self.kernels.top_of_product(&operand, head, scale, k);
        match found.into_iter().collect::<Option<Vec<_>>>() {
            Some(rows) => Ok(rows
                .into_iter()
                .map(|row| {
                    let chosen = |&(column, value): &(usize, f32)| Chosen {
                        id: column as u32,
                        log_prob: (f64::from(value) - row.log_sum_exp) as f32,
                    };
                    row.largest.iter().map(chosen).collect()
                })
                .collect()),
            // NaN and infinities are ranked as they always are.
            None => {
                let logits = self.logits(x, head, scale);
                Ok(top(logits.values(), logits.columns(), k))
            }
        }
    }

    fn pool(&self, x: &Stream, row_starts: &[usize], how: Pool) -> Result<Vec<f32>> {
        Ok(pool(x.values(), x.columns(), row_starts, how))
    }

    fn read_stream(&self, x: &Stream) -> Result<Vec<f32>> {
        Ok(x.values().to_vec())
    }

    fn read_logits(&self, logits: &Stream) -> Result<Vec<f32>> {
        Ok(logits.values().to_vec())
    }

    fn log_sums(&self, logits: &Stream) -> Result<Vec<f64>> {
        let found: Option<Vec<_>> = self.kernels.top(logits, 0).into_iter().collect();
        Ok(match found {
            Some(rows) => rows.into_iter().map(|row| row.log_sum_exp).collect(),
            None => log_sums(logits.values(), logits.columns()),
        })
    }
}

#[cfg(test)]
mod integer_tests;
#[cfg(test)]
mod tests;
