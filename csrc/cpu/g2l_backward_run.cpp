#include "g2l_backward_run.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace m3el {

namespace {

constexpr double kLog2e = 1.4426950408889634;
constexpr int64_t kMaxLanes = 16;

// Groups and mentions are dealt into as many parts each, at most this many. In phase r group part i meets mention part
// i + r: no two tasks of a phase share a part, so that they add to the gradients directly, in an order that no number
// of threads changes.
constexpr int64_t kMaxParts = 64;

int64_t round_up(int64_t n, int64_t step) { return ceil_div(n, step) * step; }

float read(const void* values, Format format, int64_t i) {
  if (format == Format::f32) return static_cast<const float*>(values)[i];
  const uint32_t bits = uint32_t{static_cast<const uint16_t*>(values)[i]} << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

struct Block {
  const G2LBackwardKernel& kernel;
  const G2LEntities& entities;
  const G2LMentions& mentions;
  int64_t n, groups, stride, group_bytes, mention_bytes, scratch_bytes;
  int64_t group_floats, mention_floats;  // of a group's gradient, and of a mention's key or value
  Buffer group, mention, group_gradient, mention_gradient;

  Block(const G2LBackwardKernel& k, const G2LEntities& e, int64_t count, const G2LMentions& m)
      : kernel(k), entities(e), mentions(m), n(count), groups(ceil_div(n, k.lanes)), stride(round_up(e.width, k.lanes)),
        group_bytes(k.group_bytes(e.rows, e.width)), mention_bytes(k.mention_bytes(m.columns, e.width)),
        scratch_bytes(k.scratch_bytes(e.rows, m.columns, e.width)), group_floats((e.rows + 1) * k.lanes * stride),
        mention_floats(round_up(m.columns, k.row_block) * stride), group(allocate(groups * group_bytes)),
        mention(allocate(m.count * mention_bytes)), group_gradient(allocate(4 * groups * group_floats)),
        mention_gradient(allocate(8 * m.count * mention_floats)) {}

  float* of_group(int64_t g) const { return reinterpret_cast<float*>(group_gradient.get()) + g * group_floats; }
  float* of_key(int64_t m) const { return reinterpret_cast<float*>(mention_gradient.get()) + 2 * m * mention_floats; }
  float* of_value(int64_t m) const { return of_key(m) + mention_floats; }
  const uint8_t* mask(int64_t m) const { return mentions.mask ? mentions.mask + m * mentions.columns : nullptr; }
};

void pack(const Block& b, bool bf16, const Parallel& parallel) {
  parallel.run(b.groups + b.mentions.count, [&](int64_t begin, int64_t end) {
    const Buffer scratch = allocate(b.scratch_bytes);
    const int64_t size = b.mentions.columns * b.entities.width;
    for (int64_t i = begin; i < end; ++i) {
      if (i < b.groups) {
        int64_t rows[kMaxLanes];
        for (int64_t l = 0; l < b.kernel.lanes; ++l) rows[l] = std::min(i * b.kernel.lanes + l, b.n - 1);
        b.kernel.pack_group(b.entities, rows, bf16, scratch.get(), b.group.get() + i * b.group_bytes);
        std::memset(b.of_group(i), 0, 4 * b.group_floats);
      } else {
        const int64_t m = i - b.groups;
        const G2LMention own{b.mentions.key + m * size, b.mentions.value + m * size, b.mask(m), b.mentions.columns};
        b.kernel.pack_mention(own, b.entities.width, bf16, scratch.get(), b.mention.get() + m * b.mention_bytes);
        std::memset(b.of_key(m), 0, 8 * b.mention_floats);
      }
    }
  });
}

void add(const Block& b, const float* upstream, const Parallel& parallel) {
  const int64_t lanes = b.kernel.lanes, parts = std::min({b.groups, b.mentions.count, kMaxParts});
  const auto start = [&](int64_t part, int64_t count) { return part * count / parts; };
  for (int64_t phase = 0; phase < parts; ++phase)
    parallel.run(parts, [&](int64_t begin, int64_t end) {
      const Buffer scratch = allocate(b.scratch_bytes);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t other = (i + phase) % parts;
        for (int64_t g = start(i, b.groups); g < start(i + 1, b.groups); ++g)
          for (int64_t m = start(other, b.mentions.count); m < start(other + 1, b.mentions.count); ++m) {
            float own[kMaxLanes] = {};  // zero for lanes that only fill up
            std::copy_n(upstream + m * b.n + g * lanes, std::min(lanes, b.n - g * lanes), own);
            b.kernel.add(b.group.get() + g * b.group_bytes, b.mention.get() + m * b.mention_bytes, own, scratch.get(),
                         b.of_group(g), b.of_key(m), b.of_value(m));
          }
      }
    });
}

void unpack_query(const Block& b, const G2LGradients& out, const Parallel& parallel) {
  const int64_t lanes = b.kernel.lanes, rows = b.entities.rows, width = b.entities.width;
  parallel.run(b.n, [&](int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e)
      for (int64_t t = 0; t < rows; ++t)
        std::copy_n(b.of_group(e / lanes) + (t * lanes + e % lanes) * b.stride, width,
                    out.query + (e * rows + t) * width);
  });
}

void unpack_mentions(const Block& b, const G2LGradients& out, const Parallel& parallel) {
  const int64_t columns = b.mentions.columns, width = b.entities.width;
  const float fold = static_cast<float>(kLog2e / std::sqrt(static_cast<double>(width)));
  parallel.run(b.mentions.count, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      int64_t place = 0;
      for (int64_t k = 0; k < columns; ++k) {
        float *key = out.key + (m * columns + k) * width, *value = out.value + (m * columns + k) * width;
        if (b.mask(m) && !b.mask(m)[k]) {
          std::fill_n(key, width, 0.0f);
          std::fill_n(value, width, 0.0f);
          continue;
        }
        const float *from_key = b.of_key(m) + place * b.stride, *from_value = b.of_value(m) + place * b.stride;
        double sum = 0;
        for (int64_t i = 0; i < width; ++i) sum += from_value[i];
        const float mean = static_cast<float>(sum / static_cast<double>(width));
        for (int64_t i = 0; i < width; ++i) {
          key[i] = fold * from_key[i];
          value[i] = from_value[i] - mean;
        }
        ++place;
      }
    }
  });
}

// From the gradients of norm weight * gate and of norm bias . gate.
void unpack_gate(const Block& b, const float* upstream, const G2LGradients& out) {
  const int64_t lanes = b.kernel.lanes, width = b.entities.width;
  std::vector<double> weight(width), bias(width), total(b.n);
  for (int64_t m = 0; m < b.mentions.count; ++m)
    for (int64_t e = 0; e < b.n; ++e) total[e] += upstream[m * b.n + e];
  for (int64_t e = 0; e < b.n; ++e) {
    const float* product = b.of_group(e / lanes) + (b.entities.rows * lanes + e % lanes) * b.stride;
    const float of_bias = static_cast<float>(total[e]);
    for (int64_t i = 0; i < width; ++i) {
      const float gate = read(b.entities.gate, b.entities.gate_format, e * width + i);
      out.gate[e * width + i] = b.entities.norm_weight[i] * product[i] + b.entities.norm_bias[i] * of_bias;
      weight[i] += gate * product[i];
      bias[i] += gate * of_bias;
    }
  }
  std::copy(weight.begin(), weight.end(), out.norm_weight);
  std::copy(bias.begin(), bias.end(), out.norm_bias);
}

}  // namespace

const G2LBackwardKernel& g2l_backward_kernel(Isa isa, bool bf16) {
#if defined(__x86_64__)
  // an AMX machine's vector units have bf16 products as well
  if (isa >= Isa::avx512bf16 && bf16 && has_isa(Isa::avx512bf16)) return kG2LBackwardAvx512bf16;
  if (isa >= Isa::avx512) return kG2LBackwardAvx512;
  if (isa == Isa::avx2) return kG2LBackwardAvx2;
#endif
  return kG2LBackwardScalar;
}

void g2l_backward(const G2LBackwardKernel& kernel, bool bf16, const G2LEntities& entities, int64_t n,
                  const G2LMentions& mentions, const float* upstream, const Parallel& parallel,
                  const G2LGradients& out) {
  const Block block(kernel, entities, n, mentions);
  pack(block, bf16, parallel);
  add(block, upstream, parallel);
  unpack_query(block, out, parallel);
  unpack_mentions(block, out, parallel);
  unpack_gate(block, upstream, out);
}

}  // namespace m3el
