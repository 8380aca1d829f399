// Reading rows of the index, of any alignment, in bf16 or fp32.
#pragma once

#include "platform.h"
#include "rerank.h"

namespace m3el::gpu {

constexpr unsigned kWarp = 0xffffffff;  // all its lanes

// The entity of a column, -1 where it is absent.
__device__ __forceinline__ int64_t candidate(const Candidates& all, int64_t mention, int column) {
  const int64_t id = all.ids[mention * all.columns + column];
  return id >= 0 && id < all.entities ? id : -1;
}

// Whether all rows of `width` values can be read in 16-byte pieces of 8 values (2 pieces in fp32).
inline bool in_pieces(const void* rows, int64_t width) {
  return reinterpret_cast<uintptr_t>(rows) % 16 == 0 && width % 8 == 0;
}

__device__ __forceinline__ float low_bf16(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_bf16(uint32_t pair) { return __uint_as_float(pair & 0xffff0000); }

__device__ __forceinline__ float to_float(uint16_t value) { return low_bf16(value); }
__device__ __forceinline__ float to_float(float value) { return value; }

__device__ __forceinline__ void read_piece(const uint16_t* from, float (&x)[8]) {
  const uint4 v = load_once(from);
  const uint32_t pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) x[2 * i] = low_bf16(pairs[i]), x[2 * i + 1] = high_bf16(pairs[i]);
}

__device__ __forceinline__ void read_piece(const float* from, float (&x)[8]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint4 v = load_once(from + 4 * i);
    x[4 * i] = __uint_as_float(v.x), x[4 * i + 1] = __uint_as_float(v.y);
    x[4 * i + 2] = __uint_as_float(v.z), x[4 * i + 3] = __uint_as_float(v.w);
  }
}

// Values `at` to `at + 7` of a row, 0 behind its end.
template <class T>
__device__ __forceinline__ void read_row(const T* row, int64_t at, int64_t width, bool pieces, float (&x)[8]) {
  if (pieces && at < width) {
    read_piece(row + at, x);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = at + i < width ? to_float(row[at + i]) : 0.0f;
  }
}

__device__ __forceinline__ uint4 pack_piece(const float (&x)[8]) {
  return make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7]));
}

// The sum over lanes whose numbers differ in `bits` (a mask of powers of two), the same in all of them.
template <int kBits>
__device__ __forceinline__ float add_lanes(float x) {
#pragma unroll
  for (int bit = 1; bit < 32; bit *= 2)
    if (kBits & bit) x += __shfl_xor_sync(kWarp, x, bit);
  return x;
}

}  // namespace m3el::gpu
