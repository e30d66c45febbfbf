// Compact convolution from C++, without Python: ./compact_conv path/to/libccn_native.so
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <dlfcn.h>

#include <iostream>

using Axes = std::vector<int64_t>;

int main(int, char** argv) {
  if (!dlopen(argv[1], RTLD_NOW)) return std::cerr << dlerror() << '\n', 1;  // registers the operators
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("ccn_native::compact_conv", "");

  const at::Tensor x = at::randn({8, 16, 32, 32}), weight = at::randn({32, 16, 3, 3}), alpha = at::ones({});
  const Axes stride{1, 1}, padding{1, 1}, dilation{1, 1};
  torch::jit::Stack stack{x, weight, c10::IValue(), alpha, stride, padding, dilation, /*groups=*/1, /*delta=*/0.01,
                          /*relu=*/false, /*save_quotient=*/false, /*tf32=*/false};  // c10::IValue(): no bias
  op.callBoxed(stack);
  const at::Tensor output = stack[0].toTensor(), norm = stack[2].toTensor();

  const at::Tensor expected = at::conv2d(x, weight, {}, stride, padding) / (norm + 0.01);
  std::cout << "output " << output.sizes() << ", largest difference from conv2d / (norm + delta): "
            << (output - expected).abs().max().item<double>() << '\n';
  return !at::allclose(output, expected, 1e-4, 1e-5);
}
