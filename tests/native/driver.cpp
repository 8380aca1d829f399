// Runs the checks of every CPU kernel at every ISA level that this machine has. Built with address and undefined-behaviour
// sanitizers by .ci/sanitize.py. Exits with 1 and a line for each mismatch.
#include <cstdio>

#include "checks.h"

namespace {

int failures = 0;

}  // namespace

void m3el::expect(bool good, const char* what, const char* level, double error) {
  if (good) return;
  ++failures;
  std::printf("%s at level %s: error %g\n", what, level, error);
}

int main() {
  using namespace m3el;
  for (const Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512, Isa::avx512bf16}) {
    if (!has_isa(isa)) {
      std::printf("this machine has no %s\n", isa_name(isa));
      continue;
    }
    check_g2l(isa);
    check_contrastive(isa);
    check_cross_modal(isa);
    check_products(isa);
  }
  if (has_isa(Isa::avx512)) check_g2l_amx();
  check_topk();
  std::printf(failures ? "%d mismatches\n" : "all kernels agree\n", failures);
  return failures != 0;
}
