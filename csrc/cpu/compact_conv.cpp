// The CPU backend: the passes run on PyTorch's own thread pool, over chunks of the batch that stay in the cache, so
// that the output is not read back from memory to be divided.
#include "backward.h"
#include "forward.h"
#include "parallel.h"
#include "passes.h"
#include "winograd_calls.h"

namespace ccn::cpu {
namespace {

constexpr int64_t kChunkBytes = 8 << 20;  // input and output of one chunk; see benchmarks/PERFORMANCE.md
constexpr int64_t kProducts = 16;         // multiply-adds that take as long as an element
constexpr int64_t kBlock = 1 << 14;       // elements that are summed by one thread; fixes the order of the sums

// The images of a linear layer are single pixels: to the loops that tile an image they are the rows of one.
Layout in_one_image(Layout layout) {
  Geometry& geo = layout.geo;
  if (geo.in_pixels() != 1 || geo.groups != 1 || !patches_are_pixels(geo)) return layout;
  geo.in[1] = geo.out[1] = geo.batch;
  geo.batch = 1;
  return {geo, true};  // of one pixel both layouts are the same
}

struct Device : WinogradCalls {
  // Few enough images to stay in the cache, yet enough to pay for the weight's repacking inside ATen.
  static int64_t images_per_chunk(const Geometry& geo, size_t element_size) {
    const int64_t taps = geo.taps();
    const int64_t weight = geo.groups * geo.in_channels * geo.out_channels * taps;
    const int64_t image = geo.groups * (geo.in_channels * geo.in_pixels() + geo.out_channels * geo.out_pixels());
    const int64_t budget = std::max<int64_t>(kChunkBytes, weight * element_size);
    const int64_t fit = std::max<int64_t>(1, budget / std::max<int64_t>(1, image * element_size));
    const int64_t chunks = std::max<int64_t>(1, ceil_div(geo.batch, fit));
    return std::max<int64_t>(1, ceil_div(geo.batch, chunks));
  }

  // Weight and bias as the convolution of our own wants them, where it is the faster one.
  template <class T>
  static std::optional<Tensor> pack(const Layout& given, const Tensor& weight, const Tensor& bias) {
    const Layout layout = in_one_image(given);
    if (!direct_loops<T>(layout).suits(layout)) return std::nullopt;
    const Tensor packed = empty({direct_loops<T>(layout).pack_size(layout)}, kType<T>, weight);
    direct_loops<T>(layout).pack(layout, filters(data<T>(weight), weight), data<T>(bias), mutable_data<T>(packed));
    return packed;
  }

  template <class T>
  static void direct(const Layout& given, const T* x, const T* packed, T delta, T* r, const ForwardEpilogue<T>& args) {
    const Layout layout = in_one_image(given);
    const DirectForward<T> forward{x, packed, args.alpha, delta, args.relu, r, args.y, args.z};
    const int64_t tasks = DirectTiling{layout, sizeof(T)}.tasks();
    const int64_t patch = layout.geo.in_channels * layout.geo.kernel[1] * layout.geo.kernel[2];
    const int64_t work = layout.outputs() * std::max<int64_t>(1, patch / kProducts);
    parallel(tasks, layout.geo.batch * layout.geo.out_pixels() * work / tasks,
             [&](Range range) { direct_loops<T>(layout).forward(layout, forward, range); });
  }

  // Rows of partial sums; 0 where the backward pass takes passes and ATen's convolutions.
  template <class T>
  static int64_t backward_at_once_tasks(const Layout& layout) {
    return at_once<T>().suits(layout) ? DepthwiseBlocks{layout}.tasks() : 0;
  }

  template <class T>
  static void backward_at_once(const Layout& layout, const DepthwiseBackward<T>& args) {
    const int64_t tasks = DepthwiseBlocks{layout}.tasks();
    parallel(tasks, layout.geo.batch * layout.geo.in_pixels() * layout.inputs() / tasks,
             [&](Range range) { at_once<T>().backward(layout, args, range); });
  }

  static int64_t bias_rows(const Layout& layout) { return Prologue{layout}.bias_rows(); }

  template <class T>
  static void sum_of_squares(const Layout& layout, const T* x, T* plane) {
    parallel(layout.geo.batch * layout.geo.in_pixels(), layout.inputs(),
             [&](Range range) { passes<T>().sum_of_squares(layout, x, plane, range); });
  }

  template <class T>
  static void patch_norm(const Layout& layout, const T* plane, T delta, T* r, T* inverse) {
    const Geometry& geo = layout.geo;
    parallel(geo.batch * geo.groups * geo.out[0] * geo.out[1], geo.out[2] * geo.kernel[1] * geo.kernel[2],
             [&](Range range) { passes<T>().patch_norm(layout, plane, delta, r, inverse, range); });
  }

  template <class T>
  static void forward_epilogue(const Layout& layout, const ForwardEpilogue<T>& args) {
    const int64_t pixels = layout.geo.batch * layout.geo.out_pixels(), channels = layout.outputs();
    parallel(layout.channels_last ? pixels : pixels * channels, layout.channels_last ? channels : 1,
             [&](Range range) { passes<T>().forward_epilogue(layout, args, range); });
  }

  // All of the above in one pass, where a call allows it: whether it did.
  template <class T>
  static bool divide_pixels(const Layout& layout, const T* x, T delta, T* r, const ForwardEpilogue<T>& args) {
    if (!layout.channels_last || !patches_are_pixels(layout.geo)) return false;
    parallel(layout.geo.batch * layout.geo.out_pixels(), layout.inputs() + layout.outputs(),
             [&](Range range) { passes<T>().divide_pixels(layout, x, delta, r, args, range); });
    return true;
  }

  template <class T>
  static void backward_prologue(const Layout& layout, const BackwardPrologue<T>& args) {
    const int64_t tasks = Prologue{layout}.tasks();
    const int64_t elements = layout.geo.batch * layout.geo.out_pixels() * layout.outputs();
    parallel(tasks, elements / std::max<int64_t>(1, tasks),
             [&](Range range) { passes<T>().backward_prologue(layout, args, range); });
  }

  template <class T>
  static void transposed_box(const Layout& layout, const T* q, T* box) {
    const Geometry& geo = layout.geo;
    parallel(geo.batch * geo.groups * geo.in[0] * geo.in[1], geo.in[2] * geo.kernel[1] * geo.kernel[2],
             [&](Range range) { passes<T>().transposed_box(layout, q, box, range); });
  }

  template <class T>
  static void input_epilogue(const Layout& layout, const InputEpilogue<T>& args) {
    const int64_t pixels = layout.geo.batch * layout.geo.in_pixels(), channels = layout.inputs();
    parallel(layout.channels_last ? pixels : pixels * channels, layout.channels_last ? channels : 1,
             [&](Range range) { passes<T>().input_epilogue(layout, args, range); });
  }

  // q in place of the moments; `scale` is null where they carry alpha already
  template <class T>
  static void norm_gradients(const T* r, T delta, const T* scale, int64_t count, T* moment) {
    const T factor = scale ? *scale : T(1);
    parallel(count, 1, [&](Range range) {
      for (int64_t i = range.begin; i < range.end; ++i) moment[i] = norm_gradient(factor * moment[i], r[i], delta);
    });
  }

  // sum[c] += every row's entry c
  template <class T>
  static void add_rows(const T* partials, int64_t rows, int64_t channels, double* sum) {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t c = 0; c < channels; ++c) sum[c] += partials[row * channels + c];
    }
  }

  // sum += <a, b>, where a missing b is ones
  template <class T>
  static void add_dot(const T* a, const T* b, int64_t count, double* sum) {
    std::vector<double> blocks(ceil_div(count, kBlock), 0.0);
    parallel(static_cast<int64_t>(blocks.size()), kBlock, [&](Range range) {
      for (int64_t block = range.begin; block < range.end; ++block) {
        blocks[block] = passes<T>().dot(a, b, {block * kBlock, std::min(count, (block + 1) * kBlock)});
      }
    });
    for (const double block : blocks) *sum += block;
  }

  template <class T>
  static void add(const T* part, int64_t count, T* sum) {
    parallel(count, 1, [&](Range range) {
      for (int64_t i = range.begin; i < range.end; ++i) sum[i] += part[i];
    });
  }

  template <class T>
  static void scale(const T* factor, int64_t count, T* values) {
    const T by = *factor;
    parallel(count, 1, [&](Range range) {
      for (int64_t i = range.begin; i < range.end; ++i) values[i] *= by;
    });
  }
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor> forward(Tensor input, Tensor weight, std::optional<Tensor> bias, Tensor alpha,
                                           Axes stride, Axes padding, Axes dilation, int64_t groups, double delta,
                                           bool relu, bool save_quotient, bool /*tf32*/) {
  return ccn::forward<Device>(input, weight, bias, alpha, {stride, padding, dilation, groups}, delta, relu,
                              save_quotient);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(Tensor grad, Tensor input, Tensor weight,
                                                    std::optional<Tensor> bias, Tensor alpha,
                                                    std::optional<Tensor> output, std::optional<Tensor> quotient,
                                                    Tensor norm, Axes stride, Axes padding, Axes dilation,
                                                    int64_t groups, double delta, std::vector<bool> output_mask,
                                                    bool /*tf32*/) {
  return ccn::backward<Device>(grad, input, weight, bias, alpha, output, quotient, norm,
                               {stride, padding, dilation, groups}, delta, output_mask);
}

}  // namespace ccn::cpu
