// Runs every pass of the CPU kernels over small layers, each between callgrind's marks, and prints the instruction set
// and then a line a mark: instructions.py reads them beside callgrind's counts. Results are not looked at here.
// A pass that is added to the library is one more `count`.
#include "../../csrc/cpu/passes.h"

#include <cstdio>
#include <string>
#include <vector>

#include <valgrind/callgrind.h>

namespace {

using ccn::Geometry;
using ccn::Layout;
using ccn::Range;

struct Layer {
  const char* name;
  Geometry geo;
};

// Square maps, in two dimensions.
Geometry conv(int64_t groups, int64_t in, int64_t out, int64_t size, int64_t kernel, int64_t stride = 1) {
  const int64_t padding = kernel / 2, out_size = (size + 2 * padding - kernel) / stride + 1;
  return {2,
          groups,
          in / groups,
          out / groups,
          {1, size, size},
          {1, out_size, out_size},
          {1, kernel, kernel},
          {1, stride, stride},
          {0, padding, padding},
          {1, 1, 1}};
}

// A linear layer's batch, as the CPU backend lays it out: the rows of one image.
Geometry rows(Geometry geo, int64_t count) {
  geo.batch = 1;
  geo.in[1] = geo.out[1] = count;
  return geo;
}

const Layer kLayers[] = {
    {"3-64@8", conv(1, 3, 64, 8, 3)},          {"8-8@8", conv(1, 8, 8, 8, 3)},
    {"8-8@8 stride 2", conv(1, 8, 8, 8, 3, 2)}, {"16-32@8 1x1", conv(1, 16, 32, 8, 1)},
    {"8-16@16", conv(1, 8, 16, 16, 3)}, {"depthwise 16-16@8", conv(16, 16, 16, 8, 3)}, {"linear 256-64", conv(1, 256, 64, 1, 1)},
    {"linear 84-10", rows(conv(1, 84, 10, 1, 1), 24)},
};

// Values of both signs, none of them zero, at an address that does not depend on what was allocated before.
class Buffer {
 public:
  explicit Buffer(int64_t count) : lines_((count + 15) / 16) {
    for (int64_t i = 0; i < count; ++i) data()[i] = static_cast<float>(i * 37 % 101 - 50.5) / 50;
  }
  float* data() { return lines_.front().values; }
  operator float*() { return data(); }

 private:
  struct alignas(64) Line {
    float values[16];
  };
  std::vector<Line> lines_;
};

template <class Call>
void count(const char* pass, const std::string& layer, const Call& call) {
  call();  // the first one also pays for the linker's look-ups
  CALLGRIND_TOGGLE_COLLECT;
  call();
  CALLGRIND_TOGGLE_COLLECT;
  CALLGRIND_DUMP_STATS;
  std::printf("%s: %s\n", layer.c_str(), pass);
}

void run(const Layout& layout, const std::string& layer) {
  const Geometry& geo = layout.geo;
  const int64_t in = geo.batch * geo.in_pixels(), out = geo.batch * geo.out_pixels();
  const Range in_tasks{0, layout.channels_last ? in : in * layout.inputs()};
  const Range out_tasks{0, layout.channels_last ? out : out * layout.outputs()};
  const Range in_rows{0, geo.batch * geo.groups * geo.in[0] * geo.in[1]};
  const Range out_rows{0, geo.batch * geo.groups * geo.out[0] * geo.out[1]};
  const ccn::cpu::Prologue prologue{layout};

  Buffer x(in * layout.inputs()), conv_grad(in * layout.inputs()), dx(in * layout.inputs());
  Buffer u(out * layout.outputs()), y(out * layout.outputs()), z(out * layout.outputs());
  Buffer grad(out * layout.outputs()), e(out * layout.outputs());
  Buffer plane(in * geo.groups), box(in * geo.groups);
  Buffer r(out * geo.groups), inverse(out * geo.groups), moment(out * geo.groups);
  Buffer bias(layout.outputs()), alpha(1), partials(prologue.bias_rows() * layout.outputs());
  const ccn::cpu::Passes<float>& passes = ccn::cpu::passes<float>();

  const auto epilogue = [&](bool relu, float* saved) {
    passes.forward_epilogue(layout, {u, inverse, bias, alpha, relu, y, saved}, out_tasks);
  };
  const auto backward = [&](const float* opened, const float* quotient, bool from_y) {
    passes.backward_prologue(layout, {grad, opened, quotient, bias, r, 0.01f, from_y, e, moment, partials},
                             {0, prologue.tasks()});
  };
  count("sum_of_squares", layer, [&] { passes.sum_of_squares(layout, x, plane, {0, in}); });
  count("patch_norm", layer, [&] { passes.patch_norm(layout, plane, 0.01f, r, inverse, out_rows); });
  count("forward_epilogue", layer, [&] { epilogue(false, nullptr); });
  count("forward_epilogue, saving", layer, [&] { epilogue(false, z); });
  count("forward_epilogue, relu", layer, [&] { epilogue(true, nullptr); });
  if (layout.channels_last && ccn::patches_are_pixels(geo)) {
    count("divide_pixels", layer,
          [&] { passes.divide_pixels(layout, x, 0.01f, r, {u, nullptr, bias, alpha, false, y, z}, {0, out}); });
  }
  count("backward_prologue", layer, [&] { backward(nullptr, z, false); });
  count("backward_prologue, relu", layer, [&] { backward(y, nullptr, true); });
  count("transposed_box", layer, [&] { passes.transposed_box(layout, moment, box, in_rows); });
  count("input_epilogue", layer, [&] { passes.input_epilogue(layout, {conv_grad, x, box, alpha, dx}, in_tasks); });
  const ccn::cpu::Direct<float>& direct = ccn::cpu::direct_loops<float>(layout);
  if (direct.suits(layout)) {
    Buffer weight(layout.outputs() * geo.in_channels * geo.kernel[1] * geo.kernel[2]), packed(direct.pack_size(layout));
    const Range tasks{0, ccn::cpu::DirectTiling{layout, sizeof(float)}.tasks()};
    count("direct pack", layer, [&] { direct.pack(layout, weight, bias, packed); });
    count("direct forward", layer, [&] { direct.forward(layout, {x, packed, alpha, 0.01f, false, r, y, z}, tasks); });
  }
  const ccn::cpu::AtOnce<float>& at_once = ccn::cpu::at_once<float>();
  if (at_once.suits(layout)) {
    const int64_t tasks = ccn::cpu::DepthwiseBlocks{layout}.tasks(), taps = geo.kernel[1] * geo.kernel[2];
    Buffer weight(layout.inputs() * taps), of_weight(tasks * taps * layout.inputs());
    Buffer of_bias(tasks * layout.inputs()), of_moment(tasks * layout.inputs());
    const auto backward_at_once = [&](const float* opened, const float* quotient, bool from_y) {
      at_once.backward(layout, {grad, opened, quotient, x, r, weight, bias, alpha, 0.01f, from_y, dx, of_weight, of_bias,
                                of_moment}, {0, tasks});
    };
    count("backward at once", layer, [&] { backward_at_once(nullptr, z, false); });
    count("backward at once, relu", layer, [&] { backward_at_once(y, nullptr, true); });
  }
  count("dot", layer, [&] { passes.dot(x, conv_grad, {0, in * layout.inputs()}); });
}

}  // namespace

int main() {
  std::printf("%s\n", ccn::cpu::instruction_set());
  for (const Layer& layer : kLayers) {
    run({layer.geo, false}, std::string(layer.name) + " contiguous");
    run({layer.geo, true}, std::string(layer.name) + " channels_last");
  }
}
