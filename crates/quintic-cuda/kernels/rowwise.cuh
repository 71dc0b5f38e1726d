// Kernels that treat each token, or each number, by itself. All are bound by the bytes they move.
#pragma once

#include "parameters.cuh"

#define ROW_THREADS 256

struct alignas(16) Four {
    float value[4];
};

// Four neighbours in one access where the address allows it.
template <typename T> struct alignas(4 * sizeof(T)) FourOf {
    T value[4];
};

// One block a token.
template <typename T> QUINTIC_DEVICE void embed(const Embed &p) {
    const u64 token = block_x();
    const T *from = (const T *)p.table + (u64)p.ids[token] * p.columns;
    float *to = p.out + token * p.columns;
    for (u32 column = thread_index(); column < p.columns; column += block_threads())
        to[column] = to_f32(from[column]);
}

// One block a token. The sum of squares is a sum of f32 in a fixed order: thread by thread over
// the columns it owns, then over lanes, then over warps.
template <typename T> QUINTIC_DEVICE void rms_norm(const RmsNorm &p, float *scratch) {
    const u64 token = block_x();
    const float *x = p.x + token * p.columns;
    T *out = (T *)p.out + token * p.columns;
    const u32 fours = p.columns % 4 == 0 ? p.columns / 4 : 0;

    float sum = 0.0f;
    for (u32 i = thread_index(); i < fours; i += block_threads()) {
        const Four four = ((const Four *)x)[i];
        for (int j = 0; j < 4; j++) sum = fused(four.value[j], four.value[j], sum);
    }
    for (u32 i = 4 * fours + thread_index(); i < p.columns; i += block_threads())
        sum = fused(x[i], x[i], sum);
    sum = block_sum(sum, scratch);

    const float mean = sum / (float)p.columns;
    // Inf - Inf and NaN - NaN are not 0.
    if (p.overflow != nullptr && thread_index() == 0 && !(mean - mean == 0.0f))
        raise_max(p.overflow, 1);
    const float scale = 1.0f / sqrtf(mean + p.eps);
    for (u32 i = thread_index(); i < fours; i += block_threads()) {
        const Four four = ((const Four *)x)[i];
        Four gain = {{1.0f, 1.0f, 1.0f, 1.0f}};
        if (p.gain != nullptr) gain = ((const Four *)p.gain)[i];
        FourOf<T> result;
        for (int j = 0; j < 4; j++)
            store(&result.value[j], four.value[j] * scale * gain.value[j]);
        ((FourOf<T> *)out)[i] = result;
    }
    for (u32 i = 4 * fours + thread_index(); i < p.columns; i += block_threads())
        store(&out[i], x[i] * scale * (p.gain != nullptr ? p.gain[i] : 1.0f));
}

// `x sigmoid(y)` by one exponential; both ends come out right: exp gives inf, x / inf is 0.
QUINTIC_DEVICE float times_sigmoid(float x, float y) { return x / (1.0f + expf(-y)); }

QUINTIC_DEVICE float activate(float x, u32 activation) {
    switch (activation) {
    case ACT_RELU:
        return x > 0.0f || x != x ? x : 0.0f;
    case ACT_GELU_TANH:
        // (1 + tanh(u)) / 2 is sigmoid(2 u), which does not cancel for large negative u.
        return times_sigmoid(x, 1.5957691216057308f * fused(0.044715f * x * x, x, x));
    case ACT_GELU_ERF:
        // erfc instead of 1 + erf, likewise.
        return 0.5f * x * erfcf(-0.70710678118654752f * x);
    case ACT_QUICK_GELU:
        return times_sigmoid(x, 1.702f * x);
    case ACT_SILU:
        return times_sigmoid(x, x);
    case ACT_TANH:
        return tanhf(x);
    case ACT_SIGMOID:
        return times_sigmoid(1.0f, x);
    default:
        return x;
    }
}

QUINTIC_DEVICE u32 magnitude(float value) { return float_bits(value) & 0x7fffffffu; }

// Results that a thread of `gate` computes at once, from one access of 16 bytes for each half.
#define GATE_COLUMNS 8u

struct alignas(16) Packed16 {
    u32 words[4];
};

template <typename T> QUINTIC_DEVICE void load_columns(float out[GATE_COLUMNS], const T *from) {
    const u32 each = 16u / sizeof(T);
#pragma unroll
    for (u32 part = 0; part < GATE_COLUMNS / each; part++) {
        const Packed16 packed = ((const Packed16 *)from)[part];
        const T *values = (const T *)&packed;
#pragma unroll
        for (u32 i = 0; i < each; i++) out[part * each + i] = to_f32(values[i]);
    }
}

template <typename T> QUINTIC_DEVICE void store_columns(T *to, const float values[GATE_COLUMNS]) {
    const u32 each = 16u / sizeof(T);
#pragma unroll
    for (u32 part = 0; part < GATE_COLUMNS / each; part++) {
        Packed16 packed;
        T *rounded = (T *)&packed;
#pragma unroll
        for (u32 i = 0; i < each; i++) store(&rounded[i], values[part * each + i]);
        ((Packed16 *)to)[part] = packed;
    }
}

struct Peaks {
    u32 in, out;

    QUINTIC_DEVICE void see_in(float value) {
        const u32 bits = magnitude(value);
        in = in > bits ? in : bits;
    }
    QUINTIC_DEVICE void see_out(float value) {
        const u32 bits = magnitude(value);
        out = out > bits ? out : bits;
    }
};

// What becomes of one column.
QUINTIC_DEVICE float gated(const Gate &p, float first, float up, Peaks *peaks) {
    first *= p.in_scale;
    peaks->see_in(first);
    float result = activate(first, p.activation);
    if (p.gated) {
        up *= p.in_scale;
        peaks->see_in(up);
        result *= up;
    }
    peaks->see_out(result);
    return result * p.out_scale;
}

// Blocks along x own columns, along y walk over tokens. `peaks` gets the largest |in| and
// |act(gate) up| as bits of f32, which order as integers do (NaN above infinity): the caller sees
// whether 16 bits have held what they were given, and with which scale they would.
template <typename T> QUINTIC_DEVICE void gate(const Gate &p) {
    const u32 column = (block_x() * block_threads() + thread_index()) * GATE_COLUMNS;
    const u64 width = p.gated ? 2ull * p.columns : p.columns;
    // Rows begin at multiples of 16 bytes.
    const bool whole = p.columns % GATE_COLUMNS == 0;
    Peaks peaks = {0, 0};
    for (u32 token = block_y(); token < p.tokens; token += grid_y()) {
        const T *in = (const T *)p.in + token * width + column;
        T *out = (T *)p.out + (u64)token * p.columns + column;
        if (whole && column < p.columns) {
            float first[GATE_COLUMNS], up[GATE_COLUMNS];
            load_columns(first, in);
            if (p.gated) load_columns(up, in + p.columns);
#pragma unroll
            for (u32 i = 0; i < GATE_COLUMNS; i++)
                first[i] = gated(p, first[i], p.gated ? up[i] : 0.0f, &peaks);
            store_columns(out, first);
        } else {
            for (u32 i = 0; i < GATE_COLUMNS && column + i < p.columns; i++) {
                const float up = p.gated ? to_f32(in[p.columns + i]) : 0.0f;
                store(&out[i], gated(p, to_f32(in[i]), up, &peaks));
            }
        }
    }
    if (p.peaks != nullptr) {
        for (u32 lanes = WARP / 2; lanes > 0; lanes /= 2) {
            const u32 in = float_bits(shuffle_xor(bits_float(peaks.in), lanes));
            const u32 out = float_bits(shuffle_xor(bits_float(peaks.out), lanes));
            peaks.in = peaks.in > in ? peaks.in : in;
            peaks.out = peaks.out > out ? peaks.out : out;
        }
        if (thread_index() % WARP == 0) {
            raise_max(&p.peaks[0], peaks.in);
            raise_max(&p.peaks[1], peaks.out);
        }
    }
}

QUINTIC_DEVICE float load_as_f32(const void *from, u64 i, u32 type) {
    switch (type) {
    case TYPE_BF16:
        return to_f32(((const bf16 *)from)[i]);
    case TYPE_F16:
        return to_f32(((const f16 *)from)[i]);
    default:
        return ((const float *)from)[i];
    }
}

QUINTIC_DEVICE void store_from_f32(void *to, u64 i, u32 type, float value) {
    switch (type) {
    case TYPE_BF16:
        store(&((bf16 *)to)[i], value);
        return;
    case TYPE_F16:
        store(&((f16 *)to)[i], value);
        return;
    default:
        ((float *)to)[i] = value;
    }
}

QUINTIC_DEVICE void convert(const Convert &p) {
    const u64 step = (u64)grid_x() * block_threads();
    for (u64 i = (u64)block_x() * block_threads() + thread_index(); i < p.count; i += step) {
        float value = load_as_f32(p.src, i, p.src_type);
        if (p.gain != nullptr) value *= p.gain[i % p.columns];
        store_from_f32(p.dst, i, p.dst_type, value);
        if (p.overflow != nullptr && magnitude(value) < 0x7f800000u &&
            magnitude(load_as_f32(p.dst, i, p.dst_type)) >= 0x7f800000u)
            raise_max(p.overflow, magnitude(value));
    }
}

// Blocks along x own columns, along y rows. The mean is summed in f64.
QUINTIC_DEVICE void pool_rows(const PoolRows &p) {
    const u32 column = block_x() * block_threads() + thread_index();
    const u64 row = block_y();
    if (column >= p.columns) return;
    const u32 first = p.row_starts[row], end = p.row_starts[row + 1];
    float result = 0.0f;
    if (first < end && p.how == POOL_MEAN) {
        double sum = 0.0;
        for (u64 token = first; token < end; token++) sum += (double)p.x[token * p.columns + column];
        result = (float)(sum / (double)(end - first));
    } else if (first < end) {
        const u64 token = p.how == POOL_FIRST ? first : end - 1;
        result = p.x[token * p.columns + column];
    }
    p.out[row * p.columns + column] = result;
}

// One block a result.
QUINTIC_DEVICE void place_rows(const PlaceRows &p) {
    const u64 result = block_x();
    const u32 token = p.rows[result];
    for (u32 column = thread_index(); column < p.columns; column += block_threads()) {
        const float value = token == NO_TOKEN ? 0.0f : p.x[(u64)token * p.columns + column];
        store_from_f32(p.out, result * p.columns + column, p.out_type, value);
    }
}

// Blocks along x own new tokens, counted over all rows.
template <typename T> QUINTIC_DEVICE void append_kv(const AppendKv &p) {
    const u64 token = block_x();
    u32 row = 0;
    // The last row that does not begin behind the token; rows before it may be empty.
    for (u32 low = 0, high = p.rows; low < high;) {
        const u32 middle = low + (high - low) / 2;
        if (p.row_starts[middle] <= token) {
            row = middle;
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    const u64 place = (u64)row * p.capacity + p.lengths[row] + (token - p.row_starts[row]);
    const T *from = (const T *)p.kv + token * p.kv_stride + p.first_column;
    T *to = (T *)p.cache + place * 2 * p.inner;
    for (u32 column = thread_index(); column < 2 * p.inner; column += block_threads())
        to[column] = from[column];
}
