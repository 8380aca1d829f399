// Scores of each mention's own candidates and their k best: m3el_fast.ops.reference.rerank_topk has the mathematics.
//
// All pointers are to the device. A column of a mention is absent where its id is no row of the index: nothing of its
// is used, and its places in the planes of scores [1 + parts, mentions, columns] may hold anything. Launches go to
// `stream` and throw std::runtime_error if they cannot start; there are mentions and, but for rerank_select, entities.
#pragma once

#include <cstdint>

namespace m3el::gpu {

constexpr int kMostCandidates = 2048, kMostMentionTokens = 128, kMostWidth = 256;

struct Candidates {
  const int64_t* ids;  // [mentions, columns]
  int64_t entities;    // ids are 0 to entities - 1; all others count as absent
  int64_t mentions;
  int columns;
};

// Inner products of mention [mentions, width] and entity [entities, width] (bf16 or fp32) into plane 0.
struct Coarse {
  const float* mention;
  const void* entity;
  bool bf16;
  int64_t width;
};

void rerank_coarse(const Candidates& candidates, const Coarse& coarse, float* scores, void* stream);

// One modality's global-to-local operands.
struct G2LPart {
  const void* query;  // [rows, entity_tokens, width] bf16 or fp32
  const void* gate;   // [rows, width] bf16 or fp32
  bool query_bf16, gate_bf16;
  int64_t rows;              // below 2^31
  const int64_t* row;        // [entities]; null: entity i has row i. A row outside query scores NaN
  const uint16_t* key;       // [mentions, mention_tokens, width] bf16, times log2(e) / sqrt(width)
  const float* centred;      // [mentions, mention_tokens, width] the value less its mean over the width
  const float* gram;         // [mentions, mention_tokens, mention_tokens]: centred centred^T
  const float* norm_weight;  // [width]
  const float* norm_bias;    // [width]
  int entity_tokens, mention_tokens, width;
  float eps, scale;
};

// scale * G2L into one plane [mentions, columns].
void rerank_g2l(const Candidates& candidates, const G2LPart& part, float* scores, void* stream);

// The k best of the sums over `planes` planes of scores: values and ids [mentions, k], and each plane's share in them
// [planes, mentions, k]. Best first, ties to the earlier column, NaN behind numbers, absent columns (-inf, -1) last.
void rerank_select(const Candidates& candidates, const float* scores, int planes, int k, float* values, int64_t* ids,
                   float* parts, void* stream);

}  // namespace m3el::gpu
