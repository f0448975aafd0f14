// Sums of 32-bit integers under signs, modulo 2^32.
#pragma once

#include "common.hpp"

namespace kernels {

#if defined(__AVX2__)
struct SignLanes {
  static constexpr i64 kWidth = 8;
  using Vector = __m256i;
  static Vector load(const std::int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static Vector broadcast(u32 x) { return _mm256_set1_epi32(static_cast<int>(x)); }
  static Vector zero() { return _mm256_setzero_si256(); }
  static void add(Vector& sum, Vector x, Vector sign) { sum = _mm256_add_epi32(sum, _mm256_sign_epi32(x, sign)); }
  static void store(u32* p, Vector sum) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), sum); }
};
#else
struct SignLanes {
  static constexpr i64 kWidth = 1;
  using Vector = u32;
  static Vector load(const std::int32_t* p) { return static_cast<u32>(*p); }
  static Vector broadcast(u32 x) { return x; }
  static Vector zero() { return 0; }
  static void add(Vector& sum, Vector x, Vector sign) {
    const auto s = static_cast<std::int32_t>(sign);
    sum += s == 0 ? 0 : s < 0 ? 0 - x : x;
  }
  static void store(u32* p, Vector sum) { *p = sum; }
};
#endif

// A tile of the result is kSignRows by kSignColumns, in registers; signs of kSignDepth terms, converted once for all rows,
// stay in a near cache.
constexpr i64 kSignRows = 4, kSignColumns = 2 * SignLanes::kWidth, kSignDepth = 512;

// A tile's sums over `depth` terms: rows of a are `stride` apart, signs lie kSignColumns to a term.
inline void sign_tile(u32 (&sums)[kSignRows][kSignColumns], const u32* a, i64 stride, const std::int32_t* signs, i64 depth) {
  using L = SignLanes;
  L::Vector s[kSignRows][2];
  for (auto& row : s) row[0] = row[1] = L::zero();
  for (i64 k = 0; k < depth; ++k) {
    const L::Vector first = L::load(signs + k * kSignColumns), second = L::load(signs + k * kSignColumns + L::kWidth);
    for (i64 r = 0; r < kSignRows; ++r) {
      const L::Vector x = L::broadcast(a[r * stride + k]);
      L::add(s[r][0], x, first);
      L::add(s[r][1], x, second);
    }
  }
  for (i64 r = 0; r < kSignRows; ++r) {
    L::store(sums[r], s[r][0]);
    L::store(sums[r] + L::kWidth, s[r][1]);
  }
}

// out[m, n] = a[m, depth] sign(b[depth, n]), all contiguous.
inline void sign_product(u32* out, const u32* a, const std::int8_t* b, i64 m, i64 n, i64 depth, int threads) {
  std::fill_n(out, m * n, 0);
  const i64 tiles = (n + kSignColumns - 1) / kSignColumns;
  threads = threads_for(double(m) * double(n) * double(depth), i64(8) << 20, threads);
  parallel(m, kSignRows, threads, [&](i64 begin, i64 end) {
    std::vector<std::int32_t> signs(static_cast<std::size_t>(tiles * kSignColumns * kSignDepth));
    std::vector<u32> last(kSignRows * kSignDepth);
    for (i64 k = 0; k < depth; k += kSignDepth) {
      const i64 terms = std::min(kSignDepth, depth - k);
      for (i64 tile = 0; tile < tiles; ++tile) {
        const i64 columns = std::min(kSignColumns, n - tile * kSignColumns);
        for (i64 t = 0; t < terms; ++t) {
          const std::int8_t* from = b + (k + t) * n + tile * kSignColumns;
          std::int32_t* to = &signs[(tile * kSignDepth + t) * kSignColumns];
          if (columns == kSignColumns) {
            for (i64 c = 0; c < kSignColumns; ++c) to[c] = from[c];
          } else {
            for (i64 c = 0; c < columns; ++c) to[c] = from[c];
          }
        }
      }
      for (i64 row = begin; row < end; row += kSignRows) {
        const i64 rows = std::min(kSignRows, end - row);
        const u32* left = a + row * depth + k;
        if (rows < kSignRows) {  // rows beyond the last are of anything, and not stored
          for (i64 r = 0; r < rows; ++r) std::copy_n(left + r * depth, terms, last.data() + r * kSignDepth);
          left = last.data();
        }
        for (i64 tile = 0; tile < tiles; ++tile) {
          u32 sums[kSignRows][kSignColumns];
          sign_tile(sums, left, rows < kSignRows ? kSignDepth : depth, &signs[tile * kSignDepth * kSignColumns], terms);
          const i64 columns = std::min(kSignColumns, n - tile * kSignColumns);
          for (i64 r = 0; r < rows; ++r) {
            u32* to = out + (row + r) * n + tile * kSignColumns;
            for (i64 c = 0; c < columns; ++c) to[c] += sums[r][c];
          }
        }
      }
    }
  });
}

}  // namespace kernels
