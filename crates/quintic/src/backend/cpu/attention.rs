//! From the trait's masks and positions to the kernels'.

use quintic_kernels::{
    self as kernels, CausalMask, Kernels, KeyMask, KeysValues, NoBias, NoMask, Operand, PairMask,
    PositionBias, ScoreBias, ScoreMask,
};

use super::Cpu;
use crate::backend::{Attention, Keys, Visible};
use crate::batch::Mask;

/// What is done with the kernels' attention, once bias and mask have a type.
trait Ask {
    type Answer;

    fn ask<B: ScoreBias, M: ScoreMask>(
        self,
        attention: &kernels::Attention<'_>,
        bias: &B,
        mask: &M,
    ) -> Self::Answer;
}

/// [`Kernels::attend`].
struct Attend<'a>(&'a Kernels, &'a mut Operand);

impl Ask for Attend<'_> {
    type Answer = ();

    fn ask<B: ScoreBias, M: ScoreMask>(
        self,
        attention: &kernels::Attention<'_>,
        bias: &B,
        mask: &M,
    ) {
        self.0.attend(attention, bias, mask, self.1);
    }
}

/// [`Kernels::attention_weights`].
struct Weigh<'a>(&'a Kernels);

impl Ask for Weigh<'_> {
    type Answer = Vec<f32>;

    fn ask<B: ScoreBias, M: ScoreMask>(
        self,
        attention: &kernels::Attention<'_>,
        bias: &B,
        mask: &M,
    ) -> Vec<f32> {
        self.0.attention_weights(attention, bias, mask)
    }
}

pub(super) fn attend(kernels: &Kernels, attention: &Attention<'_, Cpu>, out: &mut Operand) {
    with_bias(attention, Attend(kernels, out));
}

pub(super) fn weights(kernels: &Kernels, attention: &Attention<'_, Cpu>) -> Vec<f32> {
    with_bias(attention, Weigh(kernels))
}

fn with_bias<A: Ask>(attention: &Attention<'_, Cpu>, ask: A) -> A::Answer {
    match (attention.bias, attention.positions) {
        (None, _) => with_mask(attention, &NoBias, ask),
        (Some(bias), None) => with_mask(attention, &bias.0, ask),
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
            with_mask(attention, &bias, ask)
        }
    }
}

fn with_mask<B: ScoreBias, A: Ask>(attention: &Attention<'_, Cpu>, bias: &B, ask: A) -> A::Answer {
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
    let own = kernels::Attention {
        n_heads: attention.n_heads,
        d_kv: attention.d_kv,
        queries: attention.queries,
        row_starts: attention.row_starts,
        keys,
        queries_are_last,
        head_gains: attention.head_gains,
    };
    match attention.visible {
        Visible::Causal => ask.ask(&own, bias, &CausalMask),
        Visible::Mask(Mask::Full) => ask.ask(&own, bias, &NoMask),
        Visible::Mask(Mask::Keys(flags)) => {
            ask.ask(&own, bias, &KeyMask::new(flags, attention.row_starts))
        }
        Visible::Mask(Mask::Pairs(flags)) => {
            ask.ask(&own, bias, &PairMask::new(flags, attention.row_starts))
        }
    }
}
