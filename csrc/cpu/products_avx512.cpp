// Inner products and DUAL scores with AVX-512.
#include "products_kernel.h"
#include "simd_avx512.h"

const m3el::ProductsKernel m3el::kProductsAvx512 = make_products<Avx512<true>>();
