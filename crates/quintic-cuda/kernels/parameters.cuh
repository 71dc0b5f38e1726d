// The parameter of every kernel. `src/kernels.rs` has the same structures; a test compares their
// sizes. Addresses come first and counts behind them, so that there is no padding inside.
#pragma once

#include "port.cuh"

// out[t] = table[ids[t]] in f32.
struct Embed {
    const void *table; // [vocab, columns]
    const u32 *ids;    // [tokens]
    float *out;        // [tokens, columns]
    u32 columns;
    u32 unused;
};

// out[t] = x[t] / sqrt(mean(x[t]^2) + eps) * gain.
struct RmsNorm {
    const float *x;    // [tokens, columns]
    const float *gain; // [columns] or null
    void *out;         // [tokens, columns]
    u32 *overflow;     // null, or raised to 1 if a mean is not finite
    u32 columns;
    float eps;
};

// out = act(in * in_scale) * out_scale, or with two halves side by side
// out = act(gate * in_scale) * (up * in_scale) * out_scale.
struct Gate {
    const void *in; // [tokens, columns] or [tokens, 2 * columns]
    void *out;      // [tokens, columns]
    u32 *peaks;     // null, or the largest bits of |in| and of |out / out_scale| as f32
    u32 tokens;
    u32 columns;
    u32 activation;
    u32 gated;
    float in_scale;
    float out_scale;
};

// dst[i] = src[i] * gain[i % columns].
struct Convert {
    const void *src;
    void *dst;
    const float *gain; // null: 1
    u32 *overflow;     // null, or raised to the bits of the largest finite |value| that became inf
    u64 count;
    u32 columns;
    u32 src_type; // TYPE_*
    u32 dst_type;
    u32 unused;
};

// One vector a row.
struct PoolRows {
    const float *x;        // [tokens, columns]
    const u32 *row_starts; // [rows + 1]
    float *out;            // [rows, columns]
    u32 columns;
    u32 how; // POOL_*
};

// out[i] = x[rows[i]], or zeros, in another type: a result on its way to where it is wanted.
struct PlaceRows {
    const float *x;  // [tokens, columns]
    const u32 *rows; // [results]; NO_TOKEN: zeros
    void *out;       // [results, columns]
    u32 columns;
    u32 out_type; // TYPE_*
};

// Copies the keys and values of new tokens behind those of each row of a cache.
struct AppendKv {
    const void *kv;        // [tokens, kv_stride]; keys from first_column on, then values
    void *cache;           // [rows, capacity, 2 * inner]
    const u32 *row_starts; // [rows + 1] of the new tokens
    const u32 *lengths;    // [rows] before
    u32 rows;
    u32 first_column;
    u32 kv_stride;
    u32 inner;
    u32 capacity;
    u32 unused;
};

// Up to 64 queries of one row.
struct Tile {
    u32 row;
    u32 first; // first query, counted in its row
};

// softmax(q k^T + bias) v of packed rows whose q, k and v stand side by side; matrix units.
struct AttendTiles {
    const void *qkv;         // [tokens, 3 * inner]
    void *out;               // [tokens, inner]
    const float *bias;       // [heads, 2 * reach + 1] times log2(e), or null
    const Tile *tiles;        // [n_tiles], in any order
    const u32 *n_tiles;      // how many there are: blocks behind the last have nothing to do
    const u32 *row_starts;   // [rows + 1]
    const u8 *visible;       // [tokens], 0 for keys that nobody sees, or null
    const u32 *positions;    // [tokens] or null
    const float *head_gains; // [heads] or null
    u32 heads;
    u32 reach;
    u32 causal;
    u32 unused;
};

// The same one query at a time in f32, for every head width, mask and place of the keys.
struct AttendPlain {
    const void *queries;     // [tokens, q_stride]
    const void *keys;        // of row r, key j, head h: keys[first(r) + j * kv_stride + h * d_kv]
    const void *values;      // likewise
    void *out;               // [tokens, heads * d_kv]; null if only weights are asked for
    float *weights;          // null, or of row r from weight_starts[r] on [heads, n, m]
    const u64 *weight_starts; // [rows]
    const float *bias;       // [heads, 2 * reach + 1] times log2(e), or null
    const u32 *token_rows;   // [tokens]: the row of each query
    const u32 *row_starts;   // [rows + 1] of the queries
    const u32 *key_lengths;  // [rows], or null if keys are the queries' tokens
    const u8 *visible;       // MASK_KEYS: [tokens]; MASK_PAIRS: rows' [n, n] end to end
    const u64 *pair_starts;  // MASK_PAIRS: [rows]
    const u32 *positions;    // [tokens] or null
    const float *head_gains; // [heads] or null
    u32 q_stride;
    u32 kv_stride;
    u32 capacity; // keys of a cache's row; 0 if keys are the queries' tokens
    u32 heads;
    u32 d_kv;
    u32 reach;
    u32 mask; // MASK_*
    u32 unused;
};

#define NO_TOKEN 0xffffffffu

enum { TYPE_F32 = 0, TYPE_BF16 = 1, TYPE_F16 = 2 };
enum { POOL_MEAN = 0, POOL_FIRST = 1, POOL_LAST = 2 };
enum { MASK_NONE = 0, MASK_KEYS = 1, MASK_PAIRS = 2, MASK_CAUSAL = 3 };
enum {
    ACT_RELU = 0,
    ACT_GELU_TANH = 1,
    ACT_GELU_ERF = 2,
    ACT_QUICK_GELU = 3,
    ACT_SILU = 4,
    ACT_TANH = 5,
    ACT_SIGMOID = 6,
    ACT_LINEAR = 7
};
