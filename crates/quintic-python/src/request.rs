//! One forward pass on a padded batch.

use half::{bf16, f16};
use numpy::IntoPyArray;
use pyo3::prelude::*;
use quintic::backend::DeviceOutput;
use quintic::batch::{PadRows, PaddedBatch, PaddedMask};
use quintic::{ComputeType, Interrupted, Pass, Result, TextEncoder};

/// Element type of the states that leave.
#[derive(Clone, Copy)]
pub(crate) enum Output {
    F32,
    Bf16,
    F16,
}

impl Output {
    /// The type of one of the package's own names; `f32` for all others.
    pub(crate) fn parse(name: &str) -> Self {
        match name {
            "bf16" => Output::Bf16,
            "f16" => Output::F16,
            _ => Output::F32,
        }
    }

    fn convert(self, values: Vec<f32>) -> Flat {
        match self {
            Output::F32 => Flat::F32(values),
            Output::Bf16 => Flat::Bits(round(&values, |value| bf16::from_f32(value).to_bits())),
            Output::F16 => Flat::Bits(round(&values, |value| f16::from_f32(value).to_bits())),
        }
    }
}

fn round(values: &[f32], bits: impl Fn(f32) -> u16) -> Vec<u16> {
    values.iter().map(|&value| bits(value)).collect()
}

/// Values in row-major order.
pub(crate) enum Flat {
    F32(Vec<f32>),
    /// bf16 or f16, which NumPy and Rust share no type for.
    Bits(Vec<u16>),
}

impl Flat {
    /// Gives the memory to a new array.
    pub(crate) fn into_py(self, py: Python<'_>) -> Bound<'_, PyAny> {
        match self {
            Flat::F32(values) => values.into_pyarray(py).into_any(),
            Flat::Bits(values) => values.into_pyarray(py).into_any(),
        }
    }
}

/// What is asked for.
pub(crate) struct Request<'a> {
    pub(crate) ids: Vec<i64>,
    pub(crate) rows: usize,
    pub(crate) len: usize,
    /// `[rows, len, d_model]`, in place of the ids' embeddings.
    pub(crate) embeddings: Option<&'a [f32]>,
    pub(crate) mask: PaddedMask,
    pub(crate) pad_rows: PadRows,
    /// `[layers, heads]`.
    pub(crate) head_gains: Option<&'a [f32]>,
    pub(crate) hidden_states: bool,
    pub(crate) attentions: bool,
}

/// What comes back: states `[rows, len, d_model]`, attentions `[rows, heads, len, len]`.
pub(crate) struct Answer {
    pub(crate) last: Flat,
    pub(crate) inner: Vec<Flat>,
    pub(crate) attentions: Vec<Flat>,
}

/// Where states go that stay on a device.
pub(crate) struct Place {
    pub(crate) address: u64,
    pub(crate) dtype: ComputeType,
    pub(crate) queue: u64,
}

impl Request<'_> {
    /// Writes the last states, `[rows, len, d_model]`, to a device's memory.
    ///
    /// # Safety
    ///
    /// As [`TextEncoder::run_into`].
    pub(crate) unsafe fn run_into(
        self,
        encoder: &TextEncoder,
        interrupted: Interrupted<'_>,
        place: &Place,
    ) -> Result<()> {
        let config = encoder.config();
        let batch = PaddedBatch::new(self.ids, self.rows, self.len, self.mask)?;
        let reach = self.embeddings.is_none().then(|| config.bias_reach());
        let (packed, layout) = batch.pack_sharing(self.pad_rows, config.vocab_size, reach)?;
        let embeddings = self
            .embeddings
            .map(|embeddings| layout.gather(embeddings, config.d_model));
        let tokens: Vec<Option<u32>> = layout
            .tokens()
            .map(|token| token.map(|token| token as u32))
            .collect();
        let pass = Pass {
            embeddings: embeddings.as_deref(),
            head_gains: self.head_gains,
            interrupted: Some(interrupted),
            ..Pass::default()
        };
        let out = DeviceOutput {
            address: place.address,
            dtype: place.dtype,
            rows: &tokens,
            queue: place.queue,
        };
        // SAFETY: the caller's: there is room for `[rows, len, d_model]`, which `tokens` counts.
        unsafe { encoder.run_into(&packed, &pass, &out) }
    }

    pub(crate) fn run(
        self,
        encoder: &TextEncoder,
        interrupted: Interrupted<'_>,
        output: Output,
    ) -> Result<Answer> {
        let config = encoder.config();
        let batch = PaddedBatch::new(self.ids, self.rows, self.len, self.mask)?;
        // Attention weights are those of every pair, and positions with embeddings of the
        // caller's own are not alike because their ids are.
        let is_whole = self.attentions || self.embeddings.is_some();
        let reach = (!is_whole).then(|| config.bias_reach());
        // Attention weights of padding are asked for even where its states are not.
        let pad_rows = match self.attentions {
            true => PadRows::Compute,
            false => self.pad_rows,
        };
        let (packed, layout) = batch.pack_sharing(pad_rows, config.vocab_size, reach)?;
        let embeddings = self
            .embeddings
            .map(|embeddings| layout.gather(embeddings, config.d_model));
        let states = encoder.run(
            &packed,
            &Pass {
                embeddings: embeddings.as_deref(),
                head_gains: self.head_gains,
                keep_inner: self.hidden_states,
                keep_attentions: self.attentions,
                interrupted: Some(interrupted),
            },
        )?;
        let place = |values: Vec<f32>| output.convert(layout.unpack(&values, config.d_model));
        Ok(Answer {
            last: place(states.last),
            inner: states.inner.into_iter().map(place).collect(),
            attentions: states
                .attentions
                .into_iter()
                .map(|weights| output.convert(weights))
                .collect(),
        })
    }
}
