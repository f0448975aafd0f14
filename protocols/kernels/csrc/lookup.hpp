// Sums of table entries selected by the set bits of a unit vector's share.
#pragma once

#include "common.hpp"

namespace kernels {

constexpr i64 kLookupsPerMillisecond = i64(1) << 13;

// For each element e with index m[e] (modulo size) and bits[e * words ...] a vector of `size` bits:
// out[c * n + e] = sum over set bits v of table[c][(m[e] - v) mod size].
// `turned` holds each column as table[c][(-i) mod size] for i in [0, 2 size), so that the terms of one element
// lie side by side from (size - m) on.
inline void unit_lookup(u64* __restrict out, const u64* __restrict m, const u64* __restrict bits,
                        const u64* __restrict turned, i64 n, i64 size, i64 columns, int threads) {
  const i64 words = (size + 63) / 64;
  parallel(n, 64, threads_for(n * columns, kLookupsPerMillisecond, threads), [=](i64 begin, i64 end) {
    for (i64 e = begin; e < end; ++e) {
      const i64 start = (size - static_cast<i64>(m[e] & static_cast<u64>(size - 1))) & (size - 1);
      for (i64 c = 0; c < columns; ++c) {
        const u64* row = turned + c * 2 * size + start;
        u64 lanes[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        for (i64 w = 0; w < words; ++w) {
          const u64 word = bits[e * words + w];
          const i64 count = size < 64 ? size : 64;
          for (i64 v = 0; v < count; v += 8) {
            for (int l = 0; l < 8; ++l) {
              lanes[l] += row[w * 64 + v + l] & (u64(0) - ((word >> (v + l)) & 1));
            }
          }
        }
        u64 sum = 0;
        for (const u64 lane : lanes) sum += lane;
        out[c * n + e] = sum;
      }
    }
  });
}

}  // namespace kernels
