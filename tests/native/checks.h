// What the checks of the CPU kernels share. Each runs the kernels of one family at one ISA level, which this machine has,
// against plain double arithmetic; every buffer is as large as its contents.
#pragma once

#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include "isa.h"
#include "parallel.h"

namespace m3el {

void check_g2l(Isa isa);
void check_g2l_amx();  // on emulated tiles, which need AVX-512
void check_contrastive(Isa isa);
void check_cross_modal(Isa isa);
void check_products(Isa isa);
void check_topk();  // one for all levels

// Prints a line and counts a failure where it is not `good`.
void expect(bool good, const char* what, const char* level, double error);

struct Random {
  uint64_t state = 1;
  double next() {  // uniform in [-1, 1)
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<double>(state >> 40) / (1 << 23) - 1;
  }
  std::vector<float> floats(int64_t n) {
    std::vector<float> out(n);
    for (float& x : out) x = static_cast<float>(2 * next());
    return out;
  }
};

// 3 threads whatever the count, so that ranges of odd sizes and idle threads occur.
inline Parallel three_threads() {
  return {3, [](int64_t count, const auto& body) {
            std::vector<std::thread> threads;
            for (int64_t t = 0; t < 3; ++t) {
              const int64_t begin = count * t / 3, end = count * (t + 1) / 3;
              if (begin < end) threads.emplace_back([&body, begin, end] { body(begin, end); });
            }
            for (std::thread& thread : threads) thread.join();
          }};
}

inline uint16_t to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float from_bf16(uint16_t x) {
  const uint32_t bits = uint32_t{x} << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

}  // namespace m3el
