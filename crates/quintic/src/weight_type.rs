//! In which type the weights of products are kept, and what kinds of products there are.

use crate::{Error, Result};

/// What a backend makes of the weights of products when a model is loaded.
///
/// [`WeightType::Int8`] and [`WeightType::Int4`] round weights alone: products are as precise as
/// [`Compute::dtype`](crate::Compute::dtype) says. They are for reading less memory, which
/// bounds passes over few tokens, above all generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WeightType {
    /// As [`Compute::dtype`](crate::Compute::dtype) says.
    #[default]
    AsStored,
    /// 8-bit integers and a factor an output column: 1 byte a weight. In bf16 and f16, on CPUs with dot
    /// products of bytes (AVX-512 VNNI, AMX), what flows into a product is rounded to 16-bit integers with
    /// a factor a token, which is finer than bf16 for all values above a 128th of the token's
    /// largest, and lets products be those of integers.
    Int8,
    /// 4-bit integers, a multiplier for each 32 of them and a factor a column: 0.53 bytes a weight. What
    /// flows in is as with `Int8`.
    Int4,
    /// As `Int8`, and what flows into a product is rounded to 8-bit integers too, with a factor a
    /// token, but to 16-bit integers where it has outliers ([`ProductKind::needs_sixteen_bits`]):
    /// products are of integers, up to four times as fast as those of f32.
    W8A8,
}

impl WeightType {
    /// Every type.
    pub const ALL: [WeightType; 4] = [
        WeightType::AsStored,
        WeightType::Int8,
        WeightType::Int4,
        WeightType::W8A8,
    ];

    /// `as-stored`, `int8`, `int4` or `w8a8`.
    pub fn name(self) -> &'static str {
        match self {
            WeightType::AsStored => "as-stored",
            WeightType::Int8 => "int8",
            WeightType::Int4 => "int4",
            WeightType::W8A8 => "w8a8",
        }
    }

    /// The type of a name.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if there is none.
    pub fn parse(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|weights| weights.name() == name)
            .ok_or_else(|| {
                Error::unsupported(format!(
                    "weights cannot be kept as `{name}`, expected `as-stored`, `int8`, `int4` or \
                     `w8a8`"
                ))
            })
    }
}

/// Which product of a layer, or of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProductKind {
    /// Queries, keys and values, those of cross-attention among them.
    Qkv,
    /// Out of an attention.
    O,
    /// Into a feed-forward layer.
    Wi,
    /// Out of it.
    Wo,
    /// The output head.
    Head,
}

impl ProductKind {
    /// Every kind.
    pub const ALL: [ProductKind; 5] = [
        ProductKind::Qkv,
        ProductKind::O,
        ProductKind::Wi,
        ProductKind::Wo,
        ProductKind::Head,
    ];

    /// Whether 8 bits are too few for what flows into this product: a few of the values behind a
    /// feed-forward layer's activation are many times as large as the others, and an output head's
    /// scores are compared with each other. `docs/performance.md` has the measurement.
    pub fn needs_sixteen_bits(self) -> bool {
        matches!(self, ProductKind::Wo | ProductKind::Head)
    }

    /// The kind of a name, if it is one's.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// `qkv`, `o`, `wi`, `wo` or `head`.
    pub fn name(self) -> &'static str {
        match self {
            ProductKind::Qkv => "qkv",
            ProductKind::O => "o",
            ProductKind::Wi => "wi",
            ProductKind::Wo => "wo",
            ProductKind::Head => "head",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for weights in WeightType::ALL {
            assert_eq!(WeightType::parse(weights.name()).unwrap(), weights);
        }
        assert!(WeightType::parse("int3").is_err());
    }
}
