// Top-k by radix selection: few long rows and large k, where block selection of parts would leave too much to merge.
//
// A pass counts the next 11 bits of the keys that share the bits known of the k-th best one: in shared memory, then in
// the row's histogram. Every block of the next launch finds the digit from it. Once so few keys are left that one block
// can sort them out, further passes exit at once, all keys not below the prefix are collected, and topk_of_keys takes
// the k best of them. The position is part of a key, so ties need nothing of their own; counts do not depend on
// the order of additions, and the order of the candidates is lost in the last step.
//
// Reads of the scores: two for 1 x 10,000,000 normal fp32 and k = 1,000 (40 MB and modelled 11.9 us at 3.35 TB/s the
// first time, in the 50 MB of L2 the second; 2,300 candidates), three for uniform scores, whose first digit says less,
// at most six (equal scores, which the bits of the position have to tell apart). Eight launches, always. The first
// pass takes 23 instructions an element (sm_90 SASS); reading at HBM speed leaves time for 34 in fp32 and for 17 in
// bf16 and fp16, where they are the limit.
#include <algorithm>

#include "topk_buffer.h"
#include "topk_forms.h"

namespace m3el::gpu {

namespace {

constexpr int kThreads = 256, kDigit = 11, kDigits = 1 << kDigit, kPasses = 5;
constexpr int kAlike = 1 << (64 - kPasses * kDigit);  // keys of a row that agree in every digit, at most

// What is known of a row's k-th best key after a pass: of its bits, those of `decided`, which are `prefix`. It is the
// `need`-th of the keys that have these bits; `rest` keys have these or higher ones.
struct State {
  Key prefix, decided;
  unsigned need, rest;
};

// Workspace: per row kPasses histograms and states, the number of candidates, and the candidates.
struct Radix {
  Topk topk;
  Parts parts;
  unsigned capacity;  // candidates that a row has room for: with so many or fewer left, no further pass
  unsigned* digits;   // [rows, kPasses, kDigits]
  unsigned* counts;   // [rows]
  State* states;      // [rows, kPasses]
  Key* candidates;    // [rows, capacity]
};

struct Shared {
  unsigned bins[kDigits];
  unsigned bin, above, inside;
};

__device__ int shift_of(int pass) { return 64 - kDigit * (pass + 1); }

// SASS of topk_radix_clear_kernel: nothing
__global__ void __launch_bounds__(kThreads) topk_radix_clear_kernel(Radix radix) {
  const int64_t stride = int64_t{gridDim.x} * kThreads, first = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  for (int64_t i = first; i < radix.topk.rows * kPasses * kDigits; i += stride) radix.digits[i] = 0;
  for (int64_t i = first; i < radix.topk.rows; i += stride) radix.counts[i] = 0;
}

// The state after `pass`, from that before it and the histogram. Every block of a row computes the same.
__device__ State advance(const Radix& radix, int64_t row, int pass, Shared& shared) {
  State state{0, 0, static_cast<unsigned>(radix.topk.k), ~0u};
  if (pass > 0) state = radix.states[row * kPasses + pass - 1];
  if (state.rest <= radix.capacity) return state;
  const unsigned* digits = radix.digits + (row * kPasses + pass) * kDigits;
  for (int i = threadIdx.x; i < kDigits; i += kThreads) shared.bins[i] = digits[i];
  __syncthreads();
  if (threadIdx.x < 32) {
    const Choice choice = choose_bin<kDigits>(shared.bins, state.need);
    if (threadIdx.x == 0) {
      shared.bin = choice.bin;
      shared.above = choice.above;
      shared.inside = choice.inside;
    }
  }
  __syncthreads();
  const int shift = shift_of(pass);
  state.prefix |= static_cast<Key>(shared.bin) << shift;
  state.decided |= static_cast<Key>(kDigits - 1) << shift;
  state.rest = radix.topk.k - state.need + shared.above + shared.inside;
  state.need -= shared.above;
  return state;
}

// This block's part of a row, behind the old selection.
template <class Format>
struct Part {
  int64_t row;
  int index;
  Scores<Format> scores;
  unsigned old;  // of the old selection, which belongs to the first part

  __device__ explicit Part(const Radix& radix) {
    using Element = typename Scores<Format>::Element;
    const Topk& t = radix.topk;
    row = blockIdx.x / radix.parts.count;
    index = blockIdx.x % radix.parts.count;
    const int64_t begin = index * radix.parts.length;
    scores.data = static_cast<const Element*>(t.scores) + row * t.columns + begin;
    scores.count = static_cast<uint32_t>(min(radix.parts.length, max(t.columns - begin, int64_t{0})));
    scores.position = static_cast<uint32_t>((t.old_values ? t.k : 0) + begin);
    old = t.old_values && index == 0 ? t.k : 0;
  }

  __device__ Key old_key(const Topk& t, unsigned i) const {
    using Element = typename Scores<Format>::Element;
    return key_of(Scores<Format>::value(static_cast<const Element*>(t.old_values)[row * t.k + i]), i);
  }
};

// Counts the digits of a pass of the keys that share the prefix.
// SASS of topk_radix_count_kernel: 16-byte loads
template <class Format, bool kFirst>
__global__ void __launch_bounds__(kThreads, 4) topk_radix_count_kernel(Radix radix, int pass) {
  Shared& shared = *dynamic_shared<Shared>();
  const Part<Format> part(radix);
  State state{0, 0, 0, 0};
  if constexpr (!kFirst) {
    state = advance(radix, part.row, pass - 1, shared);
    if (part.index == 0 && threadIdx.x == 0) radix.states[part.row * kPasses + pass - 1] = state;
    if (state.rest <= radix.capacity) return;
  }
  for (int i = threadIdx.x; i < kDigits; i += kThreads) shared.bins[i] = 0;
  __syncthreads();

  // runs of one digit are counted first: rows of many equal values would queue at one bin
  const int shift = kFirst ? 64 - kDigit : shift_of(pass);
  unsigned digit = 0, run = 0;
  const auto count = [&](Key key) {
    if (!kFirst && (key & state.decided) != state.prefix) return;
    const unsigned own = static_cast<unsigned>(key >> shift) % kDigits;
    if (own != digit && run) {
      atomicAdd(&shared.bins[digit], run);
      run = 0;
    }
    digit = own;
    ++run;
  };
  for (unsigned i = threadIdx.x; i < part.old; i += kThreads) count(part.old_key(radix.topk, i));
  const Walk<Scores<Format>, kThreads> walk(part.scores);
  for (int round = walk.begin(); round < walk.end(); ++round) {
    const auto chunk = walk.chunk(round);
    each<Scores<Format>::kHeld>([&](auto index) {
      constexpr int i = decltype(index)::value;
      if (chunk.valid >> i & 1) count(chunk.key(part.scores, i));
    });
  }
  if (run) atomicAdd(&shared.bins[digit], run);
  __syncthreads();
  unsigned* digits = radix.digits + (part.row * kPasses + pass) * kDigits;
  for (int i = threadIdx.x; i < kDigits; i += kThreads)
    if (shared.bins[i]) atomicAdd(&digits[i], shared.bins[i]);
}

// Writes the keys that are not below the prefix, at most `capacity` a row, in any order.
// SASS of topk_radix_collect_kernel: 16-byte loads
template <class Format>
__global__ void __launch_bounds__(kThreads, 4) topk_radix_collect_kernel(Radix radix) {
  using Held = Buffer<kThreads, kTopkMost>;
  struct Both {
    Held buffer;
    Shared shared;
  };
  Both& both = *dynamic_shared<Both>();
  Held& buffer = both.buffer;
  const Part<Format> part(radix);
  const State state = advance(radix, part.row, kPasses - 1, both.shared);
  Bound bound(state.prefix - (state.prefix != 0));
  buffer.clear();
  __syncthreads();
  Key* candidates = radix.candidates + part.row * radix.capacity;
  const auto flush = [&] {
    const unsigned held = min(buffer.count, static_cast<unsigned>(Held::kCapacity));
    if (threadIdx.x == 0) both.shared.above = atomicAdd(radix.counts + part.row, held);
    __syncthreads();
    for (unsigned i = threadIdx.x; i < held; i += kThreads) candidates[both.shared.above + i] = buffer.keys[i];
    if (threadIdx.x == 0) buffer.count = 0;
    __syncthreads();
  };
  for (unsigned i = threadIdx.x; i < part.old; i += kThreads) {
    const Key key = part.old_key(radix.topk, i);
    if (key > bound.key) buffer.keys[atomicAdd(&buffer.count, 1u)] = key;
  }
  __syncthreads();
  collect(part.scores, buffer, Held::kCapacity - 1, bound, flush);
  flush();
}

// One block sorts the candidates out; more of them would take it longer than one more pass over the row takes all.
// After the last pass fewer than k + kAlike are left.
int64_t capacity_of(const Topk& t) {
  return std::max<int64_t>(t.k + std::max(t.k, kAlike), std::min<int64_t>(t.columns / 64, 8192));
}

Radix radix_of(const Topk& t, const Parts& parts, void* workspace) {
  const int64_t capacity = capacity_of(t);
  Key* candidates = static_cast<Key*>(workspace);
  State* states = reinterpret_cast<State*>(candidates + t.rows * capacity);
  unsigned* digits = reinterpret_cast<unsigned*>(states + t.rows * kPasses);
  unsigned* counts = digits + t.rows * kPasses * kDigits;
  return {t, parts, static_cast<unsigned>(capacity), digits, counts, states, candidates};
}

template <class Format>
void narrow(const Radix& radix, Stream stream) {
  const unsigned blocks = static_cast<unsigned>(radix.topk.rows * radix.parts.count);
  launch("topk_radix_clear_kernel", topk_radix_clear_kernel, dim3(static_cast<unsigned>(radix.topk.rows) * kPasses),
         kThreads, 0, stream, radix);
  launch("topk_radix_count_kernel", topk_radix_count_kernel<Format, true>, dim3(blocks), kThreads, sizeof(Shared),
         stream, radix, 0);
  for (int pass = 1; pass < kPasses; ++pass)
    launch("topk_radix_count_kernel", topk_radix_count_kernel<Format, false>, dim3(blocks), kThreads, sizeof(Shared),
           stream, radix, pass);
  launch("topk_radix_collect_kernel", topk_radix_collect_kernel<Format>, dim3(blocks), kThreads,
         sizeof(Buffer<kThreads, kTopkMost>) + sizeof(Shared), stream, radix);
}

}  // namespace

int64_t topk_radix_workspace(const Topk& t) {
  const int64_t row = sizeof(Key) * capacity_of(t) + kPasses * (sizeof(State) + sizeof(unsigned) * kDigits);
  return t.rows * (row + sizeof(unsigned));
}

void topk_radix(const Topk& t, const Parts& parts, void* workspace, void* stream) {
  const Radix radix = radix_of(t, parts, workspace);
  if (t.type == ScoreType::f32) narrow<F32>(radix, stream);
  if (t.type == ScoreType::bf16) narrow<BF16>(radix, stream);
  if (t.type == ScoreType::f16) narrow<F16>(radix, stream);
  topk_of_keys(t, radix.candidates, radix.capacity, radix.counts, stream);
}

}  // namespace m3el::gpu
