// Products of many residues modulo one odd number: eight at a time with AVX-512 IFMA, or one by one.
//
// A residue is `digits` words of 52 bits, lowest first, in Montgomery form: x stands for x / 2^(52 digits) mod m.
// Values stay below 2m and m below 2^(52 digits - 2), so that a product needs no final subtraction (Gueron and Krasnov,
// "Software implementation of modular exponentiation, using advanced vector instructions architectures", WAIFI 2012).
// `digits` is even and at most 1000. Columns of a product are summed without carries: eight lanes add up 4 terms below
// 2^52 for each digit in 64 bits, a single one adds up 2 terms below 2^104 in 128 bits.
#pragma once

#include <array>
#include <atomic>

#include "common.hpp"

#if defined(__AVX512F__) && (defined(__GNUC__) || defined(__clang__))
#define KERNELS_IFMA __attribute__((target("avx512f,avx512ifma")))
#endif

namespace kernels {

constexpr u64 kDigit = (u64(1) << 52) - 1;
constexpr i64 kDigitProductsPerMillisecond = i64(1) << 20;

struct ResidueModulus {
  const u64* digits;  // m
  const u64* square;  // 2^(104 digits) mod m
  u64 factor;         // -1/m mod 2^52
  i64 count;          // number of digits
};

// One residue after the other.
class OneLane {
 public:
  static constexpr i64 kLanes = 1;

  explicit OneLane(const ResidueModulus& m) : m_(m), q_(static_cast<std::size_t>(m.count)), high_(q_) {}

  // out = a b / 2^(52 digits) mod m, column by column; out may be a or b.
  void multiply(u64* out, const u64* a, const u64* b) {
    const i64 n = m_.count;
    Wide sum = 0;
    for (i64 c = 0; c < n; ++c) {
      Wide more = 0;
      for (i64 i = 0; i < c; ++i) {
        sum += static_cast<Wide>(a[i]) * b[c - i];
        more += static_cast<Wide>(q_[i]) * m_.digits[c - i];
      }
      sum += static_cast<Wide>(a[c]) * b[0] + more;
      q_[c] = static_cast<u64>(sum) * m_.factor & kDigit;
      sum = (sum + static_cast<Wide>(q_[c]) * m_.digits[0]) >> 52;
    }
    u64* high = high_.data();
    for (i64 c = n; c < 2 * n; ++c) {
      Wide more = 0;
      for (i64 i = c - n + 1; i < n; ++i) {
        sum += static_cast<Wide>(a[i]) * b[c - i];
        more += static_cast<Wide>(q_[i]) * m_.digits[c - i];
      }
      sum += more;
      high[c - n] = static_cast<u64>(sum) & kDigit;
      sum >>= 52;
    }
    std::copy(high, high + n, out);
  }

  void gather(u64* out, const u64* table, const i64* rows) const {
    std::copy(table + *rows * m_.count, table + (*rows + 1) * m_.count, out);
  }

 private:
  __extension__ using Wide = unsigned __int128;
  ResidueModulus m_;
  std::vector<u64> q_, high_;
};

#if defined(KERNELS_IFMA)
// Eight residues side by side: digit j of lane l is word 8 j + l.
class EightLanes {
 public:
  static constexpr i64 kLanes = 8;

  explicit EightLanes(const ResidueModulus& m) : m_(m) {}

  // out = a b / 2^(52 digits) mod m in each lane; out may be a or b.
  KERNELS_IFMA void multiply(u64* to, const u64* left, const u64* right) {
    const i64 digits = m_.count;
    const u64* m = m_.digits;
    __m512i* out = reinterpret_cast<__m512i*>(to);
    const __m512i* a = reinterpret_cast<const __m512i*>(left);
    const __m512i* b = reinterpret_cast<const __m512i*>(right);
    __m512i* sum = reinterpret_cast<__m512i*>(sum_.reserve(8 * digits));
    const __m512i zero = _mm512_setzero_si512(), k = _mm512_set1_epi64(static_cast<long long>(m_.factor));
    const auto lo = [](__m512i s, __m512i x, __m512i y) KERNELS_IFMA { return _mm512_madd52lo_epu64(s, x, y); };
    const auto hi = [](__m512i s, __m512i x, __m512i y) KERNELS_IFMA { return _mm512_madd52hi_epu64(s, x, y); };
    const auto at = [m](i64 j) KERNELS_IFMA { return _mm512_set1_epi64(static_cast<long long>(m[j])); };
    for (i64 j = 0; j < digits; ++j) sum[j] = zero;
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

  KERNELS_IFMA void gather(u64* out, const u64* table, const i64* rows) const {
    const i64 n = m_.count;
    const __m512i starts = _mm512_set_epi64(rows[7] * n, rows[6] * n, rows[5] * n, rows[4] * n, rows[3] * n,
                                            rows[2] * n, rows[1] * n, rows[0] * n);
    for (i64 j = 0; j < n; ++j) {
      _mm512_store_si512(out + 8 * j, _mm512_i64gather_epi64(starts, table + j, 8));
    }
  }

 private:
  ResidueModulus m_;
  Scratch sum_;
};
#endif

// Asks for rows of a table ahead of their use: they are far apart, so the processor does not see them coming.
inline void prefetch_rows(const u64* table, const std::int32_t* index, i64 stride, i64 lanes, i64 digits) {
  for (i64 l = 0; l < lanes; ++l) {
    const u64* row = table + index[l * stride] * digits;
    for (i64 j = 0; j < digits; j += 8) __builtin_prefetch(row + j);
  }
}

// One thread's workplace: two residues for each lane, `value` being the accumulators.
template <class Engine>
struct Workplace {
  explicit Workplace(const ResidueModulus& m) : engine(m), words(Engine::kLanes * m.count) {
    value = scratch.reserve(2 * words);
    other = value + words;
    std::memset(value, 0, static_cast<std::size_t>(16 * words));
  }
  u64& digit(u64* values, i64 lane, i64 j) const { return values[Engine::kLanes * j + lane]; }
  void multiply(const u64* by) { engine.multiply(value, value, by), ++products; }

  Engine engine;
  i64 words;
  i64 products = 0;
  Scratch scratch;
  u64* value;
  u64* other;
};

// The first `used` lanes of the accumulators, one below the other.
template <class Engine>
void scatter(u64* out, const Workplace<Engine>& at, i64 used, i64 digits) {
  for (i64 l = 0; l < used; ++l) {
    for (i64 j = 0; j < digits; ++j) out[l * digits + j] = at.digit(at.value, l, j);
  }
}

// body(workplace, first, lanes used) for every group of lanes among `count`, on several threads. Returns how often
// a workplace multiplied.
template <class Engine, class Body>
i64 for_lanes(i64 count, i64 products, const ResidueModulus& m, int threads, const Body& body) {
  const int share = threads_for(count * products * m.count * m.count, kDigitProductsPerMillisecond, threads);
  std::atomic<i64> made{0};
  parallel(count, Engine::kLanes, share, [&](i64 begin, i64 end) {
    Workplace<Engine> at(m);
    for (i64 k = begin; k < end; k += Engine::kLanes) body(at, k, std::min(Engine::kLanes, end - k));
    made += at.products;
  });
  return made;
}

// out[k] = product over the levels of rows of a table, squared `squarings` times between levels:
// acc = 1; for each level: acc = acc^(2^squarings) * prod_t table[index[k][level][t]]. Row 0 of the table is one, and
// is multiplied by like any other: what is computed depends on sizes alone, as the index may be secret.
template <class Engine>
i64 residue_products(u64* out, const u64* table, const std::int32_t* index, i64 count, i64 levels, i64 terms,
                      int squarings, const ResidueModulus& m, int threads) {
  return for_lanes<Engine>(count, levels * (terms + squarings), m, threads, [&](auto& at, i64 k, i64 used) {
    std::array<i64, Engine::kLanes> rows{};
    if (terms == 0 || levels == 0) at.engine.gather(at.value, table, rows.data());
    for (i64 level = 0; terms > 0 && level < levels; ++level) {
      for (int s = 0; s < squarings && level > 0; ++s) at.multiply(at.value);
      for (i64 t = 0; t < terms; ++t) {
        const bool first = level == 0 && t == 0;
        const std::int32_t* here = index + (k * levels + level) * terms + t;
        for (i64 l = 0; l < used; ++l) rows[l] = here[l * levels * terms];
        at.engine.gather(first ? at.value : at.other, table, rows.data());
        if (t + 1 < terms) prefetch_rows(table, here + 1, levels * terms, used, m.count);
        if (!first) at.multiply(at.other);
      }
    }
    scatter(out + k * m.count, at, used, m.count);
  });
}

// Little-endian numbers of `bytes` bytes below m into Montgomery form.
template <class Engine>
void residues_enter(u64* out, const u8* numbers, i64 count, i64 bytes, const ResidueModulus& m, int threads) {
  for_lanes<Engine>(count, 1, m, threads, [&](auto& at, i64 k, i64 used) {
    for (i64 j = 0; j < m.count; ++j) {
      const i64 first = 52 * j / 8, here = std::min<i64>(8, bytes - first);
      for (i64 l = 0; l < Engine::kLanes; ++l) at.digit(at.other, l, j) = m.square[j];
      for (i64 l = 0; l < used; ++l) {
        u64 word = 0;
        if (here > 0) std::memcpy(&word, numbers + (k + l) * bytes + first, static_cast<std::size_t>(here));
        at.digit(at.value, l, j) = word >> (52 * j % 8) & kDigit;
      }
    }
    at.multiply(at.other);
    scatter(out + k * m.count, at, used, m.count);
  });
}

// Out of Montgomery form: little-endian numbers of `bytes` bytes, below m.
template <class Engine>
void residues_leave(u8* out, const u64* residues, i64 count, i64 bytes, const ResidueModulus& m, int threads) {
  for_lanes<Engine>(count, 1, m, threads, [&](auto& at, i64 k, i64 used) {
    std::array<i64, Engine::kLanes> rows{};
    for (i64 l = 0; l < Engine::kLanes; ++l) {
      rows[l] = k + std::min(l, used - 1);
      at.digit(at.other, l, 0) = 1;
    }
    at.engine.gather(at.value, residues, rows.data());
    at.multiply(at.other);  // by 1, which leaves at most m
    std::vector<u64> value(static_cast<std::size_t>(m.count)), less(value);
    for (i64 l = 0; l < used; ++l) {
      u64 borrow = 0;
      for (i64 j = 0; j < m.count; ++j) {
        value[j] = at.digit(at.value, l, j);
        const u64 x = value[j] - m.digits[j] - borrow;
        less[j] = x & kDigit;
        borrow = x >> 63;
      }
      for (i64 j = 0; j < m.count; ++j) value[j] ^= (value[j] ^ less[j]) & (borrow - 1);  // no branch: it may be secret
      const u64* digits = value.data();
      u8* number = out + (k + l) * bytes;
      for (i64 first = 0; first < bytes; ++first) {
        const i64 bit = 8 * first, j = bit / 52;
        u64 word = j < m.count ? digits[j] >> (bit % 52) : 0;
        if (bit % 52 > 44 && j + 1 < m.count) word |= digits[j + 1] << (52 - bit % 52);
        number[first] = static_cast<u8>(word);
      }
    }
  });
}

// Residues multiplied at a time on this CPU.
inline i64 residue_lanes() {
#if defined(KERNELS_IFMA)
  static const bool eight = (__builtin_cpu_init(), __builtin_cpu_supports("avx512ifma") != 0);
  if (eight) return 8;
#endif
  return 1;
}

// body(an engine's type as an argument) with the engine for this CPU.
template <class Body>
void with_lanes(const Body& body) {
#if defined(KERNELS_IFMA)
  if (residue_lanes() == 8) return body(static_cast<EightLanes*>(nullptr));
#endif
  body(static_cast<OneLane*>(nullptr));
}

}  // namespace kernels
