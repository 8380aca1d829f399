// CUDA kernels with a fault each, for the tests of .ci/compile_kernels.py.
#include <cstdint>

namespace m3el::gpu {
namespace {

// SASS of sound_kernel: tensor cores, 16-byte loads
template <int kSteps>
__global__ void __launch_bounds__(32) sound_kernel(const uint4* a, const uint2* b, float4* out) {
  float4 d = {0, 0, 0, 0};
  for (int i = 0; i < kSteps; ++i) {
    const uint4 x = a[i * 32 + threadIdx.x];
    const uint2 y = b[i * 32 + threadIdx.x];
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d.x), "+f"(d.y), "+f"(d.z), "+f"(d.w)
        : "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w), "r"(y.x), "r"(y.y));
  }
  out[threadIdx.x] = d;
}
template __global__ void sound_kernel<4>(const uint4*, const uint2*, float4*);

// SASS of spilling_kernel: nothing
__global__ void __launch_bounds__(1024, 2) spilling_kernel(const float* a, float* out) {
  float v[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) v[i] = a[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; ++i) out[i * 1024 + threadIdx.x] = v[63 - i] * v[i];
}

// SASS of indexed_kernel: nothing
__global__ void __launch_bounds__(32) indexed_kernel(const int* a, int* out, int n) {
  int v[16];
#pragma unroll
  for (int i = 0; i < 16; ++i) v[i] = a[i];
  for (int i = 0; i < n; ++i) v[a[i] & 15] += i;
  out[threadIdx.x] = v[threadIdx.x & 15];
}

// SASS of narrow_kernel: tensor cores, 16-byte loads
__global__ void __launch_bounds__(32) narrow_kernel(const float* a, float* out) { out[threadIdx.x] = a[threadIdx.x]; }

// SASS of misread_kernel: wide loads
__global__ void __launch_bounds__(32) misread_kernel(float* out) { out[threadIdx.x] = 0; }

__global__ void __launch_bounds__(32) forgotten_kernel(float* out) { out[threadIdx.x] = 0; }

// SASS of removed_kernel: 16-byte loads

}  // namespace

void start(float* p, int n) {
  spilling_kernel<<<1, 1024>>>(p, p + n);
  indexed_kernel<<<1, 32>>>(reinterpret_cast<int*>(p), reinterpret_cast<int*>(p + n), n);
  narrow_kernel<<<1, 32>>>(p, p + n);
  misread_kernel<<<1, 32>>>(p);
  forgotten_kernel<<<1, 32>>>(p);
}

}  // namespace m3el::gpu
