// CUDA's words as plain C++, for csrc/cuda/*.cu under M3EL_CUDA_HOST: kernels run and are checked without a GPU.
//
// Emulated: a block's threads are fibers in a seeded adversarial order, blocks run one after another in shuffled order;
// barriers, warp collectives, atomics, dynamic shared memory, cp.async (which lands as late as it may) and mma.m16n8k16
// with fp32 sums. The sources are compiled with -fsanitize=thread,alignment,bounds, whose calls hooks.cpp answers.
//
// Checked, and thrown from launch() as std::runtime_error:
// - access outside the declared tensors, the block's shared memory and the thread's own arrays; writes to inputs;
// - reads of shared or output memory that nobody wrote; cp.async data touched before the wait; misaligned accesses;
// - two threads touching one byte, one writing, with no barrier between (__syncthreads, within a warp __syncwarp);
//   two blocks of a launch doing so; atomics conflict with other accesses only;
// - barriers and collectives that some threads never reach, or reach elsewhere in the code or with another mask;
//   shuffles from lanes outside the mask; lanes in the mask that do not exist or have exited;
// - launch configurations that no GPU takes.
// M3EL_CUDA_HOST_LOG=1 lists each launch on stderr: kernel, threads of a block, bytes of its shared memory.
//
// Not checked: order through atomics or fences (such programs are reported as races), the order of sums in a tensor
// core, the errors of approximate functions, registers, occupancy, time; what calls of memcpy and memset touch.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <tuple>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct uint2 { unsigned x, y; } __attribute__((aligned(8)));
struct uint3 { unsigned x, y, z; };
struct uint4 { unsigned x, y, z, w; } __attribute__((aligned(16)));
struct int2 { int x, y; } __attribute__((aligned(8)));
struct int4 { int x, y, z, w; } __attribute__((aligned(16)));
struct float2 { float x, y; } __attribute__((aligned(8)));
struct float4 { float x, y, z, w; } __attribute__((aligned(16)));
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace cuda_host {

// The place of a call in the sources: threads must meet at the same one.
struct Where {
  const char* file;
  int line;
};
#define M3EL_WHERE \
  ::cuda_host::Where where = { __builtin_FILE(), __builtin_LINE() }

// A thread's position never changes, so the compiler may keep it.
[[gnu::const]] unsigned thread_number();
[[gnu::const]] uint3 block_index();
[[gnu::const]] unsigned block_threads();
[[gnu::const]] dim3 grid_size();
[[gnu::const]] void* shared_memory();

enum class Vote { kNone, kOr, kAnd, kCount };
int block_barrier(Vote vote, int value, Where where);

enum class Collective : uint8_t {
  kSync, kShuffle, kShuffleUp, kShuffleDown, kShuffleXor, kBallot, kMax, kMin, kAdd, kSignedMax, kSignedMin, kMma
};
// `source`: a shuffle's lane or distance.
uint64_t warp_collective(Collective kind, unsigned mask, uint64_t value, int source, int width, Where where);

struct Four {
  float x, y, z, w;
};
Four mma(Four d, uint4 a, uint2 b, Where where);

uint4 load_once(const void* global);
void cp_async(void* shared, const void* global);
void cp_async_commit();
void cp_async_wait(int newest);

void run(const char* name, dim3 grid, int threads, size_t shared, void (*body)(const void*), const void* arguments,
         size_t bytes);

template <class T>
T shuffle(Collective kind, unsigned mask, T value, int source, int width, Where where) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  return std::bit_cast<T>(
      static_cast<Bits>(warp_collective(kind, mask, std::bit_cast<Bits>(value), source, width, where)));
}

}  // namespace cuda_host

#define threadIdx (uint3{::cuda_host::thread_number(), 0, 0})
#define blockIdx (::cuda_host::block_index())
#define blockDim (dim3(::cuda_host::block_threads()))
#define gridDim (::cuda_host::grid_size())

inline void __syncthreads(M3EL_WHERE) { cuda_host::block_barrier(cuda_host::Vote::kNone, 0, where); }
inline int __syncthreads_or(int v, M3EL_WHERE) { return cuda_host::block_barrier(cuda_host::Vote::kOr, v, where); }
inline int __syncthreads_and(int v, M3EL_WHERE) { return cuda_host::block_barrier(cuda_host::Vote::kAnd, v, where); }
inline int __syncthreads_count(int v, M3EL_WHERE) {
  return cuda_host::block_barrier(cuda_host::Vote::kCount, v, where);
}
inline void __syncwarp(unsigned mask = ~0u, M3EL_WHERE) {
  cuda_host::warp_collective(cuda_host::Collective::kSync, mask, 0, 0, 32, where);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, M3EL_WHERE) {
  return cuda_host::shuffle(cuda_host::Collective::kShuffle, mask, value, lane, width, where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32, M3EL_WHERE) {
  return cuda_host::shuffle(cuda_host::Collective::kShuffleUp, mask, value, distance, width, where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32, M3EL_WHERE) {
  return cuda_host::shuffle(cuda_host::Collective::kShuffleDown, mask, value, distance, width, where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, M3EL_WHERE) {
  return cuda_host::shuffle(cuda_host::Collective::kShuffleXor, mask, value, bits, width, where);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, M3EL_WHERE) {
  return static_cast<unsigned>(
      cuda_host::warp_collective(cuda_host::Collective::kBallot, mask, predicate != 0, 0, 32, where));
}
inline int __any_sync(unsigned mask, int predicate, M3EL_WHERE) { return __ballot_sync(mask, predicate, where) != 0; }
inline int __all_sync(unsigned mask, int predicate, M3EL_WHERE) {
  return __ballot_sync(mask, predicate, where) == mask;
}

inline unsigned __reduce_add_sync(unsigned mask, unsigned v, M3EL_WHERE) {
  return static_cast<unsigned>(cuda_host::warp_collective(cuda_host::Collective::kAdd, mask, v, 0, 32, where));
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned v, M3EL_WHERE) {
  return static_cast<unsigned>(cuda_host::warp_collective(cuda_host::Collective::kMax, mask, v, 0, 32, where));
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned v, M3EL_WHERE) {
  return static_cast<unsigned>(cuda_host::warp_collective(cuda_host::Collective::kMin, mask, v, 0, 32, where));
}
inline int __reduce_add_sync(unsigned mask, int v, M3EL_WHERE) {
  return static_cast<int>(__reduce_add_sync(mask, static_cast<unsigned>(v), where));
}
inline int __reduce_max_sync(unsigned mask, int v, M3EL_WHERE) {
  return static_cast<int>(cuda_host::warp_collective(cuda_host::Collective::kSignedMax, mask, v, 0, 32, where));
}
inline int __reduce_min_sync(unsigned mask, int v, M3EL_WHERE) {
  return static_cast<int>(cuda_host::warp_collective(cuda_host::Collective::kSignedMin, mask, v, 0, 32, where));
}

#define M3EL_ATOMICS(T)                                 \
  T atomicAdd(T* address, T value);         \
  T atomicMax(T* address, T value);         \
  T atomicMin(T* address, T value);         \
  T atomicExch(T* address, T value);        \
  T atomicCAS(T* address, T compare, T value);
M3EL_ATOMICS(int)
M3EL_ATOMICS(unsigned)
M3EL_ATOMICS(unsigned long long)
#undef M3EL_ATOMICS

inline int __popc(unsigned v) { return std::popcount(v); }
inline int __popcll(unsigned long long v) { return std::popcount(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __ffsll(long long v) { return __builtin_ffsll(v); }
inline int __clz(int v) { return std::countl_zero(static_cast<unsigned>(v)); }
inline int __clzll(long long v) { return std::countl_zero(static_cast<unsigned long long>(v)); }
inline unsigned __brev(unsigned v) {
  v = (v >> 1 & 0x55555555u) | (v & 0x55555555u) << 1;
  v = (v >> 2 & 0x33333333u) | (v & 0x33333333u) << 2;
  v = (v >> 4 & 0x0f0f0f0fu) | (v & 0x0f0f0f0fu) << 4;
  return __builtin_bswap32(v);
}

inline unsigned __float_as_uint(float v) { return std::bit_cast<unsigned>(v); }
inline int __float_as_int(float v) { return std::bit_cast<int>(v); }
inline float __uint_as_float(unsigned v) { return std::bit_cast<float>(v); }
inline float __int_as_float(int v) { return std::bit_cast<float>(v); }

using std::isfinite;
using std::isinf;
using std::isnan;
inline float rsqrtf(float v) { return 1.0f / std::sqrt(v); }
inline float __fdividef(float a, float b) { return a / b; }
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
template <class A, class B>
  requires std::is_integral_v<A> && std::is_integral_v<B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  const std::common_type_t<A, B> x = a, y = b;
  return y < x ? y : x;
}
template <class A, class B>
  requires std::is_integral_v<A> && std::is_integral_v<B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  const std::common_type_t<A, B> x = a, y = b;
  return x < y ? y : x;
}

// The wrappers of csrc/cuda/ptx.h and launch.h.
namespace m3el::gpu {

template <class T>
T* dynamic_shared() {
  return static_cast<T*>(cuda_host::shared_memory());
}

using cuda_host::cp_async;
using cuda_host::cp_async_commit;
using cuda_host::load_once;
template <int kNewest>
void cp_async_wait() {
  cuda_host::cp_async_wait(kNewest);
}

inline uint4 load_matrices(const void* shared, M3EL_WHERE) {
  const int row = threadIdx.x % 32 / 4, column = threadIdx.x % 4;
  uint32_t v[4];
  for (int i = 0; i < 4; ++i) {
    const uint4* from = cuda_host::shuffle(cuda_host::Collective::kShuffle, ~0u, static_cast<const uint4*>(shared),
                                           8 * i + row, 32, where);
    const uint4 values = *from;  // rows are aligned to 16 bytes
    v[i] = column == 0 ? values.x : column == 1 ? values.y : column == 2 ? values.z : values.w;
  }
  return {v[0], v[1], v[2], v[3]};
}

inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], M3EL_WHERE) {
  // by value: arrays whose address leaves the kernel are checked at every access
  const cuda_host::Four v =
      cuda_host::mma({d[0], d[1], d[2], d[3]}, {a[0], a[1], a[2], a[3]}, {b[0], b[1]}, where);
  d[0] = v.x, d[1] = v.y, d[2] = v.z, d[3] = v.w;
}

inline uint32_t round_to_bf16(float v) {
  const uint32_t bits = std::bit_cast<uint32_t>(v);
  if (v != v) return 0x7fff;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline uint32_t pack_bf16(float low, float high) { return round_to_bf16(low) | round_to_bf16(high) << 16; }


inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, rest = half & 0x7fff;
  if (rest >= 0x7c00) return std::bit_cast<float>(sign | 0x7f800000u | (rest & 0x3ff) << 13);  // infinity, NaN
  // the exponents' offsets differ by 112; the product is exact, also for denormal halves
  return std::bit_cast<float>(sign | rest << 13) * 0x1p112f;
}

inline float exp2_approx(float x) {
  const float v = std::exp2(x);
  return v < 0x1p-126f ? 0.0f : v;
}

using Stream = void*;

// Small, so that rules which split work over multiprocessors act at the sizes of tests.
inline int multiprocessors() { return 4; }

// That of sm_80, the least of the GPUs that the kernels are compiled for.
inline int shared_limit() { return 163 << 10; }

template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), dim3 grid, int threads, size_t shared, Stream, A... arguments) {
  struct Call {
    void (*kernel)(P...);
    std::tuple<P...> arguments;
  };
  const Call call{kernel, std::tuple<P...>(static_cast<P>(arguments)...)};
  const auto body = [](const void* self) {
    const Call& c = *static_cast<const Call*>(self);
    std::apply(c.kernel, c.arguments);
  };
  cuda_host::run(name, grid, threads, shared, body, &call, sizeof call);
}

}  // namespace m3el::gpu
