// Cuckoo hashing with three bins for each item, at most one item in a bin, and lines over the integers modulo 2^127 - 1.
#pragma once

#include "blake2s.hpp"
#include "common.hpp"

namespace kernels {

constexpr i64 kTagsPerMillisecond = 1 << 15, kLinesPerMillisecond = 1 << 16;

// ---- bins
// Three different bins of each item, out of three words that are uniform: [n, 3].
inline void three_bins(i64* out, const u64* random, i64 count, i64 bins) {
  __extension__ using Wide = unsigned __int128;
  const auto below = [](u64 word, i64 limit) { return static_cast<i64>(Wide(word) * static_cast<u64>(limit) >> 64); };
  for (i64 i = 0; i < count; ++i) {
    const u64* word = random + 3 * i;
    const i64 a = below(word[0], bins);
    i64 b = below(word[1], bins - 1);
    b += b >= a;
    i64 c = below(word[2], bins - 2);
    c += c >= std::min(a, b);
    c += c >= std::max(a, b);
    out[3 * i] = a;
    out[3 * i + 1] = b;
    out[3 * i + 2] = c;
  }
}

// Gives each item one of its three bins: seats[bin] = 3 item + which of the three, -1 where the bin is empty. False where
// there is no way to do so: each item is placed by a shortest path of moves, and such a path exists if any way does.
inline bool place_in_bins(i64* seats, const i64* choices, i64 count, i64 bins) {
  std::fill(seats, seats + bins, i64(-1));
  std::vector<i64> moved(static_cast<std::size_t>(bins)), before(moved.size()), queue;
  std::vector<u32> seen(moved.size(), 0);
  u32 search = 0;
  const auto at = [](i64 index) { return static_cast<std::size_t>(index); };
  for (i64 item = 0; item < count; ++item) {
    const i64* own = choices + 3 * item;
    i64 k = 0;
    while (k < 3 && seats[own[k]] >= 0) ++k;
    if (k < 3) {
      seats[own[k]] = 3 * item + k;
      continue;
    }
    if (++search == 0) {
      std::fill(seen.begin(), seen.end(), 0u);
      search = 1;
    }
    queue.clear();
    i64 found = -1;
    const auto reach = [&](i64 who, i64 from) {  // the item `who`, which sits in `from`, may move to its other bins
      for (i64 choice = 0; choice < 3 && found < 0; ++choice) {
        const i64 bin = choices[3 * who + choice];
        if (seen[at(bin)] == search) continue;
        seen[at(bin)] = search;
        moved[at(bin)] = 3 * who + choice;
        before[at(bin)] = from;
        if (seats[bin] < 0) found = bin;
        queue.push_back(bin);
      }
    };
    reach(item, -1);
    for (std::size_t next = 0; next < queue.size() && found < 0; ++next) reach(seats[queue[next]] / 3, queue[next]);
    if (found < 0) return false;
    for (i64 bin = found; bin >= 0; bin = before[at(bin)]) seats[bin] = moved[at(bin)];
  }
  return true;
}

// ---- lines
// Integers modulo p = 2^127 - 1, two words each, low first. What comes in may be any 128 bits; what goes out is below p.
namespace lines {

__extension__ using Wide = unsigned __int128;
constexpr Wide kPrime = (Wide(1) << 127) - 1;

inline Wide load(const u64* p) { return Wide(p[1]) << 64 | p[0]; }
inline void store(u64* p, Wide x) {
  p[0] = static_cast<u64>(x);
  p[1] = static_cast<u64>(x >> 64);
}
inline Wide fold(Wide x) { return (x & kPrime) + (x >> 127); }  // as 2^127 = 1; at most 2^127
inline Wide reduce(Wide x) {
  x = fold(x);
  const Wide less = x - kPrime;  // taken where it does not borrow, without a branch
  const Wide borrow = -(less >> 127);
  return (less & ~borrow) | (x & borrow);
}
inline Wide add(Wide x, Wide y) { return reduce(x + y); }
inline Wide subtract(Wide x, Wide y) { return reduce(x + (kPrime - y)); }
inline Wide multiply(Wide x, Wide y) {
  const u64 x0 = static_cast<u64>(x), x1 = static_cast<u64>(x >> 64);
  const u64 y0 = static_cast<u64>(y), y1 = static_cast<u64>(y >> 64);
  const Wide middle = Wide(x1) * y0 + Wide(x0) * y1;  // times 2^64; below 2^128, as the high words are below 2^63
  const Wide high = 2 * (Wide(x1) * y1) + (middle << 64 & kPrime);  // 2^128 = 2; each term is below 2^127
  return reduce(fold(fold(high) + fold(Wide(x0) * y0)) + (middle >> 63));
}

}  // namespace lines

// b = c - a r: [n, 2] each.
inline void line_offsets(u64* out, const u64* a, const u64* r, const u64* c, i64 count, int threads) {
  parallel(count, 1, threads_for(double(count), kLinesPerMillisecond, threads), [&](i64 begin, i64 end) {
    for (i64 i = 2 * begin; i < 2 * end; i += 2) {
      const lines::Wide product = lines::multiply(lines::reduce(lines::load(a + i)), lines::reduce(lines::load(r + i)));
      lines::store(out + i, lines::subtract(lines::reduce(lines::load(c + i)), product));
    }
  });
}

// d = x - r: [n, 2] each.
inline void line_shifts(u64* out, const u64* x, const u64* r, i64 count) {
  for (i64 i = 0; i < 2 * count; i += 2) {
    lines::store(out + i, lines::subtract(lines::reduce(lines::load(x + i)), lines::reduce(lines::load(r + i))));
  }
}

// a (y - d) + b in each of three bins of each y: y is [n, 2], choices [n, 3], known [bins, 6] = (a, d, b), out [n, 3, 2].
inline void line_values(u64* out, const u64* y, const i64* choices, const u64* known, i64 count, int threads) {
  parallel(count, 1, threads_for(double(count), kLinesPerMillisecond, threads), [&](i64 begin, i64 end) {
    constexpr i64 kAhead = 8;
    for (i64 i = begin; i < end; ++i) {
      if (i + kAhead < end) {
        for (i64 k = 0; k < 3; ++k) __builtin_prefetch(known + 6 * choices[3 * (i + kAhead) + k]);
      }
      const lines::Wide item = lines::reduce(lines::load(y + 2 * i));
      for (i64 k = 0; k < 3; ++k) {
        const u64* line = known + 6 * choices[3 * i + k];
        const lines::Wide gap = lines::subtract(item, lines::reduce(lines::load(line + 2)));
        const lines::Wide product = lines::multiply(lines::reduce(lines::load(line)), gap);
        lines::store(out + 6 * i + 2 * k, lines::add(product, lines::reduce(lines::load(line + 4))));
      }
    }
  });
}

// BLAKE2s of (32 bytes that name the session, value, bin, number): the first `size` bytes, 12 or 16, of each digest.
inline void line_tags(u8* out, const u64* values, const i64* bins, const i64* numbers, const char* session, int size,
                      i64 count, int threads) {
  using blake2s::kLanes;
  using blake2s::Vec;
  u32 parameters[8] = {0x01010000u | static_cast<u32>(size)}, name[8];
  std::memcpy(parameters + 6, "sm align", 8);  // the personalization
  std::memcpy(name, session, 32);
  parallel(count, kLanes, threads_for(double(count), kTagsPerMillisecond, threads), [&](i64 begin, i64 end) {
    Vec message[16], digest[4];
    for (int w = 0; w < 16; ++w) message[w] = (Vec){} + (w < 8 ? name[w] : 0u);
    for (i64 first = begin; first < end; first += kLanes) {
      const i64 here = std::min<i64>(kLanes, end - first);
      for (i64 lane = 0; lane < here; ++lane) {
        const i64 i = first + lane;
        u64 value[2];
        lines::store(value, lines::reduce(lines::load(values + 2 * i)));
        const u64 words[4] = {value[0], value[1], static_cast<u64>(bins[i]), static_cast<u64>(numbers[i])};
        for (int w = 0; w < 4; ++w) {
          message[8 + 2 * w][lane] = static_cast<u32>(words[w]);
          message[9 + 2 * w][lane] = static_cast<u32>(words[w] >> 32);
        }
      }
      blake2s::digests(parameters, message, digest, 4);
      for (i64 lane = 0; lane < here; ++lane) {
        u32 words[4];
        for (int w = 0; w < 4; ++w) words[w] = digest[w][lane];
        std::memcpy(out + (first + lane) * size, words, static_cast<std::size_t>(size));
      }
    }
  });
}

}  // namespace kernels
