//! The parameters of the kernels, as `kernels/parameters.cuh` has them.

use bytemuck::{Pod, Zeroable};

use crate::device::Address;

macro_rules! parameters {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
            #[repr(C, align(8))]
            #[allow(missing_docs, reason = "said in parameters.cuh")]
            pub struct $name { $(pub $field: $type),* }
        )*
    };
}

parameters! {
    /// Of `embed_*`.
    Embed { table: Address, ids: Address, out: Address, columns: u32, unused: u32 }

    /// Of `rms_norm_*`.
    RmsNorm {
        x: Address, gain: Address, out: Address, overflow: Address, columns: u32, eps: f32,
    }

    /// Of `gate_*`.
    Gate {
        input: Address, out: Address, peaks: Address,
        tokens: u32, columns: u32, activation: u32, gated: u32, in_scale: f32, out_scale: f32,
    }

    /// Of `convert_any`.
    Convert {
        src: Address, dst: Address, gain: Address, overflow: Address, count: u64,
        columns: u32, src_type: u32, dst_type: u32, unused: u32,
    }

    /// Of `pool_f32`.
    PoolRows { x: Address, row_starts: Address, out: Address, columns: u32, how: u32 }

    /// Of `place_f32`.
    PlaceRows { x: Address, rows: Address, out: Address, columns: u32, out_type: u32 }

    /// Of `append_kv_*`.
    AppendKv {
        kv: Address, cache: Address, row_starts: Address, lengths: Address,
        rows: u32, first_column: u32, kv_stride: u32, inner: u32, capacity: u32, unused: u32,
    }

    /// Up to 64 queries of one row.
    Tile { row: u32, first: u32 }

    /// Of `attend_64_*` and `attend_128_*`.
    AttendTiles {
        qkv: Address, out: Address, bias: Address, tiles: Address, n_tiles: Address,
        row_starts: Address, visible: Address, positions: Address, head_gains: Address,
        heads: u32, reach: u32, causal: u32, unused: u32,
    }

    /// Of `attend_plain_*`.
    AttendPlain {
        queries: Address, keys: Address, values: Address, out: Address,
        weights: Address, weight_starts: Address, bias: Address, token_rows: Address,
        row_starts: Address, key_lengths: Address, visible: Address, pair_starts: Address,
        positions: Address, head_gains: Address,
        q_stride: u32, kv_stride: u32, capacity: u32, heads: u32, d_kv: u32, reach: u32,
        mask: u32, unused: u32,
    }
}
