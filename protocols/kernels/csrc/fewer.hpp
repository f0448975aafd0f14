// 3x3 convolutions mod 2^64 with about 4/9 of the products: fast FIR algorithms (Parker and Parhi 1997, section II),
// which are Karatsuba's products of polynomials transposed, along both axes. Unlike those of Winograd (Lavin and Gray
// 2016) they divide by nothing, so they hold in every ring.
#pragma once

#include <cmath>

#include "conv.hpp"

namespace kernels {

constexpr int kTaps = 3;

// kTile results in a row of a filter with 3 taps h, from kTile + 2 numbers x: each is a sum of some of kProducts
// products of a sum of x and a sum of h. What is read is `from` apart in memory, what is written `to`.
template <int Tile>
struct Filtered;

template <>
struct Filtered<2> {
  static constexpr int kProducts = 5;
  template <class V>
  static void image(const V* x, i64 from, V* out, i64 to) {
    const V x1 = x[from], x2 = x[2 * from];
    out[0] = x[0] - x1;
    out[to] = x1;
    out[2 * to] = x2 - x1;
    out[3 * to] = x2;
    out[4 * to] = x[3 * from];
  }
  template <class V>
  static void taps(const V* h, i64 from, V* out, i64 to) {
    out[0] = h[0];
    out[to] = h[0] + h[from];
    out[2 * to] = h[from];
    out[3 * to] = out[4 * to] = h[2 * from];
  }
  template <class V>
  static void results(const V* p, i64 from, V* out, i64 to) {
    out[0] = p[0] + p[from] + p[3 * from];
    out[to] = p[from] + p[2 * from] + p[4 * from];
  }
};

template <>
struct Filtered<3> {
  static constexpr int kProducts = 6;
  template <class V>
  static void image(const V* x, i64 from, V* out, i64 to) {
    const V x1 = x[from], x2 = x[2 * from], x3 = x[3 * from];
    out[0] = x[0] - x1 - x2;
    out[to] = x2 - x1 - x3;
    out[2 * to] = x[4 * from] - x2 - x3;
    out[3 * to] = x1;
    out[4 * to] = x2;
    out[5 * to] = x3;
  }
  template <class V>
  static void taps(const V* h, i64 from, V* out, i64 to) {
    const V h0 = h[0], h1 = h[from], h2 = h[2 * from];
    out[0] = h0;
    out[to] = h1;
    out[2 * to] = h2;
    out[3 * to] = h0 + h1;
    out[4 * to] = h0 + h2;
    out[5 * to] = h1 + h2;
  }
  template <class V>
  static void results(const V* p, i64 from, V* out, i64 to) {
    const V p01 = p[3 * from], p02 = p[4 * from], p12 = p[5 * from];
    out[0] = p[0] + p01 + p02;
    out[to] = p[from] + p01 + p12;
    out[2 * to] = p[2 * from] + p02 + p12;
  }
};

// The even and the odd of four results, each a filter of two taps over two results.
template <>
struct Filtered<4> {
  static constexpr int kProducts = 8;
  template <class V>
  static void image(const V* x, i64 from, V* out, i64 to) {
    const V x1 = x[from], x2 = x[2 * from], x3 = x[3 * from], x4 = x[4 * from], x5 = x[5 * from];
    const V even = x2 - x3;
    out[0] = x1 - x3;
    out[to] = x3;
    out[2 * to] = x5 - x3;
    out[3 * to] = x[0] - x1 - even;
    out[4 * to] = even;
    out[5 * to] = x4 - x5 - even;
    out[6 * to] = x2 - x1;
    out[7 * to] = x4 - x3;
  }
  template <class V>
  static void taps(const V* h, i64 from, V* out, i64 to) {
    const V h0 = h[0], h1 = h[from], h2 = h[2 * from];
    out[0] = h0 + h1;
    out[to] = h0 + h1 + h2;
    out[2 * to] = out[5 * to] = h2;
    out[3 * to] = h0;
    out[4 * to] = h0 + h2;
    out[6 * to] = out[7 * to] = h1;
  }
  template <class V>
  static void results(const V* p, i64 from, V* out, i64 to) {
    const V first = p[0] + p[from], second = p[from] + p[2 * from], even = p[4 * from];
    out[0] = first + p[3 * from] + even;
    out[to] = first + p[6 * from];
    out[2 * to] = second + even + p[5 * from];
    out[3 * to] = second + p[7 * from];
  }
};

typedef u64 TileColumns __attribute__((vector_size(8 * kTileColumns), aligned(8)));
typedef u64 TileRows __attribute__((vector_size(8 * kMaxRows), aligned(8)));

// A square of results: where what it sees begins in a padded image, and it in an output; how much of it is there.
struct Place {
  i64 image, result, high, wide;
};

// The results of a convolution in squares of Down x Across.
template <int Down, int Across>
struct Squares {
  static constexpr int kHigh = Filtered<Down>::kProducts, kWide = Filtered<Across>::kProducts;
  static constexpr int kProducts = kHigh * kWide, kSeenDown = Down + 2, kSeenAcross = Across + 2;
  i64 down, across, per_image;  // squares

  explicit Squares(const ConvShape& s)
      : down((s.rows + Down - 1) / Down), across((s.columns + Across - 1) / Across), per_image(down * across) {}

  Place place(const ConvShape& s, i64 j, i64 height, i64 width) const {
    const i64 of_image = j / per_image, square = j % per_image;
    const i64 top = square / across * Down, left = square % across * Across;
    return {(of_image * s.channels * height + top) * width + left,
            (of_image * s.outputs * s.rows + top) * s.columns + left, std::min<i64>(Down, s.rows - top),
            std::min<i64>(Across, s.columns - left)};
  }

  // Sums of the pixels of one channel that a panel of squares sees: as many columns of each product.
  void image(const u64* channel, const Place* places, i64 line, TileColumns* out, i64 step) const {
    u64 seen[kSeenDown * kSeenAcross][kTileColumns];
    for (i64 l = 0; l < kTileColumns; ++l) {
      const u64* from = channel + places[l].image;
      for (i64 y = 0; y < kSeenDown; ++y) {
        for (i64 x = 0; x < kSeenAcross; ++x) seen[y * kSeenAcross + x][l] = from[y * line + x];
      }
    }
    const auto* pixels = reinterpret_cast<const TileColumns*>(seen);
    TileColumns sums[kSeenDown * kWide];
    for (i64 y = 0; y < kSeenDown; ++y) Filtered<Across>::image(pixels + y * kSeenAcross, 1, sums + y * kWide, 1);
    for (i64 x = 0; x < kWide; ++x) Filtered<Down>::image(sums + x, kWide, out + x * step, kWide * step);
  }

  // Sums of the 9 taps of one channel, for a tile of outputs.
  void taps(const TileRows* h, TileRows* out, i64 step) const {
    TileRows sums[kTaps * kWide];
    for (i64 y = 0; y < kTaps; ++y) Filtered<Across>::taps(h + y * kTaps, 1, sums + y * kWide, 1);
    for (i64 x = 0; x < kWide; ++x) Filtered<Down>::taps(sums + x, kWide, out + x * step, kWide * step);
  }

  // The pixels of one output from its products.
  void results(const TileColumns* products, i64 step, TileColumns* out) const {
    TileColumns sums[Down * kWide];
    for (i64 x = 0; x < kWide; ++x) Filtered<Down>::results(products + x * step, kWide * step, sums + x, kWide);
    for (i64 y = 0; y < Down; ++y) Filtered<Across>::results(sums + y * kWide, 1, out + y * Across, 1);
  }

  void store(const u64 (&pixels)[Down * Across][kTileColumns], const Place* places, i64 count, u64* out, i64 line,
             Store mode) const {
    for (i64 l = 0; l < count; ++l) {
      u64* to = out + places[l].result;
      if (mode == kWrite && places[l].high == Down && places[l].wide == Across) {
        for (i64 y = 0; y < Down; ++y) {
          for (i64 x = 0; x < Across; ++x) to[y * line + x] = pixels[y * Across + x][l];
        }
        continue;
      }
      for (i64 y = 0; y < places[l].high; ++y) {
        for (i64 x = 0; x < places[l].wide; ++x) put(to + y * line + x, pixels[y * Across + x][l], mode);
      }
    }
  }
};

// What fits beside each other in the second-level cache: `kChannels` of the sums of taps, and the products.
constexpr i64 kSquaresAtOnce = 32 / kTileColumns * kTileColumns, kChannelsAtOnce = 64;
constexpr i64 kOutputsAtOnce = 64;

// Results of outputs [i0, i0 + m) in `n` squares from the first on. `x` is a padded image with room for whole squares.
template <int Down, int Across>
void fewer_products(const ConvShape& s, const u64* x, i64 height, i64 width, const u64* w, u64* out, Store mode, i64 i0,
                    i64 m, i64 first, i64 n) {
  using Shape = Squares<Down, Across>;
  constexpr i64 P = Shape::kProducts;
  const Shape shape(s);
  thread_local Scratch image_memory, taps_memory, sums_memory, products_memory;
  const i64 at_once = std::min(kSquaresAtOnce, (n + kTileColumns - 1) / kTileColumns * kTileColumns);
  const i64 channels = std::min(kChannelsAtOnce, s.channels), depth = s.channels * kTaps * kTaps;
  // products lie apart by a little more than a power of two: else they would share the same lines of a cache
  const i64 image_step = s.channels * at_once + kTileColumns, product_step = kOutputsAtOnce * at_once + kTileColumns;
  const i64 sums_step = channels * kOutputsAtOnce + kMaxRows;
  u64* image = image_memory.reserve(P * image_step);
  u64* taps = taps_memory.reserve(kTaps * kTaps * channels * kMaxRows);
  u64* sums = sums_memory.reserve(P * sums_step);
  u64* products = products_memory.reserve(P * product_step);
  for (i64 j0 = 0; j0 < n; j0 += at_once) {
    const i64 squares = std::min(at_once, n - j0), panels = (squares + kTileColumns - 1) / kTileColumns;
    const i64 span = panels * kTileColumns;
    Place places[kSquaresAtOnce];
    for (i64 l = 0; l < span; ++l) {
      places[l] = shape.place(s, first + j0 + std::min(l, squares - 1), height, width);  // some are never stored
    }
    // image[product][channels before][panel][channel][column]: tiles read it in order
    for (i64 q = 0; q < panels; ++q) {
      for (i64 c = 0; c < s.channels; ++c) {
        const i64 before = c / channels * channels, kc = std::min(channels, s.channels - before);
        u64* to = image + before * span + (q * kc + c - before) * kTileColumns;
        shape.image(x + c * height * width, places + q * kTileColumns, width, reinterpret_cast<TileColumns*>(to),
                    image_step / kTileColumns);
      }
    }
    for (i64 i = i0; i < i0 + m; i += kOutputsAtOnce) {
      const i64 outputs = std::min(kOutputsAtOnce, i0 + m - i), tiles = (outputs + kMaxRows - 1) / kMaxRows;
      for (i64 k0 = 0; k0 < s.channels; k0 += channels) {
        const i64 kc = std::min(channels, s.channels - k0);
        for (i64 t = 0; t < tiles; ++t) {
          const i64 row = i + t * kMaxRows;
          pack_panel(taps, w + row * depth + k0 * kTaps * kTaps, depth, 1, std::min<i64>(kMaxRows, i + outputs - row),
                     kMaxRows, kc * kTaps * kTaps);
          for (i64 k = 0; k < kc; ++k) {
            shape.taps(reinterpret_cast<const TileRows*>(taps) + k * kTaps * kTaps,
                       reinterpret_cast<TileRows*>(sums) + t * kc + k, sums_step / kMaxRows);
          }
        }
        for (i64 p = 0; p < P; ++p) {
          const Output target{products + p * product_step, span, span, 0, k0 == 0 ? kWrite : kPlus};
          const u64* panel = image + p * image_step + k0 * span;
          for (i64 t = 0; t < tiles; ++t) {
            for (i64 q = 0; q < panels; ++q) {
              tile<kMaxRows, kMaxVectors>(kc, sums + p * sums_step + t * kc * kMaxRows, panel + q * kc * kTileColumns,
                                          target.part(t * kMaxRows, 0), q * kTileColumns, kTileColumns);
            }
          }
        }
      }
      for (i64 r = 0; r < outputs; ++r) {
        for (i64 q = 0; q < panels; ++q) {
          u64 pixels[Down * Across][kTileColumns];
          shape.results(reinterpret_cast<const TileColumns*>(products + r * span + q * kTileColumns),
                        product_step / kTileColumns, reinterpret_cast<TileColumns*>(pixels));
          shape.store(pixels, places + q * kTileColumns, std::min<i64>(kTileColumns, squares - q * kTileColumns),
                      out + (i + r) * s.rows * s.columns, s.columns, mode);
        }
      }
    }
  }
}

// --- choice -------------------------------------------------------------------------------------------------

template <int Down, int Across>
void in_squares(const ConvShape& s, const u64* x, const u64* w, u64* out, Store mode, int threads) {
  const Squares<Down, Across> shape(s);
  const i64 height = std::max(s.top + s.height, shape.down * Down + kTaps - 1);
  const i64 width = std::max(s.left + s.width, shape.across * Across + kTaps - 1);
  const i64 n = s.images * shape.per_image;
  Scratch padded;
  u64* image = padded.reserve(s.images * s.channels * height * width);
  pad_image(image, x, s, height, width);
  threads = threads_for(double(s.outputs) * double(s.channels) * double(n) * shape.kProducts, kProductsPerMillisecond,
                        threads);
  if (n > 2 * threads * kSquaresAtOnce) {
    parallel(n, kTileColumns, threads, [&](i64 begin, i64 end) {
      fewer_products<Down, Across>(s, image, height, width, w, out, mode, 0, s.outputs, begin, end - begin);
    });
  } else {
    parallel(s.outputs, kMaxRows, threads, [&](i64 begin, i64 end) {
      fewer_products<Down, Across>(s, image, height, width, w, out, mode, begin, end - begin, 0, n);
    });
  }
}

using Convolution = void (*)(const ConvShape&, const u64*, const u64*, u64*, Store, int);

// About how much work squares are, in products of the plain convolution: sums of pixels, of taps and of products count
// as so many of them.
template <int Down, int Across>
double work_in_squares(const ConvShape& s) {
  constexpr double kOfImage = 10, kOfTaps = 3, kOfResults = 6;
  const Squares<Down, Across> shape(s);
  const double m = double(s.outputs), c = double(s.channels), n = double(s.images) * double(shape.per_image);
  const double whole = std::ceil(n / kTileColumns) * kTileColumns, blocks = std::ceil(n / kSquaresAtOnce);
  return shape.kProducts * (whole * (m * c + kOfImage * c + kOfResults * m) + blocks * m * c * kOfTaps);
}

struct OfSquares {
  double (*work)(const ConvShape&);
  Convolution run;
};

template <int Down, int Across>
constexpr OfSquares of_squares = {work_in_squares<Down, Across>, in_squares<Down, Across>};

constexpr int kLeastSide = 2, kSides = 3;
constexpr OfSquares kOfSquares[kSides][kSides] = {{of_squares<2, 2>, of_squares<2, 3>, of_squares<2, 4>},
                                                  {of_squares<3, 2>, of_squares<3, 3>, of_squares<3, 4>},
                                                  {of_squares<4, 2>, of_squares<4, 3>, of_squares<4, 4>}};

inline bool has_squares(const ConvShape& s) {
  constexpr i64 kMostChannels = 2048;  // 32 MiB of sums
  return s.kernel_rows == kTaps && s.kernel_columns == kTaps && s.row_step == 1 && s.column_step == 1 &&
         s.row_gap == 1 && s.column_gap == 1 && s.groups == 1 && s.channels <= kMostChannels;
}

// In squares of the least work, or with all products where that is hardly more.
inline void convolution(u64* out, const u64* x, const u64* w, const ConvShape& s, Store mode, int threads) {
  constexpr double kWorthwhile = 0.9;
  double least = kWorthwhile * kTaps * kTaps * double(s.outputs) * double(s.channels) * double(s.images) *
                 double(s.rows) * double(s.columns);
  Convolution best = nullptr;
  for (i64 i = 0; has_squares(s) && i < kSides * kSides; ++i) {
    const OfSquares& kind = kOfSquares[i / kSides][i % kSides];
    const double work = kind.work(s);
    if (work >= least) continue;
    least = work;
    best = kind.run;
  }
  if (best == nullptr) {
    conv2d(out, x, w, s, mode, threads);
  } else {
    best(s, x, w, out, mode, threads);
  }
}

}  // namespace kernels
