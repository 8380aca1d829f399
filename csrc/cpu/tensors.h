// How the CPU ops read tensors and get threads.
#pragma once

#include <optional>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "format.h"
#include "parallel.h"

namespace m3el {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Parallel torch_threads() {
  return {static_cast<int64_t>(torch::stable::get_num_threads()), [](int64_t count, const auto& body) {
            if (count > 0) torch::stable::parallel_for(0, count, 1, body);
          }};
}

inline void check(const Tensor& t, const char* name, int64_t dims, ScalarType type) {
  STD_TORCH_CHECK(t.is_cpu() && t.dim() == dims && t.scalar_type() == type && t.is_contiguous(), name,
                  ": expected a contiguous CPU tensor of ", dims, " dimensions and its op's dtype");
}

template <class T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <class T>
const T* data(const std::optional<Tensor>& t) {
  return t.has_value() ? data<T>(*t) : nullptr;
}

// fp32 or bf16.
inline Format format(const Tensor& t, const char* name, int64_t dims) {
  const bool half = t.scalar_type() == ScalarType::BFloat16;
  check(t, name, dims, half ? ScalarType::BFloat16 : ScalarType::Float);
  return half ? Format::bf16 : Format::f32;
}

}  // namespace m3el
