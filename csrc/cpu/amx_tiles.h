// The tile instructions that the AMX kernel uses. With M3EL_EMULATE_AMX they are plain C++, so that the kernel around
// them can be tested on a machine without AMX. Tile numbers are literals: the compiler's intrinsics paste them.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(M3EL_EMULATE_AMX)

namespace {

struct Tile {
  uint8_t row[16][64];
};
inline thread_local Tile emulated_tiles[8];

inline void emulated_load(int tile, const void* from, int64_t stride) {
  for (int r = 0; r < 16; ++r) memcpy(emulated_tiles[tile].row[r], static_cast<const char*>(from) + r * stride, 64);
}
inline void emulated_store(int tile, void* to, int64_t stride) {
  for (int r = 0; r < 16; ++r) memcpy(static_cast<char*>(to) + r * stride, emulated_tiles[tile].row[r], 64);
}
inline float emulated_bf16(const uint8_t* p) {
  const uint8_t bytes[4] = {0, 0, p[0], p[1]};
  float value;
  memcpy(&value, bytes, 4);
  return value;
}
// C[r][c] += sum over k of A[r][2k] * B[k][2c] + A[r][2k+1] * B[k][2c+1]
inline void emulated_dp(int c, int a, int b) {
  for (int r = 0; r < 16; ++r)
    for (int n = 0; n < 16; ++n) {
      float sum;
      memcpy(&sum, emulated_tiles[c].row[r] + 4 * n, 4);
      for (int k = 0; k < 16; ++k)
        for (int half = 0; half < 4; half += 2)
          sum += emulated_bf16(emulated_tiles[a].row[r] + 4 * k + half) *
                 emulated_bf16(emulated_tiles[b].row[k] + 4 * n + half);
      memcpy(emulated_tiles[c].row[r] + 4 * n, &sum, 4);
    }
}

}  // namespace

#define TILE_ZERO(tile) memset(&emulated_tiles[tile], 0, sizeof(Tile))
#define TILE_LOAD(tile, from, stride) emulated_load(tile, from, stride)
#define TILE_STORE(tile, to, stride) emulated_store(tile, to, stride)
#define TILE_DP(c, a, b) emulated_dp(c, a, b)

namespace {
inline void tiles_on() {}
inline void tiles_off() {}
}  // namespace

#else

#include <immintrin.h>

#define TILE_ZERO(tile) _tile_zero(tile)
#define TILE_LOAD(tile, from, stride) _tile_loadd(tile, from, stride)
#define TILE_STORE(tile, to, stride) _tile_stored(tile, to, stride)
#define TILE_DP(c, a, b) _tile_dpbf16ps(c, a, b)

namespace {

// All eight tiles: 16 rows of 64 bytes.
inline void tiles_on() {
  struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes_per_row[16];
    uint8_t rows[16];
  } config = {};
  config.palette = 1;
  for (int i = 0; i < 8; ++i) {
    config.bytes_per_row[i] = 64;
    config.rows[i] = 16;
  }
  _tile_loadconfig(&config);
}
inline void tiles_off() { _tile_release(); }

}  // namespace

#endif
