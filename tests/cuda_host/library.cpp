// The schemas of the native ops for the emulated kernels, which the files of csrc/cuda/*_ops.cpp register.
#include <torch/csrc/stable/library.h>

#include "../../csrc/schemas.h"

STABLE_TORCH_LIBRARY(m3el_fast_host, m) {
  for (const char* schema : m3el::kSchemas) m.def(schema);
}
