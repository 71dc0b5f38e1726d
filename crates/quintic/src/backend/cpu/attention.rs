//! From the trait's masks and positions to the kernels'.

use quintic_kernels::{
    self as kernels, CausalMask, Kernels, KeyMask, KeysValues, NoBias, NoMask, Operand, PairMask,
    PositionBias, ScoreBias, ScoreMask,
};

use super::Cpu;
use crate::backend::{Attention, Keys, Visible};
use crate::batch::Mask;

pub(super) fn attend(kernels: &Kernels, attention: &Attention<'_, Cpu>, out: &mut Operand) {
    match (attention.bias, attention.positions) {
        (None, _) => with_bias(kernels, attention, &NoBias, out),
        (Some(bias), None) => with_bias(kernels, attention, &bias.0, out),
        (Some(bias), Some(positions)) => {
            // Positions are those of queries and keys alike, which a cache has none of.
            assert!(
                matches!(attention.keys, Keys::Fused),
                "positions together with a cache"
            );
            let bias = PositionBias {
                bias: &bias.0,
                positions,
                row_starts: attention.row_starts,
            };
            with_bias(kernels, attention, &bias, out);
        }
    }
}

fn with_bias<B: ScoreBias>(
    kernels: &Kernels,
    attention: &Attention<'_, Cpu>,
    bias: &B,
    out: &mut Operand,
) {
    match attention.visible {
        Visible::Causal => with_mask(kernels, attention, bias, &CausalMask, out),
        Visible::Mask(Mask::Full) => with_mask(kernels, attention, bias, &NoMask, out),
        Visible::Mask(Mask::Keys(flags)) => {
            let mask = KeyMask::new(flags, attention.row_starts);
            with_mask(kernels, attention, bias, &mask, out);
        }
        Visible::Mask(Mask::Pairs(flags)) => {
            let mask = PairMask::new(flags, attention.row_starts);
            with_mask(kernels, attention, bias, &mask, out);
        }
    }
}

fn with_mask<B: ScoreBias, M: ScoreMask>(
    kernels: &Kernels,
    attention: &Attention<'_, Cpu>,
    bias: &B,
    mask: &M,
    out: &mut Operand,
) {
    let inner = attention.n_heads * attention.d_kv;
    let (keys, queries_are_last) = match attention.keys {
        Keys::Fused => (
            KeysValues {
                keys: attention.queries,
                key_column: inner,
                values: attention.queries,
                value_column: 2 * inner,
                starts: &attention.row_starts[..attention.row_starts.len() - 1],
                ends: &attention.row_starts[1..],
            },
            false,
        ),
        Keys::Cache(cache) => (cache.keys_values(), true),
    };
    kernels.attend(
        &kernels::Attention {
            n_heads: attention.n_heads,
            d_kv: attention.d_kv,
            queries: attention.queries,
            row_starts: attention.row_starts,
            keys,
            queries_are_last,
        },
        bias,
        mask,
        out,
    );
}
