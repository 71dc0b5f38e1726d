//! Which types a GGUF file's tensors have.
//!
//! Which tensors stay f32: `convert_hf_to_gguf.py` and `llama-quant.cpp` of llama.cpp.

#[cfg(doc)]
use crate::ErrorKind;
use crate::output::gguf::GgmlType;
use crate::{Error, Result};

/// How matrices are stored. Norms and position biases are f32 in every file.
///
/// With fewer than 8 bits the embedding and the output head, whose every row is a token of its
/// own, have more: [`GgufWeights::Q8_0`], or [`GgufWeights::Q6_K`] if the others are of a type
/// whose name ends in `_K`. A matrix whose rows are no whole blocks of 256 has blocks of 32:
///
/// | asked for | instead |
/// |---|---|
/// | Q2_K, Q3_K | Q4_0 |
/// | Q4_K | Q5_0 |
/// | Q5_K | Q5_1 |
/// | Q6_K | Q8_0 |
///
/// One whose rows are no whole blocks of 32 either is f16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "the formats' own names")]
pub enum GgufWeights {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// bfloat16.
    Bf16,
    /// Blocks of 32 values: 8 bits.
    Q8_0,
    /// Blocks of 32 values: 4 bits.
    Q4_0,
    /// Blocks of 32 values: 4 bits and a minimum.
    Q4_1,
    /// Blocks of 32 values: 5 bits.
    Q5_0,
    /// Blocks of 32 values: 5 bits and a minimum.
    Q5_1,
    /// Blocks of 256 values: 2 bits, scales and minima of 4 bits.
    Q2_K,
    /// Blocks of 256 values: 3 bits, scales of 6 bits.
    Q3_K,
    /// Blocks of 256 values: 4 bits, scales and minima of 6 bits.
    Q4_K,
    /// Blocks of 256 values: 5 bits, scales and minima of 6 bits.
    Q5_K,
    /// Blocks of 256 values: 6 bits, scales of 8 bits.
    Q6_K,
}

impl GgufWeights {
    /// Every kind.
    pub const ALL: [GgufWeights; 13] = [
        GgufWeights::F32,
        GgufWeights::F16,
        GgufWeights::Bf16,
        GgufWeights::Q8_0,
        GgufWeights::Q4_0,
        GgufWeights::Q4_1,
        GgufWeights::Q5_0,
        GgufWeights::Q5_1,
        GgufWeights::Q2_K,
        GgufWeights::Q3_K,
        GgufWeights::Q4_K,
        GgufWeights::Q5_K,
        GgufWeights::Q6_K,
    ];

    /// The type of matrices whose rows are whole blocks.
    const fn dtype(self) -> GgmlType {
        match self {
            GgufWeights::F32 => GgmlType::F32,
            GgufWeights::F16 => GgmlType::F16,
            GgufWeights::Bf16 => GgmlType::BF16,
            GgufWeights::Q8_0 => GgmlType::Q8_0,
            GgufWeights::Q4_0 => GgmlType::Q4_0,
            GgufWeights::Q4_1 => GgmlType::Q4_1,
            GgufWeights::Q5_0 => GgmlType::Q5_0,
            GgufWeights::Q5_1 => GgmlType::Q5_1,
            GgufWeights::Q2_K => GgmlType::Q2_K,
            GgufWeights::Q3_K => GgmlType::Q3_K,
            GgufWeights::Q4_K => GgmlType::Q4_K,
            GgufWeights::Q5_K => GgmlType::Q5_K,
            GgufWeights::Q6_K => GgmlType::Q6_K,
        }
    }

    /// `f32`, `f16`, `bf16`, `q8_0`, `q4_k` and so on.
    pub const fn name(self) -> &'static str {
        self.dtype().name()
    }

    /// The kind of a name, in small or in capital letters.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] if there is none.
    pub fn parse(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name().eq_ignore_ascii_case(name))
            .ok_or_else(|| {
                let names = Self::ALL.map(|kind| format!("`{}`", kind.name()));
                Error::unsupported(format!(
                    "weights of a GGUF file cannot be `{name}` here, expected one of {}",
                    names.join(", ")
                ))
            })
    }

    /// llama.cpp's number for a file whose matrices are of this kind; of types with mixtures, the
    /// one without (`_S`).
    pub(super) fn file_type(self) -> u32 {
        match self {
            GgufWeights::F32 => 0,
            GgufWeights::F16 => 1,
            GgufWeights::Q4_0 => 2,
            GgufWeights::Q4_1 => 3,
            GgufWeights::Q8_0 => 7,
            GgufWeights::Q5_0 => 8,
            GgufWeights::Q5_1 => 9,
            GgufWeights::Q3_K => 11,
            GgufWeights::Q4_K => 14,
            GgufWeights::Q5_K => 16,
            GgufWeights::Q6_K => 18,
            GgufWeights::Q2_K => 21,
            GgufWeights::Bf16 => 32,
        }
    }

    /// How a tensor of this name is stored.
    pub(super) fn of(self, name: &str) -> GgmlType {
        if name.ends_with("_norm.weight") || name.ends_with("_rel_b.weight") {
            return GgmlType::F32;
        }
        match self.dtype() {
            dtype if name != "token_embd.weight" && name != "output.weight" => dtype,
            GgmlType::Q4_0 | GgmlType::Q4_1 | GgmlType::Q5_0 | GgmlType::Q5_1 => GgmlType::Q8_0,
            GgmlType::Q2_K | GgmlType::Q3_K | GgmlType::Q4_K | GgmlType::Q5_K => GgmlType::Q6_K,
            dtype => dtype,
        }
    }
}

/// How a tensor is stored whose rows have `row` values: in `wanted` if they are whole blocks.
pub(super) fn for_rows_of(row: usize, wanted: GgmlType) -> GgmlType {
    let smaller = match wanted {
        GgmlType::Q2_K | GgmlType::Q3_K => GgmlType::Q4_0,
        GgmlType::Q4_K => GgmlType::Q5_0,
        GgmlType::Q5_K => GgmlType::Q5_1,
        _ => GgmlType::Q8_0,
    };
    let fits = |dtype: &GgmlType| row.is_multiple_of(dtype.block_len());
    let found = [wanted, smaller].into_iter().find(fits);
    found.unwrap_or(GgmlType::F16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_and_biases_stay_f32_and_the_embedding_has_eight_bits() {
        for weights in GgufWeights::ALL {
            assert_eq!(GgufWeights::parse(weights.name()).unwrap(), weights);
            for name in [
                "enc.output_norm",
                "enc.blk.0.attn_rel_b",
                "dec.blk.1.cross_attn_norm",
            ] {
                assert_eq!(weights.of(&format!("{name}.weight")), GgmlType::F32);
            }
        }
        let embedding = |weights: GgufWeights| {
            assert_eq!(weights.of("enc.blk.0.attn_q.weight"), weights.dtype());
            let dtype = weights.of("token_embd.weight");
            assert_eq!(weights.of("output.weight"), dtype);
            dtype
        };
        assert_eq!(embedding(GgufWeights::Bf16), GgmlType::BF16);
        for weights in [GgufWeights::Q8_0, GgufWeights::Q4_0, GgufWeights::Q5_1] {
            assert_eq!(embedding(weights), GgmlType::Q8_0);
        }
        for weights in [GgufWeights::Q2_K, GgufWeights::Q4_K, GgufWeights::Q6_K] {
            assert_eq!(embedding(weights), GgmlType::Q6_K);
        }
        assert_eq!(GgufWeights::parse("Q4_K").unwrap(), GgufWeights::Q4_K);
        assert!(GgufWeights::parse("q4_k_m").is_err());
    }

    #[test]
    fn rows_that_are_no_whole_blocks() {
        for (wanted, of_32) in [
            (GgmlType::Q2_K, GgmlType::Q4_0),
            (GgmlType::Q3_K, GgmlType::Q4_0),
            (GgmlType::Q4_K, GgmlType::Q5_0),
            (GgmlType::Q5_K, GgmlType::Q5_1),
            (GgmlType::Q6_K, GgmlType::Q8_0),
            (GgmlType::Q4_1, GgmlType::Q4_1),
            (GgmlType::Q8_0, GgmlType::Q8_0),
        ] {
            assert_eq!(for_rows_of(512, wanted), wanted);
            assert_eq!(for_rows_of(384, wanted), of_32);
            assert_eq!(for_rows_of(24, wanted), GgmlType::F16);
        }
        assert_eq!(for_rows_of(7, GgmlType::F32), GgmlType::F32);
    }
}
