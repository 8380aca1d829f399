// Global-to-local scores with AVX512-BF16: 16 entities a group, bf16 products, fp32 sums.
#include "g2l_kernel.h"
#include "simd_avx512.h"

namespace {

using Simd = Avx512<false>;

struct Pairs {
  using V = __m512bh;
  static constexpr int kPair = 2;
  static V load(const uint32_t* p) { return (__m512bh)_mm512_loadu_si512(p); }
  static V broadcast(const uint32_t* p) { return (__m512bh)_mm512_set1_epi32(static_cast<int>(*p)); }
  static __m512 dot(V a, V b, __m512 sum) { return _mm512_dpbf16_ps(sum, a, b); }
};

using Engine = BroadcastEngine<Simd, Pairs, 5, 5>;

}  // namespace

const m3el::G2LKernel m3el::kG2LAvx512bf16 = make_kernel<Simd, Engine>(score<Simd, Engine>);
