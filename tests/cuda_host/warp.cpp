// What the lanes of a warp do together: the last to arrive computes for all.
#include <algorithm>
#include <cstring>
#include <string>

#include "machine.h"

namespace cuda_host {
namespace {

void refuse(const char* kind, const std::string& text, Where where) {
  report(kind, text, where);
  abandon_block();
}

// Lane that `lane` reads from in a shuffle.
unsigned source_lane(const Fiber& fiber, unsigned lane) {
  const unsigned first = lane & ~(fiber.width - 1u), last = first + fiber.width - 1;
  const unsigned source = static_cast<unsigned>(fiber.source);
  switch (fiber.kind) {
    case Collective::kShuffle: return first + (source & (fiber.width - 1u));
    case Collective::kShuffleUp: return lane - first < source ? lane : lane - source;
    case Collective::kShuffleDown: return last - lane < source ? lane : lane + source;
    default: return (lane ^ source) > last ? lane : lane ^ source;
  }
}

void shuffle(Fiber* lanes, unsigned mask) {
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const unsigned source = source_lane(lanes[lane], lane);
    if (source >= 32 || !(mask >> source & 1))
      refuse("shuffle from an absent lane",
             "thread " + std::to_string(lanes[lane].thread) + " shuffles from lane " + std::to_string(source) +
                 ", which is not in the mask",
             lanes[lane].where);
    lanes[lane].result = lanes[source].value;
  }
}

float from_bf16(uint32_t bits) { return std::bit_cast<float>(bits << 16); }

// The fragments of PTX's mma.m16n8k16: a lane holds rows lane / 4 (+ 8) of a and d, columns 2 (lane % 4) (+ 1, 8, 9).
void multiply(Fiber* lanes) {
  using Vector = float __attribute__((vector_size(16)));
  alignas(16) float a[16][16], b[16][8], sum[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int row = lane / 4, column = lane % 4 * 2;
    const Fiber& fiber = lanes[lane];
    const auto put = [&](int i, int j, uint32_t pair) {
      a[i][j] = from_bf16(pair & 0xffff), a[i][j + 1] = from_bf16(pair >> 16);
    };
    put(row, column, fiber.a.x), put(row + 8, column, fiber.a.y);
    put(row, column + 8, fiber.a.z), put(row + 8, column + 8, fiber.a.w);
    b[column][row] = from_bf16(fiber.b.x & 0xffff), b[column + 1][row] = from_bf16(fiber.b.x >> 16);
    b[column + 8][row] = from_bf16(fiber.b.y & 0xffff), b[column + 9][row] = from_bf16(fiber.b.y >> 16);
  }
  for (int i = 0; i < 16; i += 4) {
    Vector s[4][2] = {};
    for (int k = 0; k < 16; ++k) {
      Vector row[2];
      std::memcpy(row, b[k], sizeof row);
      for (int r = 0; r < 4; ++r) s[r][0] += a[i + r][k] * row[0], s[r][1] += a[i + r][k] * row[1];
    }
    std::memcpy(sum[i], s, sizeof s);
  }
  for (int lane = 0; lane < 32; ++lane) {
    const int row = lane / 4, column = lane % 4 * 2;
    Four& d = lanes[lane].d;
    d.x += sum[row][column], d.y += sum[row][column + 1];
    d.z += sum[row + 8][column], d.w += sum[row + 8][column + 1];
  }
}

// Every lane of the mask is now ordered behind every other one's accesses so far.
void synchronize(Warp& warp, unsigned mask) {
  const unsigned now = ++machine.now;
  if (mask == ~0u) {
    warp.synced = now;
    return;
  }
  if (!warp.partial) {
    std::fill(&warp.seen[0][0], &warp.seen[0][0] + 32 * 32, 0);
    warp.partial = true;
  }
  for (unsigned other = 0; other < 32; ++other) {
    unsigned latest = mask >> other & 1 ? now : 0;
    for (unsigned lane = 0; lane < 32; ++lane)
      if (mask >> lane & 1) latest = std::max(latest, warp.seen[lane][other]);
    for (unsigned lane = 0; lane < 32; ++lane)
      if (mask >> lane & 1) warp.seen[lane][other] = latest;
  }
}

void compute(Fiber* lanes, Warp& warp, Collective kind, unsigned mask) {
  if (kind == Collective::kSync) return synchronize(warp, mask);
  if (kind == Collective::kMma) return multiply(lanes);
  if (kind <= Collective::kShuffleXor) return shuffle(lanes, mask);
  uint64_t result = 0;
  bool first = true;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const uint64_t value = lanes[lane].value;
    const auto as_signed = [](uint64_t bits) { return static_cast<int32_t>(bits); };
    if (kind == Collective::kBallot) {
      result |= value << lane;
    } else if (first) {
      result = value;
    } else if (kind == Collective::kAdd) {
      result += value;
    } else if (kind == Collective::kMax) {
      result = std::max(result, value);
    } else if (kind == Collective::kMin) {
      result = std::min(result, value);
    } else if (kind == Collective::kSignedMax) {
      result = static_cast<uint32_t>(std::max(as_signed(result), as_signed(value)));
    } else {
      result = static_cast<uint32_t>(std::min(as_signed(result), as_signed(value)));
    }
    first = false;
  }
  for (unsigned lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) lanes[lane].result = result;
}

// Waits for the lanes of the mask.
void meet(Fiber& self, Collective kind, unsigned mask, Where where) {
  const unsigned lane = self.thread % 32, first = self.thread - lane;
  Warp& warp = machine.warps[self.thread / 32];
  Fiber* const lanes = machine.fibers + first;
  self.kind = kind, self.mask = mask, self.where = where;
  if (!(mask >> lane & 1))
    refuse("divergent collective", "thread " + std::to_string(self.thread) + " is not in its own mask", where);
  warp.arrived |= 1u << lane;
  if ((warp.arrived & mask) != mask) return wait(State::kCollective);
  for (unsigned other = 0; other < 32; ++other) {
    if (!(mask >> other & 1)) continue;
    const Fiber& them = lanes[other];
    // still in another collective, then: it may come yet
    if (them.mask != mask || them.kind != kind || (kind != Collective::kSync && them.where.line != where.line))
      return wait(State::kCollective);
  }
  compute(lanes, warp, kind, mask);
  warp.arrived &= ~mask;
  for (unsigned other = 0; other < 32; ++other)
    if ((mask >> other & 1) && other != lane) wake(lanes[other]);
  if (kind != Collective::kMma) give_way();
}

}  // namespace

uint64_t warp_collective(Collective kind, unsigned mask, uint64_t value, int source, int width, Where where) {
  Fiber& self = *machine.current;
  self.value = value, self.source = source, self.width = width;
  meet(self, kind, mask, where);
  return self.result;
}

Four mma(Four d, uint4 a, uint2 b, Where where) {
  Fiber& self = *machine.current;
  self.d = d, self.a = a, self.b = b;
  meet(self, Collective::kMma, ~0u, where);
  return self.d;
}

}  // namespace cuda_host
