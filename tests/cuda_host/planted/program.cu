// Interprets random programs, whose races the test knows. in: int codes [blocks, n steps, 64 threads], where a code is
// kind + 16 * byte in memory: 0 nothing, 1-3 read 1, 2, 4 bytes, 4-6 write them, 7 atomic update of 4, 8 __syncthreads,
// 9-11 __syncwarp of the warp, of the half warp, of the lanes of equal parity.
#include "planted.h"

namespace {

constexpr int kWords = 3;

template <class T>
T touch(uint8_t* memory, int byte, bool write) {
  T* const p = reinterpret_cast<T*>(memory + byte);
  if (write) *p = 0;
  return write ? T{} : *p;
}

__device__ void interpret(const int* program, uint8_t* memory, int n) {
  const unsigned lane = threadIdx.x % 32;
  int total = 0;
  for (int step = 0; step < n; ++step) {
    const int code = program[step * 64 + threadIdx.x], kind = code % 16, byte = code / 16;
    if (kind == 1 || kind == 4) total += touch<uint8_t>(memory, byte, kind == 4);
    if (kind == 2 || kind == 5) total += touch<uint16_t>(memory, byte, kind == 5);
    if (kind == 3 || kind == 6) total += touch<uint32_t>(memory, byte, kind == 6);
    if (kind == 7) total += atomicAdd(reinterpret_cast<int*>(memory + byte), 1);
    if (kind == 8) __syncthreads();
    if (kind == 9) __syncwarp();
    if (kind == 10) __syncwarp(lane < 16 ? 0xffffu : 0xffff0000u);
    if (kind == 11) __syncwarp(lane % 2 == 0 ? 0x55555555u : 0xaaaaaaaau);
  }
  if (total < 0) memory[0] = 0;  // never: a use of what was read
}

__global__ void in_shared(const float* in, float*, int n) {
  uint8_t* const memory = m3el::gpu::dynamic_shared<uint8_t>();
  if (threadIdx.x < kWords) reinterpret_cast<int*>(memory)[threadIdx.x] = 0;
  __syncthreads();
  interpret(reinterpret_cast<const int*>(in), memory, n);
}

__global__ void clear(const float*, float* out, int) {
  if (blockIdx.x == 0 && threadIdx.x < kWords) out[threadIdx.x] = 0;
}

__global__ void in_global(const float* in, float* out, int n) {
  interpret(reinterpret_cast<const int*>(in) + blockIdx.x * n * 64, reinterpret_cast<uint8_t*>(out), n);
}

}  // namespace

PLANTED({"in_shared", in_shared, 1, 64, 4 * kWords}, {"in_global", clear, 2, 64, 0, in_global},
        {"in_global_of_one_block", clear, 1, 64, 0, in_global})
