// The state of the emulated multiprocessor, shared by runtime.cpp (fibers, barriers), warp.cpp (collectives),
// memory.cpp (accesses, by the rules of shadow.h), hooks.cpp (which calls it) and report.cpp (findings).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cuda_host.h"

namespace cuda_host {

constexpr int kMaxThreads = 1024, kMaxShared = 232448;
constexpr size_t kStackBytes = 17 * 4096;  // no power of two: the fibers' stacks would share cache sets

enum class State : uint8_t { kReady, kBarrier, kCollective, kExited };

struct Copy {
  uint64_t shared, global;
  int group;
};

struct alignas(64) Fiber {
  void* stack_pointer;
  uint64_t stack;  // its lowest address
  unsigned thread;
  State state;
  Collective kind;
  unsigned mask;
  int source, width;
  Where where;
  uint64_t value, result;
  Four d;
  uint4 a;
  uint2 b;
  std::vector<Copy> copies;
  int group;  // of the copies issued now
};

struct Warp {
  unsigned arrived;       // lanes waiting in a collective
  unsigned synced;        // time of the last __syncwarp of all lanes
  bool partial;           // whether `seen` holds anything in this block
  unsigned seen[32][32];  // [lane][other]: time of the last __syncwarp of some lanes that ordered `other` before `lane`
};

// Times count barriers over a whole process, so that no record of an earlier block has to be cleared.
struct Machine {
  Fiber* current = nullptr;  // null outside kernels
  uint64_t stacks = 0;       // all of the fibers'
  uint8_t* shared = nullptr;
  size_t shared_bytes = 0;
  unsigned now = 1;
  unsigned launch_start = 0, block_start = 0, barrier = 0;  // barrier: time of the block's last
  const char* kernel = "";
  uint3 block = {};
  dim3 grid;
  unsigned threads = 0;  // of a block
  uint64_t arguments = 0, arguments_bytes = 0;
  uint64_t random = 1;
  Fiber fibers[kMaxThreads];
  Warp warps[kMaxThreads / 32];
};
extern Machine machine;

inline unsigned draw() {
  uint64_t& x = machine.random;
  x ^= x << 13, x ^= x >> 7, x ^= x << 17;
  return static_cast<unsigned>(x >> 32);
}

// runtime.cpp
void wait(State state);     // the current fiber gives way until somebody calls wake()
void wake(Fiber& fiber);    // puts a waiting fiber among those that may run
void give_way();            // other fibers may run first
[[noreturn]] void abandon_block();

uint64_t seed();
uint3 block_at(unsigned time);  // of the current launch, at a time since its start

// memory.cpp; `code`: where in the kernel, a return address
void check_read(const volatile void* memory, unsigned bytes, const void* code);
void check_write(const volatile void* memory, unsigned bytes, const void* code);
void refuse_misaligned(uint64_t address, unsigned alignment, const void* code);
void refuse_index(uint64_t index, const void* code);  // of an array
void start_launch_memory();
void start_block_memory();

// report.cpp: what is wrong in the current block, kept for the end of the launch. `code` and `other` are places in the
// library (other: of an earlier access, or 0); a kind of finding counts once at a place.
bool is_new(const char* kind, uint32_t code);
void report(const char* kind, const std::string& text, uint32_t code, uint32_t other = 0);
void report(const char* kind, const std::string& text, Where where);
std::string findings();  // of the launch that ends now; empty if there are none
std::string threads_text(const std::vector<unsigned>& threads);
std::string block_text(uint3 block);
std::string line_text(Where where);  // "file.cu:12"

}  // namespace cuda_host
