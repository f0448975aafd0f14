// Products of many residues modulo one odd number, eight at a time with AVX-512 IFMA.
//
// A residue is `digits` words of 52 bits, lowest first, in Montgomery form: x stands for x / 2^(52 digits) mod m. Values
// stay below 2m and m below 2^(52 digits - 2), so that a product needs no final subtraction (Gueron and Krasnov,
// "Software implementation of modular exponentiation, using advanced vector instructions architectures", WAIFI 2012).
// `digits` is even. Columns of a product are summed without carries: 4 terms below 2^52 for each digit fit 64 bits.
#pragma once

#include "common.hpp"

#if defined(__AVX512F__) && (defined(__GNUC__) || defined(__clang__))
#define KERNELS_RESIDUES 1
#define KERNELS_IFMA __attribute__((target("avx512f,avx512ifma")))

namespace kernels {

constexpr u64 kDigit = (u64(1) << 52) - 1;
constexpr i64 kDigitProductsPerMillisecond = i64(1) << 20;

struct ResidueModulus {
  const u64* digits;  // m
  const u64* square;  // 2^(104 digits) mod m
  u64 factor;         // -1/m mod 2^52
  i64 count;          // number of digits
};

// Scratch for one thread: eight residues side by side, each followed by two zero digits.
class EightResidues {
 public:
  explicit EightResidues(i64 digits) : digits_(digits) { std::memset(words_.reserve(size() * 4), 0, 32 * size()); }
  __m512i* operator[](int which) { return reinterpret_cast<__m512i*>(words_.reserve(0) + which * size()); }

 private:
  i64 size() const { return 8 * (digits_ + 2); }
  i64 digits_;
  Scratch words_;
};

// out = a b / 2^(52 digits) mod m in each of eight lanes; sum is scratch and out may be a or b.
KERNELS_IFMA inline void multiply_lanes(__m512i* out, const __m512i* a, const __m512i* b, const u64* m, u64 factor,
                                        i64 digits, __m512i* sum) {
  const __m512i zero = _mm512_setzero_si512(), k = _mm512_set1_epi64(static_cast<long long>(factor));
  const auto lo = [](__m512i s, __m512i x, __m512i y) KERNELS_IFMA { return _mm512_madd52lo_epu64(s, x, y); };
  const auto hi = [](__m512i s, __m512i x, __m512i y) KERNELS_IFMA { return _mm512_madd52hi_epu64(s, x, y); };
  const auto at = [m](i64 j) KERNELS_IFMA { return _mm512_set1_epi64(static_cast<long long>(m[j])); };
  for (i64 j = 0; j < digits + 2; ++j) sum[j] = zero;
  for (i64 i = 0; i < digits; i += 2) {
    const __m512i b0 = b[i], b1 = b[i + 1], m0 = at(0), m1 = at(1);
    const __m512i s0 = lo(sum[0], a[0], b0), q0 = lo(zero, s0, k);
    __m512i s1 = _mm512_add_epi64(sum[1], _mm512_srli_epi64(lo(s0, m0, q0), 52));
    s1 = lo(hi(lo(s1, a[1], b0), a[0], b0), a[0], b1);
    s1 = hi(lo(s1, m1, q0), m0, q0);
    const __m512i q1 = lo(zero, s1, k);
    __m512i carry = _mm512_srli_epi64(lo(s1, m0, q1), 52);
    __m512i a2 = a[0], a1 = a[1], n2 = m0, n1 = m1;
    for (i64 j = 2; j < digits; ++j) {
      const __m512i a0 = a[j], n0 = at(j);
      __m512i x = _mm512_add_epi64(sum[j], carry), y = lo(zero, n0, q0);
      x = lo(x, a0, b0), y = hi(y, n1, q0);
      x = hi(x, a1, b0), y = lo(y, n1, q1);
      x = lo(x, a1, b1), y = hi(y, n2, q1);
      x = hi(x, a2, b1);
      sum[j - 2] = _mm512_add_epi64(x, y);
      carry = zero;
      a2 = a1, a1 = a0, n2 = n1, n1 = n0;
    }
    const __m512i x = hi(hi(hi(lo(zero, a1, b1), a2, b1), a1, b0), n1, q0);
    sum[digits - 2] = _mm512_add_epi64(carry, hi(lo(x, n1, q1), n2, q1));
    sum[digits - 1] = hi(hi(zero, a1, b1), n1, q1);
  }
  const __m512i mask = _mm512_set1_epi64(static_cast<long long>(kDigit));
  __m512i carry = zero;
  for (i64 j = 0; j < digits; ++j) {
    const __m512i x = _mm512_add_epi64(sum[j], carry);
    out[j] = _mm512_and_si512(x, mask);
    carry = _mm512_srli_epi64(x, 52);
  }
}

// Eight rows of a table, by number, side by side.
KERNELS_IFMA inline void gather_rows(__m512i* out, const u64* table, const i64* rows, i64 digits) {
  const __m512i starts = _mm512_set_epi64(rows[7] * digits, rows[6] * digits, rows[5] * digits, rows[4] * digits,
                                          rows[3] * digits, rows[2] * digits, rows[1] * digits, rows[0] * digits);
  for (i64 j = 0; j < digits; ++j) out[j] = _mm512_i64gather_epi64(starts, table + j, 8);
}

// Asks for rows of a table ahead of their use: they are far apart, so the processor does not see them coming.
inline void prefetch_rows(const u64* table, const std::int32_t* index, i64 stride, i64 lanes, i64 digits) {
  for (i64 l = 0; l < lanes; ++l) {
    const u64* row = table + index[l * stride] * digits;
    for (i64 j = 0; j < digits; j += 8) __builtin_prefetch(row + j);
  }
}

// The first `lanes` of eight residues, one below the other.
inline void scatter_rows(u64* out, const __m512i* values, i64 lanes, i64 digits) {
  const u64* words = reinterpret_cast<const u64*>(values);
  for (i64 j = 0; j < digits; ++j) {
    for (i64 l = 0; l < lanes; ++l) out[l * digits + j] = words[8 * j + l];
  }
}

// out[k] = product over the levels of rows of a table, squared `squarings` times between levels:
// acc = 1; for each level: acc = acc^(2^squarings) * prod_t table[index[k][level][t]]. Row 0 of the table is one.
inline void residue_products(u64* out, const u64* table, const std::int32_t* index, i64 count, i64 levels, i64 terms,
                             int squarings, const ResidueModulus& m, int threads) {
  const i64 work = count * levels * (terms + squarings) * m.count * m.count;
  parallel(count, 8, threads_for(work, kDigitProductsPerMillisecond, threads), [&](i64 begin, i64 end) {
    EightResidues lanes(m.count);
    i64 rows[8];
    for (i64 k = begin; k < end; k += 8) {
      const i64 used = std::min<i64>(8, end - k);
      bool one = true;  // so far: a product with no factor is not computed
      for (i64 level = 0; level < levels; ++level) {
        for (int s = 0; s < squarings && level > 0 && !one; ++s) {
          multiply_lanes(lanes[0], lanes[0], lanes[0], m.digits, m.factor, m.count, lanes[2]);
        }
        for (i64 t = 0; t < terms; ++t) {
          i64 any = 0;
          for (i64 l = 0; l < 8; ++l) {
            rows[l] = l < used ? index[((k + l) * levels + level) * terms + t] : 0;
            any |= rows[l];
          }
          if (any == 0) continue;
          gather_rows(lanes[one ? 0 : 1], table, rows, m.count);
          if (t + 1 < terms) prefetch_rows(table, index + (k * levels + level) * terms + t + 1, levels * terms, used, m.count);
          if (!one) multiply_lanes(lanes[0], lanes[0], lanes[1], m.digits, m.factor, m.count, lanes[2]);
          one = false;
        }
      }
      std::fill(rows, rows + 8, i64(0));
      if (one) gather_rows(lanes[0], table, rows, m.count);
      scatter_rows(out + k * m.count, lanes[0], used, m.count);
    }
  });
}

// Little-endian numbers of `bytes` bytes below m into Montgomery form.
inline void residues_enter(u64* out, const u8* numbers, i64 count, i64 bytes, const ResidueModulus& m, int threads) {
  parallel(count, 8, threads_for(count * m.count * m.count, kDigitProductsPerMillisecond, threads),
           [&](i64 begin, i64 end) {
    EightResidues lanes(m.count);
    const i64 zeros[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    gather_rows(lanes[1], m.square, zeros, m.count);
    for (i64 k = begin; k < end; k += 8) {
      const i64 used = std::min<i64>(8, end - k);
      u64* words = reinterpret_cast<u64*>(lanes[0]);
      for (i64 j = 0; j < m.count; ++j) {
        const i64 first = 52 * j / 8, here = std::min<i64>(8, bytes - first);
        for (i64 l = 0; l < used; ++l) {
          u64 word = 0;
          if (here > 0) std::memcpy(&word, numbers + (k + l) * bytes + first, static_cast<std::size_t>(here));
          words[8 * j + l] = word >> (52 * j % 8) & kDigit;
        }
      }
      multiply_lanes(lanes[0], lanes[0], lanes[1], m.digits, m.factor, m.count, lanes[2]);
      scatter_rows(out + k * m.count, lanes[0], used, m.count);
    }
  });
}

// Out of Montgomery form: little-endian numbers of `bytes` bytes, below m.
inline void residues_leave(u8* out, const u64* residues, i64 count, i64 bytes, const ResidueModulus& m, int threads) {
  parallel(count, 8, threads_for(count * m.count * m.count, kDigitProductsPerMillisecond, threads),
           [&](i64 begin, i64 end) {
    EightResidues lanes(m.count);
    std::vector<u64> value(static_cast<std::size_t>(m.count + 1));
    std::vector<u64> less(static_cast<std::size_t>(m.count + 1));
    for (i64 l = 0; l < 8; ++l) reinterpret_cast<u64*>(lanes[1])[l] = 1;
    for (i64 k = begin; k < end; k += 8) {
      const i64 used = std::min<i64>(8, end - k);
      i64 rows[8];
      for (i64 l = 0; l < 8; ++l) rows[l] = k + std::min(l, used - 1);
      gather_rows(lanes[0], residues, rows, m.count);
      multiply_lanes(lanes[0], lanes[0], lanes[1], m.digits, m.factor, m.count, lanes[2]);
      for (i64 l = 0; l < used; ++l) {
        u64 borrow = 0;
        for (i64 j = 0; j < m.count; ++j) {
          value[j] = reinterpret_cast<u64*>(lanes[0])[8 * j + l];
          const u64 x = value[j] - m.digits[j] - borrow;
          less[j] = x & kDigit;
          borrow = x >> 63;
        }
        const u64* digits = (borrow ? value : less).data();
        u8* number = out + (k + l) * bytes;
        for (i64 first = 0; first < bytes; ++first) {
          const i64 bit = 8 * first, j = bit / 52;
          u64 word = j < m.count ? digits[j] >> (bit % 52) : 0;
          if (bit % 52 > 44 && j + 1 < m.count) word |= digits[j + 1] << (52 - bit % 52);
          number[first] = static_cast<u8>(word);
        }
      }
    }
  });
}

}  // namespace kernels
#endif
