// What is remembered of every word of memory, and the rules that an access must keep: FastTrack's idea (Flanagan and
// Freund, 2009) for CUDA's barriers. The last write, and who read or atomically updated the word since, suffice to find
// the first race on a word, whatever order the fibers ran in.
#pragma once

#include "machine.h"

namespace cuda_host {

enum class Touch { kRead, kWrite, kAtomic, kExchange, kCopy };  // kExchange: an atomic whose old value may be anything

// Threads of a block that did the same since its last barrier, or the last that did it before. A time of 0: never.
struct Group {
  uint32_t time, code;  // of the latest; code: where in the library
  uint32_t lanes;       // of `warp`
  uint8_t warp;         // kSeveralWarps: not known which threads
};
constexpr uint8_t kSeveralWarps = 0xff;

// History of one word, or of one byte of a word that is not accessed as a whole.
struct Cell {
  uint32_t write_time, write_code;  // plain writes and copies
  Group reads, updates;             // updates: atomics
  uint32_t other_blocks;            // the launch that the flags below speak of
  uint16_t writer;
  uint8_t copying : 1;           // the write is a cp.async that nobody waited for
  uint8_t split : 1;             // the word's bytes have records of their own
  uint8_t read_by_other : 1;     // by blocks before that of `reads`
  uint8_t updated_by_other : 1;  // by blocks before that of `updates`
};

enum class Fault { kUninitialised, kInFlight, kWrite, kUpdate, kRead };  // the last three: what it races with

// An access that is being checked.
struct Access {
  uint64_t address;
  unsigned bytes, thread;
  uint32_t code;
  const char* verb;
};
void complain(Fault fault, const Cell& cell, const Access& access);

// Whether what a thread of this block did at `time` came before now, for `self`.
inline bool ordered(unsigned self, unsigned other, unsigned time) {
  if (time < machine.barrier || other == self) return true;
  if (other / 32 != self / 32) return false;
  const Warp& warp = machine.warps[self / 32];
  return time < warp.synced || (warp.partial && time < warp.seen[self % 32][other % 32]);
}

// The lanes of a group of the warp of `self` that are not ordered before it.
inline unsigned unordered_lanes(const Group& group, unsigned self) {
  const Warp& warp = machine.warps[self / 32];
  if (group.time < warp.synced) return 0;
  unsigned lanes = group.lanes & ~(1u << self % 32);
  if (warp.partial)
    for (unsigned lane = 0; lane < 32; ++lane)
      if (group.time < warp.seen[self % 32][lane]) lanes &= ~(1u << lane);
  return lanes;
}

inline bool ordered(unsigned self, const Group& group) {
  if (group.time < machine.barrier) return true;
  return group.warp == self / 32 && unordered_lanes(group, self) == 0;
}

inline bool in_other_block(unsigned time) { return time >= machine.launch_start && time < machine.block_start; }

// Joins the access's thread to the group; whoever is ordered before it may leave. Whether another block's group was
// dropped.
template <bool kGlobal>
bool join(Group& group, const Access& access) {
  const unsigned self = access.thread, bit = 1u << self % 32;
  const bool dropped = kGlobal && in_other_block(group.time);
  if (group.time < machine.barrier) {
    group.warp = static_cast<uint8_t>(self / 32), group.lanes = bit;
  } else if (group.warp == self / 32) {
    group.lanes = unordered_lanes(group, self) | bit;
  } else {
    group.warp = kSeveralWarps;
  }
  group.time = machine.now, group.code = access.code;
  return dropped;
}

// Remembers the launch's earlier blocks: they read or they updated, for both is a race already.
inline void flag_others(Cell& cell, bool read) {
  cell.other_blocks = machine.launch_start;
  cell.read_by_other = read, cell.updated_by_other = !read;
}

template <bool kGlobal, Touch kTouch>
void check(Cell& cell, const Access& access) {
  constexpr bool kReads = kTouch == Touch::kRead || kTouch == Touch::kAtomic;
  constexpr bool kAtomic = kTouch == Touch::kAtomic || kTouch == Touch::kExchange;
  const unsigned self = access.thread, first = kGlobal ? 1 : machine.block_start;
  const bool others = kGlobal && cell.other_blocks == machine.launch_start;
  if (kReads && cell.write_time < first && cell.updates.time < first) complain(Fault::kUninitialised, cell, access);
  if (!kGlobal && cell.copying && cell.write_time >= first)
    complain(Fault::kInFlight, cell, access);
  else if ((kGlobal && in_other_block(cell.write_time)) || !ordered(self, cell.writer, cell.write_time))
    complain(Fault::kWrite, cell, access);
  if (!kAtomic && ((kGlobal && in_other_block(cell.updates.time)) || (others && cell.updated_by_other) ||
                   !ordered(self, cell.updates)))
    complain(Fault::kUpdate, cell, access);
  if (kTouch != Touch::kRead && ((kGlobal && in_other_block(cell.reads.time)) || (others && cell.read_by_other) ||
                                 !ordered(self, cell.reads)))
    complain(Fault::kRead, cell, access);

  if constexpr (kTouch == Touch::kRead) {
    if (join<kGlobal>(cell.reads, access)) flag_others(cell, true);
  } else if constexpr (kAtomic) {
    if (join<kGlobal>(cell.updates, access)) flag_others(cell, false);
  } else {
    cell.write_time = machine.now, cell.write_code = access.code, cell.writer = static_cast<uint16_t>(self);
    cell.copying = kTouch == Touch::kCopy;
  }
}

// The records of a piece of memory: a cell a word, and four more for a word that is split.
struct Shadow {
  Cell* words = nullptr;
  Cell* bytes = nullptr;
};

template <bool kGlobal, Touch kTouch>
void check_range(Shadow& shadow, uint64_t offset, const Access& access) {
  for (const uint64_t end = offset + access.bytes; offset < end;) {
    Cell& word = shadow.words[offset / 4];
    Cell* const bytes = shadow.bytes + offset / 4 * 4;
    if (offset % 4 == 0 && end - offset >= 4) {
      if (!word.split) {
        check<kGlobal, kTouch>(word, access);
      } else {
        for (int i = 0; i < 4; ++i) check<kGlobal, kTouch>(bytes[i], access);
        if (kTouch == Touch::kWrite || kTouch == Touch::kCopy) word = bytes[0];  // not split
      }
      offset += 4;
    } else {
      if (!word.split) {
        for (int i = 0; i < 4; ++i) bytes[i] = word;
        word.split = 1;
      }
      check<kGlobal, kTouch>(bytes[offset % 4], access);
      ++offset;
    }
  }
}

// Whether anybody wrote to whole words at `time` or later.
inline bool written_since(unsigned time, const Shadow& shadow, uint64_t offset, unsigned bytes) {
  const auto written = [&](const Cell& cell) { return cell.write_time >= time || cell.updates.time >= time; };
  for (uint64_t word = offset / 4; word < (offset + bytes) / 4; ++word) {
    if (written(shadow.words[word])) return true;
    for (int i = 0; shadow.words[word].split && i < 4; ++i)
      if (written(shadow.bytes[word * 4 + i])) return true;
  }
  return false;
}

}  // namespace cuda_host
