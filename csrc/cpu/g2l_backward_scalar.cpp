// Gradients of the global-to-local scores in plain C++, four entities a group.
#include "g2l_backward_kernel.h"
#include "simd_scalar.h"

namespace {
using Simd = Plain;
using Engine = BroadcastEngine<Simd, Single<Simd>, 4, 2>;
using Gradient = SingleGradient<Simd, 16, 4>;
}  // namespace

const m3el::G2LBackwardKernel m3el::kG2LBackwardScalar = make_backward_kernel<Simd, Engine, Gradient>();
