// Top-k by block selection: a block streams a row, or a part of one, and keeps what may beat the k-th best so far.
//
// Candidates above a bound go to a buffer in shared memory. When it holds more than `enough`, radix selection cuts it
// to the k best, and the lowest of these is the new bound. Of 110,000 normal scores and k = 10, 2,300 get there (2,048
// before there is a bound) and are cut three times, of 131,072 and k = 100 it is 3,100 and four times (simulated).
// Ascending scores all pass: three cuts for every 4,096 of them, modelled as 5 to 6 times the time. A row that is split
// gives the k best of each part, unsorted; these are merged by the same kernel, which then reads keys.
//
// The limit is one read of the scores, modelled at 3.35 TB/s:
//   4,096 x 110,000 fp32, k = 10: 1,802 MB, 538 us; a block a row
//   512 x 131,072 fp32, k = 100: 268 MB, 80 us; a block a row, all 512 at once (four to a multiprocessor)
//   1 x 10,000,000 fp32, k = 100: 40 MB, 11.9 us; 264 parts, whose 26,400 keys (0.2 MB, in L2) two more launches merge
// That is 14.9 bytes a clock and multiprocessor at 1.7 GHz, so 137 instructions of a thread for every 16 bytes. Where
// nothing passes, the loop has 24 of them (sm_90, fp32: 93 in the SASS for four loads, 15 of them find the maximum), in
// bf16 and fp16 49 (97 for two loads of 8 scores); a warp in which something passes adds about 5 an element and 30 a
// candidate. Four blocks of 256 threads hold 64 KB (16-bit: 32 KB) of loads under way on each multiprocessor; 18 KB
// cover a latency of 1,200 clocks at that rate.
#include <algorithm>
#include <cmath>

#include "topk_buffer.h"
#include "topk_forms.h"

namespace m3el::gpu {

namespace {

// A task = a part of a row. The source of its elements, and where the results go: `kept` [tasks, k] gets the keys of a
// part, unsorted, 0 where there are fewer; null: values and ids of whole rows.
template <class Source>
struct Select {
  Topk topk;
  Parts parts;
  const typename Source::Element* data;  // [rows, columns]
  const unsigned* counts;                // [rows] elements that are there, or null: all
  Key* kept;
};

// Values move as bits.
template <class Bits>
__device__ void write_value(const Topk& t, int64_t row, int i, uint32_t position, uint32_t old) {
  const Bits* from = position < old ? static_cast<const Bits*>(t.old_values) + row * t.k + position
                                    : static_cast<const Bits*>(t.scores) + row * t.columns + (position - old);
  static_cast<Bits*>(t.values)[row * t.k + i] = *from;
}

template <class Buffer>
__device__ void write_row(const Topk& t, int64_t row, const Buffer& buffer) {
  const uint32_t old = t.old_values ? t.k : 0;
  for (int i = threadIdx.x; i < t.k; i += Buffer::kThreads) {
    const uint32_t position = position_of_key(buffer.keys[i]);
    if (t.type == ScoreType::f32)
      write_value<uint32_t>(t, row, i, position, old);
    else
      write_value<uint16_t>(t, row, i, position, old);
    t.ids[row * t.k + i] = position < old ? t.old_ids[row * t.k + position] : t.first + (position - old);
  }
}

// The old selection goes into the buffer of a row's first part and bounds all of them.
template <class Format, class Buffer>
__device__ Bound begin_with_old(const Topk& t, int64_t row, bool first_part, Buffer& buffer) {
  using Bits = typename Format::Bits;
  const Bits* values = static_cast<const Bits*>(t.old_values) + row * t.k;
  Key low = ~Key{0};
  for (int i = threadIdx.x; i < t.k; i += Buffer::kThreads) {
    const Key key = key_of(Scores<Format>::value(values[i]), i);
    if (first_part) buffer.keys[i] = key;
    low = min(low, key);
  }
  buffer.lower(low);
  if (first_part && threadIdx.x == 0) buffer.count = t.k;
  __syncthreads();
  return Bound(buffer.lowest);
}

// SASS of topk_select_kernel: 16-byte loads
template <class Source, int kThreads, int kCapacity>
__global__ void __launch_bounds__(kThreads, 1024 / kThreads) topk_select_kernel(Select<Source> select) {
  using Shared = Buffer<kThreads, kCapacity>;
  Shared& buffer = *dynamic_shared<Shared>();
  const Topk& t = select.topk;
  const Parts& parts = select.parts;
  // more than enough often cut costs less than the candidates that an old bound lets pass
  const unsigned k = t.k, enough = min(2 * k + 256, kCapacity - 1);
  for (int64_t task = blockIdx.x; task < t.rows * parts.count; task += gridDim.x) {
    const int64_t row = task / parts.count, begin = task % parts.count * parts.length;
    const int64_t end = select.counts ? select.counts[row] : parts.columns;
    buffer.clear();
    __syncthreads();
    Bound bound(0);
    uint32_t old = 0;
    if constexpr (!Source::kKeys) {
      if (t.old_values) {
        old = k;
        bound = begin_with_old<typename Source::Form>(t, row, begin == 0, buffer);
      }
    }
    const Source source{select.data + row * parts.columns + begin,
                        static_cast<uint32_t>(min(parts.length, max(end - begin, int64_t{0}))),
                        static_cast<uint32_t>(old + begin)};
    collect(source, buffer, enough, bound, [&] { bound = Bound(buffer.keep(k)); });
    if (buffer.count > k) buffer.keep(k);  // no thread changes the count before keep's first barrier
    const unsigned held = buffer.count;
    if (select.kept) {
      for (unsigned i = threadIdx.x; i < k; i += kThreads) select.kept[task * k + i] = i < held ? buffer.keys[i] : 0;
    } else {
      buffer.sort(static_cast<int>(k));
      write_row(t, row, buffer);
    }
    __syncthreads();  // the next task clears the buffer
  }
}

template <int kThreads, int kCapacity, class Source>
void select_with(const Select<Source>& select, Stream stream) {
  constexpr int64_t kGrid = 32;  // blocks for each multiprocessor; with more tasks a block does several
  const int64_t tasks = select.topk.rows * select.parts.count, blocks = std::min(tasks, kGrid * multiprocessors());
  launch("topk_select_kernel", topk_select_kernel<Source, kThreads, kCapacity>, dim3(static_cast<unsigned>(blocks)),
         kThreads, sizeof(Buffer<kThreads, kCapacity>), stream, select);
}

template <class Source>
void select(const Select<Source>& select, Stream stream) {
  if (select.topk.k <= kSmallMost)
    select_with<256, 2048>(select, stream);
  else
    select_with<512, 4096>(select, stream);
}

template <class Format>
void select_scores(const Topk& t, const Parts& parts, Key* kept, Stream stream) {
  using Source = Scores<Format>;
  select<Source>({t, parts, static_cast<const typename Source::Element*>(t.scores), nullptr, kept}, stream);
}

// Parts are merged at once, or many of them in two steps of about as many keys a block.
int64_t groups_of(const Parts& parts) {
  return parts.count <= 4 ? 1 : static_cast<int64_t>(std::ceil(std::sqrt(parts.count)));
}

}  // namespace

void topk_of_keys(const Topk& t, const Key* keys, int64_t columns, const unsigned* counts, void* stream) {
  select<Keys>({t, {1, columns, columns}, keys, counts, nullptr}, stream);
}

int64_t topk_block_workspace(const Topk& t, const Parts& parts) {
  return parts.count == 1 ? 0 : sizeof(Key) * t.rows * t.k * (parts.count + groups_of(parts));
}

void topk_block(const Topk& t, const Parts& parts, void* workspace, void* stream) {
  Key* kept = parts.count == 1 ? nullptr : static_cast<Key*>(workspace);
  if (t.type == ScoreType::f32) select_scores<F32>(t, parts, kept, stream);
  if (t.type == ScoreType::bf16) select_scores<BF16>(t, parts, kept, stream);
  if (t.type == ScoreType::f16) select_scores<F16>(t, parts, kept, stream);
  if (parts.count == 1) return;
  int64_t lists = parts.count;
  if (const int64_t groups = groups_of(parts); groups > 1) {
    const int64_t together = (lists + groups - 1) / groups;
    Key* merged = kept + t.rows * t.k * lists;
    select<Keys>({t, {static_cast<int>(groups), t.k * lists, t.k * together}, kept, nullptr, merged}, stream);
    kept = merged;
    lists = groups;
  }
  topk_of_keys(t, kept, t.k * lists, nullptr, stream);
}

}  // namespace m3el::gpu
