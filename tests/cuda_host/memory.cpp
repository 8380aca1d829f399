// Declared memory, shared memory, and every access to them.
#include <link.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>

#include "cuda_host_memory.h"
#include "shadow.h"

extern "C" __attribute__((visibility("hidden"))) const char __ehdr_start[];  // the library's first byte

namespace cuda_host {
namespace {

struct Free {
  void operator()(Cell* cells) const { std::free(cells); }
};
using Cells = std::unique_ptr<Cell[], Free>;

// Untouched pages of it cost nothing.
Cells make_cells(uint64_t count) {
  Cells cells(static_cast<Cell*>(std::calloc(count, sizeof(Cell))));
  if (cells == nullptr) throw std::bad_alloc();
  return cells;
}

struct Region {
  uint64_t first, bytes;
  bool written;  // output
  Cells words, by_byte;
  Shadow shadow;

  uint64_t end() const { return first + bytes; }
};
thread_local std::vector<Region> declared;  // sorted, disjoint
std::vector<Region>* regions;               // of the thread that launches
Region* recent[64];                         // by address

alignas(128) uint8_t arena[kMaxShared];
Shadow shared_shadow;

// Read-only parts of this library: constants.
struct Range {
  uint64_t first, end;
};
std::vector<Range> constants;

int find_constants(dl_phdr_info* info, size_t, void*) {
  const auto here = reinterpret_cast<uint64_t>(__ehdr_start);
  std::vector<Range> ranges;
  bool ours = false;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& part = info->dlpi_phdr[i];
    const Range range{info->dlpi_addr + part.p_vaddr, info->dlpi_addr + part.p_vaddr + part.p_memsz};
    if (part.p_type == PT_LOAD && range.first <= here && here < range.end) ours = true;
    if ((part.p_type == PT_LOAD && !(part.p_flags & PF_W)) || part.p_type == PT_GNU_RELRO) ranges.push_back(range);
  }
  if (ours) constants = ranges;
  return ours;
}

uint32_t code_offset(const void* code) {
  return static_cast<uint32_t>(reinterpret_cast<uint64_t>(code) - reinterpret_cast<uint64_t>(__ehdr_start));
}

bool in_kernel() {
  return reinterpret_cast<uint64_t>(__builtin_frame_address(0)) - machine.stacks < kMaxThreads * kStackBytes;
}

Region* find_region(uint64_t address, unsigned bytes) {
  Region*& cached = recent[address >> 10 & 63];
  if (cached != nullptr && address - cached->first < cached->bytes && address + bytes <= cached->end()) return cached;
  for (Region& region : *regions)
    if (address - region.first < region.bytes && address + bytes <= region.end()) return cached = &region;
  return nullptr;
}

// "byte 8 of shared memory (256 bytes)": where an address is.
std::string place(uint64_t address) {
  const uint64_t offset = address - reinterpret_cast<uint64_t>(arena);
  const auto text = [](uint64_t byte, const std::string& what, uint64_t size) {
    return "byte " + std::to_string(static_cast<int64_t>(byte)) + " of " + what + " (" + std::to_string(size) +
           " bytes)";
  };
  if (address - machine.stacks < kMaxThreads * kStackBytes)
    return "the stack of thread " + std::to_string((address - machine.stacks) / kStackBytes);
  if (offset < sizeof arena) return text(offset, "shared memory", machine.shared_bytes);
  const Region* nearest = nullptr;
  int64_t least = 1 << 20;  // farther away an address has nothing to do with a tensor
  for (const Region& region : *regions) {
    const int64_t before = static_cast<int64_t>(region.first - address);
    const int64_t behind = static_cast<int64_t>(address - region.end()) + 1;
    const int64_t distance = std::max({before, behind, int64_t{0}});
    if (distance < least) nearest = &region, least = distance;
  }
  if (nearest == nullptr) return "memory that no tensor is near";
  const auto index = nearest - regions->data();
  return text(address - nearest->first,
              std::string(nearest->written ? "an output" : "an input") + " (declared memory " + std::to_string(index) +
                  " by address)",
              nearest->bytes);
}

std::string subject(const Access& access) {
  return "thread " + std::to_string(access.thread) + " " + access.verb + " " + std::to_string(access.bytes) +
         " bytes at " + place(access.address);
}

[[noreturn]] __attribute__((noinline, cold)) void refuse(const char* kind, const Access& access) {
  if (is_new(kind, access.code)) report(kind, subject(access), access.code);
  abandon_block();
}

template <Touch kTouch>
constexpr const char* verb() {
  switch (kTouch) {
    case Touch::kRead: return "reads";
    case Touch::kWrite: return "writes";
    case Touch::kCopy: return "copies";
    default: return "updates";
  }
}

template <Touch kTouch>
void access_global(const Access& access) {
  Region* const region = find_region(access.address, access.bytes);
  if (region != nullptr) {
    const uint64_t offset = access.address - region->first;
    if (region->written) {
      if (region->shadow.bytes == nullptr && (offset | access.bytes) % 4 != 0) {
        region->by_byte = make_cells(region->bytes + 3);
        region->shadow.bytes = region->by_byte.get();
      }
      return check_range<true, kTouch>(region->shadow, offset, access);
    }
    if (kTouch == Touch::kRead) return;
    refuse("write to an input", access);
  }
  const auto inside = [&](uint64_t first, uint64_t end) { return access.address >= first && access.address < end; };
  if (kTouch == Touch::kRead) {
    if (inside(machine.arguments, machine.arguments + machine.arguments_bytes)) return;
    for (const Range& range : constants)
      if (inside(range.first, range.end)) return;
  }
  refuse("out of bounds", access);
}

template <Touch kTouch>
inline void access(const volatile void* pointer, unsigned bytes, const void* code) {
  if (!in_kernel()) return;
  const auto address = reinterpret_cast<uint64_t>(pointer);
  const Fiber& self = *machine.current;
  if (address - self.stack < kStackBytes) return;
  const uint64_t offset = address - reinterpret_cast<uint64_t>(arena);
  const Access what{address, bytes, self.thread, code_offset(code), verb<kTouch>()};
  if (offset < machine.shared_bytes && offset + bytes <= machine.shared_bytes)
    check_range<false, kTouch>(shared_shadow, offset, what);
  else
    access_global<kTouch>(what);
}

void expect_alignment(const volatile void* pointer, unsigned bytes, const char* verb, const void* code) {
  const auto address = reinterpret_cast<uint64_t>(pointer);
  if (address % bytes != 0)
    refuse("misaligned", {address, bytes, machine.current->thread, code_offset(code), verb});
}

}  // namespace

void check_read(const volatile void* memory, unsigned bytes, const void* code) {
  access<Touch::kRead>(memory, bytes, code);
}

void check_write(const volatile void* memory, unsigned bytes, const void* code) {
  access<Touch::kWrite>(memory, bytes, code);
}

void refuse_misaligned(uint64_t address, unsigned alignment, const void* code) {
  if (in_kernel()) refuse("misaligned", {address, alignment, machine.current->thread, code_offset(code), "touches"});
}

void refuse_index(uint64_t index, const void* code) {
  if (!in_kernel()) return;
  const uint32_t place = code_offset(code);
  if (is_new("out of bounds", place))
    report("out of bounds",
           "thread " + std::to_string(machine.current->thread) + " takes element " +
               std::to_string(static_cast<int64_t>(index)) + " of an array that has none such",
           place);
  abandon_block();
}

void complain(Fault fault, const Cell& cell, const Access& access) {
  const bool written = fault == Fault::kWrite || fault == Fault::kInFlight;
  const Group& group = fault == Fault::kRead ? cell.reads : cell.updates;
  const unsigned time = written ? cell.write_time : group.time;
  // where the records are of this block, another one's accesses may be known by a flag only
  const bool other_block =
      in_other_block(time) || (!written && ordered(access.thread, group) && fault != Fault::kUninitialised);
  const char* const kind = fault == Fault::kUninitialised ? "uninitialised read"
                           : fault == Fault::kInFlight    ? "cp.async data before the wait"
                           : other_block                  ? "race between blocks"
                                                          : "race";
  if (!is_new(kind, access.code)) return;
  std::string text = subject(access);
  if (fault == Fault::kUninitialised) return report(kind, text + ", which nobody wrote", access.code);
  std::string who;
  if (in_other_block(time)) {
    who = "block " + block_text(block_at(time));
  } else if (other_block) {
    who = "another block";
  } else if (written) {
    who = "thread " + std::to_string(cell.writer);
  } else if (group.warp == kSeveralWarps) {
    who = "threads of several warps";
  } else {
    const bool same = group.warp == access.thread / 32;
    const unsigned lanes = same ? unordered_lanes(group, access.thread) : group.lanes;
    std::vector<unsigned> threads;
    for (unsigned lane = 0; lane < 32; ++lane)
      if (lanes >> lane & 1) threads.push_back(group.warp * 32u + lane);
    who = threads_text(threads);
  }
  const char* const did = fault == Fault::kRead     ? " read"
                          : fault == Fault::kUpdate ? " updated"
                          : fault == Fault::kWrite  ? " wrote"
                                                    : " still copies to";
  text += ", which " + who + did + (other_block || fault == Fault::kInFlight ? "" : " with no barrier between");
  report(kind, text, access.code, written ? cell.write_code : group.code);
}

void declare_input(const void* memory, int64_t bytes) {
  Region added{reinterpret_cast<uint64_t>(memory), static_cast<uint64_t>(bytes), false, {}, {}, {}};
  if (bytes == 0) return;
  for (auto region = declared.begin(); region != declared.end();) {
    if (region->end() <= added.first || added.end() <= region->first) {
      ++region;
    } else if (region->written) {
      return;
    } else {  // views of one tensor
      const uint64_t end = std::max(added.end(), region->end());
      added.first = std::min(added.first, region->first), added.bytes = end - added.first;
      region = declared.erase(region);
    }
  }
  const auto behind = std::find_if(declared.begin(), declared.end(), [&](Region& r) { return r.first > added.first; });
  declared.insert(behind, std::move(added));
}

void declare_output(void* memory, int64_t bytes) {
  Region added{reinterpret_cast<uint64_t>(memory), static_cast<uint64_t>(bytes), true, {}, {}, {}};
  if (bytes == 0) return;
  for (auto region = declared.begin(); region != declared.end();) {
    if (region->end() <= added.first || added.end() <= region->first) {
      ++region;
      continue;
    }
    if (!region->written) {
      forget_memory();
      throw std::runtime_error("an output shares memory with an input");
    }
    if (region->first <= added.first && added.end() <= region->end()) return;
    region = declared.erase(region);  // freed since, and allocated anew
  }
  added.words = make_cells(added.bytes / 4 + 1);
  added.shadow.words = added.words.get();
  // neither zeros nor always NaN and -1, which may be right by chance
  static constexpr uint8_t kPoison[] = {0xa5, 0xff, 0x7f};
  std::memset(memory, kPoison[seed() % 3], static_cast<size_t>(bytes));
  const auto behind = std::find_if(declared.begin(), declared.end(), [&](Region& r) { return r.first > added.first; });
  declared.insert(behind, std::move(added));
}

void forget_memory() { declared.clear(); }

void start_launch_memory() {
  regions = &declared;
  std::fill(std::begin(recent), std::end(recent), nullptr);
  if (machine.shared != nullptr) return;
  machine.shared = arena;
  shared_shadow = {make_cells(kMaxShared / 4).release(), make_cells(kMaxShared).release()};
  dl_iterate_phdr(&find_constants, nullptr);
}

void start_block_memory() {
  static constexpr uint8_t kPoison[] = {0xff, 0x7f, 0xa5, 0x00};
  std::memset(arena, kPoison[draw() % 4], machine.shared_bytes);
}

uint4 load_once(const void* global) {
  const void* const code = __builtin_return_address(0);
  expect_alignment(global, 16, "reads", code);
  access<Touch::kRead>(global, 16, code);
  const auto address = reinterpret_cast<uint64_t>(global);
  const Access what{address, 16, machine.current->thread, code_offset(code), "reads"};
  const Region* const region = find_region(address, 16);
  if (region == nullptr) refuse("load_once of memory that is not global", what);
  if (region->written && written_since(machine.launch_start, region->shadow, address - region->first, 16))
    refuse("load_once of memory written in this launch", what);
  return *static_cast<const uint4*>(global);
}

void cp_async(void* shared, const void* global) {
  const void* const code = __builtin_return_address(0);
  Fiber& self = *machine.current;
  const Access from{reinterpret_cast<uint64_t>(global), 16, self.thread, code_offset(code), "reads"};
  const Access to{reinterpret_cast<uint64_t>(shared), 16, self.thread, code_offset(code), "copies"};
  expect_alignment(global, 16, "reads", code);
  expect_alignment(shared, 16, "copies", code);
  const uint64_t offset = to.address - reinterpret_cast<uint64_t>(arena);
  if (offset >= machine.shared_bytes || offset + 16 > machine.shared_bytes) refuse("out of bounds", to);
  access_global<Touch::kRead>(from);
  check_range<false, Touch::kCopy>(shared_shadow, offset, to);
  self.copies.push_back({to.address, from.address, self.group});
}

void cp_async_commit() { ++machine.current->group; }

void cp_async_wait(int newest) {
  Fiber& fiber = *machine.current;
  size_t kept = 0;
  for (const Copy& copy : fiber.copies) {
    if (copy.group >= fiber.group - newest) {
      fiber.copies[kept++] = copy;
      continue;
    }
    std::memcpy(reinterpret_cast<void*>(copy.shared), reinterpret_cast<const void*>(copy.global), 16);
    for (int i = 0; i < 4; ++i) {
      Cell& word = shared_shadow.words[(copy.shared - reinterpret_cast<uint64_t>(arena)) / 4 + i];
      word.write_time = machine.now, word.copying = 0;
    }
  }
  fiber.copies.resize(kept);
}

}  // namespace cuda_host

using cuda_host::Touch;

#define ATOMIC(T, name, parameters, touch, update)                       \
  T name parameters {                                                    \
    const void* const code = __builtin_return_address(0);                \
    cuda_host::expect_alignment(address, sizeof(T), "updates", code);    \
    if (cuda_host::draw() % 8 == 0) cuda_host::give_way();               \
    cuda_host::access<Touch::touch>(address, sizeof(T), code);           \
    const T old = *address;                                              \
    update;                                                              \
    return old;                                                          \
  }
#define ATOMICS(T)                                                                             \
  ATOMIC(T, atomicAdd, (T * address, T value), kAtomic, *address = sum(old, value))            \
  ATOMIC(T, atomicMax, (T * address, T value), kAtomic, *address = old < value ? value : old)  \
  ATOMIC(T, atomicMin, (T * address, T value), kAtomic, *address = value < old ? value : old)  \
  ATOMIC(T, atomicExch, (T * address, T value), kExchange, *address = value)                   \
  ATOMIC(T, atomicCAS, (T * address, T compare, T value), kAtomic, if (old == compare) *address = value)

// It wraps, signed numbers too.
template <class T>
static T sum(T a, T b) {
  return static_cast<T>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
}

ATOMICS(int)
ATOMICS(unsigned)
ATOMICS(unsigned long long)
