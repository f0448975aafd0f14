// ChaCha20 key stream (RFC 8439), many blocks at a time: lane i of every vector belongs to block i.
#pragma once

#include "common.hpp"

namespace kernels {

enum Combine { kSet = 0, kAdd = 1, kSub = 2, kXor = 3 };

namespace chacha {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef u32 Vec __attribute__((vector_size(kLanes * 4)));
constexpr i64 kBatchBytes = 64 * kLanes;

template <int Bits>
inline __attribute__((always_inline)) Vec rotate(Vec x) {
#if defined(__AVX512F__)
  return (Vec)_mm512_rol_epi32((__m512i)x, Bits);
#elif defined(__AVX2__)
  if (Bits == 16) {
    const __m256i order = _mm256_setr_epi8(2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13,
                                           2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    return (Vec)_mm256_shuffle_epi8((__m256i)x, order);
  }
  if (Bits == 8) {
    const __m256i order = _mm256_setr_epi8(3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14,
                                           3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14);
    return (Vec)_mm256_shuffle_epi8((__m256i)x, order);
  }
  return (x << Bits) | (x >> (32 - Bits));
#else
  return (x << Bits) | (x >> (32 - Bits));
#endif
}

inline __attribute__((always_inline)) void quarter_round(Vec& a, Vec& b, Vec& c, Vec& d) {
  a += b; d = rotate<16>(d ^ a);
  c += d; b = rotate<12>(b ^ c);
  a += b; d = rotate<8>(d ^ a);
  c += d; b = rotate<7>(b ^ c);
}

// Writes v[0..15] (word w of every block in v[w]) as consecutive 64-byte blocks.
inline __attribute__((always_inline)) void transpose(const Vec* v, u8* out) {
#if defined(__AVX512F__)
  __m512i quads[16];
  for (int g = 0; g < 4; ++g) {
    const __m512i a = (__m512i)v[4 * g], b = (__m512i)v[4 * g + 1];
    const __m512i c = (__m512i)v[4 * g + 2], d = (__m512i)v[4 * g + 3];
    const __m512i ab0 = _mm512_unpacklo_epi32(a, b), ab1 = _mm512_unpackhi_epi32(a, b);
    const __m512i cd0 = _mm512_unpacklo_epi32(c, d), cd1 = _mm512_unpackhi_epi32(c, d);
    quads[g] = _mm512_unpacklo_epi64(ab0, cd0);
    quads[4 + g] = _mm512_unpackhi_epi64(ab0, cd0);
    quads[8 + g] = _mm512_unpacklo_epi64(ab1, cd1);
    quads[12 + g] = _mm512_unpackhi_epi64(ab1, cd1);
  }
  for (int r = 0; r < 4; ++r) {  // quads[4 r + g] holds words 4 g .. 4 g + 3 of blocks r, r + 4, r + 8, r + 12
    const __m512i* q = quads + 4 * r;
    const __m512i low01 = _mm512_shuffle_i32x4(q[0], q[1], 0x44), high01 = _mm512_shuffle_i32x4(q[0], q[1], 0xEE);
    const __m512i low23 = _mm512_shuffle_i32x4(q[2], q[3], 0x44), high23 = _mm512_shuffle_i32x4(q[2], q[3], 0xEE);
    _mm512_storeu_si512(out + 64 * r, _mm512_shuffle_i32x4(low01, low23, 0x88));
    _mm512_storeu_si512(out + 64 * (r + 4), _mm512_shuffle_i32x4(low01, low23, 0xDD));
    _mm512_storeu_si512(out + 64 * (r + 8), _mm512_shuffle_i32x4(high01, high23, 0x88));
    _mm512_storeu_si512(out + 64 * (r + 12), _mm512_shuffle_i32x4(high01, high23, 0xDD));
  }
#elif defined(__AVX2__)
  for (int half = 0; half < 2; ++half) {
    __m256i quads[8];
    for (int g = 0; g < 2; ++g) {
      const Vec* w = v + 8 * half + 4 * g;
      const __m256i ab0 = _mm256_unpacklo_epi32((__m256i)w[0], (__m256i)w[1]);
      const __m256i ab1 = _mm256_unpackhi_epi32((__m256i)w[0], (__m256i)w[1]);
      const __m256i cd0 = _mm256_unpacklo_epi32((__m256i)w[2], (__m256i)w[3]);
      const __m256i cd1 = _mm256_unpackhi_epi32((__m256i)w[2], (__m256i)w[3]);
      quads[g] = _mm256_unpacklo_epi64(ab0, cd0);
      quads[2 + g] = _mm256_unpackhi_epi64(ab0, cd0);
      quads[4 + g] = _mm256_unpacklo_epi64(ab1, cd1);
      quads[6 + g] = _mm256_unpackhi_epi64(ab1, cd1);
    }
    for (int r = 0; r < 4; ++r) {  // quads[2 r + g] holds four words of blocks r and r + 4
      const __m256i low = _mm256_permute2x128_si256(quads[2 * r], quads[2 * r + 1], 0x20);
      const __m256i high = _mm256_permute2x128_si256(quads[2 * r], quads[2 * r + 1], 0x31);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 64 * r + 32 * half), low);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 64 * (r + 4) + 32 * half), high);
    }
  }
#else
  for (int block = 0; block < kLanes; ++block) {
    for (int w = 0; w < 16; ++w) {
      const u32 word = v[w][block];
      std::memcpy(out + 64 * block + 4 * w, &word, 4);
    }
  }
#endif
}

// kLanes blocks from `counter` on.
inline __attribute__((always_inline)) void batch(const u32 (&state)[16], u32 counter, u8* out) {
  Vec start[16], v[16];
  for (int w = 0; w < 16; ++w) start[w] = (Vec){} + state[w];
  for (int lane = 0; lane < kLanes; ++lane) start[12][lane] = counter + static_cast<u32>(lane);
  for (int w = 0; w < 16; ++w) v[w] = start[w];
  for (int round = 0; round < 10; ++round) {
    quarter_round(v[0], v[4], v[8], v[12]);
    quarter_round(v[1], v[5], v[9], v[13]);
    quarter_round(v[2], v[6], v[10], v[14]);
    quarter_round(v[3], v[7], v[11], v[15]);
    quarter_round(v[0], v[5], v[10], v[15]);
    quarter_round(v[1], v[6], v[11], v[12]);
    quarter_round(v[2], v[7], v[8], v[13]);
    quarter_round(v[3], v[4], v[9], v[14]);
  }
  for (int w = 0; w < 16; ++w) v[w] += start[w];
  transpose(v, out);
}

template <class Lane, class Op>
inline void combine_lanes(u8* out, const u8* stream, i64 bytes, const Op& op) {
  for (i64 at = 0; at < bytes; at += static_cast<i64>(sizeof(Lane))) {
    Lane a, b;
    std::memcpy(&a, out + at, sizeof(Lane));
    std::memcpy(&b, stream + at, sizeof(Lane));
    a = static_cast<Lane>(op(a, b));
    std::memcpy(out + at, &a, sizeof(Lane));
  }
}

template <class Lane>
inline void combine_as(u8* out, const u8* stream, i64 bytes, bool add) {
  if (add) {
    combine_lanes<Lane>(out, stream, bytes, [](Lane a, Lane b) { return a + b; });
  } else {
    combine_lanes<Lane>(out, stream, bytes, [](Lane a, Lane b) { return a - b; });
  }
}

inline void apply(u8* out, const u8* stream, i64 bytes, int mode, int lane_bytes) {
  if (mode == kSet) {
    std::memcpy(out, stream, static_cast<std::size_t>(bytes));
  } else if (mode == kXor) {
    combine_lanes<u8>(out, stream, bytes, [](u8 a, u8 b) { return a ^ b; });
  } else if (lane_bytes == 8) {
    combine_as<u64>(out, stream, bytes, mode == kAdd);
  } else if (lane_bytes == 4) {
    combine_as<u32>(out, stream, bytes, mode == kAdd);
  } else if (lane_bytes == 2) {
    combine_as<u16>(out, stream, bytes, mode == kAdd);
  } else {
    combine_as<u8>(out, stream, bytes, mode == kAdd);
  }
}

// Little-endian hosts only, as the whole package.
inline void run(u8* out, i64 bytes, const u32 (&state)[16], u32 counter, int mode, int lane_bytes) {
  alignas(64) u8 stream[4 * kBatchBytes];
  for (; bytes >= kBatchBytes; bytes -= kBatchBytes, out += kBatchBytes, counter += kLanes) {
    if (mode == kSet) {
      batch(state, counter, out);
    } else {
      batch(state, counter, stream);
      apply(out, stream, kBatchBytes, mode, lane_bytes);
    }
  }
  if (bytes > 0) {
    batch(state, counter, stream);
    apply(out, stream, bytes, mode, lane_bytes);
  }
}

}  // namespace chacha

// Combines the stream of (key, nonce) from block `offset` on into `bytes` bytes at `out`.
inline void chacha20(u8* out, i64 bytes, const char* key, const char* nonce, int mode, int lane_bytes, u32 offset,
                     int threads) {
  u32 state[16] = {0x61707865, 0x3320646e, 0x79622d32, 0x6b206574};  // RFC 8439, section 2.3
  std::memcpy(state + 4, key, 32);
  state[12] = 0;
  std::memcpy(state + 13, nonce, 12);
  parallel(bytes, chacha::kBatchBytes, threads_for(bytes, i64(4) << 20, threads), [&](i64 begin, i64 end) {
    chacha::run(out + begin, end - begin, state, offset + static_cast<u32>(begin / 64), mode, lane_bytes);
  });
}

}  // namespace kernels
