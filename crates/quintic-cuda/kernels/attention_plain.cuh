// Attention for every shape: any head width, mask, cache, element type. One block a query and
// head, sums in f32. Slow where matrix units would serve, and the yardstick for them.
#pragma once

#include "parameters.cuh"

#define PLAIN_THREADS 128u
// Keys that are scored at once, one a thread.
#define PLAIN_KEYS PLAIN_THREADS

// Below every score and finite: keys that are masked lose against all others, and share alike
// where there are no others.
#define MASKED (-1.0e30f)
#define LOG2_E 1.4426950408889634f

template <typename T> struct PlainQuery {
    const AttendPlain &p;
    u64 token;
    u32 head, row, query, queries, keys, first;

    QUINTIC_DEVICE u64 key_token(u32 key) const {
        return p.capacity != 0 ? (u64)row * p.capacity + key : (u64)first + key;
    }

    // Times log2(e), so that 2^x is what a softmax weighs by.
    QUINTIC_DEVICE float score(u32 key) const {
        bool seen = true;
        const int position = (int)query + (int)keys - (int)queries;
        if (p.mask == MASK_CAUSAL) {
            const int own = p.positions != nullptr ? (int)p.positions[token] : position;
            seen = (int)key <= own;
        } else if (p.mask == MASK_KEYS) {
            seen = p.visible[(u64)first + key] != 0;
        } else if (p.mask == MASK_PAIRS) {
            seen = p.visible[p.pair_starts[row] + (u64)query * keys + key] != 0;
        }
        if (!seen) return MASKED;
        const T *q = (const T *)p.queries + token * p.q_stride + head * p.d_kv;
        const T *k = (const T *)p.keys + key_token(key) * p.kv_stride + head * p.d_kv;
        float sum = 0.0f;
        for (u32 i = 0; i < p.d_kv; i++) sum = fused(to_f32(q[i]), to_f32(k[i]), sum);
        if (p.bias == nullptr) return sum * LOG2_E;
        int distance = p.positions != nullptr
                           ? (int)p.positions[(u64)first + key] - (int)p.positions[token]
                           : (int)key - position;
        const int reach = (int)p.reach;
        distance = distance < -reach ? -reach : distance > reach ? reach : distance;
        return fused(sum, LOG2_E, p.bias[(u64)head * (2 * p.reach + 1) + (u32)(distance + reach)]);
    }
};

// A grid of (tokens, heads). `weights` is PLAIN_KEYS floats, `scratch` 32, `sums` d_kv, all in
// shared memory.
template <typename T>
QUINTIC_DEVICE void attend_plain(const AttendPlain &p, float *weights, float *scratch,
                                 float *sums) {
    const u32 thread = thread_index(), head = block_y();
    const u64 token = block_x();
    const u32 row = p.token_rows[token];
    T *out = p.out != nullptr ? (T *)p.out + token * p.heads * p.d_kv + head * p.d_kv : nullptr;
    const u32 first = p.row_starts[row], queries = p.row_starts[row + 1] - first;
    const u32 keys = p.key_lengths != nullptr ? p.key_lengths[row] : queries;
    const PlainQuery<T> own = {p, token, head, row, (u32)token - first, queries, keys, first};
    const float gain = p.head_gains != nullptr ? p.head_gains[head] : 1.0f;

    float largest = -1.0f / 0.0f, total = 0.0f;
    for (u32 i = thread; i < p.d_kv; i += PLAIN_THREADS) sums[i] = 0.0f;
    for (u32 begin = 0; begin < keys; begin += PLAIN_KEYS) {
        const u32 key = begin + thread;
        const float score = key < keys ? own.score(key) : -1.0f / 0.0f;
        const float before = largest;
        largest = larger(largest, block_max(score, scratch));
        const float weight = exp2_fast(score - largest);
        const float shrink = exp2_fast(before - largest);
        weights[thread] = weight;
        // Synchronises: the weights are there afterwards.
        total = total * shrink + block_sum(weight, scratch);
        if (out != nullptr) {
            const u32 n = keys - begin < PLAIN_KEYS ? keys - begin : PLAIN_KEYS;
            for (u32 i = thread; i < p.d_kv; i += PLAIN_THREADS) {
                float sum = sums[i] * shrink;
                for (u32 j = 0; j < n; j++) {
                    const T *v = (const T *)p.values + own.key_token(begin + j) * p.kv_stride +
                                 head * p.d_kv;
                    sum = fused(weights[j], to_f32(v[i]), sum);
                }
                sums[i] = sum;
            }
        }
        // The next keys' weights take the place of these.
        sync_block();
    }
    const float factor = total > 0.0f ? gain / total : 0.0f;
    for (u32 i = thread; out != nullptr && i < p.d_kv; i += PLAIN_THREADS)
        store(&out[i], sums[i] * factor);
    if (p.weights != nullptr) {
        float *to = p.weights + p.weight_starts[row] +
                    ((u64)head * queries + own.query) * keys;
        for (u32 key = thread; key < keys; key += PLAIN_THREADS)
            to[key] = exp2_fast(own.score(key) - largest) * factor;
    }
}
