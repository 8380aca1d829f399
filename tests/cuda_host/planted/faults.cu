// Kernels that are right, and the same with one fault each. In: 256 floats. Out: 256 floats.
#include "planted.h"

namespace {

using m3el::gpu::cp_async;
using m3el::gpu::cp_async_commit;
using m3el::gpu::cp_async_wait;
using m3el::gpu::dynamic_shared;
constexpr unsigned kAll = ~0u;

// The sum of n floats by 128 threads: warps by shuffles, then shared memory.
__global__ void __launch_bounds__(128) sum(const float* in, float* out, int n) {
  float* const partial = dynamic_shared<float>();
  float v = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) v += in[i];
  for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(kAll, v, d);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
  __syncthreads();
  if (threadIdx.x == 0) out[0] = partial[0] + partial[1] + partial[2] + partial[3];
}

__global__ void no_barrier(const float* in, float* out, int) {
  float* const s = dynamic_shared<float>();
  s[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x] = s[threadIdx.x ^ 32];
}

// A second round overwrites what slow threads still read.
__global__ void no_barrier_before_write(const float* in, float* out, int) {
  float* const s = dynamic_shared<float>();
  s[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x ^ 32];
  s[threadIdx.x] = 0;
}

__global__ void warp_exchange(const float* in, float* out, int) {
  float* const s = dynamic_shared<float>();
  s[threadIdx.x] = in[threadIdx.x];
  __syncwarp();
  out[threadIdx.x] = s[threadIdx.x ^ 1];
  __syncwarp();
  s[threadIdx.x] = 0;
}

__global__ void half_warp_exchange(const float* in, float* out, int) {
  float* const s = dynamic_shared<float>();
  const unsigned half = threadIdx.x % 32 < 16 ? 0xffffu : 0xffff0000u;
  for (int round = 0; round < 3; ++round) {
    s[threadIdx.x] = in[threadIdx.x];
    __syncwarp(half);
    out[threadIdx.x] = s[threadIdx.x ^ 1] + s[threadIdx.x];
    __syncwarp(half);
  }
}

__global__ void half_warp_race(const float* in, float* out, int) {
  float* const s = dynamic_shared<float>();
  const unsigned half = threadIdx.x % 32 < 16 ? 0xffffu : 0xffff0000u;
  s[threadIdx.x] = in[threadIdx.x];
  __syncwarp(half);
  out[threadIdx.x] = s[threadIdx.x ^ 16];
}

__global__ void no_warp_barrier(const float* in, float* out, int) {
  float* const s = dynamic_shared<float>();
  s[threadIdx.x] = in[threadIdx.x];
  __shfl_sync(kAll, 0, 0);  // orders no memory
  out[threadIdx.x] = s[threadIdx.x ^ 1];
}

__global__ void warp_barrier_between_warps(const float* in, float* out, int) {
  float* const s = dynamic_shared<float>();
  s[threadIdx.x] = in[threadIdx.x];
  __syncwarp();
  out[threadIdx.x] = s[threadIdx.x ^ 32];
}

// Two bytes of one word: no race.
__global__ void bytes(const float* in, float* out, int) {
  uint8_t* const s = dynamic_shared<uint8_t>();
  s[threadIdx.x] = static_cast<uint8_t>(in[threadIdx.x]);
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x ^ 1] + (reinterpret_cast<uint32_t*>(s)[threadIdx.x / 4] & 1);
}

__global__ void bytes_race(const float* in, float* out, int) {
  uint8_t* const s = dynamic_shared<uint8_t>();
  s[threadIdx.x] = static_cast<uint8_t>(in[threadIdx.x]);
  if (threadIdx.x % 4 == 0) out[threadIdx.x] = reinterpret_cast<uint32_t*>(s)[threadIdx.x / 4];
}

__global__ void two_writers(const float*, float*, int) { dynamic_shared<int>()[threadIdx.x / 2] = 1; }

__global__ void global_race(const float* in, float* out, int) {
  out[threadIdx.x] = in[threadIdx.x];
  if (threadIdx.x < 32) out[threadIdx.x] += out[threadIdx.x + 32];
}

__global__ void shared_overrun(const float*, float* out, int n) {
  float* const s = dynamic_shared<float>();
  s[threadIdx.x] = 1;
  out[threadIdx.x] = s[threadIdx.x + n];
}

// A pointer to another thread's variable.
__global__ void other_stack(const float*, float* out, int) {
  int own = static_cast<int>(threadIdx.x);
  const unsigned long long there = __shfl_xor_sync(kAll, reinterpret_cast<unsigned long long>(&own), 1);
  out[threadIdx.x] = static_cast<float>(*reinterpret_cast<int*>(there));
}
__global__ void input_overrun(const float* in, float* out, int n) { out[threadIdx.x] = in[threadIdx.x + n]; }
__global__ void output_overrun(const float*, float* out, int n) { out[static_cast<int>(threadIdx.x) + n] = 1; }
__global__ void null_read(const float*, float* out, int n) {
  out[threadIdx.x] = *reinterpret_cast<const float*>(static_cast<uintptr_t>(n));
}
__global__ void input_write(const float* in, float*, int n) { const_cast<float*>(in)[n] = 1; }

__global__ void uninitialised_shared(const float*, float* out, int) {
  float* const s = dynamic_shared<float>();
  if (threadIdx.x != 5) s[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x];
}
__global__ void uninitialised_output(const float*, float* out, int) { out[threadIdx.x] += 1; }

// Written by one block of a first launch, read by all of a second.
__global__ void fill(const float* in, float* out, int) {
  if (blockIdx.x == 0) out[threadIdx.x] = in[threadIdx.x];
}
__global__ void use(const float*, float* out, int) {
  if (out[threadIdx.x] < 0) out[0] = 0;
}
// Blocks read what one of them then writes.
__global__ void blocks_read_race(const float*, float* out, int n) {
  const float v = out[threadIdx.x];
  if (static_cast<int>(blockIdx.x) == n) out[threadIdx.x] = v + 1;
}

__global__ void blocks_race(const float*, float* out, int) { out[0] = 1; }
// Every block updates a counter, and one reads it.
__global__ void blocks_atomics(const float*, float* out, int n) {
  int* const counter = reinterpret_cast<int*>(out);
  atomicExch(counter, 0);
  atomicAdd(counter, 1);
  if (n == static_cast<int>(blockIdx.x)) out[1 + threadIdx.x] = counter[0];
}

// Threads wait for each other's turns.
__global__ void lock(const float*, float* out, int) {
  int* const s = dynamic_shared<int>();
  if (threadIdx.x == 0) s[0] = s[1] = 0;
  __syncthreads();
  while (atomicCAS(s, 0, 1) != 0) {
  }
  if (atomicAdd(s + 1, 1) == static_cast<int>(blockDim.x) - 1) out[0] = 1;
  atomicExch(s, 0);
}

// Shared histogram by atomics, correct.
__global__ void atomics(const float* in, float* out, int) {
  int* const s = dynamic_shared<int>();
  if (threadIdx.x < 8) s[threadIdx.x] = 0;
  __syncthreads();
  atomicAdd(s + static_cast<int>(in[threadIdx.x]) % 8, 1);
  __syncthreads();
  if (threadIdx.x < 8) out[threadIdx.x] = s[threadIdx.x];
}
__global__ void atomics_race(const float*, float* out, int) {
  int* const s = dynamic_shared<int>();
  if (threadIdx.x == 0) s[0] = 0;
  __syncthreads();
  atomicAdd(s, 1);
  out[threadIdx.x] = s[0];
}

// Copies in two groups; the newest may still be under way.
__global__ void copies(const float* in, float* out, int) {
  float* const s = dynamic_shared<float>();
  const int i = threadIdx.x * 4;
  cp_async(s + i, in + i);
  cp_async_commit();
  cp_async(s + 128 + i, in + 128 + i);
  cp_async_commit();
  cp_async_wait<1>();
  for (int j = i; j < i + 4; ++j) out[j] = s[j];
  cp_async_wait<0>();
  __syncthreads();
  for (int j = i; j < i + 4; ++j) out[128 + j] = s[128 + (j ^ 4)];
}
__global__ void copy_used_early(const float* in, float* out, int) {
  float* const s = dynamic_shared<float>();
  const int i = threadIdx.x * 4;
  cp_async(s + i, in + i);
  cp_async_commit();
  cp_async_wait<1>();
  __syncthreads();
  out[i] = s[i];
}
__global__ void copy_without_barrier(const float* in, float* out, int) {
  float* const s = dynamic_shared<float>();
  const int i = threadIdx.x * 4;
  cp_async(s + i, in + i);
  cp_async_commit();
  cp_async_wait<0>();
  out[i] = s[i ^ 4];
}
// A barrier before the wait shows others nothing.
__global__ void copy_barrier_too_early(const float* in, float* out, int) {
  float* const s = dynamic_shared<float>();
  const int i = threadIdx.x * 4;
  cp_async(s + i, in + i);
  __syncthreads();
  cp_async_commit();
  cp_async_wait<0>();
  __shfl_sync(kAll, 0, 0);  // now all have waited
  out[i] = s[i ^ 4];
}
__global__ void copy_misaligned(const float* in, float*, int) { cp_async(dynamic_shared<float>(), in + 1); }
__global__ void copy_overrun(const float* in, float*, int n) { cp_async(dynamic_shared<float>() + n, in); }

__global__ void misaligned(const float* in, float* out, int n) {
  const float4 v = *reinterpret_cast<const float4*>(in + n);
  out[threadIdx.x] = v.x + v.w;
}
__global__ void load_once_written(const float*, float* out, int) {
  for (int i = 0; i < 4; ++i) out[i] = 1;
  out[4] = m3el::gpu::load_once(out).x;
}

__global__ void divergent_barrier(const float*, float* out, int) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    out[threadIdx.x] = 1;
    __syncthreads();
  }
}
// Threads that have exited take no part.
__global__ void barrier_after_exit(const float*, float* out, int) {
  if (threadIdx.x >= 40) return;
  out[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x ^ 1] = static_cast<float>(__syncthreads_count(threadIdx.x % 2));
}
__global__ void barrier_against_collective(const float*, float*, int) {
  if (threadIdx.x == 3) __syncthreads();
  __syncwarp();
}
__global__ void collective_elsewhere(const float*, float* out, int) {
  float v;
  if (threadIdx.x % 2)
    v = __shfl_sync(kAll, 1.0f, 0);
  else
    v = __shfl_sync(kAll, 2.0f, 0);
  out[threadIdx.x] = v;
}
__global__ void absent_lane(const float*, float* out, int) {
  if (threadIdx.x != 7) out[threadIdx.x] = __shfl_sync(kAll, 1, 0);
}
// 40 threads: the second warp has 8.
__global__ void short_warp(const float*, float* out, int) { out[threadIdx.x] = __shfl_xor_sync(kAll, 1.0f, 1); }
__global__ void lane_outside_mask(const float*, float* out, int) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0xffffu, 1, 20);
}
__global__ void other_mask(const float*, float* out, int) {
  out[threadIdx.x] = __shfl_sync(threadIdx.x % 2 ? kAll : 0x55555555u, 1, 0);
}
// Of a thread's own array.
__global__ void local_overrun(const float* in, float* out, int n) {
  float own[4];
  for (int i = 0; i < n; ++i) own[i] = in[i];
  float sum = 0;
  for (int i = 0; i < 4; ++i) sum += own[i];
  out[threadIdx.x] = sum;
}

}  // namespace

PLANTED({"sum", sum, 1, 128, 16}, {"no_barrier", no_barrier, 1, 64, 256},
        {"no_barrier_before_write", no_barrier_before_write, 1, 64, 256},
        {"warp_exchange", warp_exchange, 1, 64, 256}, {"half_warp_exchange", half_warp_exchange, 1, 64, 256},
        {"half_warp_race", half_warp_race, 1, 32, 128}, {"no_warp_barrier", no_warp_barrier, 1, 32, 128},
        {"warp_barrier_between_warps", warp_barrier_between_warps, 1, 64, 256}, {"bytes", bytes, 1, 64, 64},
        {"bytes_race", bytes_race, 1, 64, 64}, {"two_writers", two_writers, 1, 32, 64},
        {"global_race", global_race, 1, 64, 0}, {"shared_overrun", shared_overrun, 1, 32, 128},
        {"input_overrun", input_overrun, 1, 32, 0}, {"output_overrun", output_overrun, 1, 32, 0},
        {"null_read", null_read, 1, 1, 0}, {"input_write", input_write, 1, 1, 0},
        {"uninitialised_shared", uninitialised_shared, 1, 32, 128},
        {"uninitialised_output", uninitialised_output, 1, 32, 0}, {"blocks_race", blocks_race, 2, 1, 0},
        {"blocks_atomics", blocks_atomics, 5, 1, 0}, {"atomics", atomics, 1, 256, 32},
        {"atomics_race", atomics_race, 1, 64, 4}, {"copies", copies, 1, 32, 1024},
        {"copy_used_early", copy_used_early, 1, 32, 512}, {"copy_without_barrier", copy_without_barrier, 1, 32, 512},
        {"copy_misaligned", copy_misaligned, 1, 1, 16}, {"copy_overrun", copy_overrun, 1, 1, 16},
        {"misaligned", misaligned, 1, 32, 0}, {"load_once_written", load_once_written, 1, 1, 0},
        {"divergent_barrier", divergent_barrier, 1, 64, 0}, {"barrier_after_exit", barrier_after_exit, 1, 96, 0},
        {"barrier_against_collective", barrier_against_collective, 1, 32, 0}, {"absent_lane", absent_lane, 1, 32, 0},
        {"lane_outside_mask", lane_outside_mask, 1, 32, 0}, {"other_mask", other_mask, 1, 32, 0},
        {"two_launches", fill, 3, 64, 0, use}, {"blocks_read_race", fill, 3, 64, 0, blocks_read_race},
        {"collective_elsewhere", collective_elsewhere, 1, 32, 0}, {"lock", lock, 1, 64, 8},
        {"copy_barrier_too_early", copy_barrier_too_early, 1, 32, 512}, {"short_warp", short_warp, 1, 40, 0},
        {"other_stack", other_stack, 1, 32, 0}, {"too_many_threads", sum, 1, 1025, 16},
        {"too_much_shared", sum, 1, 128, 232449}, {"no_blocks", sum, 0, 128, 16},
        {"local_overrun", local_overrun, 1, 32, 0})
