// Small kernels, some with a known fault, started by name from tests/cuda/test_host.py.
#pragma once

#include <cstring>
#include <stdexcept>
#include <string>

#include "cuda_host_memory.h"
#include "platform.h"

struct Planted {
  const char* name;
  void (*kernel)(const float*, float*, int);
  unsigned blocks;
  int threads;
  size_t shared;
  void (*then)(const float*, float*, int) = nullptr;  // a second launch
};

// Runs a kernel of `list` on `in_bytes` of input and `out_bytes` of output; its last argument is `n`. The findings, or
// an empty text.
inline const char* run_planted(const Planted* list, int count, const char* name, const void* in, int64_t in_bytes,
                               void* out, int64_t out_bytes, int n) {
  static std::string text;
  text = "no such kernel";
  for (int i = 0; i < count; ++i) {
    const Planted& planted = list[i];
    if (std::strcmp(planted.name, name) != 0) continue;
    text.clear();
    try {
      cuda_host::declare_input(in, in_bytes);
      cuda_host::declare_output(out, out_bytes);
      cuda_host::declare_input(in, in_bytes / 2);  // views change nothing
      cuda_host::declare_input(out, out_bytes / 2);
      for (const auto kernel : {planted.kernel, planted.then})
        if (kernel != nullptr)
          m3el::gpu::launch(name, kernel, dim3(planted.blocks), planted.threads, planted.shared, nullptr,
                            static_cast<const float*>(in), static_cast<float*>(out), n);
    } catch (const std::runtime_error& error) {
      text = error.what();
    }
    cuda_host::forget_memory();
  }
  return text.c_str();
}

#define PLANTED(...)                                                                                                \
  static constexpr Planted kPlanted[] = {__VA_ARGS__};                                                              \
  extern "C" __attribute__((visibility("default"))) const char* run(                                                \
      const char* name, const void* in, int64_t in_bytes, void* out, int64_t out_bytes, int n) {                    \
    return run_planted(kPlanted, sizeof kPlanted / sizeof *kPlanted, name, in, in_bytes, out, out_bytes, n);        \
  }
