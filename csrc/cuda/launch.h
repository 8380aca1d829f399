// Starts kernels; every CUDA call is checked. tests/cuda_host/cuda_host.h has the same functions as plain C++.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#include <type_traits>

namespace m3el::gpu {

using Stream = void*;  // a cudaStream_t, for code that CUDA's headers stay out of

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// Multiprocessors of the current device.
inline int multiprocessors() {
  int device = 0, count = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  return count;
}

// Bytes of shared memory that a block may have on the current device.
inline int shared_limit() {
  int device = 0, bytes = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "cudaDeviceGetAttribute");
  return bytes;
}

// Runs `kernel` with `shared` bytes of dynamic shared memory on the current device. Throws std::runtime_error with
// `name` if it cannot start.
template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), dim3 grid, int threads, size_t shared, Stream stream,
            A... arguments) {
  // always the same limit: host threads that start a kernel with different sizes would lower it for each other
  if (shared > 48 << 10)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_limit()), name);
  kernel<<<grid, threads, shared, static_cast<cudaStream_t>(stream)>>>(static_cast<P>(arguments)...);
  check(cudaGetLastError(), name);
}

}  // namespace m3el::gpu
