// Multiply-add of 64-bit integers on the widest vectors the instruction set has. One interface, three builds:
// AVX-512 multiplies 64-bit lanes directly; AVX2 builds them of 32-bit products; elsewhere a lane is a scalar.
#pragma once

#include "common.hpp"

namespace kernels {

#if defined(__AVX512DQ__) && defined(__AVX512F__)

struct Lanes {
  static constexpr int kWidth = 8;
  static constexpr int kTileRows = 8, kTileVectors = 2;  // register tile of the packed product
  static constexpr int kDotRows = 4, kDotColumns = 4;    // register tile of the dot product
  typedef u64 Factor __attribute__((vector_size(64)));
  using Right = Factor;
  using Sum = Factor;
  using Total = Factor;

  static Factor load(const u64* p) { return (Factor)_mm512_loadu_si512(p); }
  static Right load_right(const u64* p) { return load(p); }
  static Factor broadcast(u64 v) { return (Factor)_mm512_set1_epi64(static_cast<long long>(v)); }
  static void multiply_add(Sum& s, const Factor& a, const Right& b) { s += a * b; }
  static Total total(const Sum& s) { return s; }
  static void store(u64* p, const Total& t) { _mm512_storeu_si512(p, (__m512i)t); }
  static u64 reduce(const Sum& s) {
    typedef u64 Half __attribute__((vector_size(32)));
    const Half h = (Half)_mm512_castsi512_si256((__m512i)s) + (Half)_mm512_extracti64x4_epi64((__m512i)s, 1);
    return (h[0] + h[1]) + (h[2] + h[3]);  // the ready-made reduction adds signed numbers, which may not wrap
  }
};

#elif defined(__AVX2__)

// With a = a1 2^32 + a0 and b alike: a b = a0 b0 + (a1 b0 + a0 b1) 2^32. The two cross products of a lane are
// summed side by side as 32-bit numbers and only added together at the end.
struct Lanes {
  static constexpr int kWidth = 4;
  static constexpr int kTileRows = 4, kTileVectors = 1;
  static constexpr int kDotRows = 2, kDotColumns = 2;
  typedef u64 Factor __attribute__((vector_size(32)));
  struct Right {
    __m256i value, swapped;
  };
  struct Sum {
    __m256i low = _mm256_setzero_si256(), cross = _mm256_setzero_si256();
  };
  using Total = Factor;

  static Factor load(const u64* p) { return (Factor)_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static Right load_right(const u64* p) {
    const __m256i v = (__m256i)load(p);
    return {v, _mm256_shuffle_epi32(v, 0xB1)};
  }
  static Factor broadcast(u64 v) { return (Factor)_mm256_set1_epi64x(static_cast<long long>(v)); }
  static void multiply_add(Sum& s, const Factor& a, const Right& b) {
    s.low = _mm256_add_epi64(s.low, _mm256_mul_epu32((__m256i)a, b.value));
    s.cross = _mm256_add_epi32(s.cross, _mm256_mullo_epi32((__m256i)a, b.swapped));
  }
  static Total total(const Sum& s) {
    const __m256i both = _mm256_add_epi32(_mm256_srli_epi64(s.cross, 32), s.cross);
    return (Factor)_mm256_add_epi64(s.low, _mm256_slli_epi64(both, 32));
  }
  static void store(u64* p, const Total& t) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)t); }
  static u64 reduce(const Sum& s) {
    const Total t = total(s);
    return t[0] + t[1] + t[2] + t[3];
  }
};

#else

struct Lanes {
  static constexpr int kWidth = 1;
  static constexpr int kTileRows = 2, kTileVectors = 4;
  static constexpr int kDotRows = 2, kDotColumns = 2;
  using Factor = u64;
  using Right = u64;
  using Sum = u64;
  using Total = u64;

  static Factor load(const u64* p) { return *p; }
  static Right load_right(const u64* p) { return *p; }
  static Factor broadcast(u64 v) { return v; }
  static void multiply_add(Sum& s, const Factor& a, const Right& b) { s += a * b; }
  static Total total(const Sum& s) { return s; }
  static void store(u64* p, const Total& t) { *p = t; }
  static u64 reduce(const Sum& s) { return s; }
};

#endif

}  // namespace kernels
