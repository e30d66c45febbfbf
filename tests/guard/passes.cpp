// Runs every pass of the CPU kernels over small layers, each between callgrind's marks, and prints the instruction set
// and then a line a mark: instructions.py reads them beside callgrind's counts. Results are not looked at here.
// A pass that is added to the library is one more `count`.
#include "../../csrc/cpu/passes.h"
#include "../../csrc/cpu/winograd.h"

#include <array>
#include <cstdio>
#include <memory>
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
    {"8-16@16", conv(1, 8, 16, 16, 3)}, {"32-32@16", conv(1, 32, 32, 16, 3)}, {"depthwise 16-16@8", conv(16, 16, 16, 8, 3)}, {"linear 256-64", conv(1, 256, 64, 1, 1)},
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

void run_winograd(const Layout& layout, const std::string& layer) {
  using ccn::cpu::WinogradTile;
  const Geometry& geo = layout.geo;
  const ccn::cpu::Winograd<float>& winograd = ccn::cpu::winograd_loops<float>();
  if (!winograd.suits(layout)) return;
  const int64_t pixels = geo.batch * geo.out_pixels(), inputs = layout.inputs(), outputs = layout.outputs();
  std::vector<WinogradTile> tiles;
  for (int64_t t = 0; t < geo.batch * WinogradTile::of_image(layout); ++t) {
    const int64_t place = t % WinogradTile::of_image(layout), across = WinogradTile::across(layout);
    tiles.push_back({t / WinogradTile::of_image(layout), static_cast<int32_t>(place / across * 2),
                     static_cast<int32_t>(place % across * 2), -1});
  }
  const int64_t count_of = tiles.size();
  Buffer x(pixels * inputs), e(pixels * outputs), y(pixels * outputs), z(pixels * outputs), dx(pixels * inputs);
  Buffer plane(pixels), inverse(pixels), bias(outputs), alpha(1), weight(9 * inputs * outputs);
  Buffer packed(winograd.pack_size(layout)), sums(winograd.pack_size(layout));
  Buffer v(winograd.transformed_size(count_of, inputs)), w(winograd.transformed_size(count_of, outputs));
  const ccn::cpu::Filters<float> filters{weight, 9 * inputs, 9, 3, 1};
  const Range all{0, count_of}, terms{0, WinogradTile::kTerms * winograd.pack_tasks(layout)};
  std::vector<std::array<double, 9>> energies(geo.batch);
  const std::unique_ptr<bool[]> uneven(new bool[count_of]);

  count("winograd judge", layer, [&] { winograd.judge(layout, plane, uneven.get(), {0, geo.batch}); });
  count("winograd weigh", layer, [&] {
    winograd.weigh(layout, plane, plane, reinterpret_cast<double (*)[9]>(energies.data()), {0, geo.batch});
  });
  std::vector<std::array<double, 9>> panels(winograd.pack_tasks(layout));
  count("winograd pack", layer, [&] {
    winograd.pack(layout, {weight, 9 * inputs, 9, 3, 1}, packed, reinterpret_cast<double (*)[9]>(panels.data()),
                  {0, winograd.pack_tasks(layout)});
  });
  count("winograd forward", layer, [&] {
    winograd.forward(layout, x, packed, tiles.data(), {nullptr, inverse, bias, alpha, false, y, z}, all);
  });
  count("winograd input_gradient", layer, [&] {
    winograd.input_gradient(transposed(layout), e, packed, tiles.data(), {nullptr, x, plane, alpha, dx}, all);
  });
  count("winograd transform", layer, [&] { winograd.transform(layout, x, e, tiles.data(), count_of, v, w, all); });
  count("winograd accumulate", layer, [&] { winograd.accumulate(layout, v, w, count_of, true, sums, terms); });
  count("winograd weight_gradient", layer,
        [&] { winograd.weight_gradient(layout, sums, false, filters, {0, inputs}); });
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
    const int64_t taps = geo.kernel[1] * geo.kernel[2];
    Buffer weight(layout.outputs() * geo.in_channels * taps), packed(direct.pack_size(layout));
    const ccn::cpu::Filters<const float> filters{weight, geo.in_channels * taps, taps, geo.kernel[2], 1};
    const Range tasks{0, ccn::cpu::DirectTiling{layout, sizeof(float)}.tasks()};
    count("direct pack", layer, [&] { direct.pack(layout, filters, bias, packed); });
    count("direct forward", layer, [&] { direct.forward(layout, {x, packed, alpha, 0.01f, false, r, y, z}, tasks); });
  }
  run_winograd(layout, layer);
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
