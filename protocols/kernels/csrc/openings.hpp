// What is opened of several values in one round: hidden and packed for the wire, and put together with a peer's part.
#pragma once

#include "common.hpp"

namespace kernels {

constexpr i64 kOpenedPerMillisecond = i64(1) << 20, kOpenedBlock = 1024;

template <class Narrow>
inline void cut_to(u8* to, const u64* from, i64 n) {
  for (i64 i = 0; i < n; ++i) {
    const Narrow low = static_cast<Narrow>(from[i]);
    std::memcpy(to + i * static_cast<i64>(sizeof(Narrow)), &low, sizeof(Narrow));
  }
}

// The low `width` bytes of each number, one after the other; little-endian hosts only, as the whole package.
inline void cut(u8* to, const u64* from, i64 n, int width) {
  if (width == 1) return cut_to<u8>(to, from, n);
  if (width == 2) return cut_to<u16>(to, from, n);
  if (width == 4) return cut_to<u32>(to, from, n);
  if (width == 8) return cut_to<u64>(to, from, n);
  i64 i = 0;
  for (; i * width + 8 <= n * width; ++i) std::memcpy(to + i * width, from + i, 8);  // the next one covers the rest
  for (; i < n; ++i) std::memcpy(to + i * width, from + i, static_cast<std::size_t>(width));
}

template <class Narrow, class Op>
inline void join_as(u64* value, const u8* part, i64 n, const Op& op) {
  for (i64 i = 0; i < n; ++i) {
    Narrow low;
    std::memcpy(&low, part + i * static_cast<i64>(sizeof(Narrow)), sizeof(Narrow));
    value[i] = op(value[i], static_cast<u64>(low));
  }
}

template <class Op>
inline void join_with(u64* value, const u8* part, i64 n, int width, const Op& op) {
  if (width == 1) return join_as<u8>(value, part, n, op);
  if (width == 2) return join_as<u16>(value, part, n, op);
  if (width == 4) return join_as<u32>(value, part, n, op);
  if (width == 8) return join_as<u64>(value, part, n, op);
  const u64 low = (u64(1) << (8 * width)) - 1;
  i64 i = 0;
  for (; i * width + 8 <= n * width; ++i) {
    u64 word;
    std::memcpy(&word, part + i * width, 8);
    value[i] = op(value[i], word & low);
  }
  for (; i < n; ++i) {
    u64 word = 0;
    std::memcpy(&word, part + i * width, static_cast<std::size_t>(width));
    value[i] = op(value[i], word);
  }
}

inline i64 whole_words(i64 bytes) { return (bytes + 7) / 8 * 8; }

// value = share + mask, or their exclusive or (a share at no address is zero), and what of it is sent (width 0: nothing).
inline void hide(u64* value, const u64* share, const u64* mask, i64 n, int width, bool bits, u8* wire, int threads) {
  parallel(n, 64, threads_for(double(n), kOpenedPerMillisecond, threads), [=](i64 begin, i64 end) {
    for (i64 at = begin; at < end; at += kOpenedBlock) {
      const i64 stop = std::min(end, at + kOpenedBlock);
      if (share == nullptr) {
        std::memcpy(value + at, mask + at, static_cast<std::size_t>(stop - at) * 8);
      } else if (bits) {
        for (i64 i = at; i < stop; ++i) value[i] = share[i] ^ mask[i];
      } else {
        for (i64 i = at; i < stop; ++i) value[i] = share[i] + mask[i];
      }
      if (width > 0) cut(wire + at * width, value + at, stop - at, width);
    }
  });
  const i64 bytes = n * width;
  std::memset(wire + bytes, 0, static_cast<std::size_t>(whole_words(bytes) - bytes));
}

// Numbers from their low `width` bytes; the others are zero.
inline void widen(u64* value, const u8* part, i64 n, int width, int threads) {
  parallel(n, 64, threads_for(double(n), kOpenedPerMillisecond, threads), [=](i64 begin, i64 end) {
    join_with(value + begin, part + begin * width, end - begin, width, [](u64, u64 low) { return low; });
  });
}

// Adds a peer's part to a value, or takes the exclusive or.
inline void join(u64* value, const u8* part, i64 n, int width, bool bits, int threads) {
  parallel(n, 64, threads_for(double(n), kOpenedPerMillisecond, threads), [=](i64 begin, i64 end) {
    u64* to = value + begin;
    const u8* from = part + begin * width;
    if (bits) {
      join_with(to, from, end - begin, width, [](u64 a, u64 b) { return a ^ b; });
    } else {
      join_with(to, from, end - begin, width, [](u64 a, u64 b) { return a + b; });
    }
  });
}

}  // namespace kernels
