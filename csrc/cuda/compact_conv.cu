// The CUDA backend: ATen's (cuDNN's) convolutions with our passes around them. Every sum has a fixed order.
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "../backward.h"
#include "../forward.h"

// It lives in libtorch_cuda; a hard reference would keep the library from loading beside a CPU-only PyTorch.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace ccn::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int64_t kMaxBlocks = 1 << 16;
constexpr int64_t kSumBlock = 1 << 14;  // elements that one block sums
constexpr int64_t kBiasPixels = 256;    // pixels that one thread sums in channels_last

int current_device() {
  int device = 0;
  STD_TORCH_CHECK(cudaGetDevice(&device) == cudaSuccess, "no current CUDA device");
  return device;
}

cudaStream_t current_stream() {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream, "this PyTorch has no CUDA");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(current_device(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// Runs a grid-stride kernel over `threads` threads.
template <class... Params, class... Args>
void launch(void (*kernel)(Params...), int64_t threads, Args... args) {
  if (threads == 0) return;
  const unsigned blocks = static_cast<unsigned>(std::min(ceil_div(threads, kThreads), kMaxBlocks));
  kernel<<<blocks, kThreads, 0, current_stream()>>>(args...);
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "a CUDA kernel did not launch: ", cudaGetErrorString(error));
}

__device__ int64_t thread_index() { return blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; }
__device__ int64_t thread_count() { return gridDim.x * static_cast<int64_t>(blockDim.x); }

// Where an activation lies: c counts within group g, p over pixels.
struct Activation {
  bool channels_last;
  int64_t groups, channels, pixels;

  __device__ int64_t at(int64_t n, int64_t g, int64_t c, int64_t p) const {
    return channels_last ? ((n * pixels + p) * groups + g) * channels + c : ((n * groups + g) * channels + c) * pixels + p;
  }
};

struct Place {
  int64_t n, g, c, p;
};

__device__ Place place_of(const Activation& a, int64_t index) {
  const int64_t all = a.groups * a.channels;
  const int64_t channel = a.channels_last ? index % all : index / a.pixels % all;
  const int64_t pixel = a.channels_last ? index / all % a.pixels : index % a.pixels;
  return {index / (all * a.pixels), channel / a.channels, channel % a.channels, pixel};
}

Activation inputs(const Layout& l) { return {l.channels_last, l.geo.groups, l.geo.in_channels, l.geo.in_pixels()}; }
Activation outputs(const Layout& l) { return {l.channels_last, l.geo.groups, l.geo.out_channels, l.geo.out_pixels()}; }

// The sum over a task's lanes; all lanes of a warp must call it.
template <int kLanes, class T>
__device__ T lane_sum(T value) {
  for (int offset = kLanes / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  return value;
}

// Channels are read by the lanes of a warp where they lie together, by neighbouring threads' pixels where those do.
template <class T, int kLanes>
__global__ void sum_of_squares(Activation in, int64_t tasks, const T* x, T* plane) {
  const int lane = threadIdx.x % kLanes;
  for (int64_t task = thread_index() / kLanes; task < tasks; task += thread_count() / kLanes) {
    const int64_t p = task % in.pixels, g = task / in.pixels % in.groups, n = task / in.pixels / in.groups;
    T sum = 0;
    for (int64_t c = lane; c < in.channels; c += kLanes) {
      const T value = x[in.at(n, g, c, p)];
      sum += value * value;
    }
    sum = lane_sum<kLanes>(sum);
    if (lane == 0) plane[task] = sum;
  }
}

template <class T>
__global__ void patch_norm(Geometry geo, const T* plane, T delta, T* r, T* inverse) {
  const int64_t pixels = geo.out_pixels(), tasks = geo.batch * geo.groups * pixels;
  for (int64_t task = thread_index(); task < tasks; task += thread_count()) {
    const int64_t index = task / pixels, p = task % pixels;
    const int64_t od = p / geo.out[2] / geo.out[1], oh = p / geo.out[2] % geo.out[1], ow = p % geo.out[2];
    T sum = 0;
    for (int64_t kd = 0; kd < geo.kernel[0]; ++kd) {
      const int64_t d = input_coordinate(geo, 0, od, kd);
      if (d < 0 || d >= geo.in[0]) continue;
      for (int64_t kh = 0; kh < geo.kernel[1]; ++kh) {
        const int64_t h = input_coordinate(geo, 1, oh, kh);
        if (h < 0 || h >= geo.in[1]) continue;
        for (int64_t kw = 0; kw < geo.kernel[2]; ++kw) {
          const int64_t w = input_coordinate(geo, 2, ow, kw);
          if (w >= 0 && w < geo.in[2]) sum += plane[((index * geo.in[0] + d) * geo.in[1] + h) * geo.in[2] + w];
        }
      }
    }
    const T norm = sqrt(sum);
    r[task] = norm;
    inverse[task] = reciprocal_divisor(norm, delta);
  }
}

template <class T>
__global__ void forward_epilogue(Activation out, int64_t count, ForwardEpilogue<T> args) {
  const T alpha = *args.alpha;
  for (int64_t i = thread_index(); i < count; i += thread_count()) {
    const Place at = place_of(out, i);
    const T quotient = args.u[i] * args.inverse_divisor[(at.n * out.groups + at.g) * out.pixels + at.p];
    const T value = alpha * quotient + args.bias[at.g * out.channels + at.c];
    if (args.z) args.z[i] = quotient;
    args.y[i] = args.relu && value < 0 ? T(0) : value;  // NaN passes, as in torch.relu
  }
}

template <class T, int kLanes>
__global__ void backward_prologue(Activation out, int64_t tasks, BackwardPrologue<T> args) {
  const int lane = threadIdx.x % kLanes;
  for (int64_t task = thread_index() / kLanes; task < tasks; task += thread_count() / kLanes) {
    const int64_t p = task % out.pixels, g = task / out.pixels % out.groups, n = task / out.pixels / out.groups;
    const T inverse = reciprocal_divisor(args.r[task], args.delta);
    T moment = 0;
    for (int64_t c = lane; c < out.channels; c += kLanes) {
      const int64_t i = out.at(n, g, c, p);
      const T open = args.y && args.y[i] <= 0 ? T(0) : args.grad[i];
      args.e[i] = open * inverse;
      if (args.moment_from_y) moment += open * (args.y[i] - args.bias[g * out.channels + c]);
      if (!args.moment_from_y && args.z) moment += open * args.z[i];
    }
    moment = lane_sum<kLanes>(moment);
    if (args.moment && lane == 0) args.moment[task] = moment;
  }
}

// rows x channels partial sums of the gradient: over an image in NCHW, over kBiasPixels pixels in channels_last.
template <class T, int kLanes>
__global__ void bias_partials(Activation out, int64_t batch, int64_t rows, BackwardPrologue<T> args) {
  const int64_t all = out.groups * out.channels;
  const int lane = threadIdx.x % kLanes;
  for (int64_t task = thread_index() / kLanes; task < rows * all; task += thread_count() / kLanes) {
    const int64_t row = task / all, o = task % all;
    const int64_t first = out.channels_last ? row * kBiasPixels : row * out.pixels;
    const int64_t last = out.channels_last ? min(first + kBiasPixels, batch * out.pixels) : first + out.pixels;
    T sum = 0;
    for (int64_t pixel = first + lane; pixel < last; pixel += kLanes) {
      const int64_t i = out.at(pixel / out.pixels, o / out.channels, o % out.channels, pixel % out.pixels);
      sum += args.y && args.y[i] <= 0 ? T(0) : args.grad[i];
    }
    sum = lane_sum<kLanes>(sum);
    if (lane == 0) args.bias_partials[task] = sum;
  }
}

template <class T>
__global__ void transposed_box(Geometry geo, const T* q, T* box) {
  const int64_t pixels = geo.in_pixels(), tasks = geo.batch * geo.groups * pixels;
  for (int64_t task = thread_index(); task < tasks; task += thread_count()) {
    const int64_t index = task / pixels, p = task % pixels;
    const int64_t id = p / geo.in[2] / geo.in[1], ih = p / geo.in[2] % geo.in[1], iw = p % geo.in[2];
    T sum = 0;
    for (int64_t kd = 0; kd < geo.kernel[0]; ++kd) {
      const int64_t d = output_coordinate(geo, 0, id, kd);
      for (int64_t kh = 0; d >= 0 && kh < geo.kernel[1]; ++kh) {
        const int64_t h = output_coordinate(geo, 1, ih, kh);
        for (int64_t kw = 0; h >= 0 && kw < geo.kernel[2]; ++kw) {
          const int64_t w = output_coordinate(geo, 2, iw, kw);
          if (w >= 0) sum += q[((index * geo.out[0] + d) * geo.out[1] + h) * geo.out[2] + w];
        }
      }
    }
    box[task] = sum;
  }
}

template <class T>
__global__ void input_epilogue(Activation in, int64_t count, InputEpilogue<T> args) {
  const T alpha = *args.alpha;
  for (int64_t i = thread_index(); i < count; i += thread_count()) {
    const Place at = place_of(in, i);
    args.dx[i] = alpha * args.conv_grad[i] - args.x[i] * args.box[(at.n * in.groups + at.g) * in.pixels + at.p];
  }
}

template <class T>
__global__ void norm_gradients(const T* r, T delta, const T* scale, int64_t count, T* moment) {
  const T factor = scale ? *scale : T(1);
  for (int64_t i = thread_index(); i < count; i += thread_count()) {
    moment[i] = norm_gradient(factor * moment[i], r[i], delta);
  }
}

template <class T>
__global__ void add_rows(const T* partials, int64_t rows, int64_t channels, double* sum) {
  for (int64_t c = thread_index(); c < channels; c += thread_count()) {
    double total = sum[c];
    for (int64_t row = 0; row < rows; ++row) total += partials[row * channels + c];
    sum[c] = total;
  }
}

// One block sums kSumBlock products; a missing b is ones.
template <class T>
__global__ void dot_partials(const T* a, const T* b, int64_t count, int64_t blocks, double* partials) {
  __shared__ double shared[kThreads];
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const int64_t end = min(count, (block + 1) * kSumBlock);
    double sum = 0;
    for (int64_t i = block * kSumBlock + threadIdx.x; i < end; i += kThreads) sum += double(a[i]) * (b ? b[i] : T(1));
    shared[threadIdx.x] = sum;
    for (int half = kThreads / 2; half > 0; half /= 2) {
      __syncthreads();
      if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    }
    if (threadIdx.x == 0) partials[block] = shared[0];
    __syncthreads();
  }
}

template <class T>
__global__ void add(const T* part, int64_t count, T* sum) {
  for (int64_t i = thread_index(); i < count; i += thread_count()) sum[i] += part[i];
}

template <class T>
__global__ void scale(const T* factor, int64_t count, T* values) {
  for (int64_t i = thread_index(); i < count; i += thread_count()) values[i] *= *factor;
}

struct Device : AtenOnly {
  static int64_t images_per_chunk(const Geometry& geo, size_t) { return std::max<int64_t>(1, geo.batch); }

  static int64_t bias_rows(const Layout& layout) {
    const int64_t batch = layout.geo.batch;
    return layout.channels_last ? ceil_div(batch * layout.geo.out_pixels(), kBiasPixels) : batch;
  }

  template <class T>
  static void sum_of_squares(const Layout& layout, const T* x, T* plane) {
    const Activation in = inputs(layout);
    const int64_t tasks = layout.geo.batch * in.groups * in.pixels;
    if (layout.channels_last) {
      launch(cuda::sum_of_squares<T, kWarp>, tasks * kWarp, in, tasks, x, plane);
    } else {
      launch(cuda::sum_of_squares<T, 1>, tasks, in, tasks, x, plane);
    }
  }

  template <class T>
  static void patch_norm(const Layout& layout, const T* plane, T delta, T* r, T* inverse) {
    const Geometry& geo = layout.geo;
    launch(cuda::patch_norm<T>, geo.batch * geo.groups * geo.out_pixels(), geo, plane, delta, r, inverse);
  }

  template <class T>
  static void forward_epilogue(const Layout& layout, const ForwardEpilogue<T>& args) {
    const int64_t count = layout.geo.batch * layout.outputs() * layout.geo.out_pixels();
    launch(cuda::forward_epilogue<T>, count, cuda::outputs(layout), count, args);
  }

  template <class T>
  static void backward_prologue(const Layout& layout, const BackwardPrologue<T>& args) {
    const Activation out = cuda::outputs(layout);
    const int64_t batch = layout.geo.batch, tasks = batch * out.groups * out.pixels;
    const int64_t rows = bias_rows(layout), sums = args.bias_partials ? rows * layout.outputs() : 0;
    if (layout.channels_last) {
      launch(cuda::backward_prologue<T, kWarp>, tasks * kWarp, out, tasks, args);
      launch(cuda::bias_partials<T, 1>, sums, out, batch, rows, args);
    } else {
      launch(cuda::backward_prologue<T, 1>, tasks, out, tasks, args);
      launch(cuda::bias_partials<T, kWarp>, sums * kWarp, out, batch, rows, args);
    }
  }

  template <class T>
  static void transposed_box(const Layout& layout, const T* q, T* box) {
    const Geometry& geo = layout.geo;
    launch(cuda::transposed_box<T>, geo.batch * geo.groups * geo.in_pixels(), geo, q, box);
  }

  template <class T>
  static void input_epilogue(const Layout& layout, const InputEpilogue<T>& args) {
    const int64_t count = layout.geo.batch * layout.inputs() * layout.geo.in_pixels();
    launch(cuda::input_epilogue<T>, count, inputs(layout), count, args);
  }

  template <class T>
  static void norm_gradients(const T* r, T delta, const T* scale, int64_t count, T* moment) {
    launch(cuda::norm_gradients<T>, count, r, delta, scale, count, moment);
  }

  template <class T>
  static void add_rows(const T* partials, int64_t rows, int64_t channels, double* sum) {
    launch(cuda::add_rows<T>, channels, partials, rows, channels, sum);
  }

  template <class T>
  static void add_dot(const T* a, const T* b, int64_t count, double* sum) {
    const int64_t blocks = ceil_div(count, kSumBlock);
    const torch::stable::Device device(torch::headeronly::DeviceType::CUDA, current_device());
    const Tensor partials = torch::stable::empty(Axes{blocks}, ScalarType::Double, std::nullopt, device);
    launch(cuda::dot_partials<T>, blocks * kThreads, a, b, count, blocks, mutable_data<double>(partials));
    launch(cuda::add_rows<double>, 1, data<double>(partials), blocks, int64_t(1), sum);
  }

  template <class T>
  static void add(const T* part, int64_t count, T* sum) {
    launch(cuda::add<T>, count, part, count, sum);
  }

  template <class T>
  static void scale(const T* factor, int64_t count, T* values) {
    launch(cuda::scale<T>, count, factor, count, values);
  }
};

std::tuple<Tensor, Tensor, Tensor> forward(Tensor input, Tensor weight, std::optional<Tensor> bias, Tensor alpha,
                                           Axes stride, Axes padding, Axes dilation, int64_t groups, double delta,
                                           bool relu, bool save_quotient) {
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  return ccn::forward<Device>(input, weight, bias, alpha, {stride, padding, dilation, groups}, delta, relu,
                              save_quotient);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(Tensor grad, Tensor input, Tensor weight,
                                                    std::optional<Tensor> bias, Tensor alpha,
                                                    std::optional<Tensor> output, std::optional<Tensor> quotient,
                                                    Tensor norm, Axes stride, Axes padding, Axes dilation,
                                                    int64_t groups, double delta, std::vector<bool> output_mask) {
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  return ccn::backward<Device>(grad, input, weight, bias, alpha, output, quotient, norm,
                               {stride, padding, dilation, groups}, delta, output_mask);
}

}  // namespace
}  // namespace ccn::cuda

STABLE_TORCH_LIBRARY_IMPL(ccn_native, CUDA, library) {
  library.impl("compact_conv", TORCH_BOX(&ccn::cuda::forward));
  library.impl("compact_conv_backward", TORCH_BOX(&ccn::cuda::backward));
}
