// What the files that register the CUDA kernels as torch ops share. Plain C++: neither CUDA's headers nor nvcc.
//
// Under M3EL_CUDA_HOST the ops become those of m3el_fast_host, on CPU tensors, and every tensor that a kernel gets is
// declared to the emulator, which knows no other memory.
#pragma once

#include <cstdint>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#ifdef M3EL_CUDA_HOST
#include "cuda_host_memory.h"

#define M3EL_GPU_OPS(m) STABLE_TORCH_LIBRARY_IMPL(m3el_fast_host, CPU, m)
#else
#include <dlfcn.h>

#include <torch/csrc/stable/accelerator.h>

#define M3EL_GPU_OPS(m) STABLE_TORCH_LIBRARY_IMPL(m3el_fast, CUDA, m)
#endif

namespace m3el::gpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A scope in which launches go to a tensor's device and its current stream.
#ifdef M3EL_CUDA_HOST
class Device {
 public:
  explicit Device(const Tensor&) {}
  ~Device() { cuda_host::forget_memory(); }
  void* stream() const { return nullptr; }
};
#else
class Device {
 public:
  explicit Device(const Tensor& tensor) : index_(tensor.get_device_index()), guard_(index_) {}

  void* stream() const {
    // libtorch_cuda is no dependency of this library, which also loads under a torch without CUDA
    using Current = AOTITorchError (*)(int32_t, void**);
    static const Current current = [] {
      void* library = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_NOLOAD);
      void* symbol = library == nullptr ? nullptr : dlsym(library, "aoti_torch_get_current_cuda_stream");
      STD_TORCH_CHECK(symbol != nullptr, "no aoti_torch_get_current_cuda_stream in this torch's libtorch_cuda.so");
      return reinterpret_cast<Current>(symbol);
    }();
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(current(index_, &stream));
    return stream;
  }

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
};
#endif

inline void expect(const Tensor& t, const char* name, int64_t dims, ScalarType type) {
#ifdef M3EL_CUDA_HOST
  const bool here = t.is_cpu();
#else
  const bool here = t.is_cuda();
#endif
  STD_TORCH_CHECK(here && t.dim() == dims && t.scalar_type() == type && t.is_contiguous(), name,
                  ": expected a contiguous CUDA tensor of ", dims, " dimensions and its op's dtype");
}

inline int64_t bytes(const Tensor& t) { return t.numel() * t.element_size(); }

// A tensor's memory for a kernel that reads it.
template <class T>
const T* input(const Tensor& t) {
#ifdef M3EL_CUDA_HOST
  cuda_host::declare_input(t.const_data_ptr(), bytes(t));
#else
  STD_TORCH_CHECK(t.get_device_index() == torch::stable::accelerator::getCurrentDeviceIndex(),
                  "expected tensors of one device, got one of device ", t.get_device_index());
#endif
  return static_cast<const T*>(t.const_data_ptr());
}

// A new tensor's memory for a kernel that fills it, or uses it as workspace.
template <class T>
T* output(Tensor& t) {
#ifdef M3EL_CUDA_HOST
  cuda_host::declare_output(t.mutable_data_ptr(), bytes(t));
#endif
  return static_cast<T*>(t.mutable_data_ptr());
}

}  // namespace m3el::gpu
