// Registers the native ops under torch.ops.m3el_fast. LibTorch's stable ABI only: at:: and c10:: are off limits.
#include <cstdint>

#include <torch/csrc/stable/library.h>

#include "cpu/isa.h"

namespace {

// Raised whenever the schema or the meaning of an op changes; m3el_fast/ops/build.py holds the same number and refuses
// a library left over from another version of the checkout.
constexpr int64_t kInterface = 3;

int64_t native_abi_version() { return kInterface; }

// Level in force, as a number of the order scalar, avx2, avx512, avx512bf16, amx. Throws for a bad M3EL_CPU_ISA.
int64_t cpu_isa() { return static_cast<int64_t>(m3el::isa()); }

}  // namespace

// One schema an op, whatever the device; cpu/ops.cpp holds the CPU kernels, m3el_fast/ops/native.py the fake tensors,
// m3el_fast/ops/g2l_autograd.py the gradient.
STABLE_TORCH_LIBRARY(m3el_fast, m) {
  m.def("native_abi_version() -> int");
  m.def("cpu_isa() -> int");
  m.def(
      "g2l_scores(Tensor query, Tensor key, Tensor value, Tensor gate, Tensor norm_weight, Tensor norm_bias, float eps, "
      "Tensor? query_mask, Tensor? key_mask, Tensor? rows, bool bf16) -> Tensor");
  m.def(
      "g2l_pairs(Tensor query, Tensor key, Tensor value, Tensor gate, Tensor norm_weight, Tensor norm_bias, float eps, "
      "Tensor? query_mask, Tensor? key_mask, Tensor mention, Tensor entity, bool bf16) -> Tensor");
  m.def(
      "g2l_backward(Tensor gradient, Tensor query, Tensor key, Tensor value, Tensor gate, Tensor norm_weight, "
      "Tensor norm_bias, float eps, Tensor? query_mask, Tensor? key_mask, bool bf16) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("inner_scores(Tensor mention, Tensor entity) -> Tensor");
  m.def("inner_pairs(Tensor mention, Tensor entity, Tensor mention_row, Tensor entity_row) -> Tensor");
  m.def("dual_scores(Tensor source, Tensor target, Tensor constants) -> Tensor");
  m.def("dual_pairs(Tensor source, Tensor target, Tensor constants, Tensor source_row, Tensor target_row) -> Tensor");
  m.def("topk(Tensor scores, int k) -> (Tensor, Tensor)");
  m.def("topk_merge(Tensor values, Tensor ids, Tensor scores, int first) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(m3el_fast, CompositeExplicitAutograd, m) {
  m.impl("native_abi_version", TORCH_BOX(&native_abi_version));
  m.impl("cpu_isa", TORCH_BOX(&cpu_isa));
}
