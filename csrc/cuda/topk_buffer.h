// A block's buffer of candidates in shared memory: filled by a walk, cut to the k best by radix selection, sorted.
#pragma once

#include "topk_keys.h"

namespace m3el::gpu {

constexpr unsigned kWholeWarp = ~0u;

// The bin that holds the `need`-th key from the top.
struct Choice {
  unsigned bin, above, inside;  // keys in higher bins, and in this one
};

// For a whole warp; bins [kBins] in shared memory hold at least `need` keys.
template <int kBins>
__device__ __forceinline__ Choice choose_bin(const unsigned* bins, unsigned need) {
  const int lane = threadIdx.x % 32;
  unsigned above = 0;
  for (int group = kBins - 32;; group -= 32) {
    const unsigned own = bins[group + lane];
    const unsigned sum = __reduce_add_sync(kWholeWarp, own);
    if (above + sum < need && group > 0) {
      above += sum;
      continue;
    }
    unsigned reached = own;  // keys of this lane's bin and higher ones of the group
    for (int step = 1; step < 32; step *= 2) {
      const unsigned other = __shfl_down_sync(kWholeWarp, reached, step);
      if (lane + step < 32) reached += other;
    }
    const int chosen = 31 - __clz(static_cast<int>(__ballot_sync(kWholeWarp, above + reached >= need)));
    const unsigned inside = __shfl_sync(kWholeWarp, own, chosen);
    return {static_cast<unsigned>(group + chosen), above + __shfl_sync(kWholeWarp, reached, chosen) - inside, inside};
  }
}

template <int kThreads_, int kCapacity_>
struct Buffer {
  static constexpr int kThreads = kThreads_, kCapacity = kCapacity_, kBins = 256;
  Key keys[kCapacity];
  Key lowest;
  unsigned bins[kBins];
  unsigned count, least_order, most_order;  // count: of keys offered, also those that found no room
  unsigned bin, above, inside;

  // A barrier behind it is the caller's.
  __device__ void clear() {
    for (int i = threadIdx.x; i < kBins; i += kThreads) bins[i] = 0;
    if (threadIdx.x) return;
    count = 0;
    lowest = ~Key{0};
    least_order = ~0u;
    most_order = 0;
  }

  // Every thread's minimum goes into `lowest`; a barrier behind it is the caller's.
  __device__ void lower(Key own) {
    for (int step = 16; step; step /= 2) own = min(own, __shfl_xor_sync(kWholeWarp, own, step));
    if (threadIdx.x % 32 == 0) atomicMin(&lowest, own);
  }

  // Keeps the k best of more than k keys, in any order, and returns the lowest of them. Behind a barrier.
  //
  // Radix selection, 8 bits a pass from the first bit in which the values differ: usually two or three passes.
  __device__ Key keep(unsigned k) {
    const unsigned held = min(count, static_cast<unsigned>(kCapacity));
    unsigned least = ~0u, most = 0;
#pragma unroll 1
    for (unsigned i = threadIdx.x; i < held; i += kThreads) {
      least = min(least, order_of_key(keys[i]));
      most = max(most, order_of_key(keys[i]));
    }
    least = __reduce_min_sync(kWholeWarp, least);
    most = __reduce_max_sync(kWholeWarp, most);
    if (threadIdx.x % 32 == 0) {
      atomicMin(&least_order, least);
      atomicMax(&most_order, most);
    }
    const Key any = keys[0];
    __syncthreads();

    const unsigned varied = least_order ^ most_order;
    int shift = (varied ? 63 - __clz(static_cast<int>(varied)) : 31) - 7;
    Key decided = shift < 56 ? ~Key{0} << (shift + 8) : 0, prefix = any & decided;
    unsigned need = k;
    for (;;) {
#pragma unroll 1
      for (unsigned i = threadIdx.x; i < held; i += kThreads)
        if ((keys[i] & decided) == prefix) atomicAdd(&bins[keys[i] >> shift & 255], 1u);
      __syncthreads();
      if (threadIdx.x < 32) {
        const Choice choice = choose_bin<kBins>(bins, need);  // a lane reads the bins that it clears
        for (int i = threadIdx.x; i < kBins; i += 32) bins[i] = 0;
        if (threadIdx.x == 0) {
          bin = choice.bin;
          above = choice.above;
          inside = choice.inside;
          count = 0;
          lowest = ~Key{0};
          least_order = ~0u;
          most_order = 0;
        }
      }
      __syncthreads();
      prefix |= static_cast<Key>(bin) << shift;
      decided |= Key{255} << shift;
      need -= above;
      if (inside == need || shift == 0) break;
      shift = max(shift - 8, 0);
    }

    // in place: what is kept of the keys read so far never needs more room than they
    const unsigned lane = threadIdx.x % 32;
    Key low = ~Key{0};
#pragma unroll 1
    for (unsigned start = 0; start < held; start += kThreads) {
      const Key own = start + threadIdx.x < held ? keys[start + threadIdx.x] : 0;
      const bool kept = own >= prefix;
      if (kept) low = min(low, own);
      const unsigned votes = __ballot_sync(kWholeWarp, kept);
      unsigned place = 0;
      if (lane == 0) place = atomicAdd(&count, static_cast<unsigned>(__popc(votes)));
      place = __shfl_sync(kWholeWarp, place, 0) + __popc(votes & ((1u << lane) - 1));
      __syncthreads();
      if (kept) keys[place] = own;
    }
    lower(low);
    __syncthreads();
    return lowest;
  }

  // Sorts the first n keys, the best first (bitonic). Behind a barrier; ends with one.
  __device__ void sort(int n) {
    int size = 1;
    while (size < n) size *= 2;
    for (int i = n + threadIdx.x; i < size; i += kThreads) keys[i] = 0;
    int previous = size;
    for (int span = 2; span <= size; span *= 2)
      for (int stride = span / 2; stride; previous = stride, stride /= 2) {
        // a warp's 32 pairs of stride up to 32 stay within 64 keys
        if (stride > 32 || previous > 32 || span == 2)
          __syncthreads();
        else
          __syncwarp();
#pragma unroll 1
        for (int i = threadIdx.x; i < size / 2; i += kThreads) {
          const int low = 2 * i - (i & (stride - 1));
          const Key a = keys[low], b = keys[low + stride];
          if ((a < b) != ((low & span) != 0)) {
            keys[low] = b;
            keys[low + stride] = a;
          }
        }
      }
    __syncthreads();
  }
};

// Puts every key of the source above the bound into the buffer. When that holds more than `enough`, full() makes room
// and may raise the bound; it runs between barriers in all threads. Ends behind a barrier.
template <class Source, class Buffer, class Full>
__device__ __forceinline__ void collect(const Source& source, Buffer& buffer, unsigned enough, Bound& bound,
                                        Full full) {
  const Walk<Source, Buffer::kThreads> walk(source);
  for (int round = walk.begin(); round < walk.end(); ++round) {
    // what found no room is read again: registers are for what is under way
    uint32_t pending = ~0u;
    for (;;) {
      const auto chunk = walk.chunk(round);
      bool crowded = false;
      pending = source.any_reaches(chunk.words, bound) ? pending & chunk.valid : 0;
      if (pending) {
        uint32_t left = 0;
        each<Source::kHeld>([&](auto index) {
          constexpr int i = decltype(index)::value, E = Source::kElements;
          if (!(pending >> i & 1) || !source.reaches(chunk.words[i / E], i % E, bound)) return;
          const Key key = chunk.key(source, i);
          if (key <= bound.key) return;
          const unsigned place = atomicAdd(&buffer.count, 1u);
          crowded = place >= enough;
          if (place < Buffer::kCapacity)
            buffer.keys[place] = key;
          else
            left |= 1u << i;
        });
        pending = left;
      }
      if (!__syncthreads_or(crowded)) break;
      full();
    }
  }
}

}  // namespace m3el::gpu
