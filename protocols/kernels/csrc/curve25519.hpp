// Points of Curve25519 times one key, eight at a time with AVX-512 IFMA [RFC 7748].
//
// A number modulo p = 2^255 - 19 is five limbs of 51 bits, of eight numbers side by side. Limbs stay below 2^51 + 2^15,
// so below the 52 bits that a product reads; the sum of two of them does not, and is carried at once. A product of limbs
// i and j is lo + 2^52 hi, so its upper part counts twice at limb i + j + 1.
//
// What is computed depends on the number of points alone: bits of the key choose by masks, never by branches.
#pragma once

#include "residues.hpp"

#if defined(KERNELS_IFMA)
namespace kernels {

#define KERNELS_LANES __attribute__((target("avx512f,avx512ifma"), always_inline)) inline

struct Lanes25519 {
  __m512i limb[5];
};

KERNELS_LANES __m512i lanes_of(u64 value) { return _mm512_set1_epi64(static_cast<long long>(value)); }

constexpr u64 kLimb = (u64(1) << 51) - 1;

// Limbs below 2^63 become small ones, below 2^51 + 20 * 2^12.
KERNELS_LANES Lanes25519 carried(const Lanes25519& x) {
  const __m512i mask = lanes_of(kLimb);
  __m512i c[5];
  Lanes25519 out;
  for (int k = 0; k < 5; ++k) c[k] = _mm512_srli_epi64(x.limb[k], 51);
  const __m512i top = _mm512_add_epi64(_mm512_add_epi64(_mm512_slli_epi64(c[4], 4), _mm512_slli_epi64(c[4], 1)), c[4]);
  out.limb[0] = _mm512_add_epi64(_mm512_and_si512(x.limb[0], mask), top);
  for (int k = 1; k < 5; ++k) out.limb[k] = _mm512_add_epi64(_mm512_and_si512(x.limb[k], mask), c[k - 1]);
  return out;
}

KERNELS_LANES Lanes25519 add(const Lanes25519& a, const Lanes25519& b) {
  Lanes25519 out;
  for (int k = 0; k < 5; ++k) out.limb[k] = _mm512_add_epi64(a.limb[k], b.limb[k]);
  return carried(out);
}

// a - b, by way of 2p - b.
KERNELS_LANES Lanes25519 subtract(const Lanes25519& a, const Lanes25519& b) {
  const __m512i low = lanes_of(2 * kLimb - 36), rest = lanes_of(2 * kLimb);
  Lanes25519 out;
  for (int k = 0; k < 5; ++k) {
    out.limb[k] = _mm512_sub_epi64(_mm512_add_epi64(a.limb[k], k == 0 ? low : rest), b.limb[k]);
  }
  return carried(out);
}

// Sums lo[k] + 2 hi[k - 1] at limb k of ten, of which those from 5 on count 19 times at k - 5.
KERNELS_LANES Lanes25519 folded(const __m512i* lo, const __m512i* hi) {
  __m512i sum[10];
  sum[0] = lo[0];
  for (int k = 1; k < 9; ++k) sum[k] = _mm512_add_epi64(lo[k], _mm512_add_epi64(hi[k - 1], hi[k - 1]));
  sum[9] = _mm512_add_epi64(hi[8], hi[8]);
  Lanes25519 out;
  for (int k = 0; k < 5; ++k) {
    const __m512i x = sum[k + 5];
    const __m512i times = _mm512_add_epi64(_mm512_add_epi64(_mm512_slli_epi64(x, 4), _mm512_slli_epi64(x, 1)), x);
    out.limb[k] = _mm512_add_epi64(sum[k], times);
  }
  return carried(out);
}

KERNELS_LANES Lanes25519 multiply(const Lanes25519& a, const Lanes25519& b) {
  __m512i lo[9], hi[9];
  for (int k = 0; k < 9; ++k) lo[k] = hi[k] = _mm512_setzero_si512();
  for (int i = 0; i < 5; ++i) {
    for (int j = 0; j < 5; ++j) {
      lo[i + j] = _mm512_madd52lo_epu64(lo[i + j], a.limb[i], b.limb[j]);
      hi[i + j] = _mm512_madd52hi_epu64(hi[i + j], a.limb[i], b.limb[j]);
    }
  }
  return folded(lo, hi);
}

KERNELS_LANES Lanes25519 square(const Lanes25519& a) {
  __m512i lo[9], hi[9];
  for (int k = 0; k < 9; ++k) lo[k] = hi[k] = _mm512_setzero_si512();
  for (int i = 0; i < 5; ++i) {
    for (int j = i + 1; j < 5; ++j) {
      lo[i + j] = _mm512_madd52lo_epu64(lo[i + j], a.limb[i], a.limb[j]);
      hi[i + j] = _mm512_madd52hi_epu64(hi[i + j], a.limb[i], a.limb[j]);
    }
  }
  for (int k = 1; k < 8; ++k) {
    lo[k] = _mm512_add_epi64(lo[k], lo[k]);
    hi[k] = _mm512_add_epi64(hi[k], hi[k]);
  }
  for (int i = 0; i < 5; ++i) {
    lo[2 * i] = _mm512_madd52lo_epu64(lo[2 * i], a.limb[i], a.limb[i]);
    hi[2 * i] = _mm512_madd52hi_epu64(hi[2 * i], a.limb[i], a.limb[i]);
  }
  return folded(lo, hi);
}

// a + 121665 b.
KERNELS_LANES Lanes25519 add_scaled(const Lanes25519& a, const Lanes25519& b) {
  const __m512i factor = lanes_of(121665), zero = _mm512_setzero_si512();
  __m512i hi[5];
  Lanes25519 out;
  for (int k = 0; k < 5; ++k) {
    out.limb[k] = _mm512_madd52lo_epu64(a.limb[k], b.limb[k], factor);
    hi[k] = _mm512_madd52hi_epu64(zero, b.limb[k], factor);
    hi[k] = _mm512_add_epi64(hi[k], hi[k]);
  }
  const __m512i top = _mm512_add_epi64(_mm512_add_epi64(_mm512_slli_epi64(hi[4], 4), _mm512_slli_epi64(hi[4], 1)), hi[4]);
  out.limb[0] = _mm512_add_epi64(out.limb[0], top);
  for (int k = 1; k < 5; ++k) out.limb[k] = _mm512_add_epi64(out.limb[k], hi[k - 1]);
  return carried(out);
}

KERNELS_LANES void swap_if(__mmask8 yes, Lanes25519& a, Lanes25519& b) {
  for (int k = 0; k < 5; ++k) {
    const __m512i kept = a.limb[k];
    a.limb[k] = _mm512_mask_blend_epi64(yes, a.limb[k], b.limb[k]);
    b.limb[k] = _mm512_mask_blend_epi64(yes, b.limb[k], kept);
  }
}

KERNELS_LANES Lanes25519 number(u64 low) {
  Lanes25519 out;
  for (int k = 0; k < 5; ++k) out.limb[k] = lanes_of(k == 0 ? low : 0);
  return out;
}

__attribute__((target("avx512f,avx512ifma"), noinline)) inline void square_often(Lanes25519& x, int times) {
  Lanes25519 at = x;
  for (int t = 0; t < times; ++t) at = square(at);
  x = at;
}

__attribute__((target("avx512f,avx512ifma"), noinline)) inline void multiply_by(Lanes25519& x, const Lanes25519& y) {
  x = multiply(x, y);
}

// x^(2^250 - 1), and x^11 beside it.
__attribute__((target("avx512f,avx512ifma"), noinline)) inline Lanes25519 long_power(const Lanes25519& x,
                                                                                   Lanes25519& eleventh) {
  const auto next = [](const Lanes25519& from, int times, const Lanes25519& by) KERNELS_IFMA {
    Lanes25519 at = from;
    square_often(at, times);
    multiply_by(at, by);
    return at;
  };
  Lanes25519 two = x;
  square_often(two, 1);
  const Lanes25519 nine = next(two, 2, x);
  eleventh = nine;
  multiply_by(eleventh, two);
  const Lanes25519 p5 = next(eleventh, 1, nine);
  const Lanes25519 p10 = next(p5, 5, p5), p20 = next(p10, 10, p10), p40 = next(p20, 20, p20);
  const Lanes25519 p50 = next(p40, 10, p10), p100 = next(p50, 50, p50), p200 = next(p100, 100, p100);
  return next(p200, 50, p50);
}

// Eight numbers of 32 bytes, little-endian, of which the highest bit is not read.
KERNELS_LANES Lanes25519 loaded(const u8* bytes, i64 used) {
  alignas(64) u64 words[4][8] = {};
  for (i64 l = 0; l < used; ++l) {
    u64 here[4];
    std::memcpy(here, bytes + 32 * l, 32);
    for (int w = 0; w < 4; ++w) words[w][l] = here[w];
  }
  const __m512i mask = lanes_of(kLimb);
  __m512i w[4];
  for (int k = 0; k < 4; ++k) w[k] = _mm512_load_si512(words[k]);
  Lanes25519 out;
  out.limb[0] = _mm512_and_si512(w[0], mask);
  out.limb[1] = _mm512_and_si512(_mm512_or_si512(_mm512_srli_epi64(w[0], 51), _mm512_slli_epi64(w[1], 13)), mask);
  out.limb[2] = _mm512_and_si512(_mm512_or_si512(_mm512_srli_epi64(w[1], 38), _mm512_slli_epi64(w[2], 26)), mask);
  out.limb[3] = _mm512_and_si512(_mm512_or_si512(_mm512_srli_epi64(w[2], 25), _mm512_slli_epi64(w[3], 39)), mask);
  out.limb[4] = _mm512_and_si512(_mm512_srli_epi64(w[3], 12), mask);
  return out;
}

// The eight numbers below p.
KERNELS_LANES void stored(u8* bytes, const Lanes25519& from, i64 used) {
  const __m512i mask = lanes_of(kLimb), nineteen = lanes_of(19);
  Lanes25519 x = from;
  const auto chain = [&](__m512i carry) KERNELS_IFMA {  // carries from limb to limb; what leaves the last one
    for (int k = 0; k < 5; ++k) {
      const __m512i sum = _mm512_add_epi64(x.limb[k], carry);
      carry = _mm512_srli_epi64(sum, 51);
      x.limb[k] = _mm512_and_si512(sum, mask);
    }
    return carry;
  };
  const auto times19 = [&](__m512i c) KERNELS_IFMA { return _mm512_madd52lo_epu64(_mm512_setzero_si512(), c, nineteen); };
  const __m512i first = chain(_mm512_setzero_si512());
  const __m512i second = chain(times19(first));
  chain(times19(second));  // below 2^255 now
  __m512i over = nineteen;  // whether x + 19 reaches 2^255: then x is at least p
  for (int k = 0; k < 5; ++k) over = _mm512_srli_epi64(_mm512_add_epi64(x.limb[k], over), 51);
  chain(times19(over));
  alignas(64) u64 words[4][8];
  const __m512i* t = x.limb;
  _mm512_store_si512(words[0], _mm512_or_si512(t[0], _mm512_slli_epi64(t[1], 51)));
  _mm512_store_si512(words[1], _mm512_or_si512(_mm512_srli_epi64(t[1], 13), _mm512_slli_epi64(t[2], 38)));
  _mm512_store_si512(words[2], _mm512_or_si512(_mm512_srli_epi64(t[2], 26), _mm512_slli_epi64(t[3], 25)));
  _mm512_store_si512(words[3], _mm512_or_si512(_mm512_srli_epi64(t[3], 39), _mm512_slli_epi64(t[4], 12)));
  for (i64 l = 0; l < used; ++l) {
    const u64 here[4] = {words[0][l], words[1][l], words[2][l], words[3][l]};
    std::memcpy(bytes + 32 * l, here, 32);
  }
}

// Montgomery's ladder [RFC 7748, section 5] for up to eight points; `key` has the form that the RFC gives to keys.
__attribute__((target("avx512f,avx512ifma"), noinline)) inline void ladder(u8* out, const u8* points, i64 used,
                                                                         const u8* key) {
  const Lanes25519 x1 = loaded(points, used);
  Lanes25519 x2 = number(1), z2 = number(0), x3 = x1, z3 = number(1);
  u8 before = 0;
  for (int t = 254; t >= 0; --t) {
    const u8 bit = static_cast<u8>(key[t / 8] >> (t % 8) & 1);
    const __mmask8 turn = static_cast<__mmask8>(-(bit ^ before));
    before = bit;
    swap_if(turn, x2, x3);
    swap_if(turn, z2, z3);
    const Lanes25519 a = add(x2, z2), b = subtract(x2, z2), c = add(x3, z3), d = subtract(x3, z3);
    const Lanes25519 aa = square(a), bb = square(b), e = subtract(aa, bb);
    const Lanes25519 da = multiply(d, a), cb = multiply(c, b);
    x3 = square(add(da, cb));
    z3 = multiply(x1, square(subtract(da, cb)));
    x2 = multiply(aa, bb);
    z2 = multiply(e, add_scaled(aa, e));
  }
  const __mmask8 turn = static_cast<__mmask8>(-before);
  swap_if(turn, x2, x3);
  swap_if(turn, z2, z3);
  Lanes25519 eleventh, power = long_power(z2, eleventh);
  square_often(power, 5);
  multiply_by(power, eleventh);  // z2^(p - 2)
  stored(out, multiply(x2, power), used);
}

// For up to eight u whether u^3 + 486662 u^2 + u is a square other than 0, that is its power (p - 1) / 2 is 1.
__attribute__((target("avx512f,avx512ifma"), noinline)) inline void on_curve(u8* out, const u8* points, i64 used) {
  const Lanes25519 u = loaded(points, used);
  const Lanes25519 y = multiply(add(multiply(add(u, number(486662)), u), number(1)), u);
  Lanes25519 eleventh, power = long_power(y, eleventh);
  square_often(power, 2);
  multiply_by(power, y);  // 2^252 - 3
  square_often(power, 2);
  Lanes25519 two = y;
  square_often(two, 1);
  multiply_by(power, two);  // 2^254 - 10
  u8 bytes[256];
  stored(bytes, power, used);
  for (i64 l = 0; l < used; ++l) {
    u8 other = static_cast<u8>(bytes[32 * l] ^ 1);
    for (int k = 1; k < 32; ++k) other |= bytes[32 * l + k];
    out[l] = other == 0;
  }
}

constexpr i64 kPointsPerSlice = 64;

inline void x25519(u8* out, const u8* points, i64 count, const u8* key, int threads) {
  parallel(count, kPointsPerSlice, threads, [=](i64 begin, i64 end) {
    for (i64 k = begin; k < end; k += 8) ladder(out + 32 * k, points + 32 * k, std::min<i64>(8, end - k), key);
  });
}

inline void curve25519_points(u8* out, const u8* points, i64 count, int threads) {
  parallel(count, kPointsPerSlice, threads, [=](i64 begin, i64 end) {
    for (i64 k = begin; k < end; k += 8) on_curve(out + k, points + 32 * k, std::min<i64>(8, end - k));
  });
}

}  // namespace kernels
#endif
