//! The functions of one instruction set, side by side.

use crate::Isa;
use crate::micro::{Bf16Block, F32Block, MicroBf16, MicroF32, MicroSplit};
use crate::operand::Form;
use crate::parts::MicroParts;
use crate::quantised::{FewRows, MICRO_PLAIN, MicroInt8, Quantised};
use crate::rows::Expand;
use crate::rowwise::Rowwise;
use crate::tiles::Tiles;

/// What an instruction set computes with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table {
    pub(crate) isa: Isa,
    pub(crate) f32: MicroF32,
    /// Products of bf16, where they are faster than those of f32.
    pub(crate) bf16: Option<MicroBf16>,
    /// The layout that products of bf16 read.
    pub(crate) bf16_form: Form,
    /// Products in two parts of bf16, where they are faster than those of f32; there is one of bf16 then.
    pub(crate) split: Option<MicroSplit>,
    /// Products of f32 in parts of bf16, where they are faster.
    pub(crate) parts: Option<MicroParts>,
    pub(crate) rows: Rowwise,
    /// Makes operands of an attention in bf16.
    pub(crate) tiles: Tiles,
    /// Expands weights that stay as they are in a file.
    pub(crate) expand: Expand,
    pub(crate) int8: MicroInt8,
    /// Whether two products of bytes take less time than one of f32 over widened bytes.
    pub(crate) has_fast_bytes: bool,
    pub(crate) quantised: Quantised,
    /// Few rows of f32 with codes.
    pub(crate) few_f32: Option<FewRows<F32Block<u8>>>,
    /// Few rows of bf16, row after row, with codes.
    pub(crate) few_bf16: Option<FewRows<Bf16Block>>,
}

impl Table {
    /// The functions of `isa`, which the caller has found to be available.
    pub(crate) fn of(isa: Isa) -> Self {
        let portable = Table {
            isa,
            f32: crate::portable::MICRO_F32,
            bf16: None,
            bf16_form: Form::Bf16,
            split: None,
            parts: None,
            rows: crate::portable::ROWWISE,
            tiles: crate::tiles::PLAIN,
            expand: crate::portable::EXPAND,
            int8: MICRO_PLAIN,
            has_fast_bytes: false,
            quantised: crate::portable::QUANTISED,
            few_f32: None,
            few_bf16: None,
        };
        #[cfg(target_arch = "x86_64")]
        {
            use crate::x86::{
                amx, amx_parts, amx_split, avx2, avx2_int8, avx512, avx512_bytes, avx512_int8,
                avx512_rows, avx512_tiles, avx512bf16_rows,
            };
            // Not every CPU with AVX-512 has it. The sums are the same.
            let has_vnni = is_x86_feature_detected!("avx512vnni");
            let with_avx512 = Table {
                f32: avx512::MICRO_F32,
                rows: avx512_rows::ROWWISE,
                tiles: avx512_tiles::TILES,
                expand: avx512::EXPAND,
                int8: match has_vnni {
                    true => avx512_bytes::MICRO_VNNI,
                    false => avx2_int8::MICRO,
                },
                has_fast_bytes: has_vnni,
                quantised: avx512_int8::QUANTISED,
                few_f32: Some(avx512_int8::FEW_F32),
                ..portable
            };
            match isa {
                Isa::Portable => portable,
                Isa::Avx2 => Table {
                    f32: avx2::MICRO_F32,
                    rows: avx2::ROWWISE,
                    expand: avx2::EXPAND,
                    int8: avx2_int8::MICRO,
                    quantised: avx2_int8::QUANTISED,
                    ..portable
                },
                Isa::Avx512 => with_avx512,
                Isa::Avx512Bf16 => Table {
                    f32: avx512::MICRO_F32_UNFETCHED,
                    bf16: Some(avx512::MICRO_BF16),
                    few_bf16: Some(avx512_int8::FEW_BF16),
                    rows: avx512bf16_rows::ROWWISE,
                    ..with_avx512
                },
                Isa::Amx => Table {
                    bf16: Some(amx::MICRO),
                    int8: amx::MICRO_INT8,
                    has_fast_bytes: true,
                    bf16_form: Form::Bf16Tiles,
                    // A tile product does as much as sixteen multiply-adds in its time.
                    split: Some(amx_split::MICRO),
                    parts: Some(amx_parts::MICRO),
                    rows: avx512bf16_rows::ROWWISE,
                    ..with_avx512
                },
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        portable
    }
}
