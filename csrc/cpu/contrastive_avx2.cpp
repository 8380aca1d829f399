// Contrastive losses with AVX2.
#include "contrastive_kernel.h"
#include "simd_avx2.h"

const m3el::ContrastiveKernel m3el::kContrastiveAvx2 = make_contrastive<Avx2>();
