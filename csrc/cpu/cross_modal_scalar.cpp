// Cross-modal contexts with plain C++.
#include "cross_modal_kernel.h"
#include "simd_scalar.h"

const m3el::CrossModalKernel m3el::kCrossModalScalar = make_cross_modal<Plain>();
