// Registers the native ops under torch.ops.m3el_fast. LibTorch's stable ABI only: at:: and c10:: are off limits.
#include <cstdint>

#include <torch/csrc/stable/library.h>

#include "cpu/isa.h"
#include "schemas.h"

namespace {

// Raised whenever the schema or the meaning of an op changes; m3el_fast/ops/build.py holds the same number and refuses
// a library left over from another version of the checkout.
constexpr int64_t kInterface = 5;

int64_t native_abi_version() { return kInterface; }

// Level in force, as a number of the order scalar, avx2, avx512, avx512bf16, amx. Throws for a bad M3EL_CPU_ISA.
int64_t cpu_isa() { return static_cast<int64_t>(m3el::isa()); }

}  // namespace

STABLE_TORCH_LIBRARY(m3el_fast, m) {
  m.def("native_abi_version() -> int");
  m.def("cpu_isa() -> int");
  for (const char* schema : m3el::kSchemas) m.def(schema);
}

STABLE_TORCH_LIBRARY_IMPL(m3el_fast, CompositeExplicitAutograd, m) {
  m.impl("native_abi_version", TORCH_BOX(&native_abi_version));
  m.impl("cpu_isa", TORCH_BOX(&cpu_isa));
}
