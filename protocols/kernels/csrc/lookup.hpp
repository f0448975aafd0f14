// Tables at a secret index: unit vectors, sums of the entries that the bits of one's share select, and the polynomial
// whose coefficients they are.
#pragma once

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

// x / 2^bits, rounded to the nearest, in each lane.
template <class Vec, class UVec, class ULane>
inline UVec cut(UVec x, ULane half, int bits) {
  return (UVec)((Vec)(x + half) >> bits);
}

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
constexpr int kParts = 16;  // centers of an entry of a table of coefficients

// For each element e, whose `rest` low bits of m[e] are a number and those above an index modulo size: out[c * n + e] = the
// sum, over the set bits v, of coefficient c of entry (m[e] >> rest) - v around that number; Weighted: over all v, times
// bits[e * size + v]. `turned` has for each of kParts parts of the numbers three rows as for unit_lookup. Lanes are narrow
// where no number and no sum leaves them.
template <class Lane, class ULane, bool Weighted>
inline void lookup_around(u64* __restrict out, const u64* __restrict m, const u64* __restrict bits,
                          const Lane* __restrict turned, i64 n, i64 size, int rest, int cut0, int cut1, int cut2,
                          int threads) {
  constexpr int lanes = kVectorBytes / sizeof(Lane);
  typedef Lane Vec __attribute__((vector_size(kVectorBytes)));
  typedef ULane UVec __attribute__((vector_size(kVectorBytes)));
  typedef UVec Loose __attribute__((aligned(sizeof(Lane)), may_alias));
  UVec places;
  for (int l = 0; l < lanes; ++l) places[l] = static_cast<ULane>(l);
  const int inner = rest - 4;
  const i64 words = (size + 63) / 64;
  const auto half = [](int count) { return static_cast<ULane>((u64(1) << count) >> 1); };
  const ULane half0 = half(cut0), half1 = half(cut1), half2 = half(cut2);
  parallel(n, 64, threads_for(n * 3, kLookupsPerMillisecond, threads), [=](i64 begin, i64 end) {
    for (i64 e = begin; e < end; ++e) {
      const i64 part = static_cast<i64>((m[e] >> inner) & (kParts - 1));
      const ULane r = static_cast<ULane>((m[e] & ((u64(1) << inner) - 1)) - (u64(1) << inner >> 1));
      const i64 start = (size - static_cast<i64>((m[e] >> rest) & static_cast<u64>(size - 1))) & (size - 1);
      const Lane* row = turned + part * 6 * size + start;
      UVec sum0 = {}, sum1 = {}, sum2 = {};
      for (i64 v = 0; v < size; v += lanes) {
        UVec by;
        if constexpr (Weighted) {
          by = *reinterpret_cast<const Loose*>(bits + e * size + v);
        } else {
          by = ((UVec{} + static_cast<ULane>(bits[e * words + v / 64] >> (v % 64))) >> places) & (UVec{} + ULane(1));
          by = UVec{} - by;  // all bits of a lane
        }
        const auto taken = [&by](const UVec& x) { return Weighted ? x * by : x & by; };
        const UVec c0 = *reinterpret_cast<const Loose*>(row + v);
        const UVec c1 = *reinterpret_cast<const Loose*>(row + 2 * size + v);
        const UVec c2 = *reinterpret_cast<const Loose*>(row + 4 * size + v);
        const UVec moved = c2 * r;
        const UVec h = c1 + cut<Vec>(moved, half1, cut1);
        sum0 += taken(c0 + cut<Vec>(h * r, half0, cut0));
        sum1 += taken(cut<Vec>(c1 + cut<Vec>(moved + moved, half1, cut1), half2, cut2));
        sum2 += taken(c2);
      }
      ULane total[3] = {0, 0, 0};
      for (int l = 0; l < lanes; ++l) {
        total[0] += sum0[l];
        total[1] += sum1[l];
        total[2] += sum2[l];
      }
      for (int c = 0; c < 3; ++c) out[c * n + e] = static_cast<u64>(static_cast<i64>(static_cast<Lane>(total[c])));
    }
  });
}

// A share of the sum of y_i p_i 2^a_i less d, for public y_i and shares p_i (null for p0: 1, which the first party has).
inline void spline(u64* __restrict out, const u64* __restrict y0, const u64* __restrict y1, const u64* __restrict y2,
                   const u64* __restrict p0, const u64* __restrict p1, const u64* __restrict p2,
                   const u64* __restrict d, i64 n, int a0, int a1, int a2, bool first, int threads) {
  parallel(n, 64, threads_for(double(n) * 3, kTermsPerMillisecond, threads), [=](i64 begin, i64 end) {
    for (i64 e = begin; e < end; ++e) {
      const u64 power = p0 == nullptr ? u64(first) : p0[e];
      out[e] = (y0[e] << a0) * power + (y1[e] << a1) * p1[e] + (y2[e] << a2) * p2[e] - d[e];
    }
  });
}

// What is dealt of it: u g_i for g_0 = 1, g_1 = g and g_2 = g^2 / 2^drop, where g is what lam leaves of a number, and the sum
// of their products with the masks of the y_i. A null sign is 1.
inline void deal_spline(u64* __restrict out, const u64* __restrict l0, const u64* __restrict l1,
                        const u64* __restrict l2, const u64* __restrict lam, const u64* __restrict sign, i64 n, int a0,
                        int a1, int a2, int rest, int drop, int threads) {
  const u64 low = (u64(1) << rest) - 1, middle = u64(1) << rest >> 1, half = (u64(1) << drop) >> 1;
  parallel(n, 64, threads_for(double(n) * 3, kTermsPerMillisecond, threads), [=](i64 begin, i64 end) {
    for (i64 e = begin; e < end; ++e) {
      const u64 unit = sign == nullptr ? 1 : sign[e];
      const u64 left = rest == 0 ? u64(0) - lam[e] : middle - (lam[e] & low);
      const u64 first = unit * left;
      const u64 second = unit * static_cast<u64>(static_cast<i64>(left * left + half) >> drop);
      out[e] = unit;
      out[n + e] = first;
      out[2 * n + e] = second;
      out[3 * n + e] = (l0[e] << a0) * unit + (l1[e] << a1) * first + (l2[e] << a2) * second;
    }
  });
}

}  // namespace kernels
