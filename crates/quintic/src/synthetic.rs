//! Models that need no files: published shapes, filled with random weights.
//!
//! For measuring: time and memory depend on shapes and types, not on what was learned. The
//! weights are drawn as T5 is initialised, so that activations stay as large as in a model
//! at the start of its training; the results mean nothing.

use std::num::NonZeroUsize;
use std::sync::Arc;

use half::slice::HalfFloatSliceExt;

use crate::config::{Family, T5Config};
use crate::model::TakeTensor;
use crate::tensor::{ByteOwner, DType, Tensor};
use crate::{Error, Result};

/// Shapes by name: d_model, d_ff, layers, heads. Heads are 64 wide.
#[rustfmt::skip]
const SHAPES: [(&str, Kind, [usize; 4]); 10] = [
    ("tiny",       Kind::Gated, [128, 256, 2, 2]),
    ("v1_1-small", Kind::Gated, [512, 1024, 8, 6]),
    ("v1_1-base",  Kind::Gated, [768, 2048, 12, 12]),
    ("v1_1-large", Kind::Gated, [1024, 2816, 24, 16]),
    ("v1_1-xl",    Kind::Gated, [2048, 5120, 24, 32]),
    ("v1_1-xxl",   Kind::Gated, [4096, 10240, 24, 64]),
    ("umt5-xxl",   Kind::Umt5,  [4096, 10240, 24, 64]),
    ("t5-small",   Kind::Relu,  [512, 2048, 6, 8]),
    ("t5-base",    Kind::Relu,  [768, 3072, 12, 12]),
    ("t5-large",   Kind::Relu,  [1024, 4096, 24, 16]),
];

#[derive(Clone, Copy)]
enum Kind {
    /// T5 v1.1: gated tanh GELU.
    Gated,
    /// The same with a position-bias table in every layer and a larger vocabulary.
    Umt5,
    /// T5 v1.0.
    Relu,
}

/// Names that [`config`] knows.
pub fn shapes() -> impl Iterator<Item = &'static str> {
    SHAPES.into_iter().map(|(name, ..)| name)
}

/// The config of a named shape: those of T5 v1.0 and v1.1 and UMT5-XXL, and `tiny` for tests.
pub fn config(name: &str) -> Option<T5Config> {
    let (_, kind, [d_model, d_ff, num_layers, num_heads]) =
        SHAPES.into_iter().find(|(known, ..)| *known == name)?;
    let (model_type, vocab_size, feed_forward) = match kind {
        Kind::Gated => ("t5", 32128, "gated-gelu"),
        Kind::Umt5 => ("umt5", 256_384, "gated-gelu"),
        Kind::Relu => ("t5", 32128, "relu"),
    };
    let config = serde_json::json!({
        "model_type": model_type,
        "vocab_size": vocab_size,
        "d_model": d_model,
        "d_kv": 64,
        "d_ff": d_ff,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "feed_forward_proj": feed_forward,
    });
    T5Config::from_json(config.to_string().as_bytes()).ok()
}

/// Random weights of a config, each tensor made when it is taken.
///
/// A value depends on its tensor's name and on its index alone: not on threads, not on what
/// was taken before. Smaller types hold the same values, rounded. A tensor with fewer rows
/// has the first rows of the larger one, but for the scale that a product's width gives.
///
/// Values are uniform. Standard deviations are those of T5's initialisation: 1 for the
/// embedding, `1 / sqrt(fan_in)` for products, times `1 / sqrt(d_kv)` more for queries. Norm
/// gains vary around 1 and bias tables around 0 with deviation 1, so that both matter.
#[derive(Clone, Debug)]
pub struct SyntheticWeights {
    config: T5Config,
    dtype: DType,
}

impl SyntheticWeights {
    /// Weights of `config`, stored in `dtype`.
    ///
    /// # Panics
    ///
    /// If `dtype` is not a float type of 16 or 32 bits.
    pub fn new(config: T5Config, dtype: DType) -> Self {
        assert!(
            dtype.is_float() && !dtype.is_quantized(),
            "{dtype} holds no synthetic weights"
        );
        SyntheticWeights { config, dtype }
    }

    /// Mean and standard deviation of a tensor's values.
    fn moments(&self, name: &str) -> (f32, f32) {
        let config = &self.config;
        let fan_in = |n: usize| (n as f32).sqrt().recip();
        let ends_with = |part: &str| name.ends_with(&format!("{part}.weight"));
        if ends_with("layer_norm") {
            (1.0, 0.1)
        } else if name == HEAD {
            (0.0, fan_in(config.d_model))
        } else if ends_with("relative_attention_bias") || !name.contains(".layer.") {
            (0.0, 1.0)
        } else if ends_with(".q") {
            (0.0, fan_in(config.d_model * config.d_kv))
        } else if ends_with(".o") {
            (0.0, fan_in(config.inner_dim()))
        } else if ends_with(".wo") {
            (0.0, fan_in(config.d_ff))
        } else {
            (0.0, fan_in(config.d_model))
        }
    }

    fn exists(&self, name: &str) -> bool {
        let config = &self.config;
        let gated = config.feed_forward.gated;
        let Some((stack, rest)) = name.split_once('.') else {
            return false;
        };
        let (n_layers, feed_forward) = match stack {
            "encoder" => (config.num_layers, "layer.1"),
            "decoder" => (config.num_decoder_layers, "layer.2"),
            // v1.1 has a head of its own, v1.0 uses the embedding.
            _ => return name == "shared.weight" || name == HEAD && gated,
        };
        let Some(rest) = rest.strip_prefix("block.") else {
            return rest == "final_layer_norm.weight" && n_layers > 0;
        };
        let Some((layer, part)) = rest.split_once('.') else {
            return false;
        };
        let Some(layer) = layer.parse().ok().filter(|&layer: &usize| layer < n_layers) else {
            return false;
        };
        let is_cross = part.contains("EncDecAttention");
        match part.strip_prefix(&format!("{feed_forward}.DenseReluDense.")) {
            Some("wi.weight") => !gated,
            Some("wi_0.weight" | "wi_1.weight") => gated,
            Some(rest) => rest == "wo.weight",
            None if part.ends_with("relative_attention_bias.weight") => {
                !is_cross && (layer == 0 || config.family == Some(Family::Umt5))
            }
            None => !part.contains("DenseReluDense") && (stack == "decoder" || !is_cross),
        }
    }
}

/// The output head of models that have one of their own.
const HEAD: &str = "lm_head.weight";

impl TakeTensor for SyntheticWeights {
    fn contains(&self, name: &str) -> bool {
        self.exists(name)
    }

    /// Every tensor of the config is there, in whatever shape is asked for.
    fn require(&mut self, wanted: &[(String, Vec<usize>)]) -> Result<()> {
        match wanted.iter().find(|(name, _)| !self.exists(name)) {
            Some((name, _)) => Err(missing(name)),
            None => Ok(()),
        }
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        if !self.exists(name) {
            return Err(missing(name));
        }
        let n_values = shape.iter().product();
        let draw = Draw::new(name, self.moments(name));
        let owner: Arc<dyn ByteOwner> = match self.dtype {
            DType::F16 => Arc::new(Values(filled(n_values, |from, out: &mut [u16]| {
                draw.in_blocks(from, out, |values, out| {
                    let mut rounded = [half::f16::ZERO; BLOCK];
                    rounded[..values.len()].convert_from_f32_slice(values);
                    for (out, value) in out.iter_mut().zip(rounded) {
                        *out = value.to_bits().to_le();
                    }
                });
            }))),
            DType::BF16 => Arc::new(Values(filled(n_values, |from, out: &mut [u16]| {
                draw.in_blocks(from, out, |values, out| {
                    for (out, value) in out.iter_mut().zip(values) {
                        // To nearest, ties to even; no value is infinite or NaN.
                        let bits = value.to_bits();
                        let rounded = bits + 0x7fff + (bits >> 16 & 1);
                        *out = ((rounded >> 16) as u16).to_le();
                    }
                });
            }))),
            _ => Arc::new(Values(filled(n_values, |from, out: &mut [u32]| {
                draw.in_blocks(from, out, |values, out| {
                    for (out, value) in out.iter_mut().zip(values) {
                        *out = value.to_bits().to_le();
                    }
                });
            }))),
        };
        Tensor::new(name, self.dtype, shape.to_vec(), owner, 0)
    }
}

fn missing(name: &str) -> Error {
    Error::checkpoint(format!("a synthetic model has no tensor `{name}`"))
}

/// Bits of values, little-endian.
struct Values<T>(Vec<T>);

impl<T: bytemuck::NoUninit + Send + Sync> ByteOwner for Values<T> {
    fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

/// Values drawn before they are stored; even.
const BLOCK: usize = 1024;

/// Values that a thread is worth starting for.
const MIN_PER_THREAD: usize = 1 << 18;

/// `n` values, `fill(from, values)` called for ranges from several threads.
fn filled<T: Copy + Default + Send>(n: usize, fill: impl Fn(usize, &mut [T]) + Sync) -> Vec<T> {
    let mut values = vec![T::default(); n];
    let n_cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let n_threads = n_cores.min(n / MIN_PER_THREAD).max(1);
    let per_thread = n.div_ceil(n_threads).next_multiple_of(BLOCK);
    std::thread::scope(|scope| {
        for (thread, part) in values.chunks_mut(per_thread).enumerate() {
            let fill = &fill;
            let mut work = move || fill(thread * per_thread, part);
            if n_threads == 1 {
                work();
            } else {
                scope.spawn(work);
            }
        }
    });
    values
}

/// The values of one tensor by index.
#[derive(Clone, Copy)]
struct Draw {
    key: u64,
    lowest: f32,
    step: f32,
}

impl Draw {
    fn new(name: &str, (mean, deviation): (f32, f32)) -> Self {
        // FNV-1a.
        let key = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        // Uniform in [-w, w) has deviation w / sqrt(3).
        let half_width = deviation * 3f32.sqrt();
        Draw {
            key,
            lowest: mean - half_width,
            step: half_width / (1 << 23) as f32,
        }
    }

    /// Values `from..from + out.len()`, `from` a multiple of [`BLOCK`].
    fn in_blocks<T>(&self, from: usize, out: &mut [T], store: impl Fn(&[f32], &mut [T])) {
        let mut values = [0f32; BLOCK];
        for (block, out) in out.chunks_mut(BLOCK).enumerate() {
            let first = ((from + block * BLOCK) / 2) as u64;
            for (idx, pair) in values.chunks_exact_mut(2).enumerate() {
                let bits = mix(self.key, first + idx as u64);
                // 24 bits are what an f32 holds exactly.
                pair[0] = self.lowest + self.step * (bits >> 40) as f32;
                pair[1] = self.lowest + self.step * (bits & 0xff_ffff) as f32;
            }
            store(&values[..out.len()], out);
        }
    }
}

/// Number `counter` of the sequence of `key`: SplitMix64 (Steele, Lea, Flood 2014), which is a
/// hash of a counter.
fn mix(key: u64, counter: u64) -> u64 {
    let mut z = key.wrapping_add(counter.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Rows of token ids of these lengths, the same on every call.
pub fn token_rows(lengths: &[usize], vocab_size: usize) -> Vec<Vec<u32>> {
    let mut counter = 0;
    lengths
        .iter()
        .map(|&length| {
            let row = counter..counter + length as u64;
            counter = row.end;
            row.map(|idx| (mix(1, idx) % vocab_size.max(1) as u64) as u32)
                .collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::reference::Reference;
    use crate::batch::PackedBatch;
    use crate::model::{Decoder, Encoder, Pass};

    #[test]
    fn parameters_are_those_of_the_published_models() {
        let millions = |name| config(name).unwrap().encoder_parameters() / 1_000_000;
        let expected = [0, 18, 84, 308, 1157, 4630, 4630, 18, 84, 302];
        assert_eq!(shapes().map(millions).collect::<Vec<_>>(), expected);
        assert!(config("v1_1-huge").is_none());
        assert_eq!(config("umt5-xxl").unwrap().vocab_size, 256_384);
        assert!(!config("t5-base").unwrap().feed_forward.gated);
    }

    #[test]
    fn values_depend_on_name_and_index_alone() {
        let take = |dtype, name: &str, rows| {
            let mut weights = SyntheticWeights::new(config("v1_1-base").unwrap(), dtype);
            weights.take(name, &[rows, 768]).unwrap().to_f32()
        };
        // More than one thread's share, and not a multiple of a block.
        let large = take(DType::F32, "shared.weight", 1001);
        let small = take(DType::F32, "shared.weight", 7);
        assert_eq!(large[..small.len()], small);
        let other = take(
            DType::F32,
            "encoder.block.3.layer.0.SelfAttention.k.weight",
            7,
        );
        assert!(small.iter().zip(&other).all(|(a, b)| a != b));
        let rounded = take(DType::BF16, "shared.weight", 7);
        for (value, rounded) in small.iter().zip(rounded) {
            assert_eq!(half::bf16::from_f32(*value).to_f32(), rounded);
        }
        let rounded = take(DType::F16, "shared.weight", 7);
        for (value, rounded) in small.iter().zip(rounded) {
            assert_eq!(half::f16::from_f32(*value).to_f32(), rounded);
        }
    }

    #[test]
    fn moments_are_as_said() {
        let mut weights = SyntheticWeights::new(config("v1_1-base").unwrap(), DType::F32);
        for (name, mean, deviation) in [
            ("shared.weight", 0.0, 1.0),
            ("encoder.final_layer_norm.weight", 1.0, 0.1),
            (
                "encoder.block.0.layer.0.SelfAttention.q.weight",
                0.0,
                1.0 / (768.0f64 * 64.0).sqrt(),
            ),
            (
                "encoder.block.1.layer.1.DenseReluDense.wo.weight",
                0.0,
                1.0 / 2048f64.sqrt(),
            ),
        ] {
            let values = weights.take(name, &[100_000]).unwrap().to_f32();
            let n = values.len() as f64;
            let found = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
            let square = values
                .iter()
                .map(|&v| (f64::from(v) - found).powi(2))
                .sum::<f64>()
                / n;
            // Four standard errors of the mean, and of the deviation.
            assert!(
                (found - mean).abs() < 4.0 * deviation / n.sqrt(),
                "{name} {found}"
            );
            assert!(
                (square.sqrt() / deviation - 1.0).abs() < 0.01,
                "{name} {square}"
            );
        }
    }

    #[test]
    fn every_kind_of_stack_loads_and_stays_finite() {
        for (name, n_layers) in [("tiny", 2), ("t5-small", 1), ("umt5-xxl", 2)] {
            let mut config = config(name).unwrap();
            config.num_layers = n_layers;
            if name == "umt5-xxl" {
                (config.d_model, config.d_ff, config.num_heads) = (128, 256, 2);
            }
            config.vocab_size = 100;
            let mut weights = SyntheticWeights::new(config.clone(), DType::BF16);
            let encoder = Encoder::load(Reference, config.clone(), &mut weights).unwrap();
            let rows = token_rows(&[5, 1, 9], config.vocab_size);
            let batch = PackedBatch::from_rows(&rows, config.vocab_size).unwrap();
            let pass = Pass {
                keep_inner: true,
                ..Pass::default()
            };
            let decoder = Decoder::load(&Reference, &config, &mut weights).unwrap();
            assert_eq!(decoder.is_tied(), name == "t5-small");
            let states = encoder.encode(&batch, &pass).unwrap();
            let last = states.inner.last().unwrap();
            let mean_square = last.iter().map(|v| v * v).sum::<f32>() / last.len() as f32;
            assert!(mean_square.is_finite() && mean_square < 100.0, "{name}");
        }
    }

    #[test]
    fn a_tensor_that_the_config_lacks_is_an_error() {
        let mut weights = SyntheticWeights::new(config("tiny").unwrap(), DType::F32);
        for name in [
            "encoder.block.2.layer.0.SelfAttention.q.weight",
            "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight",
            "encoder.block.0.layer.1.DenseReluDense.wi.weight",
            "decoder.block.2.layer.0.SelfAttention.q.weight",
            "decoder.block.0.layer.1.DenseReluDense.wi_0.weight",
            "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
            "encoder.block.0.layer.1.EncDecAttention.q.weight",
            "encoder",
        ] {
            assert!(!weights.contains(name), "{name}");
            let error = weights.take(name, &[1]).unwrap_err().to_string();
            assert_eq!(error, format!("a synthetic model has no tensor `{name}`"));
        }
    }
}
