#include "g2l_run.h"

#include <algorithm>
#include <vector>

namespace m3el {

namespace {

// Mentions packed at a time: bounds the memory, 22 to 37 KB each at the papers' sizes.
constexpr int64_t kMentionBlock = 256;
// Mentions that are worth packing a group once more where there are fewer groups than threads.
constexpr int64_t kMentionPart = 16;
constexpr int64_t kMostLanes = 16;

Buffer pack_mentions(const G2LKernel& kernel, bool bf16, const G2LMentions& mentions, const std::vector<int64_t>& which,
                     int64_t width, const Parallel& parallel) {
  const int64_t bytes = kernel.mention_bytes(mentions.columns, width);
  Buffer packed = allocate(bytes * static_cast<int64_t>(which.size()));
  parallel.run(static_cast<int64_t>(which.size()), [&](int64_t begin, int64_t end) {
    const Buffer scratch = allocate(kernel.scratch_bytes(1, mentions.columns, width));
    const int64_t size = mentions.columns * width;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t m = which[i];
      const uint8_t* mask = mentions.mask ? mentions.mask + m * mentions.columns : nullptr;
      const G2LMention mention{mentions.key + m * size, mentions.value + m * size, mask, mentions.columns};
      kernel.pack_mention(mention, width, bf16, scratch.get(), packed.get() + i * bytes);
    }
  });
  return packed;
}

// The `count` <= lanes entities from `first` on as lanes; the last one fills up.
struct Lanes {
  int64_t rows[kMostLanes];

  Lanes(const int64_t* rows_of_all, int64_t first, int64_t count, int64_t lanes) {
    for (int64_t i = 0; i < lanes; ++i) {
      const int64_t place = first + std::min(i, count - 1);
      rows[i] = rows_of_all ? rows_of_all[place] : place;
    }
  }
};

}  // namespace

const G2LKernel& g2l_kernel(Isa isa, bool bf16) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::scalar: return kG2LScalar;
    case Isa::avx2: return kG2LAvx2;
    case Isa::avx512: return kG2LAvx512;
    case Isa::avx512bf16: return bf16 ? kG2LAvx512bf16 : kG2LAvx512;
    case Isa::amx: return bf16 ? kG2LAmx : kG2LAvx512;
  }
#endif
  return kG2LScalar;
}

void g2l_scores(const G2LKernel& kernel, bool bf16, const G2LEntities& entities, const int64_t* rows, int64_t n,
                const G2LMentions& mentions, const Parallel& parallel, float* out) {
  const int64_t lanes = kernel.lanes, width = entities.width, groups = ceil_div(n, lanes);
  const int64_t mention_bytes = kernel.mention_bytes(mentions.columns, width);
  const auto lanes_of = [&](int64_t g) { return Lanes(rows, g * lanes, std::min(lanes, n - g * lanes), lanes); };
  for (int64_t first = 0; first < mentions.count; first += kMentionBlock) {
    const int64_t count = std::min(kMentionBlock, mentions.count - first);
    std::vector<int64_t> which(count);
    for (int64_t i = 0; i < count; ++i) which[i] = first + i;
    const Buffer packed = pack_mentions(kernel, bf16, mentions, which, width, parallel);
    // few entities: the mentions are shared out as well
    const int64_t parts = std::min(ceil_div(count, kMentionPart), ceil_div(4 * parallel.threads, groups));
    const int64_t part = ceil_div(count, parts);
    parallel.run(groups * parts, [&](int64_t begin, int64_t end) {
      const Buffer group = allocate(kernel.group_bytes(entities.rows, width));
      const Buffer scratch = allocate(kernel.scratch_bytes(entities.rows, mentions.columns, width));
      float scores[kMostLanes];
      kernel.enter();
      for (int64_t task = begin; task < end; ++task) {
        const int64_t g = task / parts, m0 = task % parts * part, m1 = std::min(m0 + part, count);
        if (task == begin || task % parts == 0)
          kernel.pack_group(entities, lanes_of(g).rows, bf16, scratch.get(), group.get());
        for (int64_t m = m0; m < m1; ++m) {
          kernel.score(group.get(), packed.get() + m * mention_bytes, scratch.get(), scores);
          std::copy(scores, scores + std::min(lanes, n - g * lanes), out + (first + m) * n + g * lanes);
        }
      }
      kernel.leave();
    });
  }
}

void g2l_pairs(const G2LKernel& kernel, bool bf16, const G2LEntities& entities, const G2LMentions& mentions,
               const int64_t* mention, const int64_t* entity, int64_t n, const Parallel& parallel, float* out) {
  const int64_t lanes = kernel.lanes, width = entities.width;
  const int64_t mention_bytes = kernel.mention_bytes(mentions.columns, width);
  struct Group {
    int64_t first, count, mention;  // of pairs; place among the packed mentions
  };
  std::vector<Group> groups;
  std::vector<int64_t> which;
  std::vector<int64_t> place(mentions.count, -1);
  // Only so many packed mentions at a time.
  const auto score = [&] {
    const Buffer packed = pack_mentions(kernel, bf16, mentions, which, width, parallel);
    parallel.run(static_cast<int64_t>(groups.size()), [&](int64_t begin, int64_t end) {
      const Buffer group = allocate(kernel.group_bytes(entities.rows, width));
      const Buffer scratch = allocate(kernel.scratch_bytes(entities.rows, mentions.columns, width));
      float scores[kMostLanes];
      const auto lanes_of = [&](const Group& one) { return Lanes(entity, one.first, one.count, lanes); };
      kernel.enter();
      for (int64_t i = begin; i < end; ++i) {
        const Group& own = groups[i];
        kernel.pack_group(entities, lanes_of(own).rows, bf16, scratch.get(), group.get());
        kernel.score(group.get(), packed.get() + own.mention * mention_bytes, scratch.get(), scores);
        std::copy(scores, scores + own.count, out + own.first);
      }
      kernel.leave();
    });
    for (const int64_t m : which) place[m] = -1;
    which.clear();
    groups.clear();
  };
  for (int64_t i = 0; i < n;) {
    int64_t end = i + 1;
    while (end < n && end < i + lanes && mention[end] == mention[i]) ++end;
    int64_t& own = place[mention[i]];
    if (own < 0) {
      if (static_cast<int64_t>(which.size()) == kMentionBlock) score();
      own = static_cast<int64_t>(which.size());
      which.push_back(mention[i]);
    }
    groups.push_back({i, end - i, own});
    i = end;
  }
  if (!groups.empty()) score();
}

}  // namespace m3el
