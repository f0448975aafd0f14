// Packed bits: comparison of digits, and its combination in groups. Word w holds elements 64 w .. 64 w + 63.
#pragma once

#include "common.hpp"

namespace kernels {

constexpr i64 kBitWorkPerMillisecond = i64(1) << 20;

inline i64 words_for(i64 n) { return (n + 63) / 64; }

inline void pack_bits(u64* out, const u8* bits, i64 n) {
  for (i64 w = 0; w < words_for(n); ++w) {
    const u8* from = bits + 64 * w;
    const i64 count = std::min<i64>(64, n - 64 * w);
    u64 word = 0;
    if (count == 64) {
#if defined(__AVX512BW__)
      word = _mm512_test_epi8_mask(_mm512_loadu_si512(from), _mm512_set1_epi8(1));
#else
      for (int group = 0; group < 8; ++group) {  // eight bytes 0 or 1 become eight bits
        u64 eight;
        std::memcpy(&eight, from + 8 * group, 8);
        word |= (((eight & 0x0101010101010101u) * 0x0102040810204080u) >> 56) << (8 * group);
      }
#endif
    } else {
      for (i64 e = 0; e < count; ++e) word |= u64(from[e] & 1) << e;
    }
    out[w] = word;
  }
}

inline void unpack_bits(u8* out, const u64* words, i64 n) {
  for (i64 w = 0; w < words_for(n); ++w) {
    const i64 count = std::min<i64>(64, n - 64 * w);
    u8* to = out + 64 * w;
    const u64 word = words[w];
    if (count == 64) {
#if defined(__AVX512BW__)
      _mm512_storeu_si512(to, _mm512_maskz_set1_epi8(word, 1));
#else
      for (int e = 0; e < 64; ++e) to[e] = static_cast<u8>((word >> e) & 1);
#endif
    } else {
      for (i64 e = 0; e < count; ++e) to[e] = static_cast<u8>((word >> e) & 1);
    }
  }
}

// The plane word of bit `bit` of x[0 .. count).
inline u64 bit_word(const u64* x, i64 count, int bit) {
  u64 word = 0;
#if defined(__AVX512DQ__)
  if (count == 64) {
    const __m128i up = _mm_cvtsi32_si128(63 - bit);
    for (int v = 0; v < 8; ++v) {
      word |= u64(_mm512_movepi64_mask(_mm512_sll_epi64(_mm512_loadu_si512(x + 8 * v), up))) << (8 * v);
    }
    return word;
  }
#elif defined(__AVX2__)
  if (count == 64) {
    const __m128i up = _mm_cvtsi32_si128(63 - bit);
    for (int v = 0; v < 16; ++v) {
      const __m256i lanes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + 4 * v));
      word |= u64(_mm256_movemask_pd(_mm256_castsi256_pd(_mm256_sll_epi64(lanes, up)))) << (4 * v);
    }
    return word;
  }
#endif
  for (i64 e = 0; e < count; ++e) word |= ((x[e] >> bit) & 1) << e;
  return word;
}

inline void bit_plane(u64* out, const u64* x, i64 n, int bit) {
  for (i64 w = 0; w < words_for(n); ++w) out[w] = bit_word(x + 64 * w, std::min<i64>(64, n - 64 * w), bit);
}

// --- digits -------------------------------------------------------------------------------------------------

inline u64 digit_mask(int digit, int low_bits) { return (u64(1) << std::min(4, low_bits - 4 * digit)) - 1; }

// out[d][e]: bit a says that digit d of lam[e] is at least a.
inline void thermometer(u16* out, const u64* lam, i64 n, int low_bits, int shift, int threads) {
  constexpr i64 kBlock = 1024;  // stays in the first-level cache while every digit is taken from it
  const int digits = (low_bits + 3) / 4;
  parallel(n, kBlock, threads_for(n * digits, 4 * kBitWorkPerMillisecond, threads), [&](i64 begin, i64 end) {
    for (i64 e0 = begin; e0 < end; e0 += kBlock) {
      const i64 e1 = std::min(end, e0 + kBlock);
      for (int d = 0; d < digits; ++d) {
        const int by = shift + 4 * d;
        const u32 mask = static_cast<u32>(digit_mask(d, low_bits));
        u16* to = out + d * n;
        for (i64 e = e0; e < e1; ++e) to[e] = static_cast<u16>((2u << (static_cast<u32>(lam[e] >> by) & mask)) - 1);
      }
    }
  });
}

struct LeafWords {
  u64 at_least, less;
};

#if defined(__AVX512BW__)
// Digits 4 q .. 4 q + 3 of 64 elements, as 16-bit lanes.
struct SixteenBits {
  __m512i low, high;
};

inline SixteenBits sixteen_bits(const u64* m, int by) {
  const __m128i shift = _mm_cvtsi32_si128(by);
  __m128i part[8];
  for (int v = 0; v < 8; ++v) part[v] = _mm512_cvtepi64_epi16(_mm512_srl_epi64(_mm512_loadu_si512(m + 8 * v), shift));
  const auto join = [](const __m128i* p) {
    const __m256i a = _mm256_inserti128_si256(_mm256_castsi128_si256(p[0]), p[1], 1);
    const __m256i b = _mm256_inserti128_si256(_mm256_castsi128_si256(p[2]), p[3], 1);
    return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
  };
  return {join(part), join(part + 4)};
}

inline LeafWords leaf_words(const SixteenBits& m, const u16* therm, int by, u64 mask) {
  const __m128i shift = _mm_cvtsi32_si128(by);
  const __m512i keep = _mm512_set1_epi16(static_cast<short>(mask));
  const __m512i one = _mm512_set1_epi16(1), two = _mm512_set1_epi16(2);
  const auto look_up = [&](const __m512i& lanes, const u16* words) {
    return _mm512_srlv_epi16(_mm512_loadu_si512(words), _mm512_and_si512(_mm512_srl_epi16(lanes, shift), keep));
  };
  const __m512i low = look_up(m.low, therm), high = look_up(m.high, therm + 32);
  return {u64(_mm512_test_epi16_mask(low, one)) | u64(_mm512_test_epi16_mask(high, one)) << 32,
          u64(_mm512_test_epi16_mask(low, two)) | u64(_mm512_test_epi16_mask(high, two)) << 32};
}
#endif

inline LeafWords leaf_words(const u64* m, const u16* therm, i64 count, int by, u64 mask) {
  LeafWords words{0, 0};
  for (i64 e = 0; e < count; ++e) {
    const u64 seen = u64(therm[e]) >> ((m[e] >> by) & mask);
    words.at_least |= (seen & 1) << e;
    words.less |= ((seen >> 1) & 1) << e;
  }
  return words;
}

// Planes lt0, lt1, eq1, lt2, eq2, ...: bits a + 1 and a of the thermometer word at the digit a of m.
inline void leaves(u64* out, const u64* m, const u16* therm, i64 n, int low_bits, int shift, int threads) {
  const int digits = (low_bits + 3) / 4;
  const i64 total = words_for(n);
  const auto put = [&](int d, i64 w, const LeafWords& words) {
    if (d == 0) {
      out[w] = words.less;
    } else {
      out[(2 * d - 1) * total + w] = words.less;
      out[2 * d * total + w] = words.at_least ^ words.less;
    }
  };
  parallel(total, 8, threads_for(n * digits, 4 * kBitWorkPerMillisecond, threads), [&](i64 begin, i64 end) {
    for (i64 w = begin; w < end; ++w) {
      const u64* values = m + 64 * w;
      const i64 count = std::min<i64>(64, n - 64 * w);
#if defined(__AVX512BW__)
      if (count == 64) {
        for (int first = 0; first < digits; first += 4) {
          const SixteenBits four = sixteen_bits(values, shift + 4 * first);
          for (int d = first; d < std::min(digits, first + 4); ++d) {
            put(d, w, leaf_words(four, therm + d * n + 64 * w, 4 * (d - first), digit_mask(d, low_bits)));
          }
        }
        continue;
      }
#endif
      for (int d = 0; d < digits; ++d) {
        put(d, w, leaf_words(values, therm + d * n + 64 * w, count, shift + 4 * d, digit_mask(d, low_bits)));
      }
    }
  });
}

// --- groups of digits ---------------------------------------------------------------------------------------

// The polynomials of a group of K digits, as sets of input planes (bit p of a set: plane p is a factor).
// Inputs: lt0, (eq0), lt1, eq1, lt2, eq2, ... Monomials: subsets of two or more planes, as ascending numbers.
template <int K, bool WithEq>
struct Group {
  static constexpr int kInputs = WithEq ? 2 * K : 2 * K - 1;
  static constexpr int kOutputs = WithEq ? 2 : 1;
  static constexpr int kSets = WithEq ? K + 1 : K;  // the last one is EQ

  static constexpr int less(int digit) { return WithEq ? 2 * digit : (digit == 0 ? 0 : 2 * digit - 1); }
  static constexpr int equal(int digit) { return WithEq ? 2 * digit + 1 : 2 * digit; }
  static constexpr unsigned set(int s) {
    unsigned planes = s < K ? 1u << less(s) : 0u;
    for (int d = s < K ? s + 1 : 0; d < K; ++d) planes |= 1u << equal(d);
    return planes;
  }
  static constexpr bool single(unsigned t) { return (t & (t - 1)) == 0; }
  static constexpr bool used(unsigned t) {
    for (int s = 0; s < kSets; ++s) {
      if (!single(t) && (t & ~set(s)) == 0) return true;
    }
    return false;
  }
  static constexpr int index(unsigned t) {
    int below = 0;
    for (unsigned u = 0; u < t; ++u) below += used(u) ? 1 : 0;
    return below;
  }
  static constexpr int plane(unsigned t) {
    int p = 0;
    while ((t >> p) != 1) ++p;
    return p;
  }
};

// The product of the planes of Set at one word.
template <unsigned Set>
inline __attribute__((always_inline)) u64 product_of(const u64* planes, i64 stride) {
  u64 value = ~u64(0);
#pragma GCC unroll 8
  for (int p = 0; p < 8; ++p) {
    if ((Set >> p) & 1u) value &= planes[p * stride];
  }
  return value;
}

template <class G, unsigned T>
inline __attribute__((always_inline)) void put_monomial(u64* out, const u64* masks, i64 stride) {
  if constexpr (G::used(T)) {
    constexpr int q = G::index(T);
    out[q * stride] = product_of<T>(masks, stride);
  }
}

template <class G, unsigned... T>
void all_monomials(u64* out, const u64* masks, i64 words, std::integer_sequence<unsigned, T...>) {
  for (i64 w = 0; w < words; ++w) (put_monomial<G, T>(out + w, masks + w, words), ...);
}

template <int K, bool WithEq>
void monomials_of(u64* out, const u64* masks, i64 words) {
  using G = Group<K, WithEq>;
  all_monomials<G>(out, masks, words, std::make_integer_sequence<unsigned, (1u << G::kInputs)>());
}

// Terms of the product over Set with exactly the factors T masked: public part times the share of the masked part.
template <class G, unsigned Set, unsigned T>
inline __attribute__((always_inline)) u64 term(const u64* opened, const u64* masks, const u64* monomials, i64 stride,
                                               u64 everywhere) {
  if constexpr ((T & ~Set) != 0) {
    return 0;
  } else if constexpr (T == 0) {
    return product_of<Set>(opened, stride) & everywhere;
  } else if constexpr (G::single(T)) {
    constexpr int p = G::plane(T);
    return product_of<(Set & ~T)>(opened, stride) & masks[p * stride];
  } else {
    constexpr int q = G::index(T);
    return product_of<(Set & ~T)>(opened, stride) & monomials[q * stride];
  }
}

template <class G, int S, unsigned... T>
inline __attribute__((always_inline)) u64 expanded(const u64* opened, const u64* masks, const u64* monomials, i64 stride,
                                                   u64 everywhere, std::integer_sequence<unsigned, T...>) {
  return (term<G, G::set(S), T>(opened, masks, monomials, stride, everywhere) ^ ...);
}

template <int K, bool WithEq, int... S>
void combine_of(u64* __restrict out, const u64* __restrict opened, const u64* __restrict masks,
                const u64* __restrict monomials, i64 words, bool first, std::integer_sequence<int, S...>) {
  using G = Group<K, WithEq>;
  constexpr auto subsets = std::make_integer_sequence<unsigned, (1u << G::kInputs)>();
  const u64 everywhere = first ? ~u64(0) : u64(0);
  for (i64 w = 0; w < words; ++w) {
    out[w] = (expanded<G, S>(opened + w, masks + w, monomials + w, words, everywhere, subsets) ^ ...);
    if constexpr (WithEq) {
      out[words + w] = expanded<G, K>(opened + w, masks + w, monomials + w, words, everywhere, subsets);
    }
  }
}

template <int K, bool WithEq>
void combine_of(u64* out, const u64* opened, const u64* masks, const u64* monomials, i64 words, bool first) {
  combine_of<K, WithEq>(out, opened, masks, monomials, words, first, std::make_integer_sequence<int, K>());
}

inline void monomials(u64* out, const u64* masks, i64 words, int k, bool with_eq) {
  if (k == 2) {
    with_eq ? monomials_of<2, true>(out, masks, words) : monomials_of<2, false>(out, masks, words);
  } else if (k == 3) {
    with_eq ? monomials_of<3, true>(out, masks, words) : monomials_of<3, false>(out, masks, words);
  } else {
    with_eq ? monomials_of<4, true>(out, masks, words) : monomials_of<4, false>(out, masks, words);
  }
}

inline void combine(u64* out, const u64* opened, const u64* masks, const u64* monomials, i64 words, int k, bool with_eq,
                    bool first) {
  using Run = void (*)(u64*, const u64*, const u64*, const u64*, i64, bool);
  constexpr Run runs[2][3] = {{combine_of<2, false>, combine_of<3, false>, combine_of<4, false>},
                              {combine_of<2, true>, combine_of<3, true>, combine_of<4, true>}};
  runs[with_eq ? 1 : 0][k - 2](out, opened, masks, monomials, words, first);
}

}  // namespace kernels
