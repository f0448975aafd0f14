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

  i64 base(i64 pixel) const {
    const i64 area = rows * columns, p = pixel % area;
    return pixel / area * image_stride + p / columns * row_step * line + p % columns * column_step;
  }

  void panel(u64* dst, i64 k, i64 depth, i64 j, i64 lanes, i64 width) const {
    constexpr i64 kGroup = 4;  // lanes copied at once where they are neighbors in the image
    i64 bases[64];
    for (i64 l = 0; l < lanes; ++l) bases[l] = base(j + l);
    for (i64 l = lanes; l < width; ++l) bases[l] = bases[0];  // computed, never stored
    const bool whole = run(bases, 0, width) == width;
    bool grouped = width % kGroup == 0;
    for (i64 l = 0; grouped && l < width; l += kGroup) grouped = run(bases, l, kGroup) == kGroup;
    for (i64 t = 0; t < depth; ++t) {
      const u64* from = image + taps[k + t];
      u64* to = dst + t * width;
      if (whole) {
        copy<Lanes::kWidth>(to, from + bases[0], width);
      } else if (grouped) {
        for (i64 l = 0; l < width; l += kGroup) copy<kGroup>(to + l, from + bases[l], kGroup);
      } else {
        for (i64 l = 0; l < width; ++l) to[l] = from[bases[l]];
      }
    }
  }

  // All taps of one pixel, contiguous.
  void pixel(u64* dst, i64 j, i64 depth) const {
    const u64* from = image + base(j);
    for (i64 k = 0; k < depth; ++k) dst[k] = from[taps[k]];
  }

 private:
  template <i64 Step>
  static void copy(u64* to, const u64* from, i64 count) {
    for (i64 l = 0; l < count; l += Step) std::memcpy(to + l, from + l, Step * 8);
  }
  static i64 run(const i64* bases, i64 first, i64 count) {
    i64 length = 1;
    while (length < count && bases[first + length] == bases[first] + length) ++length;
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
  const i64 width = std::max(s.left + s.width, (s.columns - 1) * s.column_step + (s.kernel_columns - 1) * s.column_gap + 1);
  Scratch padded;
  if (height != s.height || width != s.width) {
    u64* copy = padded.reserve(s.images * s.channels * height * width);
    pad_image(copy, x, s, height, width);
    x = copy;
  }
  const i64 group_channels = s.channels / s.groups, m = s.outputs / s.groups, area = s.rows * s.columns;
  const i64 n = s.images * area;
  std::vector<i64> taps;
  taps.reserve(static_cast<std::size_t>(group_channels * s.kernel_rows * s.kernel_columns));
  for (i64 c = 0; c < group_channels; ++c) {
    for (i64 y = 0; y < s.kernel_rows; ++y) {
      for (i64 z = 0; z < s.kernel_columns; ++z) taps.push_back((c * height + y * s.row_gap) * width + z * s.column_gap);
    }
  }
  const i64 depth = static_cast<i64>(taps.size());
  threads = threads_for(s.outputs * n * depth, kProductsPerMillisecond, threads);
  const auto group = [&](i64 g, i64 i, i64 rows, i64 j, i64 pixels) {
    const ImagePanels image{x + g * group_channels * height * width, taps.data(), s.channels * height * width, width,
                            s.row_step, s.column_step, s.rows, s.columns};
    const Output target{out + g * m * area, area, area, s.outputs * area, mode};
    conv_group(image, w + (g * m + i) * depth, depth, rows, pixels, target.part(i, j));
  };
  if (s.groups > 1) {
    parallel(s.groups, 1, threads, [&](i64 begin, i64 end) {
      for (i64 g = begin; g < end; ++g) group(g, 0, m, 0, n);
    });
  } else if (m > n) {
    parallel(m, kMaxRows, threads, [&](i64 begin, i64 end) { group(0, begin, end - begin, 0, n); });
  } else {
    parallel(n, kTileColumns, threads, [&](i64 begin, i64 end) { group(0, 0, m, begin, end - begin); });
  }
}

}  // namespace kernels
