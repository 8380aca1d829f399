// Global-to-local scores with AVX2: 8 entities a group, fp32 products.
#include "g2l_kernel.h"
#include "simd_avx2.h"

namespace {

using Simd = Avx2;

struct Float {
  using V = __m256;
  static constexpr int kPair = 1;
  static V load(const uint32_t* p) { return _mm256_loadu_ps(reinterpret_cast<const float*>(p)); }
  static V broadcast(const uint32_t* p) { return _mm256_broadcast_ss(reinterpret_cast<const float*>(p)); }
  static __m256 dot(V a, V b, __m256 sum) { return _mm256_fmadd_ps(a, b, sum); }
};

// 12 sums, 3 tokens and 1 broadcast word fill the 16 registers
using Engine = BroadcastEngine<Simd, Float, 4, 3>;

}  // namespace

const m3el::G2LKernel m3el::kG2LAvx2 = make_kernel<Simd, Engine>(score<Simd, Engine>);
