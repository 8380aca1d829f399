// m3el_fast._build_info: how the native part was built and what this machine can run. No torch types in this unit.
#include <string>

#include <pybind11/pybind11.h>

#include "cpu/isa.h"

namespace {

#if defined(__clang__)
constexpr const char* kCompiler = __VERSION__;
#else
constexpr const char* kCompiler = "GCC " __VERSION__;
#endif

std::string torch_target() {
  constexpr auto version = static_cast<unsigned long long>(TORCH_TARGET_VERSION);
  return std::to_string(version >> 56) + "." + std::to_string((version >> 48) & 0xff);
}

}  // namespace

PYBIND11_MODULE(_build_info, m) {
  m.doc() = "How the native part was built and what this machine can run.";
  m.def("compiler", [] { return kCompiler; }, "Name and version of the C++ compiler.");
  m.def("flags", [] { return M3EL_FLAGS; }, "Flags that all source files share.");
  m.def("torch_target", &torch_target, "Oldest torch that the extension loads under.");
  m.def("torch_headers", [] { return M3EL_TORCH_HEADERS; }, "Version of the torch that it was compiled against.");
  m.def("cuda", [] { return M3EL_CUDA; }, "Release of nvcc, GPUs that the CUDA kernels are for; empty without them.");
  m.def("isa", [] { return m3el::isa_name(m3el::detect_isa()); },
        "Best instruction set of this machine: scalar, avx2, avx512, avx512bf16 or amx.");
}
