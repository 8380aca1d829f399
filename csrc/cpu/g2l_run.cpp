#include "g2l_run.h"

#include <algorithm>
#include <vector>

namespace m3el {

namespace {

// Mentions that stay in a core's L2 cache while the groups of a block pass by, and groups packed at a time.
constexpr int64_t kMentionChunk = 16, kGroupBlock = 8;
// Mentions packed at a time: bounds the memory, 22 to 37 KB each at the papers' sizes.
constexpr int64_t kMentionBlock = 256;
constexpr int64_t kMaxLanes = 16;

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
void fill_lanes(const int64_t* rows, int64_t first, int64_t count, int64_t lanes, int64_t* out) {
  for (int64_t i = 0; i < lanes; ++i) {
    const int64_t place = first + std::min(i, count - 1);
    out[i] = rows ? rows[place] : place;
  }
}

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
  const int64_t lanes = kernel.lanes, width = entities.width;
  const int64_t groups = ceil_div(n, lanes), wanted = 4 * parallel.threads;
  const int64_t block = std::clamp<int64_t>(groups / wanted, 1, kGroupBlock);
  const int64_t blocks = ceil_div(groups, block);
  const int64_t group_bytes = kernel.group_bytes(entities.rows, width);
  const int64_t mention_bytes = kernel.mention_bytes(mentions.columns, width);
  for (int64_t first = 0; first < mentions.count; first += kMentionBlock) {
    const int64_t count = std::min(kMentionBlock, mentions.count - first);
    std::vector<int64_t> which(count);
    for (int64_t i = 0; i < count; ++i) which[i] = first + i;
    const Buffer packed = pack_mentions(kernel, bf16, mentions, which, width, parallel);
    // few entities: the mentions are shared out as well
    const int64_t parts = std::min(ceil_div(count, kMentionChunk), ceil_div(wanted, blocks));
    const int64_t part = ceil_div(count, parts);
    parallel.run(blocks * parts, [&](int64_t begin, int64_t end) {
      const Buffer group = allocate(block * group_bytes);
      const Buffer scratch = allocate(kernel.scratch_bytes(entities.rows, mentions.columns, width));
      float scores[kMaxLanes];
      int64_t lane_rows[kMaxLanes];
      kernel.enter();
      for (int64_t task = begin; task < end; ++task) {
        const int64_t g0 = task / parts * block, g1 = std::min(g0 + block, groups);
        const int64_t m0 = task % parts * part, m1 = std::min(m0 + part, count);
        if (m0 >= m1) continue;
        if (task == begin || task % parts == 0)
          for (int64_t g = g0; g < g1; ++g) {
            fill_lanes(rows, g * lanes, std::min(lanes, n - g * lanes), lanes, lane_rows);
            kernel.pack_group(entities, lane_rows, bf16, scratch.get(), group.get() + (g - g0) * group_bytes);
          }
        for (int64_t chunk = m0; chunk < m1; chunk += kMentionChunk)
          for (int64_t g = g0; g < g1; ++g)
            for (int64_t m = chunk; m < std::min(chunk + kMentionChunk, m1); ++m) {
              kernel.score(group.get() + (g - g0) * group_bytes, packed.get() + m * mention_bytes, scratch.get(), scores);
              const int64_t used = std::min(lanes, n - g * lanes);
              std::copy(scores, scores + used, out + (first + m) * n + g * lanes);
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
      float scores[kMaxLanes];
      int64_t lane_rows[kMaxLanes];
      kernel.enter();
      for (int64_t i = begin; i < end; ++i) {
        const Group& own = groups[i];
        fill_lanes(entity, own.first, own.count, lanes, lane_rows);
        kernel.pack_group(entities, lane_rows, bf16, scratch.get(), group.get());
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
