// Global-to-local scores of each mention with its own candidates, gathered from the index (spec 3.1, 5.2, 5.3).
//
// Limit at 1,024 mentions x 1,000 candidates of the paper's sizes (text 40 x 40 tokens, images 50 x 50, 96 features):
// rows of query and gate from the index, 7.9 and 9.8 KB, are 18.1 GB and take 5.4 ms of an H100's 3.35 TB/s; where
// entities share an image's row, L2 has it. Beside that stand 8e11 FLOP of tile products and 4.2e9 exponentials:
// mma.sync keeps up with the memory, wgmma could not help.
//
// Modelled from the sm_90 machine code for both parts, each pipe alone, at 132 multiprocessors and 1.755 GHz:
//   instructions of a warp per candidate  1,160 text, 1,740 image   3.2 ms at 4 a clock
//   shared memory                         43 KB text, 60 KB image   3.5 ms at 128 bytes a clock
//   HMMA m16n8k16                         92 text, 171 image        2.3 ms at 1,024 FMA a clock
//   MUFU (exp2, reciprocals)              55 text, 105 image        1.4 ms at 16 a clock
//   fp32                                  270 text, 470 image       0.8 ms at 128 a clock
// so that HBM is the limit as long as a multiprocessor keeps about 25 KB under way: each of 12 warps copies its next 24
// or 32 rows by cp.async while it works on the last ones.
//
// A block has one mention and a run of its candidates; keys, centred values and Gram matrix lie in shared memory, and
// each warp goes through candidates of its own with no barrier but the warp's. Logits stay in registers: query rows x
// mention tokens in tiles of 16 x 8, softmax along a row in four lanes, w summed over rows in registers. What is left
// of a pair, w . (centred gw) and w^T G w, is done for 8 candidates at a time: one tile product, and fp32 sums that
// read G once.
#include <iterator>
#include <stdexcept>

#include "rerank_mention.h"

namespace m3el::gpu {

namespace {

// Which rows of query a warp stages next.
struct Cursor {
  int column, token, slot;
};

// SASS of rerank_g2l_kernel: tensor cores, 16-byte loads
template <int kTiles, bool kResident>
__global__ void __launch_bounds__(32 * most_warps(kTiles), 1)
    rerank_g2l_kernel(Candidates all, G2LPart part, G2LPlan plan, float* __restrict__ scores) {
  unsigned char* shared = dynamic_shared<unsigned char>();
  const int m = blockIdx.x / plan.blocks;
  const int first = blockIdx.x % plan.blocks * plan.columns, count = min(plan.columns, all.columns - first);
  const Mention<kTiles, kResident> mention(part, plan, m);
  const int warp = threadIdx.x / 32, lane = mention.lane;
  unsigned char* own = shared + plan.warp_memory + warp * plan.warp_bytes;
  float* w_batch = reinterpret_cast<float*>(own + kSlots * plan.stage_rows * plan.stride);
  float* plane = scores + static_cast<int64_t>(m) * all.columns + first;
  mention.load(all, first, count);
  // zeros where no row of query and no column of w ever is, and finite numbers where w of an absent candidate would be
  for (int i = lane; i < plan.warp_bytes / 16; i += 32) reinterpret_cast<uint4*>(own)[i] = make_uint4(0, 0, 0, 0);
  __syncthreads();

  const int each = (count + plan.warps - 1) / plan.warps, begin = warp * each, end = min(begin + each, count);
  const auto present = [&](int column) {
    while (column < end && mention.rows()[column] < 0) ++column;
    return column;
  };
  Cursor next{present(begin), 0, 0};
  const auto stage_next = [&] {
    if (next.column < end) {
      mention.stage(mention.rows()[next.column], next.token, own + next.slot * plan.stage_rows * plan.stride);
      next.slot = (next.slot + 1) % kSlots;
      next.token += plan.stage_rows;
      if (next.token >= part.entity_tokens) next.token = 0, next.column = present(next.column + 1);
    }
    cp_async_commit();
  };
  for (int i = 0; i < kSlots; ++i) stage_next();

  int slot = 0;
  for (int batch = begin; batch < end; batch += kBatch) {
    const int batch_end = min(batch + kBatch, end);
    for (int column = present(batch); column < batch_end; column = present(column + 1)) {
      float w[kTiles][2] = {};
      for (int token = 0; token < part.entity_tokens; token += plan.stage_rows) {
        cp_async_wait<kSlots - 1>();
        __syncwarp();
        mention.attend(own + slot * plan.stage_rows * plan.stride, min(plan.stage_rows, part.entity_tokens - token), w);
        __syncwarp();
        stage_next();
        slot = (slot + 1) % kSlots;
      }
      mention.store_w(w, w_batch + (column - batch) * Mention<kTiles, kResident>::kWStride);
    }
    __syncwarp();
    const int column = batch + mention.row, of = column < batch_end ? mention.rows()[column] : -1;
    const float score = mention.finish(w_batch, of);
    // w of an absent candidate is that of another one; the next batch's w lies behind the barriers of its rows
    if (column < batch_end && mention.quad == 0) plane[column] = of < 0 ? NAN : score;
  }
}

template <int kTiles, bool kResident = true>
void start(const Candidates& all, const G2LPart& part, float* scores, void* stream) {
  G2LPlan plan = plan_g2l(all, part, kTiles, kResident, 2 * row_tiles(kTiles), most_warps(kTiles), shared_limit(),
                          multiprocessors());
  if (plan.warps == 0) {
    if constexpr (kResident) return start<kTileCounts[std::size(kTileCounts) - 1], false>(all, part, scores, stream);
    throw std::runtime_error("rerank_topk: a mention's operands do not fit this GPU's shared memory");
  }
  plan.query_pieces = in_pieces(part.query, part.width);
  plan.gate_pieces = in_pieces(part.gate, part.width);
  plan.key_pieces = in_pieces(part.key, part.width);
  plan.centred_pieces = in_pieces(part.centred, part.width);
  launch("rerank_g2l", rerank_g2l_kernel<kTiles, kResident>, dim3(static_cast<unsigned>(all.mentions * plan.blocks)),
         32 * plan.warps, shared_bytes(plan), stream, all, part, plan, scores);
}

}  // namespace

void rerank_g2l(const Candidates& candidates, const G2LPart& part, float* scores, void* stream) {
  const int tiles = ceil_div(part.mention_tokens, 8);
  const auto run = tiles <= 2    ? start<2>
                   : tiles <= 4  ? start<4>
                   : tiles <= 5  ? start<5>
                   : tiles <= 7  ? start<7>
                   : tiles <= 8  ? start<8>
                   : tiles <= 10 ? start<10>
                                 : start<16>;
  run(candidates, part, scores, stream);
}

}  // namespace m3el::gpu
