// Registers the native ops under torch.ops.m3el_fast. LibTorch's stable ABI only: at:: and c10:: are off limits.
#include <cstdint>

#include <torch/csrc/stable/library.h>

namespace {

// Raised whenever the schema or the meaning of an op changes; m3el_fast/ops/build.py holds the same number and refuses
// a library left over from another version of the checkout.
constexpr int64_t kInterface = 1;

int64_t native_abi_version() { return kInterface; }

}  // namespace

STABLE_TORCH_LIBRARY(m3el_fast, m) { m.def("native_abi_version() -> int"); }

STABLE_TORCH_LIBRARY_IMPL(m3el_fast, CompositeExplicitAutograd, m) {
  m.impl("native_abi_version", TORCH_BOX(&native_abi_version));
}
