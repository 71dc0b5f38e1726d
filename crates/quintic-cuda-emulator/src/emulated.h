// What `port.cuh` has of a GPU, on a CPU.
//
// Every thread of a block has a stack of its own; they take turns on one thread of the system and
// change only where a GPU's threads meet: at a barrier, a shuffle, an instruction of the whole
// warp. Between such points a lane runs undisturbed, in an order that can be turned around: a
// kernel whose result depends on the order has a race. Copies that a GPU makes behind the
// program's back are made as late as the program allows.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace emulated {

// Set for the lane that runs.
struct Place {
    u32 thread, threads, block[3], grid[3];
};
extern thread_local Place place;
extern thread_local u8 *dynamic_shared;

void meet_block();
// All lanes of a warp come here with an argument each; `work` then runs once for all.
void meet_warp(void (*work)(void *arguments[32]), void *argument);

void copy_begin(void *shared, const void *global, bool real);
void copy_close();
void copy_finish(int left);

float f16_to_f32(u16 bits);
u16 f32_to_f16(float value);
u16 f32_to_bf16(float value);

typedef void (*Body)(const void *parameter);
// Announces a kernel under its name.
struct Kernel {
    Kernel(const char *name, size_t parameter_bytes, u32 threads, Body body);
};

} // namespace emulated

#define KERNEL(name, Parameter, threads, min_blocks)                                             \
    static void name##_body(const Parameter &p);                                                 \
    static const emulated::Kernel name##_kernel(                                                 \
        #name, sizeof(Parameter), threads,                                                       \
        [](const void *parameter) { name##_body(*(const Parameter *)parameter); });              \
    static void name##_body(const Parameter &p)

// One block of a system's thread runs at a time, and all its lanes come by here.
#define SHARED(type, name, count) static thread_local type name[count]

struct bf16;
struct f16;

static inline u8 *shared_bytes() { return emulated::dynamic_shared; }
static inline u32 thread_index() { return emulated::place.thread; }
static inline u32 block_threads() { return emulated::place.threads; }
static inline u32 block_x() { return emulated::place.block[0]; }
static inline u32 block_y() { return emulated::place.block[1]; }
static inline u32 grid_x() { return emulated::place.grid[0]; }
static inline u32 grid_y() { return emulated::place.grid[1]; }
static inline void sync_block() { emulated::meet_block(); }

float shuffle_xor(float value, u32 lanes);
u32 float_bits(float value);
float bits_float(u32 bits);

static inline float to_f32(float value) { return value; }
float to_f32(bf16 value);
float to_f32(f16 value);
static inline void store(float *out, float value) { *out = value; }
void store(bf16 *out, float value);
void store(f16 *out, float value);

template <typename T> u32 pack2(float low, float high);
template <> u32 pack2<bf16>(float low, float high);
template <> u32 pack2<f16>(float low, float high);

float exp2_fast(float x);
static inline float fused(float a, float b, float c) { return std::fma(a, b, c); }
static inline float larger(float a, float b) { return std::fmax(a, b); }
static inline void raise_max(u32 *where, u32 value) { *where = *where > value ? *where : value; }

static inline void copy16_async(void *shared, const void *global, bool real) {
    emulated::copy_begin(shared, global, real);
}
static inline void copy_group() { emulated::copy_close(); }
template <int left> void copy_wait() { emulated::copy_finish(left); }

void load_matrices(u32 out[4], const void *row);
void load_matrices_transposed(u32 out[4], const void *row);
template <typename T> void multiply_add(float d[4], const u32 a[4], u32 b0, u32 b1);
template <> void multiply_add<bf16>(float d[4], const u32 a[4], u32 b0, u32 b1);
template <> void multiply_add<f16>(float d[4], const u32 a[4], u32 b0, u32 b1);
