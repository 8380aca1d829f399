// What the emulator's words give. A warp; the input's floats hold whatever each kernel says.
#include "planted.h"

namespace {

constexpr unsigned kAll = ~0u;

// in: bf16 a [16, 16], bf16 b^T [8, 16], fp32 c [16, 8]; out: a b + c. Fragments as PTX draws them.
__global__ void mma(const float* in, float* out, int) {
  const uint32_t* const a = reinterpret_cast<const uint32_t*>(in);  // pairs
  const uint32_t* const b = a + 128;
  const float* const c = in + 192;
  const int row = threadIdx.x / 4, pair = threadIdx.x % 4;
  const uint32_t fa[4] = {a[row * 8 + pair], a[(row + 8) * 8 + pair], a[row * 8 + pair + 4],
                          a[(row + 8) * 8 + pair + 4]};
  const uint32_t fb[2] = {b[row * 8 + pair], b[row * 8 + pair + 4]};
  float d[4];
  for (int i = 0; i < 4; ++i) d[i] = c[(row + i / 2 * 8) * 8 + pair * 2 + i % 2];
  m3el::gpu::mma_bf16(d, fa, fb);
  for (int i = 0; i < 4; ++i) out[(row + i / 2 * 8) * 8 + pair * 2 + i % 2] = d[i];
}

// in: lanes' values [32]; out [5, 32]: lane n of 8, up n, down n, xor n, all within 8 lanes; 8-byte xor n of 32.
__global__ void shuffles(const float* in, float* out, int n) {
  const int lane = threadIdx.x;
  const float v = in[lane];
  out[lane] = __shfl_sync(kAll, v, n, 8);
  out[32 + lane] = __shfl_up_sync(kAll, v, n, 8);
  out[64 + lane] = __shfl_down_sync(kAll, v, n, 8);
  out[96 + lane] = __shfl_xor_sync(kAll, v, n, 8);
  const double d = __shfl_xor_sync(kAll, static_cast<double>(v) + 0x1p-40, n);
  out[128 + lane] = static_cast<float>(d - std::floor(d) == 0x1p-40 ? std::floor(d) : -1);  // all 8 bytes came
}

// in: lanes' integers [32], as floats; out [8, 32]: votes on being above n, then reductions, of lanes by parity.
__global__ void votes(const float* in, float* out, int n) {
  const int lane = threadIdx.x, v = static_cast<int>(in[lane]);
  const unsigned mask = lane % 2 == 0 ? 0x55555555u : 0xaaaaaaaau;
  out[lane] = static_cast<float>(__popc(__ballot_sync(mask, v > n)));
  out[32 + lane] = static_cast<float>(__any_sync(mask, v > n));
  out[64 + lane] = static_cast<float>(__all_sync(mask, v > n));
  out[96 + lane] = static_cast<float>(__reduce_add_sync(mask, v));
  out[128 + lane] = static_cast<float>(__reduce_max_sync(mask, v));
  out[160 + lane] = static_cast<float>(__reduce_min_sync(mask, v));
  out[192 + lane] = static_cast<float>(__reduce_max_sync(mask, static_cast<unsigned>(v)) >> 16);
  out[224 + lane] = static_cast<float>(__reduce_min_sync(mask, static_cast<unsigned>(v)) >> 16);
}

// Blocks and threads update words that start at `n`: sum, maximum, minimum, how often the word changed hands by
// exchange and by compare-and-swap.
__global__ void start(const float*, float* out, int n) {
  if (threadIdx.x < 5 && blockIdx.x == 0) reinterpret_cast<int*>(out)[threadIdx.x] = n;
}
__global__ void update(const float* in, float* out, int n) {
  int* const words = reinterpret_cast<int*>(out);
  const int v = static_cast<int>(in[threadIdx.x]) * static_cast<int>(1 + blockIdx.x);
  atomicAdd(words, v);
  atomicMax(words + 1, v);
  atomicMin(words + 2, v);
  if (atomicExch(words + 3, 7) == n) atomicAdd(words + 4, 1);
  for (;;) {
    const int seen = atomicAdd(words + 4, 0);
    if (atomicCAS(words + 4, seen, seen + 2) == seen) break;
  }
}

// in: pairs of floats [128, 2]; out: each pair as two bf16.
__global__ void pack(const float* in, float* out, int) {
  for (int i = threadIdx.x; i < 128; i += 32)
    reinterpret_cast<uint32_t*>(out)[i] = m3el::gpu::pack_bf16(in[2 * i], in[2 * i + 1]);
}

// out [4]: bits counted and found.
__global__ void bits(const float*, float* out, int n) {
  const int results[] = {__popc(n), __clz(n), __ffs(n), static_cast<int>(__brev(n) >> 16)};
  for (int i = 0; i < 4; ++i) out[i] = static_cast<float>(results[i]);
}

// Counts the block's odd threads in the three ways; 48 threads.
__global__ void barrier_votes(const float*, float* out, int n) {
  const int above = static_cast<int>(threadIdx.x) > n;
  const int count = __syncthreads_count(above), any = __syncthreads_or(above), all = __syncthreads_and(above);
  if (threadIdx.x == 0) out[0] = static_cast<float>(count), out[1] = static_cast<float>(any);
  if (threadIdx.x == 1) out[2] = static_cast<float>(all);
}

}  // namespace

PLANTED({"mma", mma, 1, 32, 0}, {"shuffles", shuffles, 1, 32, 0}, {"votes", votes, 1, 32, 0},
        {"atomics", start, 4, 64, 0, update}, {"pack", pack, 1, 32, 0}, {"bits", bits, 1, 1, 0},
        {"barrier_votes", barrier_votes, 1, 48, 0})
