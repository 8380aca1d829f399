// Inner products and DUAL scores with plain C++.
#include "products_kernel.h"
#include "simd_scalar.h"

const m3el::ProductsKernel m3el::kProductsScalar = make_products<Plain>();
