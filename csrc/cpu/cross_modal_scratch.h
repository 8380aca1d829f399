// What the kernels of cross_modal.h work in; included by one file per ISA level (see g2l_kernel.h).
#pragma once

#include <stdint.h>

#include "kernel_parts.h"

namespace {

constexpr int64_t kPadding = 16;  // floats: the widest vector

// Rows padded with zeros, of an item at a time; all but rows and their gradient are as long as one row or as logits.
struct CrossModalScratch {
  int64_t stride;
  float *query, *gradient, *context, *logits, *derivatives, *rows, *of_rows;

  CrossModalScratch(void* scratch, int64_t tokens, int64_t width) : stride(round_up(width, kPadding)) {
    const int64_t places = round_up(tokens, kPadding);
    query = static_cast<float*>(scratch);
    gradient = query + stride;
    context = gradient + stride;
    logits = context + stride;
    derivatives = logits + places;
    rows = derivatives + places;
    of_rows = rows + tokens * stride;
  }
};

inline int64_t cross_modal_scratch_bytes(int64_t tokens, int64_t width) {
  const int64_t stride = round_up(width, kPadding);
  return 4 * (3 * stride + 2 * round_up(tokens, kPadding) + 2 * tokens * stride);
}

}  // namespace
