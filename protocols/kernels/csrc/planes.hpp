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
      for (int group = 0; group < 8; ++group) {  // bit i of a byte, moved to byte i by one multiplication
        const u64 byte = (word >> (8 * group)) & 0xff;
        const u64 spread = (((byte & 0x7f) * 0x0002040810204081u) & 0x0101010101010101u) | (byte >> 7) << 56;
        std::memcpy(to + 8 * group, &spread, 8);
      }
#endif
    } else {
      for (i64 e = 0; e < count; ++e) to[e] = static_cast<u8>((word >> e) & 1);
    }
  }
}

// The plane word of bit `bit` of x[0 .. count) + offset.
inline u64 bit_word(const u64* x, i64 count, int bit, u64 offset) {
  u64 word = 0;
#if defined(__AVX512DQ__)
  if (count == 64) {
    const __m128i up = _mm_cvtsi32_si128(63 - bit);
    const __m512i added = _mm512_set1_epi64(static_cast<i64>(offset));
    for (int v = 0; v < 8; ++v) {
      const __m512i lanes = _mm512_add_epi64(_mm512_loadu_si512(x + 8 * v), added);
      word |= u64(_mm512_movepi64_mask(_mm512_sll_epi64(lanes, up))) << (8 * v);
    }
    return word;
  }
#elif defined(__AVX2__)
  if (count == 64) {
    const __m128i up = _mm_cvtsi32_si128(63 - bit);
    const __m256i added = _mm256_set1_epi64x(static_cast<i64>(offset));
    for (int v = 0; v < 16; ++v) {
      const __m256i lanes = _mm256_add_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + 4 * v)), added);
      word |= u64(_mm256_movemask_pd(_mm256_castsi256_pd(_mm256_sll_epi64(lanes, up)))) << (4 * v);
    }
    return word;
  }
#endif
  for (i64 e = 0; e < count; ++e) word |= (((x[e] + offset) >> bit) & 1) << e;
  return word;
}

inline void bit_plane(u64* out, const u64* x, i64 n, int bit, u64 offset) {
  for (i64 w = 0; w < words_for(n); ++w) out[w] = bit_word(x + 64 * w, std::min<i64>(64, n - 64 * w), bit, offset);
}

// --- digits -------------------------------------------------------------------------------------------------
//
// Digit d is bits shift + 4 d and up; a negative shift makes the lowest digits short or empty.

inline u64 moved(u64 x, int by) { return by < 0 ? x << -by : x >> by; }

inline u64 digit_mask(int digit, int low_bits) { return (u64(1) << std::min(4, low_bits - 4 * digit)) - 1; }

#if defined(__AVX512BW__)
// Digits 4 q .. 4 q + 3 of 64 elements, as 16-bit lanes.
struct SixteenBits {
  __m512i low, high;
};

inline SixteenBits sixteen_bits(const u64* m, int by, u64 offset) {
  const __m128i left = _mm_cvtsi32_si128(by < 0 ? -by : 0), right = _mm_cvtsi32_si128(by < 0 ? 0 : by);
  const __m512i added = _mm512_set1_epi64(static_cast<i64>(offset));
  __m128i part[8];
  for (int v = 0; v < 8; ++v) {
    const __m512i lanes = _mm512_add_epi64(_mm512_loadu_si512(m + 8 * v), added);
    part[v] = _mm512_cvtepi64_epi16(_mm512_srl_epi64(_mm512_sll_epi64(lanes, left), right));
  }
  const auto join = [](const __m128i* p) {
    const __m256i a = _mm256_inserti128_si256(_mm256_castsi128_si256(p[0]), p[1], 1);
    const __m256i b = _mm256_inserti128_si256(_mm256_castsi128_si256(p[2]), p[3], 1);
    return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
  };
  return {join(part), join(part + 4)};
}
#endif

// out[d][e]: bit a says that digit d of lam[e] is at least a.
inline void thermometer(u16* out, const u64* lam, i64 n, int low_bits, int shift, int threads) {
  constexpr i64 kBlock = 1024;  // stays in the first-level cache while every digit is taken from it
  const int digits = (low_bits + 3) / 4;
  parallel(n, kBlock, threads_for(n * digits, 4 * kBitWorkPerMillisecond, threads), [&](i64 begin, i64 end) {
    for (i64 e0 = begin; e0 < end; e0 += kBlock) {
      const i64 e1 = std::min(end, e0 + kBlock);
      i64 e = e0;
#if defined(__AVX512BW__)
      for (int first = 0; first < digits; first += 4) {
        for (e = e0; e + 64 <= e1; e += 64) {
          const SixteenBits four = sixteen_bits(lam + e, shift + 4 * first, 0);
          for (int d = first; d < std::min(digits, first + 4); ++d) {
            const __m128i by = _mm_cvtsi32_si128(4 * (d - first));
            const __m512i keep = _mm512_set1_epi16(static_cast<short>(digit_mask(d, low_bits)));
            const __m512i one = _mm512_set1_epi16(1), two = _mm512_set1_epi16(2);
            const auto word = [&](const __m512i& lanes) {
              return _mm512_sub_epi16(_mm512_sllv_epi16(two, _mm512_and_si512(_mm512_srl_epi16(lanes, by), keep)), one);
            };
            _mm512_storeu_si512(out + d * n + e, word(four.low));
            _mm512_storeu_si512(out + d * n + e + 32, word(four.high));
          }
        }
      }
#endif
      for (int d = 0; d < digits; ++d) {
        const int by = shift + 4 * d;
        const u32 mask = static_cast<u32>(digit_mask(d, low_bits));
        u16* to = out + d * n;
        for (i64 t = e; t < e1; ++t) to[t] = static_cast<u16>((2u << (static_cast<u32>(moved(lam[t], by)) & mask)) - 1);
      }
    }
  });
}

struct LeafWords {
  u64 at_least, less;
};

#if defined(__AVX512BW__)
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

inline LeafWords leaf_words(const u64* m, const u16* therm, i64 count, int by, u64 mask, u64 offset) {
  LeafWords words{0, 0};
  for (i64 e = 0; e < count; ++e) {
    const u64 seen = u64(therm[e]) >> (moved(m[e] + offset, by) & mask);
    words.at_least |= (seen & 1) << e;
    words.less |= ((seen >> 1) & 1) << e;
  }
  return words;
}

// Planes lt0, lt1, eq1, lt2, eq2, ...: bits a + 1 and a of the thermometer word at the digit a of m + offset.
inline void leaves(u64* out, const u64* m, const u16* therm, i64 n, int low_bits, int shift, u64 offset,
                   int threads) {
  constexpr i64 kBlock = 8;  // words gathered per plane, so that planes are written by whole cache lines
  const int digits = (low_bits + 3) / 4;
  const i64 total = words_for(n);
  parallel(total, kBlock, threads_for(n * digits, 4 * kBitWorkPerMillisecond, threads), [&](i64 begin, i64 end) {
    u64 less[17][kBlock], equal[17][kBlock];
    for (i64 w0 = begin; w0 < end; w0 += kBlock) {
      const i64 block = std::min(kBlock, end - w0);
      for (i64 w = 0; w < block; ++w) {
        const i64 e = 64 * (w0 + w), count = std::min<i64>(64, n - e);
        const auto keep = [&](int d, const LeafWords& words) {
          less[d][w] = words.less;
          equal[d][w] = words.at_least ^ words.less;
        };
#if defined(__AVX512BW__)
        if (count == 64) {
          for (int first = 0; first < digits; first += 4) {
            const SixteenBits four = sixteen_bits(m + e, shift + 4 * first, offset);
            for (int d = first; d < std::min(digits, first + 4); ++d) {
              keep(d, leaf_words(four, therm + d * n + e, 4 * (d - first), digit_mask(d, low_bits)));
            }
          }
          continue;
        }
#endif
        for (int d = 0; d < digits; ++d) {
          keep(d, leaf_words(m + e, therm + d * n + e, count, shift + 4 * d, digit_mask(d, low_bits), offset));
        }
      }
      for (int d = 0; d < digits; ++d) {
        std::memcpy(out + std::max(0, 2 * d - 1) * total + w0, less[d], static_cast<std::size_t>(block) * 8);
        if (d > 0) std::memcpy(out + 2 * d * total + w0, equal[d], static_cast<std::size_t>(block) * 8);
      }
    }
  });
}

// --- groups of digits ---------------------------------------------------------------------------------------

// The polynomials of a group of K digits, as sets of input planes (bit p of a set: plane p is a factor).
// Inputs: lt0, (eq0), lt1, eq1, ..., without the top lt. Monomials: subsets of two or more planes, as ascending numbers.
template <int K, bool WithEq>
struct Group {
  static constexpr int kTop = K - 1;
  static constexpr int kInputs = WithEq ? 2 * K - 1 : 2 * K - 2;
  static constexpr int kSets = WithEq ? K : K - 1;  // the last one is EQ

  static constexpr int less(int digit) { return WithEq ? 2 * digit : (digit == 0 ? 0 : 2 * digit - 1); }
  static constexpr int equal(int digit) { return (WithEq ? 2 * digit + 1 : 2 * digit) - (digit == kTop ? 1 : 0); }
  static constexpr unsigned set(int s) {
    unsigned planes = s < kTop ? 1u << less(s) : 0u;
    for (int d = s < kTop ? s + 1 : 0; d < K; ++d) planes |= 1u << equal(d);
    return planes;
  }
  static constexpr bool single(unsigned t) { return (t & (t - 1)) == 0; }
  static constexpr bool used(unsigned t) {
    for (int s = 0; s < kSets; ++s) {
      if (!single(t) && (t & ~set(s)) == 0) return true;
    }
    return false;
  }

  struct Monomials {
    int count = 0;
    int index[1 << kInputs] = {};
    unsigned sets[1 << kInputs] = {};
  };
  static constexpr Monomials list() {
    Monomials all;
    for (unsigned t = 0; t < (1u << kInputs); ++t) {
      if (used(t)) {
        all.index[t] = all.count;
        all.sets[all.count++] = t;
      }
    }
    return all;
  }
  static constexpr Monomials kMonomials = list();
};

constexpr int planes_in(unsigned set) { return set == 0 ? 0 : static_cast<int>(set & 1u) + planes_in(set >> 1); }

// The subset of `set` that takes its i-th plane where bit i of `choice` is set.
constexpr unsigned subset(unsigned set, unsigned choice) {
  unsigned taken = 0;
  for (int p = 0; p < 8; ++p) {
    if ((set >> p) & 1u) {
      taken |= (choice & 1u) << p;
      choice >>= 1;
    }
  }
  return taken;
}

constexpr int lowest(unsigned set) { return (set & 1u) ? 0 : 1 + lowest(set >> 1); }

// The product of the planes of Set at one word.
template <unsigned Set>
inline __attribute__((always_inline)) u64 product_of(const u64* planes, i64 stride) {
  if constexpr (Set == 0) {
    return ~u64(0);
  } else if constexpr ((Set & (Set - 1)) == 0) {
    return planes[lowest(Set) * stride];
  } else {
    return planes[lowest(Set) * stride] & product_of<(Set & (Set - 1))>(planes, stride);
  }
}

template <int K, bool WithEq, int... Q>
void monomials_of(u64* __restrict out, const u64* __restrict masks, i64 words, std::integer_sequence<int, Q...>) {
  const auto one = [=](auto set, u64* __restrict to) {
    for (i64 w = 0; w < words; ++w) to[w] = product_of<decltype(set)::value>(masks + w, words);
  };
  (one(std::integral_constant<unsigned, Group<K, WithEq>::kMonomials.sets[Q]>(), out + Q * words), ...);
}

template <int K, bool WithEq>
void monomials_of(u64* out, const u64* masks, i64 words) {
  monomials_of<K, WithEq>(out, masks, words, std::make_integer_sequence<int, Group<K, WithEq>::kMonomials.count>());
}

// The part of the product over Set in which exactly the planes of T are masked: public part times mask share.
template <class G, unsigned Set, unsigned T>
inline __attribute__((always_inline)) u64 term(const u64* opened, const u64* masks, const u64* monomials, i64 stride,
                                               u64 everywhere) {
  const u64 known = product_of<(Set & ~T)>(opened, stride);
  if constexpr (T == 0) {
    return known & everywhere;
  } else if constexpr (G::single(T)) {
    return known & masks[lowest(T) * stride];
  } else {
    return known & monomials[G::kMonomials.index[T] * stride];
  }
}

template <class G, unsigned Set, unsigned... Choice>
inline __attribute__((always_inline)) u64 expanded(const u64* opened, const u64* masks, const u64* monomials, i64 stride,
                                                   u64 everywhere, std::integer_sequence<unsigned, Choice...>) {
  return (term<G, Set, subset(Set, Choice)>(opened, masks, monomials, stride, everywhere) ^ ...);
}

template <class G, int S>
inline __attribute__((always_inline)) u64 expanded(const u64* opened, const u64* masks, const u64* monomials, i64 stride,
                                                   u64 everywhere) {
  constexpr unsigned set = G::set(S);
  return expanded<G, set>(opened, masks, monomials, stride, everywhere,
                          std::make_integer_sequence<unsigned, (1u << planes_in(set))>());
}

template <int K, bool WithEq, int... S>
void combine_of(u64* __restrict out, const u64* __restrict opened, const u64* __restrict masks,
                const u64* __restrict monomials, const u64* __restrict top, i64 words, bool first,
                std::integer_sequence<int, S...>) {
  using G = Group<K, WithEq>;
  const u64 everywhere = first ? ~u64(0) : u64(0);
  for (i64 w = 0; w < words; ++w) {
    out[w] = (expanded<G, S>(opened + w, masks + w, monomials + w, words, everywhere) ^ ... ^ top[w]);
    if constexpr (WithEq) {
      out[words + w] = expanded<G, G::kTop>(opened + w, masks + w, monomials + w, words, everywhere);
    }
  }
}

template <int K, bool WithEq>
void combine_of(u64* out, const u64* opened, const u64* masks, const u64* monomials, const u64* top, i64 words,
                bool first) {
  combine_of<K, WithEq>(out, opened, masks, monomials, top, words, first, std::make_integer_sequence<int, K - 1>());
}

inline void monomials(u64* out, const u64* masks, i64 words, int k, bool with_eq) {
  using Run = void (*)(u64*, const u64*, i64);
  constexpr Run runs[2][3] = {{monomials_of<2, false>, monomials_of<3, false>, monomials_of<4, false>},
                              {monomials_of<2, true>, monomials_of<3, true>, monomials_of<4, true>}};
  runs[with_eq ? 1 : 0][k - 2](out, masks, words);
}

inline void combine(u64* out, const u64* opened, const u64* masks, const u64* monomials, const u64* top, i64 words, int k,
                    bool with_eq, bool first) {
  using Run = void (*)(u64*, const u64*, const u64*, const u64*, const u64*, i64, bool);
  constexpr Run runs[2][3] = {{combine_of<2, false>, combine_of<3, false>, combine_of<4, false>},
                              {combine_of<2, true>, combine_of<3, true>, combine_of<4, true>}};
  runs[with_eq ? 1 : 0][k - 2](out, opened, masks, monomials, top, words, first);
}

// One group of digits of a layer: its lowest digit, how many there are, and how many monomials it has.
struct DigitGroup {
  i64 start, count, monomials;
  i64 results() const { return start > 0 ? 2 : 1; }
  i64 opened() const { return count > 1 ? 2 * count - (start > 0 ? 1 : 2) : 0; }
};

// `groups` (3 numbers each) of a layer, with `monomials` for all whose digits are several.
inline void monomials_layer(u64* out, const u64* masks, i64 words, const std::vector<i64>& groups) {
  for (std::size_t g = 0; g < groups.size(); g += 3) {
    const DigitGroup group{groups[g], groups[g + 1], groups[g + 2]};
    if (group.count > 1) monomials(out, masks, words, static_cast<int>(group.count), group.start > 0);
    out += group.monomials * words;
    masks += group.opened() * words;
  }
}

// The same with `combine`; `bits` has all planes of all digits, of which a digit that is alone goes on as it is.
inline void combine_layer(u64* out, const u64* opened, const u64* masks, const u64* products, const u64* bits, i64 words,
                          const std::vector<i64>& groups, bool first) {
  for (std::size_t g = 0; g < groups.size(); g += 3) {
    const DigitGroup group{groups[g], groups[g + 1], groups[g + 2]};
    if (group.count == 1) {
      const u64* own = bits + (group.start > 0 ? 2 * group.start - 1 : 0) * words;
      std::copy(own, own + group.results() * words, out);
    } else {
      const u64* top = bits + (2 * (group.start + group.count) - 3) * words;
      combine(out, opened, masks, products, top, words, static_cast<int>(group.count), group.start > 0, first);
    }
    out += group.results() * words;
    products += group.monomials * words;
    opened += group.opened() * words;
    masks += group.opened() * words;
  }
}

}  // namespace kernels
