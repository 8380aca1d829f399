// Contrastive losses with AVX-512.
#include "contrastive_kernel.h"
#include "simd_avx512.h"

const m3el::ContrastiveKernel m3el::kContrastiveAvx512 = make_contrastive<Avx512<true>>();
