// Matrix product mod 2^64. Three ways, chosen by shape: dot products of contiguous rows (few rows or columns),
// row updates (few rows, nothing packed), and the blocked product with packed panels (everything else).
#pragma once

#include <array>

#include "lanes.hpp"

namespace kernels {

enum Store { kWrite = 0, kPlus = 1, kMinus = 2 };

// A matrix read with any strides.
struct Matrix {
  const u64* data;
  i64 row, column;
  const u64* at(i64 i, i64 j) const { return data + i * row + j * column; }
};

// Where results go. Column j lies in image (first + j) / columns; a plain matrix is a single image.
struct Output {
  u64* data;
  i64 row, columns, image;
  Store mode;
  i64 first = 0;

  Output part(i64 i, i64 j) const { return {data + i * row, row, columns, image, mode, first + j}; }
  u64* at(i64 i, i64 j) const {
    const i64 p = first + j;
    return p < columns ? data + i * row + p : data + p / columns * image + i * row + p % columns;
  }
  bool unbroken(i64 j, i64 count) const {
    const i64 p = first + j;
    return (p < columns ? p : p % columns) + count <= columns;
  }
};

// What later parts of a sum do to a result that the first part has written.
inline Store following(Store mode) { return mode == kWrite ? kPlus : mode; }

inline void put(u64* p, u64 value, Store mode) {
  if (mode == kWrite) {
    *p = value;
  } else {
    *p += mode == kPlus ? value : u64(0) - value;
  }
}

inline void put_vector(u64* p, const Lanes::Total& value, Store mode) {
  if (mode == kWrite) {
    Lanes::store(p, value);
  } else {
    const auto old = Lanes::load(p);
    Lanes::store(p, mode == kPlus ? old + value : old - value);
  }
}

// --- packing ------------------------------------------------------------------------------------------------

#if defined(__AVX512F__)
inline void transpose_8x8(const u64* src, i64 row, u64* dst, i64 dst_row) {
  __m512i r[8], t[8], u[8];
  for (int i = 0; i < 8; ++i) r[i] = _mm512_loadu_si512(src + i * row);
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm512_unpacklo_epi64(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi64(r[2 * i], r[2 * i + 1]);
  }
  for (int h = 0; h < 2; ++h) {
    for (int p = 0; p < 2; ++p) {
      u[4 * h + p] = _mm512_shuffle_i64x2(t[4 * h + p], t[4 * h + 2 + p], 0x88);
      u[4 * h + 2 + p] = _mm512_shuffle_i64x2(t[4 * h + p], t[4 * h + 2 + p], 0xDD);
    }
  }
  for (int p = 0; p < 2; ++p) {
    _mm512_storeu_si512(dst + (0 + p) * dst_row, _mm512_shuffle_i64x2(u[p], u[4 + p], 0x88));
    _mm512_storeu_si512(dst + (4 + p) * dst_row, _mm512_shuffle_i64x2(u[p], u[4 + p], 0xDD));
    _mm512_storeu_si512(dst + (2 + p) * dst_row, _mm512_shuffle_i64x2(u[2 + p], u[6 + p], 0x88));
    _mm512_storeu_si512(dst + (6 + p) * dst_row, _mm512_shuffle_i64x2(u[2 + p], u[6 + p], 0xDD));
  }
}
#endif

// dst[k][lane] = src(lane, k) for `lanes` lanes, zeros up to `width`.
inline void pack_panel(u64* dst, const u64* src, i64 lane_stride, i64 k_stride, i64 lanes, i64 width, i64 depth) {
  if (lanes < width) std::memset(dst, 0, static_cast<std::size_t>(width * depth) * 8);
  i64 k = 0;
  if (lane_stride == 1) {
    for (; k < depth; ++k) {
      const u64* from = src + k * k_stride;
      u64* to = dst + k * width;
      for (i64 l = 0; l < lanes; ++l) to[l] = from[l];
    }
    return;
  }
#if defined(__AVX512F__)
  if (k_stride == 1 && lanes == width && width % 8 == 0) {
    for (; k + 8 <= depth; k += 8) {
      for (i64 l = 0; l < width; l += 8) {
        transpose_8x8(src + l * lane_stride + k, lane_stride, dst + k * width + l, width);
      }
    }
  }
#endif
  for (; k < depth; ++k) {
    for (i64 l = 0; l < lanes; ++l) dst[k * width + l] = src[l * lane_stride + k * k_stride];
  }
}

// The right operand of a plain product, as panels of columns.
struct MatrixPanels {
  Matrix b;
  void panel(u64* dst, i64 k, i64 depth, i64 j, i64 lanes, i64 width) const {
    pack_panel(dst, b.at(k, j), b.column, b.row, lanes, width, depth);
  }
};

// --- register tiles -----------------------------------------------------------------------------------------

constexpr int kMaxRows = Lanes::kTileRows, kMaxVectors = Lanes::kTileVectors;
constexpr int kTileColumns = kMaxVectors * Lanes::kWidth;

template <int Rows, int Vectors>
inline __attribute__((always_inline)) void store_tile(const Lanes::Sum (&sums)[Rows][Vectors], const Output& out, i64 j,
                                                      i64 columns) {
  constexpr int W = Lanes::kWidth;
  if (columns == Vectors * W && out.unbroken(j, columns)) {
    u64* c = out.at(0, j);
    for (int i = 0; i < Rows; ++i) {
      for (int v = 0; v < Vectors; ++v) put_vector(c + i * out.row + v * W, Lanes::total(sums[i][v]), out.mode);
    }
    return;
  }
  u64 values[Vectors * W];
  for (int i = 0; i < Rows; ++i) {
    for (int v = 0; v < Vectors; ++v) Lanes::store(values + v * W, Lanes::total(sums[i][v]));
    for (i64 c = 0; c < columns; ++c) put(out.at(i, j + c), values[c], out.mode);
  }
}

// Result rows [0, Rows) of one tile from packed panels: a[k][Rows], b[k][Vectors * width].
template <int Rows, int Vectors>
void tile(i64 depth, const u64* a, const u64* b, const Output& out, i64 j, i64 columns) {
  constexpr int W = Lanes::kWidth;
  Lanes::Sum sums[Rows][Vectors] = {};
  for (i64 k = 0; k < depth; ++k) {
    Lanes::Right right[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) right[v] = Lanes::load_right(b + k * Vectors * W + v * W);
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
      const Lanes::Factor left = Lanes::broadcast(a[k * Rows + i]);
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) Lanes::multiply_add(sums[i][v], left, right[v]);
    }
  }
  store_tile<Rows, Vectors>(sums, out, j, columns);
}

using Tile = void (*)(i64, const u64*, const u64*, const Output&, i64, i64);

template <int Vectors, std::size_t... I>
constexpr std::array<Tile, sizeof...(I)> tiles_of(std::index_sequence<I...>) {
  return {tile<static_cast<int>(I) + 1, Vectors>...};
}

template <std::size_t... V>
constexpr auto tile_table(std::index_sequence<V...>) {
  using Row = std::array<Tile, kMaxRows>;
  return std::array<Row, sizeof...(V)>{tiles_of<static_cast<int>(V) + 1>(std::make_index_sequence<kMaxRows>())...};
}

inline constexpr auto kTiles = tile_table(std::make_index_sequence<kMaxVectors>());

// --- blocked product ----------------------------------------------------------------------------------------

constexpr i64 kDepth = 256, kRowBlock = 128, kColumnBlock = 1024;

template <class Panels>
void blocked_product(i64 m, i64 n, i64 depth, const Matrix& a, const Panels& panels, Output out) {
  thread_local Scratch left_memory, right_memory;
  u64* left = left_memory.reserve(std::min(m, kRowBlock) * std::min(depth, kDepth) + 1);
  const i64 padded_columns = (std::min(n, kColumnBlock) + kTileColumns - 1) / kTileColumns * kTileColumns;
  u64* right = right_memory.reserve(padded_columns * std::min(depth, kDepth) + 1);
  const auto vectors_at = [](i64 columns) { return (columns + Lanes::kWidth - 1) / Lanes::kWidth; };
  for (i64 j0 = 0; j0 < n; j0 += kColumnBlock) {
    const i64 nc = std::min(kColumnBlock, n - j0);
    Output target = out;
    i64 k0 = 0;
    do {
      const i64 kc = std::min(kDepth, depth - k0);
      for (i64 j = 0; j < nc; j += kTileColumns) {
        const i64 columns = std::min<i64>(kTileColumns, nc - j);
        panels.panel(right + j * kc, k0, kc, j0 + j, columns, vectors_at(columns) * Lanes::kWidth);
      }
      for (i64 i0 = 0; i0 < m; i0 += kRowBlock) {
        const i64 mc = std::min(kRowBlock, m - i0);
        for (i64 i = 0; i < mc; i += kMaxRows) {
          const i64 rows = std::min<i64>(kMaxRows, mc - i);
          pack_panel(left + i * kc, a.at(i0 + i, k0), a.row, a.column, rows, rows, kc);
        }
        for (i64 j = 0; j < nc; j += kTileColumns) {
          const i64 columns = std::min<i64>(kTileColumns, nc - j);
          const auto& by_rows = kTiles[static_cast<std::size_t>(vectors_at(columns) - 1)];
          for (i64 i = 0; i < mc; i += kMaxRows) {
            const i64 rows = std::min<i64>(kMaxRows, mc - i);
            by_rows[static_cast<std::size_t>(rows - 1)](kc, left + i * kc, right + j * kc, target.part(i0 + i, 0),
                                                        j0 + j, columns);
          }
        }
      }
      target.mode = following(target.mode);
      k0 += kDepth;
    } while (k0 < depth);
  }
}

// --- dot products of contiguous rows ------------------------------------------------------------------------

template <int Rows, int Columns>
void dot_tile(i64 depth, const u64* a, i64 a_row, const u64* b, i64 b_row, const Output& out, i64 i, i64 j) {
  constexpr int W = Lanes::kWidth;
  Lanes::Sum sums[Rows][Columns] = {};
  i64 k = 0;
  for (; k + W <= depth; k += W) {
    Lanes::Right right[Columns];
#pragma GCC unroll 4
    for (int c = 0; c < Columns; ++c) right[c] = Lanes::load_right(b + c * b_row + k);
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      const Lanes::Factor left = Lanes::load(a + r * a_row + k);
#pragma GCC unroll 4
      for (int c = 0; c < Columns; ++c) Lanes::multiply_add(sums[r][c], left, right[c]);
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int c = 0; c < Columns; ++c) {
      u64 value = Lanes::reduce(sums[r][c]);
      for (i64 t = k; t < depth; ++t) value += a[r * a_row + t] * b[c * b_row + t];
      put(out.at(i + r, j + c), value, out.mode);
    }
  }
}

using DotTile = void (*)(i64, const u64*, i64, const u64*, i64, const Output&, i64, i64);

template <int Rows, std::size_t... C>
constexpr std::array<DotTile, sizeof...(C)> dot_tiles_of(std::index_sequence<C...>) {
  return {dot_tile<Rows, static_cast<int>(C) + 1>...};
}

template <std::size_t... R>
constexpr auto dot_table(std::index_sequence<R...>) {
  using Row = std::array<DotTile, Lanes::kDotColumns>;
  return std::array<Row, sizeof...(R)>{
      dot_tiles_of<static_cast<int>(R) + 1>(std::make_index_sequence<Lanes::kDotColumns>())...};
}

inline constexpr auto kDotTiles = dot_table(std::make_index_sequence<Lanes::kDotRows>());

// out(i, j) = sum over k of a[i * a_row + k] * b[j * b_row + k]; the smaller operand stays in cache.
inline void dot_product(i64 m, i64 n, i64 depth, const u64* a, i64 a_row, const u64* b, i64 b_row, Output out) {
  constexpr i64 R = Lanes::kDotRows, C = Lanes::kDotColumns;
  constexpr i64 kCached = 32768;  // entries of the smaller operand that stay in the second-level cache
  const i64 block = std::max<i64>(512, kCached / std::min(m, n) / 64 * 64);
  const auto one = [&](i64 k, i64 kc, i64 i, i64 j) {
    const i64 rows = std::min(R, m - i), columns = std::min(C, n - j);
    kDotTiles[static_cast<std::size_t>(rows - 1)][static_cast<std::size_t>(columns - 1)](
        kc, a + i * a_row + k, a_row, b + j * b_row + k, b_row, out, i, j);
  };
  i64 k = 0;
  do {
    const i64 kc = std::min(block, depth - k);
    if (m >= n) {
      for (i64 i = 0; i < m; i += R) {
        for (i64 j = 0; j < n; j += C) one(k, kc, i, j);
      }
    } else {
      for (i64 j = 0; j < n; j += C) {
        for (i64 i = 0; i < m; i += R) one(k, kc, i, j);
      }
    }
    out.mode = following(out.mode);
    k += block;
  } while (k < depth);
}

// --- few rows against a matrix with contiguous rows ----------------------------------------------------------

constexpr i64 kStrip = 512;

template <int Rows>
void update_rows(i64 n, i64 depth, const Matrix& a, const Matrix& b, const Output& out) {
  constexpr int W = Lanes::kWidth, kAtOnce = Rows <= 2 ? 8 : 4;
  alignas(64) u64 sums[Rows][kStrip];  // fits the first-level cache
  for (i64 j0 = 0; j0 < n; j0 += kStrip) {
    const i64 width = std::min(kStrip, n - j0), whole = width / W * W;
    std::memset(sums, 0, sizeof(sums));
    for (i64 k = 0; k < depth; k += kAtOnce) {
      const int terms = static_cast<int>(std::min<i64>(kAtOnce, depth - k));
      if (terms == kAtOnce) {
        Lanes::Factor left[Rows][kAtOnce];
        for (int r = 0; r < Rows; ++r) {
          for (int t = 0; t < kAtOnce; ++t) left[r][t] = Lanes::broadcast(*a.at(r, k + t));
        }
        for (i64 j = 0; j < whole; j += W) {
          Lanes::Sum total[Rows] = {};
#pragma GCC unroll 8
          for (int t = 0; t < kAtOnce; ++t) {
            const Lanes::Right right = Lanes::load_right(b.at(k + t, j0 + j));
#pragma GCC unroll 8
            for (int r = 0; r < Rows; ++r) Lanes::multiply_add(total[r], left[r][t], right);
          }
          for (int r = 0; r < Rows; ++r) put_vector(sums[r] + j, Lanes::total(total[r]), kPlus);
        }
      }
      for (i64 j = terms == kAtOnce ? whole : 0; j < width; ++j) {
        for (int t = 0; t < terms; ++t) {
          const u64 right = *b.at(k + t, j0 + j);
          for (int r = 0; r < Rows; ++r) sums[r][j] += *a.at(r, k + t) * right;
        }
      }
    }
    for (int r = 0; r < Rows; ++r) {
      for (i64 j = 0; j < width; ++j) put(out.at(r, j0 + j), sums[r][j], out.mode);
    }
  }
}

constexpr i64 kFewRows = 8;

using RowUpdate = void (*)(i64, i64, const Matrix&, const Matrix&, const Output&);

template <std::size_t... I>
constexpr std::array<RowUpdate, sizeof...(I)> row_updates(std::index_sequence<I...>) {
  return {update_rows<static_cast<int>(I) + 1>...};
}

inline void few_rows(i64 m, i64 n, i64 depth, const Matrix& a, const Matrix& b, const Output& out) {
  constexpr auto updates = row_updates(std::make_index_sequence<kFewRows>());
  updates[static_cast<std::size_t>(m - 1)](n, depth, a, b, out);
}

// --- choice -------------------------------------------------------------------------------------------------

constexpr i64 kProductsPerMillisecond = i64(4) << 20;

// Copies a thin matrix so that the index that runs in dot products is contiguous.
inline void copy_rows(u64* dst, const u64* src, i64 rows, i64 row, i64 depth, i64 step) {
  for (i64 i = 0; i < rows; ++i) {
    for (i64 k = 0; k < depth; ++k) dst[i * depth + k] = src[i * row + k * step];
  }
}

inline void product_part(i64 m, i64 n, i64 depth, const Matrix& a, const Matrix& b, const Output& out) {
  constexpr i64 kThin = 16;
  const bool a_rows = a.column == 1 || depth <= 1, b_rows = b.row == 1 || depth <= 1;
  thread_local Scratch memory;
  if (a_rows && b_rows && (std::min(m, n) <= 2 * kThin) && depth >= 4 * Lanes::kWidth) {
    dot_product(m, n, depth, a.data, a.row, b.data, b.column, out);
  } else if (m <= kFewRows && b.column == 1) {
    few_rows(m, n, depth, a, b, out);
  } else if (b_rows && m <= kThin && depth >= 4 * Lanes::kWidth) {
    u64* copy = memory.reserve(m * depth);
    copy_rows(copy, a.data, m, a.row, depth, a.column);
    dot_product(m, n, depth, copy, depth, b.data, b.column, out);
  } else if (a_rows && n <= kThin && depth >= 4 * Lanes::kWidth) {
    u64* copy = memory.reserve(n * depth);
    copy_rows(copy, b.data, n, b.column, depth, b.row);
    dot_product(m, n, depth, a.data, a.row, copy, depth, out);
  } else {
    blocked_product(m, n, depth, a, MatrixPanels{b}, out);
  }
}

// out = a b, or added to or subtracted from it; each thread takes rows or columns, whichever there are more of.
inline void product(i64 m, i64 n, i64 depth, const Matrix& a, const Matrix& b, const Output& out, int threads) {
  if (m <= 0 || n <= 0) return;
  threads = threads_for(double(m) * double(n) * double(std::max<i64>(depth, 1)), kProductsPerMillisecond, threads);
  if (m > n) {
    parallel(m, kMaxRows, threads, [&](i64 begin, i64 end) {
      product_part(end - begin, n, depth, {a.at(begin, 0), a.row, a.column}, b, out.part(begin, 0));
    });
  } else {
    parallel(n, kTileColumns, threads, [&](i64 begin, i64 end) {
      product_part(m, end - begin, depth, a, {b.at(0, begin), b.row, b.column}, out.part(0, begin));
    });
  }
}

}  // namespace kernels
