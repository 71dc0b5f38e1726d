// A stand-in for the libraries of a GPU: as much of the driver's interface and of cuBLASLt's as the
// engine uses, over the emulated kernels. It is stricter than a real one where mistakes hide:
// work in a stream runs only when somebody waits for it, memory of the host that the device may
// read by itself is read as late as that, a call without a current context fails, and a recording
// takes nothing that would not be there when it is run.
//
// Types are the interface's by size; names and numbers are NVIDIA's, since programs look for them.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

extern "C" size_t quintic_emulated_parameter_bytes(const char *name);
extern "C" int quintic_emulated_launch(const char *name, const u32 grid[3], u32 threads,
                                       u32 shared_bytes, const void *parameter, int backwards);

namespace emulated {
float f16_to_f32(u16 bits);
u16 f32_to_f16(float value);
u16 f32_to_bf16(float value);
}

namespace {

enum {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    INVALID_CONTEXT = 201,
    NOT_FOUND = 500,
    LAUNCH_FAILED = 719,
    CAPTURE_UNSUPPORTED = 900,
};

typedef std::function<int()> Work;

struct Context {
    int retained;
};
struct Stream {
    std::vector<Work> waiting;
    bool captures;
    bool capture_failed;
    std::vector<Work> captured;
};
struct Event {
    Stream *stream;
    size_t after; // so much of the stream's work, as it was then
    u64 epoch;
};
struct Function {
    std::string name;
    u32 allowed_shared;
};
struct Graph {
    std::vector<Work> works;
};

std::recursive_mutex lock;
Context context;
thread_local Context *current;
std::map<u64, size_t> device_memory, pinned_memory;
size_t device_bytes;
const size_t DEVICE_LIMIT = (size_t)4 << 30;
int failed;

#define LOCKED std::lock_guard<std::recursive_mutex> guard(lock)
#define NEEDS_CONTEXT                                                                            \
    LOCKED;                                                                                      \
    if (current == nullptr || context.retained == 0) return INVALID_CONTEXT

bool inside(const std::map<u64, size_t> &memory, u64 address, size_t bytes) {
    auto next = memory.upper_bound(address);
    if (next == memory.begin()) return false;
    --next;
    return address + bytes <= next->first + next->second;
}

bool on_device(u64 address, size_t bytes) { return inside(device_memory, address, bytes); }
bool pinned(const void *address, size_t bytes) {
    return inside(pinned_memory, (u64)address, bytes);
}

int drain(Stream *stream) {
    if (stream == nullptr) return SUCCESS;
    std::vector<Work> works;
    works.swap(stream->waiting);
    for (Work &work : works) {
        const int status = work();
        if (status != SUCCESS && failed == SUCCESS) failed = status;
    }
    return failed;
}

// Queues work, or records it.
int queue(Stream *stream, Work work) {
    if (stream->captures)
        stream->captured.push_back(std::move(work));
    else
        stream->waiting.push_back(std::move(work));
    return SUCCESS;
}

// Waiting inside a recording spoils it.
int wait(Stream *stream) {
    if (stream != nullptr && stream->captures) {
        stream->capture_failed = true;
        return CAPTURE_UNSUPPORTED;
    }
    return drain(stream);
}

std::vector<Stream *> streams;

} // namespace

extern "C" {

int cuInit(u32) { return SUCCESS; }
int cuDriverGetVersion(int *version) {
    *version = 13000;
    return SUCCESS;
}
int cuDeviceGetCount(int *count) {
    *count = 1;
    return SUCCESS;
}
int cuDeviceGet(int *device, int ordinal) {
    if (ordinal != 0) return INVALID_VALUE;
    *device = 0;
    return SUCCESS;
}
int cuDeviceGetName(char *name, int length, int) {
    std::snprintf(name, (size_t)length, "a stand-in");
    return SUCCESS;
}
int cuDeviceGetAttribute(int *value, int attribute, int) {
    switch (attribute) {
    case 75: // compute capability, major
        *value = 9;
        break;
    case 76: // minor
        *value = 0;
        break;
    case 97: // shared memory of a block, opt-in
        *value = 227 * 1024;
        break;
    default:
        *value = 1;
    }
    return SUCCESS;
}
int cuDeviceTotalMem_v2(size_t *bytes, int) {
    *bytes = DEVICE_LIMIT;
    return SUCCESS;
}
int cuDevicePrimaryCtxRetain(void **out, int) {
    LOCKED;
    context.retained++;
    *out = &context;
    return SUCCESS;
}
int cuDevicePrimaryCtxRelease_v2(int) {
    LOCKED;
    // Whoever lets the context go has to have given everything back.
    if (--context.retained == 0 && (!device_memory.empty() || !pinned_memory.empty())) {
        std::fprintf(stderr, "stand-in: %zu device and %zu pinned buffers are left behind\n",
                     device_memory.size(), pinned_memory.size());
        std::abort();
    }
    return SUCCESS;
}
int cuCtxSetCurrent(void *to) {
    current = (Context *)to;
    return SUCCESS;
}
int cuGetErrorName(int, const char **name) {
    *name = "CUDA_ERROR_OF_THE_STAND_IN";
    return SUCCESS;
}
int cuGetErrorString(int error, const char **text) {
    static thread_local char buffer[32];
    std::snprintf(buffer, sizeof(buffer), "error %d", error);
    *text = buffer;
    return SUCCESS;
}

int cuStreamCreate(void **out, u32 flags) {
    NEEDS_CONTEXT;
    if (flags != 1) return INVALID_VALUE; // not blocked by the default stream
    Stream *stream = new Stream();
    streams.push_back(stream);
    *out = stream;
    return SUCCESS;
}
int cuStreamSynchronize(void *stream) {
    NEEDS_CONTEXT;
    return wait((Stream *)stream);
}
int cuStreamDestroy_v2(void *stream) {
    NEEDS_CONTEXT;
    for (size_t i = 0; i < streams.size(); i++)
        if (streams[i] == stream) streams.erase(streams.begin() + (long)i);
    delete (Stream *)stream;
    return SUCCESS;
}
int cuEventCreate(void **out, u32) {
    NEEDS_CONTEXT;
    *out = new Event();
    return SUCCESS;
}
int cuEventRecord(void *event, void *stream) {
    NEEDS_CONTEXT;
    ((Event *)event)->stream = (Stream *)stream;
    return SUCCESS;
}
int cuEventSynchronize(void *event) {
    NEEDS_CONTEXT;
    return wait(((Event *)event)->stream);
}
int cuStreamWaitEvent(void *stream, void *event, u32) {
    NEEDS_CONTEXT;
    // What the event stands for has run before anything later in the stream.
    Stream *theirs = ((Event *)event)->stream;
    return theirs == stream ? SUCCESS : wait(theirs);
}
int cuEventDestroy_v2(void *event) {
    NEEDS_CONTEXT;
    delete (Event *)event;
    return SUCCESS;
}

int cuMemAlloc_v2(u64 *out, size_t bytes) {
    NEEDS_CONTEXT;
    if (bytes == 0) return INVALID_VALUE;
    if (device_bytes + bytes > DEVICE_LIMIT) return OUT_OF_MEMORY;
    void *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    std::memset(memory, 0xff, bytes);
    device_memory[(u64)memory] = bytes;
    device_bytes += bytes;
    *out = (u64)memory;
    return SUCCESS;
}
int cuMemFree_v2(u64 address) {
    NEEDS_CONTEXT;
    auto found = device_memory.find(address);
    if (found == device_memory.end()) return INVALID_VALUE;
    // A real one may free what is still used; here nothing may be waiting.
    for (Stream *stream : streams)
        if (!stream->waiting.empty()) {
            std::fprintf(stderr, "stand-in: memory is freed while work is waiting\n");
            std::abort();
        }
    device_bytes -= found->second;
    std::memset((void *)address, 0xff, found->second);
    std::free((void *)address);
    device_memory.erase(found);
    return SUCCESS;
}
int cuMemGetInfo_v2(size_t *free, size_t *total) {
    NEEDS_CONTEXT;
    *free = DEVICE_LIMIT - device_bytes;
    *total = DEVICE_LIMIT;
    return SUCCESS;
}
int cuMemHostAlloc(void **out, size_t bytes, u32) {
    NEEDS_CONTEXT;
    *out = std::malloc(bytes);
    pinned_memory[(u64)*out] = bytes;
    return SUCCESS;
}
int cuMemFreeHost(void *address) {
    NEEDS_CONTEXT;
    if (pinned_memory.erase((u64)address) == 0) return INVALID_VALUE;
    std::free(address);
    return SUCCESS;
}

int cuMemcpyHtoDAsync_v2(u64 to, const void *from, size_t bytes, void *stream_) {
    NEEDS_CONTEXT;
    Stream *stream = (Stream *)stream_;
    if (!on_device(to, bytes)) return INVALID_VALUE;
    if (stream->captures) {
        stream->capture_failed = true;
        return CAPTURE_UNSUPPORTED;
    }
    if (pinned(from, bytes))
        return queue(stream, [=] {
            std::memcpy((void *)to, from, bytes);
            return (int)SUCCESS;
        });
    // Ordinary memory has been read when the call returns.
    std::vector<u8> staged((const u8 *)from, (const u8 *)from + bytes);
    return queue(stream, [=] {
        std::memcpy((void *)to, staged.data(), bytes);
        return (int)SUCCESS;
    });
}
int cuMemcpyDtoHAsync_v2(void *to, u64 from, size_t bytes, void *stream_) {
    NEEDS_CONTEXT;
    Stream *stream = (Stream *)stream_;
    if (!on_device(from, bytes)) return INVALID_VALUE;
    if (stream->captures) {
        stream->capture_failed = true;
        return CAPTURE_UNSUPPORTED;
    }
    return queue(stream, [=] {
        std::memcpy(to, (const void *)from, bytes);
        return (int)SUCCESS;
    });
}
int cuMemcpyDtoDAsync_v2(u64 to, u64 from, size_t bytes, void *stream) {
    NEEDS_CONTEXT;
    if (!on_device(to, bytes) || !on_device(from, bytes)) return INVALID_VALUE;
    return queue((Stream *)stream, [=] {
        std::memmove((void *)to, (const void *)from, bytes);
        return (int)SUCCESS;
    });
}
int cuMemsetD8Async(u64 to, u8 value, size_t bytes, void *stream) {
    NEEDS_CONTEXT;
    if (!on_device(to, bytes)) return INVALID_VALUE;
    return queue((Stream *)stream, [=] {
        std::memset((void *)to, value, bytes);
        return (int)SUCCESS;
    });
}

int cuModuleLoadData(void **out, const void *image) {
    NEEDS_CONTEXT;
    if (std::memcmp(image, "\x7f" "ELF", 4) != 0) return INVALID_VALUE;
    *out = (void *)image;
    return SUCCESS;
}
int cuModuleUnload(void *) { return SUCCESS; }
int cuModuleGetFunction(void **out, void *, const char *name) {
    NEEDS_CONTEXT;
    if (quintic_emulated_parameter_bytes(name) == 0) return NOT_FOUND;
    *out = new Function{name, 48 * 1024};
    return SUCCESS;
}
int cuFuncSetAttribute(void *function, int attribute, int value) {
    NEEDS_CONTEXT;
    if (attribute != 8 || value > 227 * 1024) return INVALID_VALUE;
    ((Function *)function)->allowed_shared = (u32)value;
    return SUCCESS;
}
int cuLaunchKernel(void *function_, u32 x, u32 y, u32 z, u32 threads, u32 threads_y, u32 threads_z,
                   u32 shared, void *stream, void **parameters, void **) {
    NEEDS_CONTEXT;
    const Function *function = (const Function *)function_;
    if (x == 0 || y == 0 || z == 0 || y > 65535 || z > 65535 || threads_y != 1 || threads_z != 1)
        return INVALID_VALUE;
    if (shared > function->allowed_shared) return INVALID_VALUE;
    const std::string name = function->name;
    const u8 *first = (const u8 *)parameters[0];
    const size_t bytes = quintic_emulated_parameter_bytes(name.c_str());
    // In words: aligned for every parameter.
    std::vector<u64> copy((bytes + 7) / 8);
    std::memcpy(copy.data(), first, bytes);
    return queue((Stream *)stream, [=] {
        const u32 grid[3] = {x, y, z};
        const int status =
            quintic_emulated_launch(name.c_str(), grid, threads, shared, copy.data(), 0);
        return status == 0 ? (int)SUCCESS : (int)LAUNCH_FAILED;
    });
}

int cuStreamBeginCapture_v2(void *stream_, int mode) {
    NEEDS_CONTEXT;
    Stream *stream = (Stream *)stream_;
    // Memory is allocated while recording, which only the relaxed mode allows.
    if (mode != 2 || stream->captures) return INVALID_VALUE;
    stream->captures = true;
    stream->capture_failed = false;
    stream->captured.clear();
    return SUCCESS;
}
int cuStreamEndCapture(void *stream_, void **out) {
    NEEDS_CONTEXT;
    Stream *stream = (Stream *)stream_;
    if (!stream->captures) return INVALID_VALUE;
    stream->captures = false;
    if (stream->capture_failed) return CAPTURE_UNSUPPORTED;
    *out = new Graph{std::move(stream->captured)};
    stream->captured.clear();
    return SUCCESS;
}
int cuGraphInstantiateWithFlags(void **out, void *graph, u64) {
    NEEDS_CONTEXT;
    *out = new Graph(*(Graph *)graph);
    return SUCCESS;
}
int cuGraphLaunch(void *graph_, void *stream) {
    NEEDS_CONTEXT;
    for (const Work &work : ((Graph *)graph_)->works) queue((Stream *)stream, work);
    return SUCCESS;
}
int cuGraphExecDestroy(void *graph) {
    NEEDS_CONTEXT;
    delete (Graph *)graph;
    return SUCCESS;
}
int cuGraphDestroy(void *graph) {
    NEEDS_CONTEXT;
    delete (Graph *)graph;
    return SUCCESS;
}

// cuBLASLt, which counts columns first.

struct Matmul {
    bool transposes_a, transposes_b;
};
struct Layout {
    int type;
    u64 rows, columns;
    long long leading;
};
struct Preference {
    u64 workspace;
};
struct Algorithm {
    u64 number, unused[7];
};
struct Heuristic {
    Algorithm algorithm;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

int cublasLtCreate(void **out) {
    NEEDS_CONTEXT;
    *out = (void *)&context;
    return 0;
}
int cublasLtDestroy(void *) { return 0; }
int cublasLtMatmulDescCreate(void **out, int compute, int scale) {
    if (compute != 68 || scale != 0) return 15; // sums and factors in f32
    *out = new Matmul();
    return 0;
}
int cublasLtMatmulDescDestroy(void *description) {
    delete (Matmul *)description;
    return 0;
}
int cublasLtMatmulDescSetAttribute(void *description, int attribute, const void *value,
                                   size_t bytes) {
    if (bytes != 4) return 7;
    const bool transposes = *(const int *)value == 1;
    if (attribute == 3)
        ((Matmul *)description)->transposes_a = transposes;
    else if (attribute == 4)
        ((Matmul *)description)->transposes_b = transposes;
    else
        return 15;
    return 0;
}
int cublasLtMatrixLayoutCreate(void **out, int type, u64 rows, u64 columns, long long leading) {
    *out = new Layout{type, rows, columns, leading};
    return 0;
}
int cublasLtMatrixLayoutDestroy(void *layout) {
    delete (Layout *)layout;
    return 0;
}
int cublasLtMatmulPreferenceCreate(void **out) {
    *out = new Preference();
    return 0;
}
int cublasLtMatmulPreferenceDestroy(void *preference) {
    delete (Preference *)preference;
    return 0;
}
int cublasLtMatmulPreferenceSetAttribute(void *preference, int attribute, const void *value,
                                         size_t bytes) {
    if (attribute == 1 && bytes == 8) {
        ((Preference *)preference)->workspace = *(const u64 *)value;
        return 0;
    }
    // The four alignments.
    return attribute >= 5 && attribute <= 8 && bytes == 4 ? 0 : 7;
}
int cublasLtMatmulAlgoGetHeuristic(void *, void *, void *, void *, void *, void *,
                                   void *preference, int wanted, Heuristic *out, int *found) {
    // Three ways: the second needs more than it may have, and the third refuses when it runs.
    const u64 workspace = ((Preference *)preference)->workspace;
    *found = wanted < 3 ? wanted : 3;
    for (int i = 0; i < *found; i++) {
        std::memset(&out[i], 0, sizeof(Heuristic));
        out[i].algorithm.number = (u64)i + 1;
        out[i].workspace = i == 1 ? workspace + 1 : 0;
    }
    return 0;
}

static float element(const void *from, int type, u64 i) {
    switch (type) {
    case 0:
        return ((const float *)from)[i];
    case 2:
        return emulated::f16_to_f32(((const u16 *)from)[i]);
    default: {
        const u32 bits = (u32)((const u16 *)from)[i] << 16;
        float value;
        std::memcpy(&value, &bits, 4);
        return value;
    }
    }
}

static u64 type_bytes(int type) { return type == 0 ? 4 : 2; }

int cublasLtMatmul(void *, void *description, const float *alpha_, const void *a, void *a_layout,
                   const void *b, void *b_layout, const float *beta_, const void *c, void *c_layout,
                   void *d, void *d_layout, const Algorithm *algorithm, void *, size_t,
                   void *stream) {
    LOCKED;
    if (current == nullptr) return 14;
    if (algorithm->number == 3) return 15;
    if (algorithm->number != 1) return 7;
    const Matmul matmul = *(const Matmul *)description;
    const Layout la = *(const Layout *)a_layout, lb = *(const Layout *)b_layout;
    const Layout lc = *(const Layout *)c_layout, ld = *(const Layout *)d_layout;
    const float alpha = *alpha_, beta = *beta_;
    if (!matmul.transposes_a || matmul.transposes_b || la.rows != lb.rows ||
        ld.rows != la.columns || ld.columns != lb.columns || std::memcmp(&lc, &ld, sizeof(ld)) != 0)
        return 7;
    for (const Layout *layout : {&la, &lb, &ld})
        if (layout->leading != (long long)layout->rows) return 7;
    if (!on_device((u64)a, la.rows * la.columns * type_bytes(la.type)) ||
        !on_device((u64)b, lb.rows * lb.columns * type_bytes(lb.type)) ||
        !on_device((u64)d, ld.rows * ld.columns * type_bytes(ld.type)) || c != d)
        return 13;
    queue((Stream *)stream, [=] {
        std::vector<float> left(la.rows * la.columns), right(lb.rows * lb.columns);
        for (u64 i = 0; i < left.size(); i++) left[i] = element(a, la.type, i);
        for (u64 i = 0; i < right.size(); i++) right[i] = element(b, lb.type, i);
        for (u64 column = 0; column < ld.columns; column++) {
            for (u64 row = 0; row < ld.rows; row++) {
                const float *x = &left[row * la.rows], *y = &right[column * lb.rows];
                float sums[8] = {};
                for (u64 k = 0; k < la.rows; k++) sums[k % 8] += x[k] * y[k];
                float sum = 0.0f;
                for (float part : sums) sum += part;
                const u64 at = column * ld.rows + row;
                float value = alpha * sum;
                // Without beta, what was there is not read.
                if (beta != 0.0f) value += beta * element(c, lc.type, at);
                if (ld.type == 0)
                    ((float *)d)[at] = value;
                else
                    ((u16 *)d)[at] = ld.type == 2 ? emulated::f32_to_f16(value)
                                                  : emulated::f32_to_bf16(value);
            }
        }
        return (int)SUCCESS;
    });
    return 0;
}

} // extern "C"
