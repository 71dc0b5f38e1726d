// What the kernels use of CUDA, in one place, so that the same sources can be compiled by nvcc,
// by NVRTC (which has no headers) and, with the stand-ins of `emulated.h`, as C++ for a CPU.
//
// No header of CUDA's is included: half types and instructions are written out.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define QUINTIC_DEVICE __device__ __forceinline__
#else
#include "emulated.h"
#define QUINTIC_DEVICE inline
#endif

#define WARP 32u

// The types that operands are kept in. Bits only: arithmetic is f32.
struct bf16 {
    u16 bits;
};
struct f16 {
    u16 bits;
};

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)

// A kernel: one structure by value. `Parameter` stays below the 4 KiB that a launch can pass.
#define KERNEL(name, Parameter, threads, min_blocks)                                             \
    extern "C" __global__ void __launch_bounds__(threads, min_blocks) name(const Parameter p)

QUINTIC_DEVICE u8 *shared_bytes() {
    extern __shared__ __align__(128) u8 dynamic_shared[];
    return dynamic_shared;
}

// Shared memory of a fixed size.
#define SHARED(type, name, count) __shared__ type name[count]

QUINTIC_DEVICE u32 thread_index() { return threadIdx.x; }
QUINTIC_DEVICE u32 block_threads() { return blockDim.x; }
QUINTIC_DEVICE u32 block_x() { return blockIdx.x; }
QUINTIC_DEVICE u32 block_y() { return blockIdx.y; }
QUINTIC_DEVICE u32 grid_x() { return gridDim.x; }
QUINTIC_DEVICE u32 grid_y() { return gridDim.y; }
QUINTIC_DEVICE void sync_block() { __syncthreads(); }

QUINTIC_DEVICE float shuffle_xor(float value, u32 lanes) {
    return __shfl_xor_sync(0xffffffffu, value, lanes);
}

QUINTIC_DEVICE u32 float_bits(float value) { return __float_as_uint(value); }
QUINTIC_DEVICE float bits_float(u32 bits) { return __uint_as_float(bits); }

QUINTIC_DEVICE float to_f32(float value) { return value; }
QUINTIC_DEVICE float to_f32(bf16 value) { return __uint_as_float((u32)value.bits << 16); }
QUINTIC_DEVICE float to_f32(f16 value) {
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(value.bits));
    return out;
}

// Rounds to the nearest, ties to even.
QUINTIC_DEVICE void store(float *out, float value) { *out = value; }
QUINTIC_DEVICE void store(bf16 *out, float value) {
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out->bits) : "f"(value));
}
QUINTIC_DEVICE void store(f16 *out, float value) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out->bits) : "f"(value));
}

// Two rounded values in one register, `low` in the low half.
template <typename T> QUINTIC_DEVICE u32 pack2(float low, float high);
template <> QUINTIC_DEVICE u32 pack2<bf16>(float low, float high) {
    u32 out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}
template <> QUINTIC_DEVICE u32 pack2<f16>(float low, float high) {
    u32 out;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}

// 2^x with a relative error of about 2^-22; exp2(-inf) is 0.
QUINTIC_DEVICE float exp2_fast(float x) {
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}

QUINTIC_DEVICE float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
QUINTIC_DEVICE float larger(float a, float b) { return fmaxf(a, b); }
// Values only rise, so one that an old copy exceeds need not be written: most threads only look.
QUINTIC_DEVICE void raise_max(u32 *where, u32 value) {
    if (*(volatile u32 *)where < value) atomicMax(where, value);
}

// 16 bytes from global to shared memory, behind the program's back; zeros if not `real`.
QUINTIC_DEVICE void copy16_async(void *shared, const void *global, bool real) {
    u32 to = (u32)__cvta_generic_to_shared(shared);
    u32 bytes = real ? 16u : 0u;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes)
                 : "memory");
}
QUINTIC_DEVICE void copy_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `left` groups of this thread's are under way.
template <int left> QUINTIC_DEVICE void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
}

// Four 8x8 matrices of 16-bit values: lane l gives the address of row l % 8 of matrix l / 8, and
// gets in `out[m]` the elements (l / 4, 2 * (l % 4)) and the one after it of matrix m.
QUINTIC_DEVICE void load_matrices(u32 out[4], const void *row) {
    u32 from = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(from)
                 : "memory");
}
// The same of the matrices' transposes.
QUINTIC_DEVICE void load_matrices_transposed(u32 out[4], const void *row) {
    u32 from = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(from)
                 : "memory");
}

// d += a b: a is 16 x 16, b 16 x 8, d 16 x 8 in f32. With g = lane / 4 and t = lane % 4, a lane
// holds of d the elements (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
template <typename T>
QUINTIC_DEVICE void multiply_add(float d[4], const u32 a[4], u32 b0, u32 b1);
template <>
QUINTIC_DEVICE void multiply_add<bf16>(float d[4], const u32 a[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
QUINTIC_DEVICE void multiply_add<f16>(float d[4], const u32 a[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#endif

// Sum over the lanes of a warp; every lane gets the same bits.
QUINTIC_DEVICE float warp_sum(float value) {
    for (u32 lanes = WARP / 2; lanes > 0; lanes /= 2) value += shuffle_xor(value, lanes);
    return value;
}

QUINTIC_DEVICE float warp_max(float value) {
    for (u32 lanes = WARP / 2; lanes > 0; lanes /= 2)
        value = larger(value, shuffle_xor(value, lanes));
    return value;
}

// Sum over a block of at most 32 warps, the same bits in every thread; `scratch` is 32 floats
// in shared memory, which may be used again at once.
QUINTIC_DEVICE float block_sum(float value, float *scratch) {
    const u32 thread = thread_index(), warps = block_threads() / WARP;
    value = warp_sum(value);
    if (thread % WARP == 0) scratch[thread / WARP] = value;
    sync_block();
    float sum = 0.0f;
    for (u32 warp = 0; warp < warps; warp++) sum += scratch[warp];
    sync_block();
    return sum;
}

QUINTIC_DEVICE float block_max(float value, float *scratch) {
    const u32 thread = thread_index(), warps = block_threads() / WARP;
    value = warp_max(value);
    if (thread % WARP == 0) scratch[thread / WARP] = value;
    sync_block();
    float largest = scratch[0];
    for (u32 warp = 1; warp < warps; warp++) largest = larger(largest, scratch[warp]);
    sync_block();
    return largest;
}
