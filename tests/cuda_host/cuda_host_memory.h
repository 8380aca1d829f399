// The global memory of the emulated device: what a kernel may touch beyond its shared memory. A list per host thread.
#pragma once

#include <cstdint>

namespace cuda_host {

// Memory that kernels only read. Inside memory that was declared as output it changes nothing.
void declare_input(const void* memory, int64_t bytes);

// Memory that kernels write before they read it: it is filled with a pattern here. A repeated declaration changes
// nothing.
void declare_output(void* memory, int64_t bytes);

void forget_memory();

}  // namespace cuda_host
