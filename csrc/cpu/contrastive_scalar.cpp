// Contrastive losses with plain C++.
#include "contrastive_kernel.h"
#include "simd_scalar.h"

const m3el::ContrastiveKernel m3el::kContrastiveScalar = make_contrastive<Plain>();
