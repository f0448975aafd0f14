// Truncation, selection and fixed point. Loops over blocks of 64 elements, one word of packed bits each.
#pragma once

#include <cmath>

#include "common.hpp"

namespace kernels {

constexpr i64 kValuesPerMillisecond = i64(1) << 19;

// body(begin, end) on slices that start at a multiple of 64.
template <class Body>
inline void over(i64 n, int threads, const Body& body) {
  parallel(n, 64, threads_for(n, kValuesPerMillisecond, threads), body);
}

// body(e, bit of e) for begin <= e < end.
template <class Body>
inline __attribute__((always_inline)) void with_bits(const u64* words, i64 begin, i64 end, const Body& body) {
  i64 e = begin;
  for (; e + 64 <= end; e += 64) {
    const u64 word = words[e / 64];
    for (int l = 0; l < 64; ++l) body(e + l, (word >> l) & 1);
  }
  for (; e < end; ++e) body(e, (words[e / 64] >> (e % 64)) & 1);
}

// What everybody knows of (x + offset) >> f: m' >> f - 2^(62-f), and whether the top bit of m' is clear, for
// m' = m + offset + 2^62.
struct Shifted {
  u64 value, clear;
};

inline __attribute__((always_inline)) Shifted shifted(u64 m, int f, u64 offset) {
  const u64 raised = m + offset + (u64(1) << 62);
  return {(raised >> f) - (u64(1) << (62 - f)), (raised >> 63) ^ 1};
}

// With clear in {0, 1}: clear * v without a multiplication.
inline __attribute__((always_inline)) u64 when(u64 clear, u64 v) { return (u64(0) - clear) & v; }

// (1 - 2 bit) * v.
inline __attribute__((always_inline)) u64 negate_if(u64 bit, u64 v) { return (v ^ (u64(0) - bit)) + bit; }

// Wrap bits are shared modulo 2^f only, in the narrowest type of at least f bits: k counts in units of 2^(64-f).
template <class Narrow>
inline void deal_truncation(u64* __restrict a, Narrow* __restrict k, const u64* __restrict lam, i64 n, int f,
                            int threads) {
  over(n, threads, [=](i64 begin, i64 end) {
    for (i64 e = begin; e < end; ++e) {
      a[e] = lam[e] >> f;
      k[e] = static_cast<Narrow>(lam[e] >> 63);
    }
  });
}

// The carry of the low bits is a masked bit, chat ^ gamma; without it (chat null) the result may be one too high.
template <class Narrow>
inline void truncate(u64* __restrict out, const u64* __restrict m, const u64* __restrict a, const Narrow* __restrict k,
                     const u64* __restrict chat, const u64* __restrict gamma, i64 n, int f, u64 offset, bool first,
                     int threads) {
  over(n, threads, [=](i64 begin, i64 end) {
    const u64 mine = first ? ~u64(0) : u64(0);
    const auto share = [=](i64 e, u64 carry) {
      const Shifted p = shifted(m[e], f, offset);
      return ((p.value - carry) & mine) - a[e] + when(p.clear, static_cast<u64>(k[e]) << (64 - f));
    };
    if (chat == nullptr) {
      for (i64 e = begin; e < end; ++e) out[e] = share(e, 0);
    } else {
      with_bits(chat, begin, end, [=](i64 e, u64 carry) { out[e] = share(e, carry) - negate_if(carry, gamma[e]); });
    }
  });
}

inline void bit_times(u64* __restrict out, const u64* __restrict words, const u64* __restrict v, i64 n, int threads) {
  over(n, threads, [=](i64 begin, i64 end) {
    if (v == nullptr) {
      with_bits(words, begin, end, [=](i64 e, u64 bit) { out[e] = bit; });
    } else {
      with_bits(words, begin, end, [=](i64 e, u64 bit) { out[e] = when(bit, v[e]); });
    }
  });
}

inline void select(u64* __restrict out, const u64* __restrict bhat, const u64* __restrict m, const u64* __restrict lam,
                   const u64* __restrict beta, const u64* __restrict beta_lam, i64 n, bool first, int threads) {
  over(n, threads, [=](i64 begin, i64 end) {
    const u64 mine = first ? ~u64(0) : u64(0);
    if (lam == nullptr) {
      with_bits(bhat, begin, end, [=](i64 e, u64 bit) {
        out[e] = when(bit, m[e] & mine) + negate_if(bit, m[e] * beta[e] - beta_lam[e]);
      });
    } else {
      with_bits(bhat, begin, end, [=](i64 e, u64 bit) {
        out[e] = when(bit, (m[e] & mine) - lam[e]) + negate_if(bit, m[e] * beta[e] - beta_lam[e]);
      });
    }
  });
}

// b ((x + offset) >> f), with the carry of `truncate` and bgamma a share of beta * gamma.
template <class Narrow>
inline void select_truncated(u64* __restrict out, const u64* __restrict bhat, const u64* __restrict m,
                             const u64* __restrict a, const Narrow* __restrict k, const u64* __restrict b,
                             const u64* __restrict ba, const Narrow* __restrict bk, const u64* __restrict chat,
                             const u64* __restrict gamma, const u64* __restrict bgamma, i64 n, int f, u64 offset,
                             bool first, int threads) {
  over(n, threads, [=](i64 begin, i64 end) {
    const u64 mine = first ? ~u64(0) : u64(0);
    const auto share = [=](i64 e, u64 bit, u64 carry, u64 dealt, u64 selected) {
      Shifted p = shifted(m[e], f, offset);
      p.value -= carry;
      const u64 own = (p.value & mine) - a[e] + when(p.clear, static_cast<u64>(k[e]) << (64 - f)) - dealt;
      const u64 other = p.value * b[e] - ba[e] + when(p.clear, static_cast<u64>(bk[e]) << (64 - f)) - selected;
      return when(bit, own) + negate_if(bit, other);
    };
    if (chat == nullptr) {
      with_bits(bhat, begin, end, [=](i64 e, u64 bit) { out[e] = share(e, bit, 0, 0, 0); });
      return;
    }
    with_bits(bhat, begin, end, [=](i64 e, u64 bit) {
      const u64 carry = (chat[e / 64] >> (e % 64)) & 1;
      out[e] = share(e, bit, carry, negate_if(carry, gamma[e]), negate_if(carry, bgamma[e]));
    });
  });
}

inline void bit_to_ring(u64* __restrict out, const u64* __restrict bhat, const u64* __restrict beta, i64 n, bool first,
                        int threads) {
  over(n, threads, [=](i64 begin, i64 end) {
    const u64 mine = first ? 1 : 0;
    with_bits(bhat, begin, end, [=](i64 e, u64 bit) { out[e] = (bit & mine) + negate_if(bit, beta[e]); });
  });
}

template <class Real>
inline void encode(i64* __restrict out, const Real* __restrict x, i64 n, double scale, int threads) {
  over(n, threads, [=](i64 begin, i64 end) {
    for (i64 e = begin; e < end; ++e) out[e] = static_cast<i64>(std::nearbyint(static_cast<double>(x[e]) * scale));
  });
}

inline void decode(float* __restrict out, const i64* __restrict x, i64 n, double scale, int threads) {
  over(n, threads, [=](i64 begin, i64 end) {
    for (i64 e = begin; e < end; ++e) out[e] = static_cast<float>(static_cast<double>(x[e]) * scale);
  });
}

}  // namespace kernels
