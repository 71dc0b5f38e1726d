// Every kernel, by name. The names end in the type of the operands.

#include "attention_plain.cuh"
#include "attention_tiles.cuh"
#include "rowwise.cuh"

KERNEL(embed_f32, Embed, ROW_THREADS, 1) { embed<float>(p); }
KERNEL(embed_bf16, Embed, ROW_THREADS, 1) { embed<bf16>(p); }
KERNEL(embed_f16, Embed, ROW_THREADS, 1) { embed<f16>(p); }

KERNEL(rms_norm_f32, RmsNorm, ROW_THREADS, 1) {
    SHARED(float, scratch, 32);
    rms_norm<float>(p, scratch);
}
KERNEL(rms_norm_bf16, RmsNorm, ROW_THREADS, 1) {
    SHARED(float, scratch, 32);
    rms_norm<bf16>(p, scratch);
}
KERNEL(rms_norm_f16, RmsNorm, ROW_THREADS, 1) {
    SHARED(float, scratch, 32);
    rms_norm<f16>(p, scratch);
}

KERNEL(gate_f32, Gate, ROW_THREADS, 1) { gate<float>(p); }
KERNEL(gate_bf16, Gate, ROW_THREADS, 1) { gate<bf16>(p); }
KERNEL(gate_f16, Gate, ROW_THREADS, 1) { gate<f16>(p); }

KERNEL(convert_any, Convert, ROW_THREADS, 1) { convert(p); }
KERNEL(pool_f32, PoolRows, ROW_THREADS, 1) { pool_rows(p); }

KERNEL(place_f32, PlaceRows, ROW_THREADS, 1) { place_rows(p); }

KERNEL(append_kv_f32, AppendKv, ROW_THREADS, 1) { append_kv<float>(p); }
KERNEL(append_kv_16, AppendKv, ROW_THREADS, 1) { append_kv<bf16>(p); }

// The widest head that `attend_plain_*` takes.
#define PLAIN_WIDTH 512

KERNEL(attend_plain_f32, AttendPlain, PLAIN_THREADS, 1) {
    SHARED(float, weights, PLAIN_KEYS);
    SHARED(float, scratch, 32);
    SHARED(float, sums, PLAIN_WIDTH);
    attend_plain<float>(p, weights, scratch, sums);
}
KERNEL(attend_plain_bf16, AttendPlain, PLAIN_THREADS, 1) {
    SHARED(float, weights, PLAIN_KEYS);
    SHARED(float, scratch, 32);
    SHARED(float, sums, PLAIN_WIDTH);
    attend_plain<bf16>(p, weights, scratch, sums);
}
KERNEL(attend_plain_f16, AttendPlain, PLAIN_THREADS, 1) {
    SHARED(float, weights, PLAIN_KEYS);
    SHARED(float, scratch, 32);
    SHARED(float, sums, PLAIN_WIDTH);
    attend_plain<f16>(p, weights, scratch, sums);
}

KERNEL(attend_64_bf16, AttendTiles, TILE_THREADS, 3) { attend_tiles<bf16, 64>(p); }
KERNEL(attend_64_f16, AttendTiles, TILE_THREADS, 3) { attend_tiles<f16, 64>(p); }
KERNEL(attend_128_bf16, AttendTiles, TILE_THREADS, 2) { attend_tiles<bf16, 128>(p); }
KERNEL(attend_128_f16, AttendTiles, TILE_THREADS, 2) { attend_tiles<f16, 128>(p); }
