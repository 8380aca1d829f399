// The parts of cross-modal contexts (spec section 5.4): products with weight matrices that stay in cache, the attention
// of a global query over its local rows, and behind U the pooled heads, the gate and the LayerNorm.
#pragma once

#include <stdint.h>

#include "format.h"

namespace m3el {

constexpr int64_t kMostHeads = 8;

// n queries, each with its own local rows.
struct CrossModalRows {
  const float* query;  // [n, width]
  const void* local;   // [n, tokens, width]
  Format format;       // of local
  int64_t tokens, width;
};

// H of the rows a (the enriched global) and r (all the others), per channel: enriched * a + row * r + largest *
// max(a, r) + sum of weight * (a - r) * sigmoid(temperature * (a - r) - log_count); or, in the released code's
// T2V-only form, f * a + (1 - f) * row * r with f = sigmoid(mix).
struct CrossModalPool {
  float enriched, row, largest, log_count;
  int64_t heads;  // with a temperature
  float temperature[kMostHeads], weight[kMostHeads];
};

struct CrossModalTail {
  const float *glob, *enriched, *row;  // [n, width]; the latter two before their ReLU
  const float* mix;                    // [n, width], or null
  CrossModalPool pool;
  const float *gate_weight, *gate_bias, *norm_weight, *norm_bias;  // [width], [1], [width], [width]
  float eps;
  int64_t width;
};

// The gradients of what an item has of its own, [n, width] each; mix where there is one.
struct CrossModalGradients {
  float *glob, *enriched, *row, *mix;
};

// out [n, columns] = x [n, inner] times weight [inner, columns], plus bias [columns] where there is one.
struct CrossModalLinear {
  const float *x, *weight, *bias;
  int64_t inner, columns;
};

struct CrossModalKernel {
  // Items begin..end-1. Scratch is 64-byte aligned, of scratch_bytes(tokens, width) bytes.
  int64_t (*scratch_bytes)(int64_t tokens, int64_t width);
  void (*linear)(const CrossModalLinear& layer, int64_t begin, int64_t end, float* out);
  // context [n, width]: the mean of the local rows, weighted with the softmax of their products with the query.
  void (*attend)(const CrossModalRows& rows, int64_t begin, int64_t end, void* scratch, float* context);
  // From the context's gradient [n, width] those of the query and, in its format, of local.
  void (*attend_backward)(const CrossModalRows& rows, const float* gradient, int64_t begin, int64_t end, void* scratch,
                          float* query, void* local);
  void (*finish)(const CrossModalTail& tail, int64_t begin, int64_t end, void* scratch, float* out);
  // Adds to weights [3 width + 1] the gradients of gate_weight, norm_weight, norm_bias and gate_bias.
  void (*finish_backward)(const CrossModalTail& tail, const float* gradient, int64_t begin, int64_t end, void* scratch,
                          const CrossModalGradients& out, float* weights);
};

extern const CrossModalKernel kCrossModalScalar;
#if defined(__x86_64__)
extern const CrossModalKernel kCrossModalAvx2, kCrossModalAvx512;
#endif

}  // namespace m3el
