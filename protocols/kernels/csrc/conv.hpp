// Convolution mod 2^64 as a product of the weights with panels gathered from the image, never the whole unfolding.
#pragma once

#include "gemm.hpp"

namespace kernels {

struct ConvShape {
  i64 images, channels, height, width, outputs, kernel_rows, kernel_columns, rows, columns;
  i64 row_step, column_step, row_gap, column_gap, top, left, groups;
};

// One group of channels of a padded image, read as a matrix: rows are kernel taps, columns are result pixels.
struct ImagePanels {
  const u64* image;
  const i64* taps;  // offset of each tap from the first one
  i64 image_stride, line, row_step, column_step, rows, columns;

  // Offsets of the first tap of `count` pixels in a row.
  void bases(i64* at, i64 pixel, i64 count) const {
    i64 x = pixel % columns, y = pixel / columns % rows, of_image = pixel / columns / rows * image_stride;
    for (i64 l = 0; l < count; ++l) {
      at[l] = of_image + y * row_step * line + x * column_step;
      if (++x < columns) continue;
      x = 0;
      if (++y < rows) continue;
      y = 0;
      of_image += image_stride;
    }
  }

  void panel(u64* dst, i64 k, i64 depth, i64 j, i64 lanes, i64 width) const {
    constexpr i64 kGroup = 4;  // lanes copied at once where they are neighbors in the image
    i64 at[kTileColumns];
    bases(at, j, lanes);
    for (i64 l = lanes; l < width; ++l) at[l] = at[0];  // computed, never stored
    const bool whole = run(at, 0, width) == width;
    bool grouped = width % kGroup == 0;
    for (i64 l = 0; grouped && l < width; l += kGroup) grouped = run(at, l, kGroup) == kGroup;
    for (i64 t = 0; t < depth; ++t) {
      const u64* from = image + taps[k + t];
      u64* to = dst + t * width;
      if (whole) {
        copy<Lanes::kWidth>(to, from + at[0], width);
      } else if (grouped) {
        for (i64 l = 0; l < width; l += kGroup) copy<kGroup>(to + l, from + at[l], kGroup);
      } else {
        for (i64 l = 0; l < width; ++l) to[l] = from[at[l]];
      }
    }
  }

  // All taps of one pixel, contiguous.
  void pixel(u64* dst, i64 j, i64 depth) const {
    i64 at;
    bases(&at, j, 1);
    const u64* from = image + at;
    for (i64 k = 0; k < depth; ++k) dst[k] = from[taps[k]];
  }

 private:
  template <i64 Step>
  static void copy(u64* to, const u64* from, i64 count) {
    for (i64 l = 0; l < count; l += Step) std::memcpy(to + l, from + l, Step * 8);
  }
  static i64 run(const i64* at, i64 first, i64 count) {
    i64 length = 1;
    while (length < count && at[first + length] == at[first] + length) ++length;
    return length;
  }
};

inline void pad_image(u64* dst, const u64* src, const ConvShape& s, i64 height, i64 width) {
  const i64 lines = std::min(s.height, height - s.top), copied = std::min(s.width, width - s.left);
  for (i64 plane = 0; plane < s.images * s.channels; ++plane, dst += height * width, src += s.height * s.width) {
    std::memset(dst, 0, static_cast<std::size_t>(height * width) * 8);
    for (i64 y = 0; y < lines; ++y) {
      std::memcpy(dst + (y + s.top) * width + s.left, src + y * s.width, static_cast<std::size_t>(copied) * 8);
    }
  }
}

// --- few outputs per group: straight from the image ----------------------------------------------------------

// One tile of a result line whose pixels are neighbors in the image; may read up to a tile beyond the line.
template <int Rows, int Vectors>
void direct_tile(const u64* image, const i64* taps, i64 depth, const u64* weights, const Output& out, i64 j,
                 i64 columns) {
  constexpr int W = Lanes::kWidth;
  Lanes::Sum sums[Rows][Vectors] = {};
  for (i64 k = 0; k < depth; ++k) {
    Lanes::Right right[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) right[v] = Lanes::load_right(image + taps[k] + v * W);
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
      const Lanes::Factor left = Lanes::broadcast(weights[i * depth + k]);
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) Lanes::multiply_add(sums[i][v], left, right[v]);
    }
  }
  store_tile<Rows, Vectors>(sums, out, j, columns);
}

using DirectTile = void (*)(const u64*, const i64*, i64, const u64*, const Output&, i64, i64);

template <int Vectors, std::size_t... I>
constexpr std::array<DirectTile, sizeof...(I)> direct_tiles_of(std::index_sequence<I...>) {
  return {direct_tile<static_cast<int>(I) + 1, Vectors>...};
}

template <std::size_t... V>
constexpr auto direct_table(std::index_sequence<V...>) {
  using Row = std::array<DirectTile, kMaxRows>;
  constexpr auto rows = std::make_index_sequence<kMaxRows>();
  return std::array<Row, sizeof...(V)>{direct_tiles_of<static_cast<int>(V) + 1>(rows)...};
}

inline constexpr auto kDirectTiles = direct_table(std::make_index_sequence<kMaxVectors>());

inline void direct_lines(const ImagePanels& image, const u64* weights, i64 depth, i64 m, i64 n, const Output& out) {
  for (i64 j = 0; j < n; j += image.columns) {
    i64 base;
    image.bases(&base, out.first + j, 1);
    for (i64 x = 0; x < image.columns; x += kTileColumns) {
      const i64 columns = std::min<i64>(kTileColumns, image.columns - x);
      const auto& by_rows = kDirectTiles[static_cast<std::size_t>((columns + Lanes::kWidth - 1) / Lanes::kWidth - 1)];
      by_rows[static_cast<std::size_t>(m - 1)](image.image + base + x, image.taps, depth, weights, out, j + x, columns);
    }
  }
}

// --- choice -------------------------------------------------------------------------------------------------

// Worth it while a packed panel would be used by one row of tiles only.
inline bool is_direct(const ConvShape& s) {
  return s.outputs / s.groups <= kMaxRows && s.column_step == 1 && 2 * s.columns >= Lanes::kWidth;
}

inline void conv_group(const ImagePanels& image, const u64* weights, i64 depth, i64 m, i64 n, const Output& out) {
  constexpr i64 kFewPixels = 32;
  const Matrix w{weights, depth, 1};
  if (n <= kFewPixels && m > 4 * n && depth >= 8 * Lanes::kWidth) {  // few pixels: leave the weights where they are
    thread_local Scratch memory;
    u64* pixels = memory.reserve(n * depth);
    for (i64 j = 0; j < n; ++j) image.pixel(pixels + j * depth, out.first + j, depth);
    dot_product(m, n, depth, weights, depth, pixels, depth, out);
    return;
  }
  struct Shifted {
    const ImagePanels& image;
    i64 first;
    void panel(u64* dst, i64 k, i64 kc, i64 j, i64 lanes, i64 width) const {
      image.panel(dst, k, kc, first + j, lanes, width);
    }
  };
  blocked_product(m, n, depth, w, Shifted{image, out.first}, out);
}

inline void conv2d(u64* out, const u64* x, const u64* w, const ConvShape& s, Store mode, int threads) {
  const i64 height = std::max(s.top + s.height, (s.rows - 1) * s.row_step + (s.kernel_rows - 1) * s.row_gap + 1);
  const i64 reach = (s.columns - 1) * s.column_step + (s.kernel_columns - 1) * s.column_gap + 1;
  const i64 width = std::max(s.left + s.width, reach);
  const bool direct = is_direct(s);
  Scratch padded;
  if (height != s.height || width != s.width || direct) {
    const i64 size = s.images * s.channels * height * width;
    u64* copy = padded.reserve(size + kTileColumns);
    std::memset(copy + size, 0, kTileColumns * 8);
    pad_image(copy, x, s, height, width);
    x = copy;
  }
  const i64 group_channels = s.channels / s.groups, m = s.outputs / s.groups, area = s.rows * s.columns;
  const i64 n = s.images * area;
  std::vector<i64> taps;
  taps.reserve(static_cast<std::size_t>(group_channels * s.kernel_rows * s.kernel_columns));
  for (i64 c = 0; c < group_channels; ++c) {
    for (i64 y = 0; y < s.kernel_rows; ++y) {
      for (i64 z = 0; z < s.kernel_columns; ++z) {
        taps.push_back((c * height + y * s.row_gap) * width + z * s.column_gap);
      }
    }
  }
  const i64 depth = static_cast<i64>(taps.size());
  threads = threads_for(double(s.outputs) * double(n) * double(depth), kProductsPerMillisecond, threads);
  const auto group = [&](i64 g, i64 i, i64 rows, i64 j, i64 pixels) {
    const ImagePanels image{x + g * group_channels * height * width, taps.data(), s.channels * height * width, width,
                            s.row_step, s.column_step, s.rows, s.columns};
    const Output target{out + g * m * area, area, area, s.outputs * area, mode};
    const auto run = direct ? direct_lines : conv_group;
    run(image, w + (g * m + i) * depth, depth, rows, pixels, target.part(i, j));
  };
  if (s.groups > 1) {
    parallel(s.groups, 1, threads, [&](i64 begin, i64 end) {
      for (i64 g = begin; g < end; ++g) group(g, 0, m, 0, n);
    });
  } else if (m > n) {
    parallel(m, kMaxRows, threads, [&](i64 begin, i64 end) { group(0, begin, end - begin, 0, n); });
  } else {
    const i64 grain = direct ? s.columns : kTileColumns;
    parallel(n, grain, threads, [&](i64 begin, i64 end) { group(0, 0, m, begin, end - begin); });
  }
}

}  // namespace kernels
