// Tables at a secret index: unit vectors, sums of the entries that the bits of one's share select, and the polynomial
// whose coefficients they are.
#pragma once

#include <type_traits>

#include "common.hpp"

namespace kernels {

constexpr i64 kLookupsPerMillisecond = i64(1) << 13;
constexpr i64 kTermsPerMillisecond = i64(1) << 18;

// out[e * words ...]: `size` bits of which number lam[e] modulo size is set.
inline void unit_vectors(u64* __restrict out, const u64* __restrict lam, i64 n, i64 size) {
  const i64 words = (size + 63) / 64;
  for (i64 e = 0; e < n; ++e) {
    const u64 at = lam[e] & static_cast<u64>(size - 1);
    for (i64 w = 0; w < words; ++w) out[e * words + w] = static_cast<i64>(at / 64) == w ? u64(1) << (at % 64) : 0;
  }
}

#if defined(__AVX2__) && !defined(__AVX512F__)

// Sums of Columns rows of entries at once: what a bit selects is the same in all of them. Four bits at a time, from the
// highest of a word down, each at the top of its lane.
template <int Columns>
inline void selected_sums(u64* __restrict out, i64 stride, const u64* __restrict row, i64 row_stride,
                          const u64* __restrict bits, i64 size) {
  typedef u64 Vec __attribute__((vector_size(32)));
  const __m256i zero = _mm256_setzero_si256();
  const __m256i places = _mm256_setr_epi64x(3, 2, 1, 0);
  __m256i sums[Columns];
  for (int c = 0; c < Columns; ++c) sums[c] = zero;
  for (i64 w = 0; w * 64 < size; ++w) {
    const i64 count = std::min<i64>(size - w * 64, 64);
    __m256i word = _mm256_sllv_epi64(_mm256_set1_epi64x(static_cast<long long>(bits[w] << (64 - count))), places);
    for (i64 v = count - 4; v >= 0; v -= 4) {
      const __m256i chosen = _mm256_cmpgt_epi64(zero, word);
      word = _mm256_slli_epi64(word, 4);
      for (int c = 0; c < Columns; ++c) {
        const u64* entries = row + c * row_stride + w * 64 + v;
        const __m256i terms = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(entries));
        sums[c] = _mm256_add_epi64(sums[c], _mm256_and_si256(terms, chosen));
      }
    }
  }
  for (int c = 0; c < Columns; ++c) {
    const Vec s = (Vec)sums[c];
    out[c * stride] = (s[0] + s[1]) + (s[2] + s[3]);
  }
}

inline void selected_sums(u64* out, i64 stride, const u64* row, i64 row_stride, const u64* bits, i64 size,
                          i64 columns) {
  for (; columns >= 3; columns -= 3, out += 3 * stride, row += 3 * row_stride) {
    selected_sums<3>(out, stride, row, row_stride, bits, size);
  }
  if (columns == 2) selected_sums<2>(out, stride, row, row_stride, bits, size);
  if (columns == 1) selected_sums<1>(out, stride, row, row_stride, bits, size);
}

#else

inline void selected_sums(u64* out, i64 stride, const u64* row, i64 row_stride, const u64* bits, i64 size,
                          i64 columns) {
  for (i64 c = 0; c < columns; ++c, row += row_stride) {
    u64 lanes[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    for (i64 w = 0; w * 64 < size; ++w) {
      const u64 word = bits[w];
      const i64 count = std::min<i64>(size - w * 64, 64);
      for (i64 v = 0; v < count; v += 8) {
        for (int l = 0; l < 8; ++l) {
          lanes[l] += row[w * 64 + v + l] & (u64(0) - ((word >> (v + l)) & 1));
        }
      }
    }
    u64 sum = 0;
    for (const u64 lane : lanes) sum += lane;
    out[c * stride] = sum;
  }
}

#endif

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
      selected_sums(out + e, n, turned + start, 2 * size, bits + e * words, size, columns);
    }
  });
}

// A share of sum over r < Terms of T_r t^r, for masked coefficients and a masked t: m - l with public m, and dealt shares of
// the powers of l (times the coefficients' sign, which is 1 and public where there is none) and of their products with
// the coefficients' masks.
template <int Terms>
inline void spline(u64* __restrict out, const u64* __restrict m, const u64* __restrict t, const u64* __restrict products,
                   i64 n, bool is_signed, bool first, int threads) {
  parallel(n, 64, threads_for(double(n) * Terms, kTermsPerMillisecond, threads), [=](i64 begin, i64 end) {
    const int own = is_signed ? Terms : Terms - 1;
    const u64* mixed = products + own * n;
    for (i64 e = begin; e < end; ++e) {
      u64 power[Terms];
      for (int i = 0; i < Terms; ++i) {
        power[i] = is_signed ? products[i * n + e] : i == 0 ? u64(first) : products[(i - 1) * n + e];
      }
      const u64 x = t[e];
      u64 sum = m[e] * power[0] - mixed[e];
      if (Terms > 1) {
        const u64 c = m[n + e];
        sum += x * (c * power[0] - mixed[n + e]) - (c * power[1] - mixed[2 * n + e]);
      }
      if (Terms > 2) {
        const u64 c = m[2 * n + e];
        sum += x * x * (c * power[0] - mixed[3 * n + e]) - 2 * x * (c * power[1] - mixed[4 * n + e]) +
               (c * power[Terms - 1] - mixed[5 * n + e]);
      }
      out[e] = sum;
    }
  });
}

// What is dealt of it: the powers of lam times the sign (null: 1, and the first power is left out), then their products with
// the coefficients' masks.
template <int Terms>
inline void deal_spline(u64* __restrict out, const u64* __restrict masks, const u64* __restrict lam,
                        const u64* __restrict sign, i64 n, int threads) {
  parallel(n, 64, threads_for(double(n) * Terms, kTermsPerMillisecond, threads), [=](i64 begin, i64 end) {
    const int left_out = sign == nullptr ? 1 : 0;
    u64* mixed = out + (Terms - left_out) * n;
    for (i64 e = begin; e < end; ++e) {
      u64 power[Terms];
      power[0] = sign == nullptr ? 1 : sign[e];
      for (int i = 1; i < Terms; ++i) power[i] = power[i - 1] * lam[e];
      for (int i = left_out; i < Terms; ++i) out[(i - left_out) * n + e] = power[i];
      for (int r = 0, at = 0; r < Terms; ++r) {
        for (int i = 0; i <= r; ++i, ++at) mixed[at * n + e] = masks[r * n + e] * power[i];
      }
    }
  });
}

// body(a constant of the number of terms, 1 to 3).
template <class Body>
void with_terms(i64 terms, const Body& body) {
  if (terms == 1) {
    body(std::integral_constant<int, 1>());
  } else if (terms == 2) {
    body(std::integral_constant<int, 2>());
  } else {
    body(std::integral_constant<int, 3>());
  }
}

}  // namespace kernels
