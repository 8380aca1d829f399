// Keys of a selection, and how a block walks over the scores or keys of a part of a row.
//
// A key is 64 bits: an order-preserving number of the value, then the inverted position. Larger is better, no two of a
// row are equal, ties go to the lower position, and no key is 0. So what is selected depends on no order of execution.
#pragma once

#include <utility>

#include "platform.h"
#include "topk.h"

namespace m3el::gpu {

using Key = unsigned long long;

// Integers in the order of the values: NaN lowest, both zeros equal.
__device__ __forceinline__ uint32_t order_of(float value) {
  if (value != value) return 0;
  const int bits = __float_as_int(value + 0.0f);  // -0.0 becomes 0.0
  return static_cast<uint32_t>(bits ^ (bits >> 31 | INT32_MIN));
}

// The lowest value whose order is at least `order`, which is not above that of infinity.
__device__ __forceinline__ float value_of(uint32_t order) {
  constexpr uint32_t kMinusInfinity = 0x007fffff;
  order = max(order, kMinusInfinity);
  return __uint_as_float(order >> 31 ? order ^ 0x80000000u : ~order);
}

__device__ __forceinline__ Key key_of(float value, uint32_t position) {
  return static_cast<Key>(order_of(value)) << 32 | static_cast<uint32_t>(~position);
}

__device__ __forceinline__ uint32_t order_of_key(Key key) { return static_cast<uint32_t>(key >> 32); }
__device__ __forceinline__ uint32_t position_of_key(Key key) { return ~static_cast<uint32_t>(key); }

// What competes: keys above `key`. Most others are refused by their value alone: no number below `least` has such a
// key.
struct Bound {
  Key key;
  float least;

  __device__ explicit Bound(Key key) : key(key), least(value_of(order_of_key(key))) {}
};

__device__ __forceinline__ uint32_t word(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

template <int kIndex>
struct Index {
  static constexpr int value = kIndex;
};

template <class Body, int... i>
__device__ __forceinline__ void each(Body body, std::integer_sequence<int, i...>) {
  (body(Index<i>{}), ...);
}

// body(Index<0>), body(Index<1>), ...: unrolled before the compiler decides what stays in registers.
template <int kCount, class Body>
__device__ __forceinline__ void each(Body body) {
  each(body, std::make_integer_sequence<int, kCount>{});
}

// The formats of scores: elements of a 16-byte vector as floats.
struct F32 {
  using Bits = uint32_t;
  static __device__ __forceinline__ float value(const uint4& v, int e) { return __uint_as_float(word(v, e)); }
};
struct BF16 {
  using Bits = uint16_t;
  static __device__ __forceinline__ float value(const uint4& v, int e) {
    const uint32_t pair = word(v, e / 2);
    return __uint_as_float(e % 2 ? pair & 0xffff0000u : pair << 16);
  }
};
struct F16 {
  using Bits = uint16_t;
  static __device__ __forceinline__ float value(const uint4& v, int e) {
    return half_to_float(static_cast<uint16_t>(word(v, e / 2) >> (e % 2 * 16)));
  }
};

// A source is what a block walks over: `count` elements, kElements to 16 bytes; a thread has kVectors loads of 16 bytes
// in flight. This one is a part of a row of scores; `position` is that of its first element.
template <class Format>
struct Scores {
  using Element = typename Format::Bits;
  static constexpr int kElements = 16 / sizeof(Element), kVectors = 16 / kElements;
  static constexpr int kHeld = kVectors * kElements;
  using Form = Format;
  static constexpr bool kKeys = false;
  const Element* data;
  uint32_t count, position;

  static __device__ uint4 absent() { return make_uint4(~0u, ~0u, ~0u, ~0u); }  // NaN
  static __device__ uint4 alone(Element bits) {
    return make_uint4(sizeof bits == 4 ? bits : bits | 0xffff0000u, ~0u, ~0u, ~0u);
  }
  static __device__ float value(Element bits) { return Format::value(alone(bits), 0); }

  __device__ __forceinline__ Key key(const uint4& v, int e, uint32_t place) const {
    return key_of(Format::value(v, e), position + place);
  }

  __device__ __forceinline__ bool reaches(const uint4& v, int e, const Bound& bound) const {
    return !(Format::value(v, e) < bound.least);
  }

  // Whether any can compete: a number that does, or nothing but NaN. fmaxf passes over NaN.
  __device__ __forceinline__ bool any_reaches(const uint4 (&words)[kVectors], const Bound& bound) const {
    float most = Format::value(words[0], 0);
    each<kHeld>([&](auto index) {
      constexpr int i = decltype(index)::value;
      most = fmaxf(most, Format::value(words[i / kElements], i % kElements));
    });
    return !(most < bound.least);
  }
};

// Keys that an earlier launch kept; 0 = none.
struct Keys {
  using Element = Key;
  static constexpr int kElements = 2, kVectors = 4, kHeld = kVectors * kElements;
  static constexpr bool kKeys = true;
  const Key* data;
  uint32_t count, position;

  static __device__ uint4 absent() { return make_uint4(0, 0, 0, 0); }
  static __device__ uint4 alone(Key key) {
    return make_uint4(static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32), 0, 0);
  }

  __device__ __forceinline__ Key key(const uint4& v, int e, uint32_t) const {
    return static_cast<Key>(word(v, 2 * e + 1)) << 32 | word(v, 2 * e);
  }

  __device__ __forceinline__ bool reaches(const uint4& v, int e, const Bound& bound) const {
    return key(v, e, 0) > bound.key;
  }

  __device__ __forceinline__ bool any_reaches(const uint4 (&words)[kVectors], const Bound& bound) const {
    Key most = 0;
    each<kHeld>([&](auto index) {
      constexpr int i = decltype(index)::value;
      most = max(most, key(words[i / kElements], i % kElements, 0));
    });
    return most > bound.key;
  }
};

// What a thread holds of a round of a walk: element e of vector v is there if bit v kElements + e of `valid` is set.
template <class Source, int kThreads>
struct Chunk {
  uint4 words[Source::kVectors];
  uint32_t valid, first;

  __device__ __forceinline__ Key key(const Source& source, int i) const {
    constexpr int E = Source::kElements;
    return source.key(words[i / E], i % E, first + i / E * kThreads * E + i % E);
  }
};

// The rounds of a block over a source, in the order of positions: what lies before the first 16-byte boundary, whole
// vectors, the rest.
template <class Source, int kThreads>
class Walk {
 public:
  __device__ __forceinline__ explicit Walk(const Source& source) : data_(source.data), count_(source.count) {
    constexpr uint32_t kBytes = sizeof(typename Source::Element);
    head_ = min(count_, static_cast<uint32_t>(-reinterpret_cast<uintptr_t>(data_) & 15) / kBytes);
    vectors_ = (count_ - head_) / E;
    rounds_ = static_cast<int>((vectors_ + kRound - 1) / kRound);
  }

  __device__ __forceinline__ int begin() const { return head_ ? -1 : 0; }
  __device__ __forceinline__ int end() const { return rounds_ + (head_ + vectors_ * E < count_); }

  __device__ __forceinline__ Chunk<Source, kThreads> chunk(int round) const {
    Chunk<Source, kThreads> chunk;
    if (round >= 0 && round < rounds_) {
      const uint32_t vector = static_cast<uint32_t>(round) * kRound + threadIdx.x;
      const uint4* whole = reinterpret_cast<const uint4*>(data_ + head_);
      chunk.first = head_ + vector * E;
      chunk.valid = 0;
#pragma unroll
      for (int v = 0; v < Source::kVectors; ++v) {
        const uint32_t own = vector + v * kThreads;
        chunk.words[v] = load_once(whole + min(own, vectors_ - 1));
        if (own < vectors_) chunk.valid |= ((1u << E) - 1) << (v * E);
      }
    } else {
      const uint32_t start = round < 0 ? 0 : head_ + vectors_ * E, stop = round < 0 ? head_ : count_;
      chunk.first = start + threadIdx.x;
      chunk.valid = chunk.first < stop;
      chunk.words[0] = chunk.valid ? Source::alone(data_[chunk.first]) : Source::absent();
#pragma unroll
      for (int v = 1; v < Source::kVectors; ++v) chunk.words[v] = Source::absent();
    }
    return chunk;
  }

 private:
  static constexpr uint32_t E = Source::kElements, kRound = kThreads * Source::kVectors;
  const typename Source::Element* data_;
  uint32_t count_, head_, vectors_;
  int rounds_;
};

}  // namespace m3el::gpu
