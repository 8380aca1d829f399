// Gradients of the global-to-local scores with AVX512-BF16: 16 entities a group, bf16 products, fp32 sums.
#include "g2l_backward_kernel.h"
#include "simd_avx512.h"
#include "simd_avx512bf16.h"

namespace {

using Simd = Avx512<false>;
using Engine = BroadcastEngine<Simd, Avx512Pairs, 5, 5>;

struct Gradient : Avx512Pairs {
  static constexpr int kTokens = 10, kLanes = 8, kVectors = 3;

  static void write(__m512 x, __m512 next, int64_t k, int64_t place, const Words& to) {
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(next, x);
    const auto row = [&](int64_t r) { return reinterpret_cast<__m256i*>(to.by_row + (r * to.n + place) / 2); };
    _mm256_storeu_si256(row(k), _mm512_castsi512_si256(both));
    _mm256_storeu_si256(row(k + 1), _mm512_extracti64x4_epi64(both, 1));
    // value i of x beside value i of next
    alignas(64) static constexpr uint16_t kBeside[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                         8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i pairs = _mm512_permutexvar_epi16(_mm512_load_si512(kBeside), both);
    _mm512_storeu_si512(to.by_column + k / 2 * to.n + place, pairs);
  }
};

}  // namespace

const m3el::G2LBackwardKernel m3el::kG2LBackwardAvx512bf16 = make_backward_kernel<Simd, Engine, Gradient>();
