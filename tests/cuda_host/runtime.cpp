// Fibers, their order, barriers, launches.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "machine.h"

// void switch_stacks(void** save, void* to): saves what a call preserves and goes on where `to` was saved.
#if defined(__x86_64__)
asm(R"(
.text
.p2align 4
.type m3el_switch_stacks, @function
m3el_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmp *%rcx
)");
constexpr int kSavedWords = 7, kReturnWord = 6, kPadding = 1;  // as after a call: 8 bytes off the alignment
#elif defined(__aarch64__)
asm(R"(
.text
.p2align 4
.type m3el_switch_stacks, %function
m3el_switch_stacks:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
)");
constexpr int kSavedWords = 20, kReturnWord = 11, kPadding = 0;
#else
#error "switch_stacks: write it for this processor"
#endif
extern "C" void m3el_switch_stacks(void** save, void* to);

namespace cuda_host {

Machine machine;

namespace {

std::mutex launching;
uint64_t seed_now = [] {
  const char* text = std::getenv("M3EL_CUDA_HOST_SEED");
  return text == nullptr ? 0 : std::strtoull(text, nullptr, 10);
}();

void (*body)(const void*);
const void* body_arguments;
void* host_stack;

// How the next fiber is chosen, drawn for each block: the runnable ones are a queue that new ones join at the end.
enum class Order { kRandom, kRoundRobin, kNewestFirst, kMixed };
Order order;
uint16_t ready[kMaxThreads];
unsigned ready_first, ready_count;

int running;  // threads that have not exited
int at_barrier;
Vote barrier_vote;
Where barrier_where;
int barrier_result, barrier_value;

std::vector<std::pair<unsigned, uint3>> started;  // the launch's blocks, with the times of their starts

void enqueue(unsigned thread) { ready[(ready_first + ready_count++) % kMaxThreads] = static_cast<uint16_t>(thread); }

// The next fiber to run; null when none can.
Fiber* next() {
  if (ready_count == 0) return nullptr;
  unsigned offset = 0;
  Order how = order;
  if (how == Order::kMixed) how = static_cast<Order>(draw() % 3);
  if (how == Order::kRandom) offset = static_cast<unsigned>(static_cast<uint64_t>(draw()) * ready_count >> 32);
  if (how == Order::kNewestFirst) offset = ready_count - 1;
  uint16_t& slot = ready[(ready_first + offset) % kMaxThreads];
  const unsigned thread = slot;
  if (how == Order::kNewestFirst) {
    --ready_count;
  } else {
    slot = ready[ready_first];
    ready_first = (ready_first + 1) % kMaxThreads, --ready_count;
  }
  return &machine.fibers[thread];
}

// Leaves the current fiber for the next one, or for the host where none can run.
void switch_from(Fiber& self) {
  Fiber* const to = next();
  if (to == &self) return;
  machine.current = to;
  m3el_switch_stacks(&self.stack_pointer, to == nullptr ? host_stack : to->stack_pointer);
}

void open_barrier() {
  at_barrier = 0;
  machine.barrier = ++machine.now;
  barrier_result = barrier_value;
  for (unsigned t = 0; t < machine.threads; ++t) {
    Fiber& fiber = machine.fibers[t];
    if (fiber.state == State::kBarrier) wake(fiber);
  }
}

void run_thread() {
  body(body_arguments);
  Fiber& self = *machine.current;
  self.state = State::kExited;
  if (--running > 0 && at_barrier == running) open_barrier();
  switch_from(self);
  std::abort();
}

void prepare(Fiber& fiber, unsigned thread) {
  fiber.thread = thread;
  fiber.stack = machine.stacks + thread * kStackBytes;
  // stacks that start at different lines of a page, for the cache's sake
  auto* top = reinterpret_cast<uint64_t*>(fiber.stack + kStackBytes - 64 - thread % 32 * 64);
  void** const frame = reinterpret_cast<void**>(top) - kPadding - kSavedWords;
  std::fill(frame, frame + kSavedWords + kPadding, nullptr);
  frame[kReturnWord] = reinterpret_cast<void*>(&run_thread);
  fiber.stack_pointer = frame;
  fiber.state = State::kReady;
  fiber.copies.clear();
  fiber.group = 0;
  enqueue(thread);
}

void report_deadlock() {
  std::string text;
  std::vector<bool> told(machine.threads);
  Where where{};
  for (unsigned t = 0; t < machine.threads; ++t) {
    const Fiber& first = machine.fibers[t];
    if (first.state == State::kExited || told[t]) continue;
    std::vector<unsigned> same;
    unsigned absent = first.mask;
    for (unsigned u = t; u < machine.threads; ++u) {
      const Fiber& other = machine.fibers[u];
      if (other.state != first.state || other.where.line != first.where.line) continue;
      if (first.state == State::kCollective && (u / 32 != t / 32 || other.mask != first.mask)) continue;
      told[u] = true, same.push_back(u);
      absent &= ~(1u << u % 32);
    }
    if (!text.empty()) text += "; ";
    text += threads_text(same);
    if (first.state == State::kBarrier) {
      text += " at the block's barrier";
    } else {
      std::vector<unsigned> lanes;
      for (unsigned lane = 0; lane < 32; ++lane)
        if (absent >> lane & 1) lanes.push_back(t / 32 * 32 + lane);
      text += " at a warp's collective, which lacks " + threads_text(lanes);
    }
    text += " (" + line_text(first.where) + ")";
    where = first.where;
  }
  report("deadlock", text, where);
}

void run_block(unsigned threads) {
  machine.block_start = machine.barrier = ++machine.now;
  started.emplace_back(machine.now, machine.block);
  order = static_cast<Order>(draw() % 4);
  ready_first = ready_count = 0;
  running = static_cast<int>(threads), at_barrier = 0;
  for (unsigned w = 0; w < (threads + 31) / 32; ++w) {
    Warp& warp = machine.warps[w];
    warp.arrived = 0, warp.synced = machine.now, warp.partial = false;
  }
  start_block_memory();
  for (unsigned t = 0; t < threads; ++t) prepare(machine.fibers[t], t);
  Fiber* const first = next();
  machine.current = first;
  m3el_switch_stacks(&host_stack, first->stack_pointer);
  if (running > 0) report_deadlock();
  machine.current = nullptr;
}

void allocate_stacks() {
  if (machine.stacks != 0) return;
  void* memory = mmap(nullptr, kMaxThreads * kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  machine.stacks = reinterpret_cast<uint64_t>(memory);
}

}  // namespace

unsigned thread_number() { return machine.current->thread; }
uint3 block_index() { return machine.block; }
unsigned block_threads() { return machine.threads; }
dim3 grid_size() { return machine.grid; }
void* shared_memory() { return machine.shared; }

uint64_t seed() { return seed_now; }

uint3 block_at(unsigned time) {
  const auto later = [](unsigned t, const auto& block) { return t < block.first; };
  return (std::upper_bound(started.begin(), started.end(), time, later) - 1)->second;
}

void wait(State state) {
  Fiber& self = *machine.current;
  self.state = state;
  switch_from(self);
}

void wake(Fiber& fiber) {
  fiber.state = State::kReady;
  enqueue(fiber.thread);
}

void give_way() {
  Fiber& self = *machine.current;
  if (order == Order::kNewestFirst) {  // as the oldest, lest it never ends to wait for another
    ready_first = (ready_first + kMaxThreads - 1) % kMaxThreads, ++ready_count;
    ready[ready_first] = static_cast<uint16_t>(self.thread);
  } else {
    enqueue(self.thread);
  }
  switch_from(self);
}

void abandon_block() {
  running = 0;
  Fiber& self = *machine.current;
  machine.current = nullptr;
  m3el_switch_stacks(&self.stack_pointer, host_stack);
  std::abort();
}

int block_barrier(Vote vote, int value, Where where) {
  Fiber& self = *machine.current;
  self.where = where;
  if (at_barrier++ == 0) {
    barrier_vote = vote, barrier_where = where;
    barrier_value = vote == Vote::kAnd;
  } else if (vote != barrier_vote || where.line != barrier_where.line) {
    report("divergent barrier",
           "thread " + std::to_string(self.thread) + " came to another __syncthreads than that of " +
               line_text(barrier_where),
           where);
    abandon_block();
  }
  if (vote == Vote::kOr) barrier_value |= value != 0;
  if (vote == Vote::kAnd) barrier_value &= value != 0;
  if (vote == Vote::kCount) barrier_value += value != 0;
  if (at_barrier < running) {
    wait(State::kBarrier);
  } else {
    self.state = State::kBarrier;
    open_barrier();
    switch_from(self);
  }
  return barrier_result;
}

void run(const char* name, dim3 grid, int threads, size_t shared, void (*kernel)(const void*), const void* arguments,
         size_t bytes) {
  const std::lock_guard lock(launching);
  const auto refuse = [&](const std::string& why) { throw std::runtime_error(std::string(name) + ": " + why); };
  if (threads < 1 || threads > kMaxThreads) refuse("a block of " + std::to_string(threads) + " threads");
  if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535)
    refuse("a grid of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " + std::to_string(grid.z));
  if (shared > kMaxShared) refuse(std::to_string(shared) + " bytes of shared memory");
  if (std::getenv("M3EL_CUDA_HOST_LOG") != nullptr) std::fprintf(stderr, "%s %d %zu\n", name, threads, shared);
  allocate_stacks();
  body = kernel, body_arguments = arguments;
  machine.kernel = name, machine.shared_bytes = shared;
  machine.grid = grid, machine.threads = static_cast<unsigned>(threads);
  machine.arguments = reinterpret_cast<uint64_t>(arguments), machine.arguments_bytes = bytes;
  machine.random = (seed_now + 1) * 0x9e3779b97f4a7c15;
  machine.launch_start = ++machine.now;
  start_launch_memory();
  started.clear();

  const uint64_t blocks = static_cast<uint64_t>(grid.x) * grid.y * grid.z;
  std::vector<uint64_t> sequence(blocks);
  std::iota(sequence.begin(), sequence.end(), 0);
  for (uint64_t i = blocks; i-- > 1;) std::swap(sequence[i], sequence[draw() % (i + 1)]);
  for (const uint64_t i : sequence) {
    machine.block = {static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                     static_cast<unsigned>(i / grid.x / grid.y)};
    run_block(threads);
  }
  const std::string text = findings();
  if (!text.empty()) throw std::runtime_error(text);
}

}  // namespace cuda_host

extern "C" __attribute__((visibility("default"))) void m3el_cuda_host_seed(uint64_t seed) {
  cuda_host::seed_now = seed;
}
