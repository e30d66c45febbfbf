// Winograd's convolutions as forward.h and backward.h call them: tiles chosen, weights packed, work split over the threads.
#pragma once

#include <array>
#include <cmath>
#include <memory>
#include <optional>
#include <vector>

#include "call.h"
#include "parallel.h"
#include "winograd.h"

namespace ccn::cpu {

// All tiles of the output, whole.
inline std::vector<WinogradTile> whole_tiles(const Layout& layout) {
  const int64_t across = WinogradTile::across(layout), of_image = WinogradTile::of_image(layout);
  std::vector<WinogradTile> tiles(layout.geo.batch * of_image);
  for (int64_t t = 0; t < static_cast<int64_t>(tiles.size()); ++t) {
    const int64_t row = t % of_image / across, column = t % across;
    tiles[t] = {t / of_image, static_cast<int32_t>(2 * row), static_cast<int32_t>(2 * column), -1};
  }
  return tiles;
}

// The same, uneven ones output by output. None at all where they are so many that the plain sum is faster.
template <class T>
std::optional<std::vector<WinogradTile>> even_tiles(const Layout& layout, const T* plane) {
  constexpr int64_t kWorth = 5;  // an uneven tile costs four; a convolution by tiles, about half a plain one
  std::vector<WinogradTile> tiles = whole_tiles(layout);
  const std::unique_ptr<bool[]> uneven(new bool[tiles.size()]);
  parallel(layout.geo.batch, 16 * WinogradTile::of_image(layout),
           [&](Range range) { winograd_loops<T>().judge(layout, plane, uneven.get(), range); });
  const int64_t whole = tiles.size(), parts = std::count(uneven.get(), uneven.get() + whole, true);
  if (kWorth * parts > whole) return std::nullopt;
  tiles.reserve(whole + 3 * parts);
  for (int64_t t = 0; parts > 0 && t < whole; ++t) {
    if (!uneven[t]) continue;
    const bool below = tiles[t].row + 1 < layout.geo.out[1], beside = tiles[t].column + 1 < layout.geo.out[2];
    for (const int32_t only : {1, 2, 3}) {
      if ((only / 2 && !below) || (only % 2 && !beside)) continue;
      tiles.push_back(tiles[t]);
      tiles.back().only = only;
    }
    tiles[t].only = 0;
  }
  return tiles;
}

// Whether rounding errors of one tap, squared, are less than `most` times what they would be without the others: not where
// the sums of squares that taps see, or are, differ that much, or are not finite.
inline bool even_taps(const std::vector<std::array<double, 9>>& parts, double most) {
  std::array<double, 9> sums{};
  for (const auto& part : parts) {
    for (int tap = 0; tap < 9; ++tap) sums[tap] += part[tap];
  }
  double least = sums[0], greatest = sums[0];
  for (const double sum : sums) {
    if (!std::isfinite(sum)) return false;
    least = std::min(least, sum);
    greatest = std::max(greatest, sum);
  }
  return greatest == 0 || greatest < most * least;
}

// Of the weight's gradient: what each tap sees.
template <class T>
bool even_taps(const Layout& layout, const T* x_plane, const T* e_plane) {
  std::vector<std::array<double, 9>> images(layout.geo.batch);
  auto* energies = reinterpret_cast<double (*)[9]>(images.data());
  parallel(layout.geo.batch, 9 * layout.geo.out_pixels(),
           [&](Range range) { winograd_loops<T>().weigh(layout, x_plane, e_plane, energies, range); });
  return even_taps(images, 16);
}

// The strides of a weight, or its gradient; of the axes that it lacks they are not used.
template <class T>
Filters<T> filters(T* values, const Tensor& weight) {
  const int64_t rank = weight.dim();
  return {values, weight.stride(0), weight.stride(1), weight.stride(rank - 2), weight.stride(rank - 1)};
}

struct WinogradCalls {
  template <class T>
  static bool suits_winograd(const Layout& layout) { return winograd_loops<T>().suits(layout); }

  // Divides as it goes; false where it is not worth it, with nothing done. `packed` is kept for the next chunk.
  template <class T>
  static bool winograd_forward(const Layout& layout, const Tensor& weight, WinogradWeight& packed, const T* x,
                               const T* plane, const ForwardEpilogue<T>& args) {
    const auto tiles = even_tiles(layout, plane);
    if (!tiles || !pack(layout, filters(data<T>(weight), weight), packed, weight)) return false;
    run(layout, *tiles, [&](Range range) {
      winograd_loops<T>().forward(layout, x, data<T>(*packed.values), tiles->data(), args, range);
    });
    return true;
  }

  // The same for the input's gradient and its epilogue; plane: squares of e
  template <class T>
  static bool winograd_input_gradient(const Layout& forward, const Tensor& weight, WinogradWeight& packed, const T* e,
                                      const T* plane, const InputEpilogue<T>& args) {
    const Layout layout = transposed(forward);
    const auto tiles = even_tiles(layout, plane);
    if (!tiles || !pack(layout, filters(data<T>(weight), weight).transposed(), packed, weight)) return false;
    run(layout, *tiles, [&](Range range) {
      winograd_loops<T>().input_gradient(layout, e, data<T>(*packed.values), tiles->data(), args, range);
    });
    return true;
  }

  // Adds to the sums that winograd_weight_gradient makes a gradient of, and makes them where there are none; false, with
  // nothing done, where it is not worth it, or some taps see so much less than others that these would drown them.
  template <class T>
  static bool winograd_accumulate(const Layout& layout, const T* x, const T* e, const T* x_plane, const T* e_plane,
                                  std::optional<Tensor>& sums, const Tensor& like) {
    const auto tiles = even_tiles(layout, x_plane);
    if (!tiles || !even_taps(layout, x_plane, e_plane)) return false;
    constexpr int64_t kBytes = 2 << 20;  // of transformed inputs and gradients: they stay in the last cache
    const Winograd<T>& loops = winograd_loops<T>();
    const auto size = [&](int64_t tiles, int64_t channels) { return loops.transformed_size(tiles, channels); };
    const int64_t all = tiles->size(), bytes = (size(1, layout.inputs()) + size(1, layout.outputs())) * sizeof(T);
    const int64_t chunks = ceil_div(all, std::max<int64_t>(128, kBytes / bytes)), step = ceil_div(all, chunks);
    const Tensor inputs = empty({size(step, layout.inputs())}, kType<T>, like);
    const Tensor outputs = empty({size(step, layout.outputs())}, kType<T>, like);
    for (int64_t begin = 0; begin < all; begin += step) {
      const int64_t count = std::min(step, all - begin);
      const bool first = !sums;
      if (first) sums = empty({loops.pack_size(layout)}, kType<T>, like);
      T *v = mutable_data<T>(inputs), *w = mutable_data<T>(outputs), *sum = mutable_data<T>(*sums);
      parallel(count, WinogradTile::kTerms * (layout.inputs() + layout.outputs()),
               [&](Range range) { loops.transform(layout, x, e, tiles->data() + begin, count, v, w, range); });
      const int64_t tasks = WinogradTile::kTerms * loops.pack_tasks(layout);
      parallel(tasks, WinogradTile::kTerms * count * layout.inputs() * layout.outputs() / tasks,
               [&](Range range) { loops.accumulate(layout, v, w, count, first, sum, range); });
    }
    return true;
  }

  // Written to the gradient, or added to what it holds already.
  template <class T>
  static void winograd_weight_gradient(const Layout& layout, const Tensor& sums, bool add, const Tensor& gradient) {
    parallel(layout.inputs(), WinogradTile::kTerms * layout.outputs(), [&](Range range) {
      winograd_loops<T>().weight_gradient(layout, data<T>(sums), add, filters(mutable_data<T>(gradient), gradient), range);
    });
  }

 private:
  // Once a call; false where the weight's taps are uneven: where only the faint ones meet pixels, at a map's edge, the
  // others' rounding errors would show.
  template <class T>
  static bool pack(const Layout& layout, const Filters<const T>& from, WinogradWeight& packed, const Tensor& like) {
    if (packed.values || packed.uneven) return !packed.uneven;
    const Winograd<T>& loops = winograd_loops<T>();
    packed.values = empty({loops.pack_size(layout)}, kType<T>, like);
    const int64_t tasks = loops.pack_tasks(layout);
    std::vector<std::array<double, 9>> panels(tasks);
    auto* energies = reinterpret_cast<double (*)[9]>(panels.data());
    parallel(tasks, loops.pack_size(layout) / tasks,
             [&](Range range) { loops.pack(layout, from, mutable_data<T>(*packed.values), energies, range); });
    packed.uneven = !even_taps(panels, 64);
    return !packed.uneven;
  }

  template <class Work>
  static void run(const Layout& layout, const std::vector<WinogradTile>& tiles, const Work& work) {
    parallel(static_cast<int64_t>(tiles.size()), layout.inputs() * layout.outputs(), work);
  }
};

}  // namespace ccn::cpu
