// Global-to-local scores with AMX: 16 entities a group, bf16 tile products, fp32 sums and softmax.
//
// A product tile holds 16 mention tokens (rows) times the 16 entities' token t (columns), so its rows are the logit
// vectors that the shared code works on. The tile unit runs beside the vector units: products of the tokens after next
// are issued between the softmaxes of this pair of tokens, and out-of-order execution overlaps them.
#include "amx_tiles.h"
#include "g2l_kernel.h"
#include "simd_avx512.h"

namespace {

using Simd = Avx512<false>;

// a: C x 16 rows of `steps` words; b [steps, 16] words; out [C x 16, 16] floats. `steps` is a multiple of 16.
template <int C>
inline void tile_products(const uint32_t* a, int64_t steps, const uint32_t* b, float* out) {
  const int64_t stride = 4 * steps, tile = 16 * steps;
  TILE_ZERO(0);
  if constexpr (C > 1) TILE_ZERO(1);
  if constexpr (C > 2) TILE_ZERO(2);
  if constexpr (C > 3) TILE_ZERO(3);
  for (int64_t s = 0; s < steps; s += 16) {
    TILE_LOAD(6, b + 16 * s, 64);
    TILE_LOAD(4, a + s, stride);
    TILE_DP(0, 4, 6);
    if constexpr (C > 1) {
      TILE_LOAD(5, a + tile + s, stride);
      TILE_DP(1, 5, 6);
    }
    if constexpr (C > 2) {
      TILE_LOAD(4, a + 2 * tile + s, stride);
      TILE_DP(2, 4, 6);
    }
    if constexpr (C > 3) {
      TILE_LOAD(5, a + 3 * tile + s, stride);
      TILE_DP(3, 5, 6);
    }
  }
  TILE_STORE(0, out, 64);
  if constexpr (C > 1) TILE_STORE(1, out + 256, 64);
  if constexpr (C > 2) TILE_STORE(2, out + 512, 64);
  if constexpr (C > 3) TILE_STORE(3, out + 768, 64);
}

// kTokens = 4: the logits of two tokens in work and of the two that come next.
struct Engine {
  static constexpr int kRows = 16, kTokens = 4, kPair = 2, kWidthStep = 32;

  static void products(const uint32_t* a, int64_t padded, int64_t steps, const uint32_t* b, float* out) {
    int64_t r = 0;
    for (; r + 64 <= padded; r += 64) tile_products<4>(a + r * steps, steps, b, out + r * 16);
    switch ((padded - r) / 16) {
      case 3: tile_products<3>(a + r * steps, steps, b, out + r * 16); break;
      case 2: tile_products<2>(a + r * steps, steps, b, out + r * 16); break;
      case 1: tile_products<1>(a + r * steps, steps, b, out + r * 16); break;
    }
  }
};

void score_amx(const void* packed_group, const void* packed_mention, void* scratch, float* out) {
  const auto& group = *static_cast<const Group<Simd, Engine>*>(packed_group);
  const auto& mention = *static_cast<const Mention<Simd, Engine>*>(packed_mention);
  const int64_t kept = mention.kept, padded = Mention<Simd, Engine>::padded(kept);
  const int64_t steps = Group<Simd, Engine>::steps(group.width), rows = group.rows, block = padded * Simd::W;
  float* w = static_cast<float*>(scratch);
  float* gated = w + block;
  float* logits = gated + block;
  memset(w, 0, 4 * block);
  const auto issue = [&](int64_t t) {
    if (t < rows) Engine::products(mention.key(), padded, steps, group.token(t), logits + t % 4 * block);
  };
  const auto scale = [&](int64_t t) {
    const auto sum = softmax<Simd>(logits + t % 4 * block, kept);
    return Simd::div(Simd::load(group.share() + t * Simd::W), sum);
  };
  issue(0);
  issue(1);
  int64_t t = 0;
  for (; t + 2 <= rows; t += 2) {
    issue(t + 2);
    const auto first = scale(t);
    issue(t + 3);
    const auto second = scale(t + 1);
    const float* a = logits + t % 4 * block;
    const float* b = logits + (t + 1) % 4 * block;
    for (int64_t k = 0; k < kept; ++k) {
      const auto sum = Simd::fma(Simd::load(a + k * Simd::W), first, Simd::load(w + k * Simd::W));
      Simd::store(w + k * Simd::W, Simd::fma(Simd::load(b + k * Simd::W), second, sum));
    }
  }
  Engine::products(mention.centred(), padded, steps, group.token(rows), gated);
  if (t < rows) {
    const auto last = scale(t);
    const float* a = logits + t % 4 * block;
    for (int64_t k = 0; k < kept; ++k)
      Simd::store(w + k * Simd::W, Simd::fma(Simd::load(a + k * Simd::W), last, Simd::load(w + k * Simd::W)));
  }
  finish<Simd, Engine>(group, mention, w, gated, out);
}

}  // namespace

const m3el::G2LKernel m3el::kG2LAmx = make_kernel<Simd, Engine>(score_amx, tiles_on, tiles_off);
