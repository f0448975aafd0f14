// Python names for the kernels. Arguments are addresses and sizes that the Python wrappers have checked; the
// interpreter lock is released while a kernel runs. Compiled once per instruction set (KERNELS_MODULE).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#if defined(__linux__)
#include <malloc.h>
#endif

#include <array>
#include <string>
#include <type_traits>

#include "chacha20.hpp"
#include "fewer.hpp"
#include "gemm.hpp"
#include "lookup.hpp"
#include "openings.hpp"
#include "signs.hpp"
#include "planes.hpp"
#include "pointwise.hpp"
#if defined(__SIZEOF_INT128__)
#include "bins.hpp"
#include "residues.hpp"
#include "curve25519.hpp"
#endif

namespace py = pybind11;

namespace {

using namespace kernels;
using Address = std::uintptr_t;
using Sizes = std::vector<i64>;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

u64* words(Address address) { return at<u64>(address); }

// body(address as a pointer to unsigned integers of that many bytes).
template <class Body>
void with_width(int bytes, Address address, const Body& body) {
  if (bytes == 2) {
    body(at<u16>(address));
  } else if (bytes == 4) {
    body(at<u32>(address));
  } else {
    body(at<u64>(address));
  }
}

#if defined(__x86_64__)
std::vector<std::string> cpu_features() {
  std::vector<std::string> found;
  __builtin_cpu_init();
#define KERNELS_FEATURE(name) \
  if (__builtin_cpu_supports(name)) found.emplace_back(name)
  KERNELS_FEATURE("avx2");
  KERNELS_FEATURE("fma");
  KERNELS_FEATURE("bmi");
  KERNELS_FEATURE("bmi2");
  KERNELS_FEATURE("avx512f");
  KERNELS_FEATURE("avx512bw");
  KERNELS_FEATURE("avx512cd");
  KERNELS_FEATURE("avx512dq");
  KERNELS_FEATURE("avx512vl");
#undef KERNELS_FEATURE
  return found;
}
#else
std::vector<std::string> cpu_features() { return {}; }
#endif

// Makes the allocator keep freed blocks of up to 32 MiB instead of handing them back page by page.
bool keep_freed_memory() {
#if defined(__GLIBC__)
  return mallopt(M_MMAP_THRESHOLD, 32 << 20) && mallopt(M_TRIM_THRESHOLD, 512 << 20) && mallopt(M_ARENA_MAX, 1);
#else
  return false;
#endif
}

void py_chacha20(Address out, i64 bytes, const py::bytes& key, const py::bytes& nonce, int mode, int lane_bytes,
                 u32 offset, int threads) {
  const char* k = PyBytes_AS_STRING(key.ptr());
  const char* n = PyBytes_AS_STRING(nonce.ptr());
  py::gil_scoped_release release;
  chacha20(at<u8>(out), bytes, k, n, mode, lane_bytes, offset, threads);
}

// Several streams of one key, each with a nonce of 12 bytes. `outs`: of each its address, bytes, mode and bytes of a lane.
void py_chacha20_many(const Sizes& outs, const py::bytes& key, const py::bytes& nonces, int threads) {
  const char* k = PyBytes_AS_STRING(key.ptr());
  const char* n = PyBytes_AS_STRING(nonces.ptr());
  py::gil_scoped_release release;
  for (std::size_t i = 0; i < outs.size() / 4; ++i) {
    const i64* out = outs.data() + 4 * i;
    chacha20(at<u8>(static_cast<Address>(out[0])), out[1], k, n + 12 * i, static_cast<int>(out[2]),
             static_cast<int>(out[3]), 0, threads);
  }
}

// Pieces of what a round opens, six numbers each: addresses of value, share (0: zero) and mask, the number of elements, how
// many bytes of each are sent (0: none), whether they are bits. Each piece begins at a whole word of the wire.
void py_hide(Address wire, const Sizes& pieces, int threads) {
  py::gil_scoped_release release;
  u8* to = at<u8>(wire);
  for (std::size_t i = 0; i + 6 <= pieces.size(); i += 6) {
    const i64* p = pieces.data() + i;
    hide(words(static_cast<Address>(p[0])), words(static_cast<Address>(p[1])), words(static_cast<Address>(p[2])), p[3],
         static_cast<int>(p[4]), p[5] != 0, to, threads);
    to += whole_words(p[3] * p[4]);
  }
}

// A peer's parts of such pieces, four numbers each: address of the value, elements, bytes of each, whether they are bits.
void py_join(Address wire, const Sizes& pieces, int threads) {
  py::gil_scoped_release release;
  const u8* from = at<u8>(wire);
  for (std::size_t i = 0; i + 4 <= pieces.size(); i += 4) {
    const i64* p = pieces.data() + i;
    join(words(static_cast<Address>(p[0])), from, p[1], static_cast<int>(p[2]), p[3] != 0, threads);
    from += whole_words(p[1] * p[2]);
  }
}

// Low bytes of several tensors, four numbers each: address of the bytes, address of the numbers, how many, bytes of each.
// The bytes of each end with a whole word.
void py_narrow(const Sizes& pieces, int threads) {
  py::gil_scoped_release release;
  for (std::size_t i = 0; i + 4 <= pieces.size(); i += 4) {
    const i64* p = pieces.data() + i;
    u8* to = at<u8>(static_cast<Address>(p[0]));
    const u64* from = words(static_cast<Address>(p[1]));
    const int width = static_cast<int>(p[3]);
    parallel(p[2], 64, threads_for(double(p[2]), kOpenedPerMillisecond, threads), [=](i64 begin, i64 end) {
      cut(to + begin * width, from + begin, end - begin, width);
    });
    const i64 bytes = p[2] * width;
    std::memset(to + bytes, 0, static_cast<std::size_t>(whole_words(bytes) - bytes));
  }
}

// The inverse, with zero high bytes.
void py_widen(const Sizes& pieces, int threads) {
  py::gil_scoped_release release;
  for (std::size_t i = 0; i + 4 <= pieces.size(); i += 4) {
    const i64* p = pieces.data() + i;
    widen(words(static_cast<Address>(p[1])), at<u8>(static_cast<Address>(p[0])), p[2], static_cast<int>(p[3]), threads);
  }
}

// Batches: `batch` sizes, with the strides of a and b along them (0 where one is shared); out is contiguous.
void py_matmul(Address out, Address a, Address b, i64 m, i64 n, i64 depth, i64 a_row, i64 a_column, i64 b_row,
               i64 b_column, int mode, const Sizes& batch, const Sizes& a_strides, const Sizes& b_strides,
               int threads) {
  py::gil_scoped_release release;
  i64 count = 1;
  for (const i64 size : batch) count *= size;
  const auto one = [&](i64 index, int share) {
    i64 a_at = 0, b_at = 0, rest = index;
    for (std::size_t d = batch.size(); d-- > 0; rest /= batch[d]) {
      a_at += rest % batch[d] * a_strides[d];
      b_at += rest % batch[d] * b_strides[d];
    }
    const Output target{words(out) + index * m * n, n, std::max<i64>(n, 1), 0, static_cast<Store>(mode)};
    product(m, n, depth, {words(a) + a_at, a_row, a_column}, {words(b) + b_at, b_row, b_column}, target, share);
  };
  if (count < threads) {
    for (i64 i = 0; i < count; ++i) one(i, threads);
    return;
  }
  const int share = threads_for(double(count) * double(m) * double(n) * double(depth), kProductsPerMillisecond, threads);
  parallel(count, 1, share, [&](i64 begin, i64 end) {
    for (i64 i = begin; i < end; ++i) one(i, 1);
  });
}

// Once more, as wrong sizes would write anywhere: nothing that is divided by is zero, and 64 bits count the padded
// image's bytes. In floating point, which does not wrap.
ConvShape checked(const std::array<i64, 16>& g) {
  const ConvShape s{g[0], g[1], g[2],  g[3],  g[4],  g[5],  g[6],  g[7],
                    g[8], g[9], g[10], g[11], g[12], g[13], g[14], g[15]};
  bool good = s.top >= 0 && s.left >= 0;
  for (const i64 size : {s.images, s.channels, s.height, s.width, s.outputs, s.kernel_rows, s.kernel_columns, s.rows,
                         s.columns, s.row_step, s.column_step, s.row_gap, s.column_gap, s.groups}) {
    good = good && size > 0;
  }
  const auto side = [](i64 size, i64 before, i64 count, i64 step, i64 taps, i64 gap) {
    const double reach = (double(count) - 1) * double(step) + (double(taps) - 1) * double(gap) + 1;
    return std::max(double(before) + double(size), reach);
  };
  const double high = side(s.height, s.top, s.rows, s.row_step, s.kernel_rows, s.row_gap);
  const double wide = side(s.width, s.left, s.columns, s.column_step, s.kernel_columns, s.column_gap);
  good = good && s.channels % s.groups == 0 && s.outputs % s.groups == 0;
  if (!good || 8.0 * double(s.images) * double(s.channels) * high * wide >= 0x1p62) {
    throw py::value_error("conv2d: an axis has no element, or 64 bits do not count the bytes of the padded image");
  }
  return s;
}

void py_conv2d(Address out, Address x, Address w, const std::array<i64, 16>& s, int mode, int threads) {
  const ConvShape shape = checked(s);
  py::gil_scoped_release release;
  convolution(words(out), words(x), words(w), shape, static_cast<Store>(mode), threads);
}

// For tests: the same in squares of this size, whatever it costs.
void py_conv2d_in_squares(Address out, Address x, Address w, const std::array<i64, 16>& s, int mode, int threads,
                          int down, int across) {
  const ConvShape shape = checked(s);
  const int i = down - kLeastSide, j = across - kLeastSide;
  if (!has_squares(shape) || std::min(i, j) < 0 || std::max(i, j) >= kSides) {
    throw py::value_error("conv2d_in_squares: 3x3 kernels of one group, steps of 1, and squares of 2 to 4 are asked for");
  }
  py::gil_scoped_release release;
  kOfSquares[i][j].run(shape, words(x), words(w), words(out), static_cast<Store>(mode), threads);
}

}  // namespace

PYBIND11_MODULE(KERNELS_MODULE, m) {
  m.doc() = "Ring kernels compiled for one instruction set; use them through protocols.kernels.";
  const auto free_running = py::call_guard<py::gil_scoped_release>();

  m.attr("interface") = 6;  // goes up with every change of what Python calls: see cpu/build.py
  m.def("cpu_features", &cpu_features);
  m.def("keep_freed_memory", &keep_freed_memory);
  m.def("chacha20", &py_chacha20);
  m.def("chacha20_many", &py_chacha20_many);
  m.def("hide", &py_hide);
  m.def("join", &py_join);
  m.def("narrow", &py_narrow);
  m.def("widen", &py_widen);
  m.def("matmul", &py_matmul);
  m.def("conv2d", &py_conv2d);
  m.def("conv2d_in_squares", &py_conv2d_in_squares);
  m.def("sign_product", [](Address out, Address a, Address b, i64 m, i64 n, i64 depth, int threads) {
    sign_product(at<u32>(out), at<u32>(a), at<std::int8_t>(b), m, n, depth, threads);
  }, free_running);

  m.def("pack_bits", [](Address out, Address bits, i64 n) { pack_bits(words(out), at<u8>(bits), n); }, free_running);
  m.def("unpack_bits", [](Address out, Address bits, i64 n) {
    unpack_bits(at<u8>(out), words(bits), n);
  }, free_running);
  m.def("bit_plane", [](Address out, Address x, i64 n, int bit, u64 offset) {
    bit_plane(words(out), words(x), n, bit, offset);
  }, free_running);
  m.def("thermometer", [](Address out, Address lam, i64 n, int low_bits, int shift, int threads) {
    thermometer(at<u16>(out), words(lam), n, low_bits, shift, threads);
  }, free_running);
  m.def("leaves", [](Address out, Address x, Address therm, i64 n, int low_bits, int shift, u64 offset,
                     int threads) {
    leaves(words(out), words(x), at<u16>(therm), n, low_bits, shift, offset, threads);
  }, free_running);
  m.def("monomials", [](Address out, Address masks, i64 count, int k, bool with_eq) {
    monomials(words(out), words(masks), count, k, with_eq);
  }, free_running);
  m.def("combine", [](Address out, Address opened, Address masks, Address products, Address top, i64 count, int k,
                      bool with_eq, bool first) {
    combine(words(out), words(opened), words(masks), words(products), words(top), count, k, with_eq, first);
  }, free_running);
  m.def("monomials_layer", [](Address out, Address masks, i64 count, const Sizes& groups) {
    monomials_layer(words(out), words(masks), count, groups);
  }, free_running);
  m.def("combine_layer", [](Address out, Address opened, Address masks, Address products, Address bits, i64 count,
                            const Sizes& groups, bool first) {
    combine_layer(words(out), words(opened), words(masks), words(products), words(bits), count, groups, first);
  }, free_running);

  m.def("deal_truncation", [](Address a, Address k, int wrap_bytes, Address lam, i64 n, int f, int threads) {
    with_width(wrap_bytes, k, [=](auto* narrow) { deal_truncation(words(a), narrow, words(lam), n, f, threads); });
  }, free_running);
  m.def("truncate", [](Address out, Address x, Address a, Address k, int wrap_bytes, Address chat, Address gamma, i64 n,
                       int f, u64 offset, bool first, int threads) {
    with_width(wrap_bytes, k, [=](auto* narrow) {
      truncate(words(out), words(x), words(a), narrow, words(chat), words(gamma), n, f, offset, first, threads);
    });
  }, free_running);
  m.def("bit_times", [](Address out, Address bits, Address v, i64 n, int threads) {
    bit_times(words(out), words(bits), words(v), n, threads);
  }, free_running);
  m.def("select", [](Address out, Address bhat, Address x, Address lam, Address beta, Address beta_lam, i64 n, bool first,
                     int threads) {
    select(words(out), words(bhat), words(x), words(lam), words(beta), words(beta_lam), n, first, threads);
  }, free_running);
  m.def("select_truncated", [](Address out, Address bhat, Address x, Address a, Address k, Address b, Address ba,
                               Address bk, int wrap_bytes, Address chat, Address gamma, Address bgamma, i64 n, int f,
                               u64 offset, bool first, int threads) {
    with_width(wrap_bytes, k, [=](auto* narrow) {
      select_truncated(words(out), words(bhat), words(x), words(a), narrow, words(b), words(ba),
                       at<std::remove_reference_t<decltype(*narrow)>>(bk), words(chat), words(gamma), words(bgamma), n, f,
                       offset, first, threads);
    });
  }, free_running);
  m.def("bit_to_ring", [](Address out, Address bhat, Address beta, i64 n, bool first, int threads) {
    bit_to_ring(words(out), words(bhat), words(beta), n, first, threads);
  }, free_running);
  m.def("unit_lookup", [](Address out, Address x, Address bits, Address turned, i64 n, i64 size, i64 columns,
                          int threads) {
    unit_lookup(words(out), words(x), words(bits), words(turned), n, size, columns, threads);
  }, free_running);
  m.def("unit_vectors", [](Address out, Address lam, i64 n, i64 size) {
    unit_vectors(words(out), words(lam), n, size);
  }, free_running);
  m.def("lookup_around", [](Address out, Address x, Address bits, Address turned, i64 n, i64 size, int rest, int cut0,
                            int cut1, int cut2, bool weighted, bool narrow, int threads) {
    const auto run = [=](auto kernel, auto lane) {
      kernel(words(out), words(x), words(bits), at<decltype(lane)>(turned), n, size, rest, cut0, cut1, cut2, threads);
    };
    if (weighted) {
      run(lookup_around<i64, u64, true>, i64());
    } else if (narrow) {
      run(lookup_around<std::int32_t, std::uint32_t, false>, std::int32_t());
    } else {
      run(lookup_around<i64, u64, false>, i64());
    }
  }, free_running);
  m.def("spline", [](Address out, Address y0, Address y1, Address y2, Address p0, Address p1, Address p2, Address d, i64 n,
                     int a0, int a1, int a2, bool first, int threads) {
    spline(words(out), words(y0), words(y1), words(y2), words(p0), words(p1), words(p2), words(d), n, a0, a1, a2, first,
           threads);
  }, free_running);
  m.def("deal_spline", [](Address out, Address l0, Address l1, Address l2, Address lam, Address sign, i64 n, int a0, int a1,
                          int a2, int rest, int drop, int threads) {
    deal_spline(words(out), words(l0), words(l1), words(l2), words(lam), words(sign), n, a0, a1, a2, rest, drop, threads);
  }, free_running);
  m.def("encode", [](Address out, Address x, i64 n, bool wide, double scale, int threads) {
    if (wide) {
      encode(at<i64>(out), at<double>(x), n, scale, threads);
    } else {
      encode(at<i64>(out), at<float>(x), n, scale, threads);
    }
  }, free_running);
  m.def("decode", [](Address out, Address x, i64 n, double scale, int threads) {
    decode(at<float>(out), at<i64>(x), n, scale, threads);
  }, free_running);

#if defined(__SIZEOF_INT128__)
  m.def("three_bins", [](Address out, Address random, i64 n, i64 bins) {
    three_bins(at<i64>(out), words(random), n, bins);
  }, free_running);
  m.def("place_in_bins", [](Address seats, Address choices, i64 n, i64 bins) {
    return place_in_bins(at<i64>(seats), at<i64>(choices), n, bins);
  }, free_running);
  m.def("line_offsets", [](Address out, Address a, Address r, Address c, i64 n, int threads) {
    line_offsets(words(out), words(a), words(r), words(c), n, threads);
  }, free_running);
  m.def("line_shifts", [](Address out, Address x, Address r, i64 n) {
    line_shifts(words(out), words(x), words(r), n);
  }, free_running);
  m.def("line_values", [](Address out, Address y, Address choices, Address known, i64 n, int threads) {
    line_values(words(out), words(y), at<i64>(choices), words(known), n, threads);
  }, free_running);
  m.def("line_tags", [](Address out, Address values, Address bins, Address numbers, const std::string& session, int size,
                        i64 n, int threads) {
    line_tags(at<u8>(out), words(values), at<i64>(bins), at<i64>(numbers), session.data(), size, n, threads);
  }, free_running);
  m.def("residue_lanes", &residue_lanes);
  m.def("residue_products", [](Address out, Address table, Address index, i64 count, i64 levels, i64 terms,
                               int squarings, Address digits, Address square, u64 factor, i64 width, int threads) {
    i64 made = 0;
    with_lanes([&](auto* engine) {
      made = residue_products<std::remove_pointer_t<decltype(engine)>>(
          words(out), words(table), at<std::int32_t>(index), count, levels, terms, squarings,
          {words(digits), words(square), factor, width}, threads);
    });
    return made;
  }, free_running);
  m.def("residues_enter", [](Address out, Address numbers, i64 count, i64 bytes, Address digits, Address square,
                             u64 factor, i64 width, int threads) {
    with_lanes([=](auto* engine) {
      residues_enter<std::remove_pointer_t<decltype(engine)>>(
          words(out), at<u8>(numbers), count, bytes, {words(digits), words(square), factor, width}, threads);
    });
  }, free_running);
  m.def("residues_leave", [](Address out, Address residues, i64 count, i64 bytes, Address digits, Address square,
                             u64 factor, i64 width, int threads) {
    with_lanes([=](auto* engine) {
      residues_leave<std::remove_pointer_t<decltype(engine)>>(
          at<u8>(out), words(residues), count, bytes, {words(digits), words(square), factor, width}, threads);
    });
  }, free_running);
#if defined(KERNELS_IFMA)
  m.def("x25519", [](Address out, Address points, i64 count, Address key, int threads) {
    x25519(at<u8>(out), at<u8>(points), count, at<u8>(key), threads);
  }, free_running);
  m.def("curve25519_points", [](Address out, Address points, i64 count, int threads) {
    curve25519_points(at<u8>(out), at<u8>(points), count, threads);
  }, free_running);
#endif
#endif
}
