// Gradients of the global-to-local scores with AVX2: 8 entities a group, fp32 products.
#include "g2l_backward_kernel.h"
#include "simd_avx2.h"

namespace {
using Simd = Avx2;
using Engine = BroadcastEngine<Simd, Single<Simd>, 4, 3>;
using Gradient = SingleGradient<Simd, 8, 4>;
}  // namespace

const m3el::G2LBackwardKernel m3el::kG2LBackwardAvx2 = make_backward_kernel<Simd, Engine, Gradient>();
