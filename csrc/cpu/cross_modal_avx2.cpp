// Cross-modal contexts with AVX2.
#include "cross_modal_kernel.h"
#include "simd_avx2.h"

const m3el::CrossModalKernel m3el::kCrossModalAvx2 = make_cross_modal<Avx2>();
