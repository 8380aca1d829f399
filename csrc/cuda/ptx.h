// Instructions that CUDA C++ has no word for. tests/cuda_host/cuda_host.h has the same functions as plain C++.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace m3el::gpu {

// The block's dynamic shared memory, aligned to 128 bytes.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char m3el_dynamic_shared[];
  return reinterpret_cast<T*>(m3el_dynamic_shared);
}

// 16 bytes that are read once: they do not displace what the L1 cache holds. Nobody may write them during the launch.
__device__ __forceinline__ uint4 load_once(const void* global) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(global));
  return v;
}

// 16 bytes from global to shared memory, both aligned to 16, in the background: there for the thread itself after
// cp_async_wait, for others after a barrier behind that.
__device__ __forceinline__ void cp_async(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(global)
               : "memory");
}

// Closes the group of the thread's copies since the last one.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `kNewest` of the thread's groups are under way.
template <int kNewest>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kNewest) : "memory");
}

// Four 8 x 8 matrices of 16-bit values in shared memory for a warp: lanes 8 i to 8 i + 7 point at the rows of matrix i,
// 16 bytes each, and every lane gets the values at row lane / 4, columns 2 (lane % 4) and the next, of each.
__device__ __forceinline__ uint4 load_matrices(const void* shared) {
  uint4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared)))
               : "memory");
  return v;
}

// d += a b of a warp: a [16, 16] and b [16, 8] bf16, d fp32, in the fragments of PTX's mma.m16n8k16.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Two values rounded to bf16 (to nearest, ties to even), `low` in the lower half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t v;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
  return v;
}

// The value of fp16 bits.
__device__ __forceinline__ float half_to_float(uint16_t half) {
  float v;
  asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(half));
  return v;
}

// 2^x, relative error 2^-22; denormal results are 0.
__device__ __forceinline__ float exp2_approx(float x) {
  float v;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(v) : "f"(x));
  return v;
}

}  // namespace m3el::gpu
