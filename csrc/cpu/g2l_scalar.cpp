// Global-to-local scores in plain C++, four entities a group: for any processor, and as the other levels' yardstick.
#include "g2l_kernel.h"
#include "simd_scalar.h"

namespace {

using Simd = Plain;

struct Float {
  using V = Four;
  static constexpr int kPair = 1;
  static V load(const uint32_t* p) {
    Four x;
    memcpy(x.v, p, sizeof x.v);
    return x;
  }
  static V broadcast(const uint32_t* p) {
    float x;
    memcpy(&x, p, 4);
    return Simd::set1(x);
  }
  static Four dot(V a, V b, Four sum) { return Simd::fma(a, b, sum); }
};

using Engine = BroadcastEngine<Simd, Float, 4, 2>;

}  // namespace

const m3el::G2LKernel m3el::kG2LScalar = make_kernel<Simd, Engine>(score<Simd, Engine>);
