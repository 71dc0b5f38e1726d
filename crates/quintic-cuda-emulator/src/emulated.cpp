// The stand-ins of `emulated.h`, and one source file for all kernels.

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "quintic.cu"

namespace emulated {

thread_local Place place;
thread_local u8 *dynamic_shared;

namespace {

struct Registered {
    size_t parameter_bytes;
    u32 threads;
    Body body;
};

std::map<std::string, Registered> &kernels() {
    static std::map<std::string, Registered> all;
    return all;
}

// Stacks, and changing between them.
//
// `change` keeps what a call must preserve on the old stack, and goes on where the new one left.
extern "C" void quintic_change_stack(void **keep, void *next);
#if defined(__x86_64__)
asm(".pushsection .text\n.globl quintic_change_stack\n.type quintic_change_stack,@function\n"
    "quintic_change_stack:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n"
    ".size quintic_change_stack,.-quintic_change_stack\n"
    ".popsection\n");
const size_t PRESERVED = 6;
#elif defined(__aarch64__)
asm(".pushsection .text\n.globl quintic_change_stack\n.type quintic_change_stack,%function\n"
    "quintic_change_stack:\n"
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n"
    "  stp x25, x26, [sp, #48]\n  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n"
    "  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n"
    "  stp d12, d13, [sp, #128]\n  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n  str x9, [x0]\n  mov sp, x1\n"
    "  ldp x19, x20, [sp]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n"
    "  ldp x25, x26, [sp, #48]\n  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n"
    "  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n"
    "  ldp d12, d13, [sp, #128]\n  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n  ret\n"
    ".size quintic_change_stack,.-quintic_change_stack\n"
    ".popsection\n");
#else
#error "changing stacks is written for x86-64 and AArch64"
#endif

enum State { RUNS, AT_WARP, AT_BLOCK, DONE };

struct Copy {
    void *shared;
    const void *global;
    bool real;
};

struct Lane {
    State state;
    void *stack_pointer;
    void (*work)(void *arguments[32]);
    void *argument;
    std::vector<std::vector<Copy>> groups;
    std::vector<Copy> open;
};

const size_t STACK_BYTES = 64 * 1024;

struct Block {
    std::vector<Lane> lanes;
    std::vector<u8> stacks;
    void *scheduler;
    u32 running;
    Body body;
    const void *parameter;
};

thread_local Block *block = nullptr;

[[noreturn]] void give_up(const char *what) {
    // A kernel that does this would hang or be undefined on a GPU: there is nothing to go on with.
    std::fprintf(stderr, "emulated kernel: %s (block %u %u)\n", what, place.block[0],
                 place.block[1]);
    std::abort();
}

void leave(State state) {
    Lane &lane = block->lanes[block->running];
    lane.state = state;
    quintic_change_stack(&lane.stack_pointer, block->scheduler);
}

void finish_copies(Lane &lane, size_t left) {
    while (lane.groups.size() > left) {
        for (const Copy &copy : lane.groups.front()) {
            if (copy.real)
                std::memcpy(copy.shared, copy.global, 16);
            else
                std::memset(copy.shared, 0, 16);
        }
        lane.groups.erase(lane.groups.begin());
    }
}

void enter() {
    block->body(block->parameter);
    leave(DONE);
    give_up("a finished lane ran on");
}

void prepare(Lane &lane, u8 *stack) {
    lane.state = RUNS;
    lane.groups.clear();
    lane.open.clear();
    u64 top = ((u64)(stack + STACK_BYTES)) & ~(u64)15;
#if defined(__x86_64__)
    // As after a call: the return address stands at a multiple of 16, less 8.
    u64 *at = (u64 *)(top - 16);
    *at = (u64)&enter;
    at -= PRESERVED;
    std::memset(at, 0, PRESERVED * 8);
#else
    u64 *at = (u64 *)(top - 160);
    std::memset(at, 0, 160);
    at[11] = (u64)&enter;
#endif
    lane.stack_pointer = at;
}

void run_lane(u32 number) {
    block->running = number;
    place.thread = number;
    Lane &lane = block->lanes[number];
    quintic_change_stack(&block->scheduler, lane.stack_pointer);
}

// Runs the lanes of a warp until each waits for the block or is done.
void run_warp(u32 first, bool backwards) {
    for (;;) {
        for (u32 i = 0; i < 32; i++) {
            const u32 number = first + (backwards ? 31 - i : i);
            if (block->lanes[number].state == RUNS) run_lane(number);
        }
        u32 meeting = 0;
        void *arguments[32];
        for (u32 i = 0; i < 32; i++) {
            Lane &lane = block->lanes[first + i];
            meeting += lane.state == AT_WARP;
            arguments[i] = lane.argument;
        }
        if (meeting == 0) return;
        if (meeting != 32) give_up("some lanes of a warp meet and others do not");
        for (u32 i = 1; i < 32; i++)
            if (block->lanes[first + i].work != block->lanes[first].work)
                give_up("lanes of a warp meet in different instructions");
        block->lanes[first].work(arguments);
        for (u32 i = 0; i < 32; i++) block->lanes[first + i].state = RUNS;
    }
}

// Runs all lanes of the block to their end.
void run_block(u32 threads, bool backwards) {
    for (u32 i = 0; i < threads; i++)
        prepare(block->lanes[i], block->stacks.data() + (size_t)i * STACK_BYTES);
    for (;;) {
        // A warp runs on alone for as long as it can: nobody else has come to a barrier that a
        // kernel forgot.
        const u32 warps = threads / 32;
        for (u32 i = 0; i < warps; i++) run_warp((backwards ? warps - 1 - i : i) * 32, backwards);
        u32 at_block = 0, done = 0;
        for (const Lane &lane : block->lanes) {
            at_block += lane.state == AT_BLOCK;
            done += lane.state == DONE;
        }
        if (done == threads) break;
        if (at_block == 0 || at_block + done != threads) give_up("lanes wait for each other");
        for (Lane &lane : block->lanes)
            if (lane.state == AT_BLOCK) lane.state = RUNS;
    }
    for (u32 i = 0; i < threads; i++)
        if (!block->lanes[i].groups.empty() || !block->lanes[i].open.empty())
            give_up("a copy was begun and not waited for");
}

} // namespace

Kernel::Kernel(const char *name, size_t parameter_bytes, u32 threads, Body body) {
    kernels()[name] = {parameter_bytes, threads, body};
}

void meet_block() { leave(AT_BLOCK); }

void meet_warp(void (*work)(void *arguments[32]), void *argument) {
    Lane &lane = block->lanes[block->running];
    lane.work = work;
    lane.argument = argument;
    leave(AT_WARP);
}

void copy_begin(void *shared, const void *global, bool real) {
    // Until it is waited for, what was there before is gone and what comes is not there.
    std::memset(shared, 0xff, 16);
    block->lanes[block->running].open.push_back({shared, global, real});
}

void copy_close() {
    Lane &lane = block->lanes[block->running];
    lane.groups.push_back(std::move(lane.open));
    lane.open.clear();
}

void copy_finish(int left) { finish_copies(block->lanes[block->running], (size_t)left); }

float f16_to_f32(u16 bits) {
    const u32 sign = (u32)(bits & 0x8000) << 16, exponent = bits >> 10 & 31, mantissa = bits & 1023;
    if (exponent == 31) return bits_float(sign | 0x7f800000u | mantissa << 13);
    if (exponent == 0) {
        const float value = std::ldexp((float)mantissa, -24);
        return sign != 0 ? -value : value;
    }
    return bits_float(sign | (exponent + 112) << 23 | mantissa << 13);
}

u16 f32_to_f16(float value) {
    const u32 bits = float_bits(value), sign = bits >> 16 & 0x8000;
    const u32 rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u) return (u16)(sign | 0x7fff);
    if (rest >= 0x477ff000u) return (u16)(sign | 0x7c00); // 65520 and more
    if (rest < 0x38800000u) {
        // Subnormal: a whole number of 2^-24. nearbyint rounds to even, as IEEE does by default.
        const float steps = std::nearbyint(std::ldexp(bits_float(rest), 24));
        return (u16)(sign | (u32)steps);
    }
    const u32 rounded = rest + 0xfff + (rest >> 13 & 1);
    return (u16)(sign | ((rounded >> 13) - (112u << 10)));
}

u16 f32_to_bf16(float value) {
    const u32 bits = float_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (u16)0x7fff;
    return (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

} // namespace emulated

u32 float_bits(float value) {
    u32 bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

float bits_float(u32 bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

float to_f32(bf16 value) { return bits_float((u32)value.bits << 16); }
float to_f32(f16 value) { return emulated::f16_to_f32(value.bits); }
void store(bf16 *out, float value) { out->bits = emulated::f32_to_bf16(value); }
void store(f16 *out, float value) { out->bits = emulated::f32_to_f16(value); }

template <> u32 pack2<bf16>(float low, float high) {
    return (u32)emulated::f32_to_bf16(low) | (u32)emulated::f32_to_bf16(high) << 16;
}
template <> u32 pack2<f16>(float low, float high) {
    return (u32)emulated::f32_to_f16(low) | (u32)emulated::f32_to_f16(high) << 16;
}

float exp2_fast(float x) {
    const float value = std::exp2(x);
    // The instruction flushes subnormal arguments and results.
    return value < 1.17549435e-38f ? 0.0f : value;
}

namespace {

struct Shuffle {
    float value;
    u32 lanes;
    float out;
};

void shuffle(void *arguments[32]) {
    for (u32 lane = 0; lane < 32; lane++) {
        Shuffle *own = (Shuffle *)arguments[lane];
        own->out = ((Shuffle *)arguments[lane ^ own->lanes])->value;
    }
}

struct Load {
    u32 *out;
    const void *row;
};

template <bool transposed> void load(void *arguments[32]) {
    u16 matrices[4][8][8];
    for (u32 lane = 0; lane < 32; lane++) {
        const Load *own = (Load *)arguments[lane];
        if ((u64)own->row % 16 != 0) emulated::give_up("a matrix row is not aligned to 16 bytes");
        std::memcpy(matrices[lane / 8][lane % 8], own->row, 16);
    }
    for (u32 lane = 0; lane < 32; lane++) {
        const u32 g = lane / 4, t = lane % 4;
        for (u32 m = 0; m < 4; m++) {
            const u16 low = transposed ? matrices[m][2 * t][g] : matrices[m][g][2 * t];
            const u16 high = transposed ? matrices[m][2 * t + 1][g] : matrices[m][g][2 * t + 1];
            ((Load *)arguments[lane])->out[m] = (u32)low | (u32)high << 16;
        }
    }
}

struct Multiply {
    float *d;
    const u32 *a;
    u32 b[2];
};

template <typename T> float half_of(u32 pair, u32 which) {
    T value;
    value.bits = (u16)(pair >> 16 * which);
    return to_f32(value);
}

template <typename T> void multiply(void *arguments[32]) {
    float a[16][16], b[16][8];
    for (u32 lane = 0; lane < 32; lane++) {
        const Multiply *own = (Multiply *)arguments[lane];
        const u32 g = lane / 4, t = lane % 4;
        for (u32 j = 0; j < 2; j++) {
            a[g][2 * t + j] = half_of<T>(own->a[0], j);
            a[g + 8][2 * t + j] = half_of<T>(own->a[1], j);
            a[g][2 * t + 8 + j] = half_of<T>(own->a[2], j);
            a[g + 8][2 * t + 8 + j] = half_of<T>(own->a[3], j);
            b[2 * t + j][g] = half_of<T>(own->b[0], j);
            b[2 * t + 8 + j][g] = half_of<T>(own->b[1], j);
        }
    }
    for (u32 lane = 0; lane < 32; lane++) {
        const Multiply *own = (Multiply *)arguments[lane];
        const u32 g = lane / 4, t = lane % 4;
        for (u32 i = 0; i < 4; i++) {
            const u32 row = g + i / 2 * 8, column = 2 * t + i % 2;
            float sum = own->d[i];
            for (u32 k = 0; k < 16; k++) sum += a[row][k] * b[k][column];
            own->d[i] = sum;
        }
    }
}

} // namespace

float shuffle_xor(float value, u32 lanes) {
    Shuffle own = {value, lanes, 0.0f};
    emulated::meet_warp(shuffle, &own);
    return own.out;
}

void load_matrices(u32 out[4], const void *row) {
    Load own = {out, row};
    emulated::meet_warp(load<false>, &own);
}

void load_matrices_transposed(u32 out[4], const void *row) {
    Load own = {out, row};
    emulated::meet_warp(load<true>, &own);
}

template <> void multiply_add<bf16>(float d[4], const u32 a[4], u32 b0, u32 b1) {
    Multiply own = {d, a, {b0, b1}};
    emulated::meet_warp(multiply<bf16>, &own);
}

template <> void multiply_add<f16>(float d[4], const u32 a[4], u32 b0, u32 b1) {
    Multiply own = {d, a, {b0, b1}};
    emulated::meet_warp(multiply<f16>, &own);
}

// What the Rust side calls.

extern "C" size_t quintic_emulated_parameter_bytes(const char *name) {
    const auto found = emulated::kernels().find(name);
    return found == emulated::kernels().end() ? 0 : found->second.parameter_bytes;
}

// 0: done; 1: no such kernel; 2: a block of that many threads cannot be launched.
extern "C" int quintic_emulated_launch(const char *name, const u32 grid[3], u32 threads,
                                       u32 shared_bytes, const void *parameter, int backwards) {
    using namespace emulated;
    const auto found = kernels().find(name);
    if (found == kernels().end()) return 1;
    const Registered &kernel = found->second;
    if (threads == 0 || threads % 32 != 0 || threads > kernel.threads) return 2;

    Block own;
    own.lanes.resize(threads);
    own.stacks.resize((size_t)threads * STACK_BYTES);
    own.body = kernel.body;
    own.parameter = parameter;
    std::vector<u8> shared(shared_bytes + 128);
    dynamic_shared = (u8 *)(((u64)shared.data() + 127) & ~(u64)127);
    block = &own;
    place.threads = threads;
    std::memcpy(place.grid, grid, sizeof(place.grid));
    const u64 blocks = (u64)grid[0] * grid[1] * grid[2];
    for (u64 i = 0; i < blocks; i++) {
        const u64 at = backwards ? blocks - 1 - i : i;
        place.block[0] = (u32)(at % grid[0]);
        place.block[1] = (u32)(at / grid[0] % grid[1]);
        place.block[2] = (u32)(at / grid[0] / grid[1]);
        // Not a number, in every type.
        std::memset(shared.data(), 0xff, shared.size());
        run_block(threads, backwards != 0);
    }
    block = nullptr;
    return 0;
}
