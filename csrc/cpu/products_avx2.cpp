// Inner products and DUAL scores with AVX2.
#include "products_kernel.h"
#include "simd_avx2.h"

const m3el::ProductsKernel m3el::kProductsAvx2 = make_products<Avx2>();
