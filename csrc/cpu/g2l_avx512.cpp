// Global-to-local scores with AVX-512: 16 entities a group, fp32 products.
#include "g2l_kernel.h"
#include "simd_avx512.h"

namespace {
using Simd = Avx512<true>;
using Engine = BroadcastEngine<Simd, Avx512Float, 5, 5>;
}  // namespace

const m3el::G2LKernel m3el::kG2LAvx512 = make_kernel<Simd, Engine>(score<Simd, Engine>);
