// Global-to-local scores with AVX512-BF16: 16 entities a group, bf16 products, fp32 sums.
#include "g2l_kernel.h"
#include "simd_avx512.h"
#include "simd_avx512bf16.h"

namespace {
using Simd = Avx512<false>;
using Engine = BroadcastEngine<Simd, Avx512Pairs, 5, 5>;
}  // namespace

const m3el::G2LKernel m3el::kG2LAvx512bf16 = make_kernel<Simd, Engine>(score<Simd, Engine>);
