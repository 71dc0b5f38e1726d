//! GGML's element types: what a number in the table of tensors stands for.

/// An element type, whether or not it can be loaded.
#[derive(Clone, Copy, Debug)]
pub(super) struct ElementType {
    id: u32,
    /// GGML's name.
    pub(super) name: &'static str,
    /// Values of a block, 1 for plain types.
    values: u64,
    /// Bytes of a block.
    bytes: u64,
}

impl ElementType {
    /// Bytes of a tensor, or why there is no such number. `shape` is outermost first.
    pub(super) fn n_bytes(&self, shape: &[u64]) -> Result<u64, String> {
        let n = shape
            .iter()
            .try_fold(1u64, |n, &dim| n.checked_mul(dim))
            .ok_or("overflows")?;
        if !shape.last().unwrap_or(&1).is_multiple_of(self.values) {
            return Err(format!(
                "has rows that are no whole blocks of {} values",
                self.values
            ));
        }
        (n / self.values)
            .checked_mul(self.bytes)
            .ok_or_else(|| "overflows".to_owned())
    }
}

pub(super) fn of_id(id: u32) -> Option<ElementType> {
    TYPES.into_iter().find(|kind| kind.id == id)
}

const fn of(id: u32, name: &'static str, values: u64, bytes: u64) -> ElementType {
    ElementType {
        id,
        name,
        values,
        bytes,
    }
}

/// `GGMLQuantizationType` and `GGML_QUANT_SIZES`.
const TYPES: [ElementType; 34] = [
    of(0, "F32", 1, 4),
    of(1, "F16", 1, 2),
    of(2, "Q4_0", 32, 18),
    of(3, "Q4_1", 32, 20),
    of(6, "Q5_0", 32, 22),
    of(7, "Q5_1", 32, 24),
    of(8, "Q8_0", 32, 34),
    of(9, "Q8_1", 32, 40),
    of(10, "Q2_K", 256, 84),
    of(11, "Q3_K", 256, 110),
    of(12, "Q4_K", 256, 144),
    of(13, "Q5_K", 256, 176),
    of(14, "Q6_K", 256, 210),
    of(15, "Q8_K", 256, 292),
    of(16, "IQ2_XXS", 256, 66),
    of(17, "IQ2_XS", 256, 74),
    of(18, "IQ3_XXS", 256, 98),
    of(19, "IQ1_S", 256, 50),
    of(20, "IQ4_NL", 32, 18),
    of(21, "IQ3_S", 256, 110),
    of(22, "IQ2_S", 256, 82),
    of(23, "IQ4_XS", 256, 136),
    of(24, "I8", 1, 1),
    of(25, "I16", 1, 2),
    of(26, "I32", 1, 4),
    of(27, "I64", 1, 8),
    of(28, "F64", 1, 8),
    of(29, "IQ1_M", 256, 56),
    of(30, "BF16", 1, 2),
    of(34, "TQ1_0", 256, 54),
    of(35, "TQ2_0", 256, 66),
    of(39, "MXFP4", 32, 17),
    of(40, "NVFP4", 64, 36),
    of(41, "Q1_0", 128, 18),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlockType, DType};

    #[test]
    fn blocks_have_the_sizes_that_they_are_decoded_with() {
        for kind in BlockType::ALL {
            let listed = TYPES.iter().find(|t| t.name == kind.name()).unwrap();
            assert_eq!(
                (listed.values, listed.bytes),
                (kind.values() as u64, kind.bytes() as u64),
                "{kind}"
            );
        }
        for dtype in [DType::F32, DType::F16, DType::BF16, DType::I32, DType::I64] {
            let name = dtype.safetensors_name();
            let listed = TYPES.iter().find(|t| t.name == name).unwrap();
            assert_eq!(
                (listed.values, listed.bytes),
                (1, dtype.size_bytes() as u64)
            );
        }
    }
}
