// CUDA as the kernels see it. Under M3EL_CUDA_HOST the same sources are plain C++: tests/cuda_host/ then supplies
// CUDA's words, the wrappers of ptx.h and of launch.h, and checks every access to shared and global memory.
//
// For both to hold, kernels use shared memory through dynamic_shared() only, start through launch() only, and get bf16
// and fp16 values as uint16_t.
#pragma once

#include <cstdint>

#ifdef M3EL_CUDA_HOST
#include "cuda_host.h"
#else
#include <cuda_runtime.h>

#include "launch.h"
#include "ptx.h"
#endif
