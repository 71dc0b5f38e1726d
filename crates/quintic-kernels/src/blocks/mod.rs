//! Weights that are stored with fewer bits than a float: blocks of values with common scales.
//!
//! The formats are those of GGUF files. A row of a matrix is a whole number of blocks. Every
//! block is a whole number of *groups* of 32 values, each of which can be decoded by itself:
//! that is what products ask for, which expand a piece of a panel at a time.
//!
//! | type | values | bytes | a value is |
//! |---|---|---|---|
//! | `Q4_0` | 32 | 18 | `d * (q - 8)`, 4 bits |
//! | `Q4_1` | 32 | 20 | `d * q + m` |
//! | `Q5_0` | 32 | 22 | `d * (q - 16)`, 5 bits |
//! | `Q5_1` | 32 | 24 | `d * q + m` |
//! | `Q8_0` | 32 | 34 | `d * q`, 8 bits with a sign |
//! | `Q2_K` | 256 | 84 | `(d * s) * q - (dmin * m)`, 2 bits, `s` and `m` of 4 bits for 16 values |
//! | `Q3_K` | 256 | 110 | `(d * s) * (q - 4)`, 3 bits, `s` of 6 bits for 16 values |
//! | `Q4_K` | 256 | 144 | `(d * s) * q - (dmin * m)`, 4 bits, `s` and `m` of 6 bits for 32 values |
//! | `Q5_K` | 256 | 176 | the same with 5 bits |
//! | `Q6_K` | 256 | 210 | `(d * s) * (q - 32)`, 6 bits, `s` of 8 bits with a sign for 16 values |
//! | `IQ4_NL` | 32 | 18 | `d * table[q]`, 4 bits |
//! | `IQ4_XS` | 256 | 136 | `(d * s) * table[q]`, 4 bits, `s` of 6 bits for 32 values |
//!
//! `d`, `dmin` and block-wide `m` are f16, everything else is a whole number.
//!
//! # Numerics
//!
//! Each product and sum above is one operation in f32, in the order that the parentheses say:
//! the values are those of `gguf.quants.dequantize` of the Python package `gguf`, bit for bit.
//!
//! # Source
//!
//! `GGML_QUANT_SIZES` and `dequantize_blocks` of that package, version 0.19.

mod decode;
pub(crate) mod fp8;
#[cfg(test)]
mod tests;

use std::fmt;

use self::decode::group;
pub(crate) use self::decode::{Group, Raw, TABLE, raw};
pub use self::fp8::Fp8;

/// Values of a group.
pub(crate) const GROUP: usize = 32;

/// A block format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(non_camel_case_types, reason = "the formats' own names")]
pub enum BlockType {
    /// 4 bits, a scale for 32 values.
    Q4_0,
    /// 4 bits, a scale and a minimum for 32 values.
    Q4_1,
    /// 5 bits, a scale for 32 values.
    Q5_0,
    /// 5 bits, a scale and a minimum for 32 values.
    Q5_1,
    /// 8 bits, a scale for 32 values.
    Q8_0,
    /// 2 bits, a scale and a minimum of 4 bits for 16 values.
    Q2_K,
    /// 3 bits, a scale of 6 bits for 16 values.
    Q3_K,
    /// 4 bits, a scale and a minimum of 6 bits for 32 values.
    Q4_K,
    /// 5 bits, a scale and a minimum of 6 bits for 32 values.
    Q5_K,
    /// 6 bits, a scale of 8 bits for 16 values.
    Q6_K,
    /// 4 bits that choose from a table, a scale for 32 values.
    IQ4_NL,
    /// 4 bits that choose from a table, a scale of 6 bits for 32 values.
    IQ4_XS,
}

impl BlockType {
    /// Every format.
    pub const ALL: [BlockType; 12] = [
        BlockType::Q4_0,
        BlockType::Q4_1,
        BlockType::Q5_0,
        BlockType::Q5_1,
        BlockType::Q8_0,
        BlockType::Q2_K,
        BlockType::Q3_K,
        BlockType::Q4_K,
        BlockType::Q5_K,
        BlockType::Q6_K,
        BlockType::IQ4_NL,
        BlockType::IQ4_XS,
    ];

    /// Its name, such as `Q4_K`.
    pub const fn name(self) -> &'static str {
        match self {
            BlockType::Q4_0 => "Q4_0",
            BlockType::Q4_1 => "Q4_1",
            BlockType::Q5_0 => "Q5_0",
            BlockType::Q5_1 => "Q5_1",
            BlockType::Q8_0 => "Q8_0",
            BlockType::Q2_K => "Q2_K",
            BlockType::Q3_K => "Q3_K",
            BlockType::Q4_K => "Q4_K",
            BlockType::Q5_K => "Q5_K",
            BlockType::Q6_K => "Q6_K",
            BlockType::IQ4_NL => "IQ4_NL",
            BlockType::IQ4_XS => "IQ4_XS",
        }
    }

    /// Values of a block: 32 or 256.
    pub const fn values(self) -> usize {
        match self {
            BlockType::Q4_0
            | BlockType::Q4_1
            | BlockType::Q5_0
            | BlockType::Q5_1
            | BlockType::Q8_0
            | BlockType::IQ4_NL => 32,
            BlockType::Q2_K
            | BlockType::Q3_K
            | BlockType::Q4_K
            | BlockType::Q5_K
            | BlockType::Q6_K
            | BlockType::IQ4_XS => 256,
        }
    }

    /// Bytes of a block.
    pub const fn bytes(self) -> usize {
        match self {
            BlockType::Q4_0 => 18,
            BlockType::Q4_1 => 20,
            BlockType::Q5_0 => 22,
            BlockType::Q5_1 => 24,
            BlockType::Q8_0 => 34,
            BlockType::Q2_K => 84,
            BlockType::Q3_K => 110,
            BlockType::Q4_K => 144,
            BlockType::Q5_K => 176,
            BlockType::Q6_K => 210,
            BlockType::IQ4_NL => 18,
            BlockType::IQ4_XS => 136,
        }
    }

    /// Bytes of `n` values; `None` if that is no whole number of blocks.
    pub const fn bytes_of(self, n: usize) -> Option<usize> {
        match n % self.values() {
            0 => (n / self.values()).checked_mul(self.bytes()),
            _ => None,
        }
    }

    /// Writes the values of whole blocks.
    ///
    /// # Panics
    ///
    /// If `bytes` are not the whole blocks that hold as many values as `out` has room for.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(
            Some(bytes.len()),
            self.bytes_of(out.len()),
            "bytes of {} values in {self}",
            out.len()
        );
        self.decode_from(bytes, 0, out);
    }

    /// Writes values `from..from + out.len()` of a row of blocks.
    ///
    /// # Panics
    ///
    /// If the range is not inside the blocks.
    pub fn decode_from(self, bytes: &[u8], from: usize, out: &mut [f32]) {
        let groups = self.values() / GROUP;
        let mut done = 0;
        while done < out.len() {
            let at = from + done;
            let (index, first) = (at / GROUP, at % GROUP);
            let block = &bytes[index / groups * self.bytes()..][..self.bytes()];
            let n = (GROUP - first).min(out.len() - done);
            let values = group(self, block, index % groups);
            out[done..done + n].copy_from_slice(&values[first..first + n]);
            done += n;
        }
    }
}

impl fmt::Display for BlockType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
