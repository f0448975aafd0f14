// Types, scratch memory and threads that all kernels share.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace kernels {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using i64 = std::int64_t;

// Aligned memory that only grows; its contents are undefined.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { release(); }

  u64* reserve(i64 words) {
    if (words > capacity_) {
      release();
      data_ = static_cast<u64*>(::operator new(static_cast<std::size_t>(words) * 8, std::align_val_t(64)));
      capacity_ = words;
    }
    return data_;
  }

 private:
  void release() {
    if (data_ != nullptr) ::operator delete(data_, std::align_val_t(64));
    data_ = nullptr;
    capacity_ = 0;
  }
  u64* data_ = nullptr;
  i64 capacity_ = 0;
};

// Calls body(begin, end) on slices of [0, count) that start at multiples of `grain`, one slice per thread.
template <class Body>
void parallel(i64 count, i64 grain, int threads, const Body& body) {
  const i64 grains = (count + grain - 1) / grain;
  const i64 slices = std::min<i64>(threads, grains);
  if (slices <= 1) {
    body(i64(0), count);
    return;
  }
  const auto start = [&](i64 s) { return std::min(count, grains * s / slices * grain); };
  std::vector<std::thread> workers;
  workers.reserve(static_cast<std::size_t>(slices - 1));
  i64 spawned = 1;
  try {
    for (; spawned < slices; ++spawned) {
      workers.emplace_back([&body, &start, spawned] { body(start(spawned), start(spawned + 1)); });
    }
  } catch (const std::system_error&) {  // no more threads to be had: this one does the rest
  }
  body(i64(0), start(1));
  if (spawned < slices) body(start(spawned), count);
  for (auto& worker : workers) worker.join();
}

// Starting threads costs some tens of microseconds, so only work of about a millisecond is shared.
// Work is a double: products of sizes that fit in memory need not fit in 64 bits.
inline int threads_for(double work, i64 per_millisecond, int threads) {
  return work >= static_cast<double>(per_millisecond) ? threads : 1;
}

}  // namespace kernels
