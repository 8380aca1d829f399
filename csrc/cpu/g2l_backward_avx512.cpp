// Gradients of the global-to-local scores with AVX-512: 16 entities a group, fp32 products.
#include "g2l_backward_kernel.h"
#include "simd_avx512.h"

namespace {
using Simd = Avx512<true>;
using Engine = BroadcastEngine<Simd, Avx512Float, 5, 5>;
using Gradient = SingleGradient<Simd, 5, 8>;
}  // namespace

const m3el::G2LBackwardKernel m3el::kG2LBackwardAvx512 = make_backward_kernel<Simd, Engine, Gradient>();
