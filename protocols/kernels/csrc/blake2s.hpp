// BLAKE2s (RFC 7693) of messages of one block, many at a time: lane i of every vector belongs to message i.
#pragma once

#include "chacha20.hpp"

namespace kernels {
namespace blake2s {

using chacha::kLanes;
using chacha::rotate;
using chacha::Vec;

constexpr u32 kStart[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                           0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
constexpr u8 kOrder[10][16] = {{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
                               {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
                               {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4},
                               {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
                               {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13},
                               {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
                               {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11},
                               {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
                               {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5},
                               {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0}};

// Rotations to the right by 16, 12, 8 and 7, as rotations to the left.
inline __attribute__((always_inline)) void mix(Vec& a, Vec& b, Vec& c, Vec& d, const Vec& x, const Vec& y) {
  a += b + x; d = rotate<16>(d ^ a);
  c += d; b = rotate<20>(b ^ c);
  a += b + y; d = rotate<24>(d ^ a);
  c += d; b = rotate<25>(b ^ c);
}

// The first `words` words of the digests of kLanes messages of 64 bytes. `parameters` are the words of the parameter block.
inline void digests(const u32 (&parameters)[8], const Vec (&message)[16], Vec* out, int words) {
  Vec start[8], v[16];
  for (int w = 0; w < 8; ++w) {
    start[w] = (Vec){} + (kStart[w] ^ parameters[w]);
    v[w] = start[w];
    v[w + 8] = (Vec){} + kStart[w];
  }
  v[12] ^= (Vec){} + 64u;  // the bytes of the message
  v[14] = ~v[14];          // this is the last block
  for (int round = 0; round < 10; ++round) {
    const u8* at = kOrder[round];
    mix(v[0], v[4], v[8], v[12], message[at[0]], message[at[1]]);
    mix(v[1], v[5], v[9], v[13], message[at[2]], message[at[3]]);
    mix(v[2], v[6], v[10], v[14], message[at[4]], message[at[5]]);
    mix(v[3], v[7], v[11], v[15], message[at[6]], message[at[7]]);
    mix(v[0], v[5], v[10], v[15], message[at[8]], message[at[9]]);
    mix(v[1], v[6], v[11], v[12], message[at[10]], message[at[11]]);
    mix(v[2], v[7], v[8], v[13], message[at[12]], message[at[13]]);
    mix(v[3], v[4], v[9], v[14], message[at[14]], message[at[15]]);
  }
  for (int w = 0; w < words; ++w) out[w] = start[w] ^ v[w] ^ v[w + 8];
}

}  // namespace blake2s
}  // namespace kernels
