// Cross-modal contexts with AVX-512.
#include "cross_modal_kernel.h"
#include "simd_avx512.h"

const m3el::CrossModalKernel m3el::kCrossModalAvx512 = make_cross_modal<Avx512<true>>();
