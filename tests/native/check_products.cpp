// Inner and dual-gated products of all and of chosen pairs.
#include <cmath>
#include <vector>

#include "checks.h"
#include "products.h"

namespace m3el {

namespace {

void test_products(const ProductsKernel& kernel, const char* level, int64_t m, int64_t n, int64_t d) {
  Random random;
  const std::vector<float> a = random.floats(m * (3 * d + 7)), b = random.floats(n * (3 * d + 7));
  const Rows left{a.data(), 3 * d + 7}, right{b.data(), 3 * d + 7};
  std::vector<float> found(m * n, NAN), one(1), dual(m * n, NAN);
  kernel.inner(left, m, right, n, 3 * d + 7, found.data(), n);
  const DualConstants constants{0.1f, 30.0f, 1e-5f, 1e-5f};
  kernel.dual(left, m, right, n, d, constants, dual.data(), n);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double expected = 0;
      for (int64_t k = 0; k < 3 * d + 7; ++k) expected += double{a[i * left.stride + k]} * b[j * right.stride + k];
      const double error = std::abs(found[i * n + j] - expected);
      expect(error < 1e-3, "inner", level, error);
      kernel.inner_pairs(left, &i, right, &j, 1, 3 * d + 7, one.data());
      expect(one[0] == found[i * n + j], "inner_pairs", level, one[0]);
      kernel.dual_pairs(left, &i, right, &j, 1, d, constants, one.data());
      expect(std::isfinite(one[0]) && one[0] == dual[i * n + j], "dual_pairs", level, one[0]);
    }
}

}  // namespace

void check_products(Isa isa) {
  const ProductsKernel& products = isa >= Isa::avx512   ? kProductsAvx512
                                   : isa == Isa::avx2 ? kProductsAvx2
                                                      : kProductsScalar;
  for (const int64_t d : {1, 7, 32}) test_products(products, isa_name(isa), 5, 67, d);
  test_products(products, isa_name(isa), 1, 1, 3);
}

}  // namespace m3el
