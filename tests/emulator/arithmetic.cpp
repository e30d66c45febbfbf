// Counts what is wrong in the index arithmetic that kernels and CPU loops share, against its definition.
#include <cstdio>

#include "compact_conv.h"

namespace {

using namespace ccn;

int wrong = 0;

void expect(bool holds) { wrong += !holds; }

void dividers() {
  for (uint32_t divisor = 1; divisor < (1u << 31); divisor += 1 + divisor / 7) {
    const Divider divide(divisor);
    for (uint32_t value = 0; value < (1u << 31); value += 1 + value / 5) {
      expect(divide(value) == value / divisor);
      const uint32_t multiple = value / divisor * divisor;
      if (multiple > 0) expect(divide(multiple - 1) == (multiple - 1) / divisor && divide(multiple) == multiple / divisor);
    }
  }
}

// Every input coordinate is a place of one phase, whose taps are all that read it.
void windows_along(const Geometry& geo) {
  for (int64_t i = 0; i < geo.in[2]; ++i) {
    const int64_t phase = i % geo.stride[2];
    const Window window = gradient_window(geo, 2, phase);
    const int place = static_cast<int>(i / geo.stride[2]);
    expect(phase < phases(geo, 2) && place < window.places && window.result(place) == i);
    int64_t met = 0;
    for (int tap = 0; tap < window.taps; ++tap) {
      const int64_t output = window.source(place, tap), kernel_tap = window.kernel_tap(tap);
      expect(kernel_tap >= 0 && kernel_tap < geo.kernel[2]);
      if (output < 0 || output >= geo.out[2]) continue;
      expect(input_coordinate(geo, 2, output, kernel_tap) == i);
      expect(output_coordinate(geo, 2, i, kernel_tap) == output);
      ++met;
    }
    for (int64_t tap = 0; tap < geo.kernel[2]; ++tap) met -= output_coordinate(geo, 2, i, tap) >= 0;
    expect(met == 0);
  }
  const Window window = forward_window(geo, 2);
  for (int place = 0; place < window.places; ++place) {
    for (int tap = 0; tap < window.taps; ++tap) {
      expect(window.source(place, tap) == input_coordinate(geo, 2, place, window.kernel_tap(tap)));
    }
  }
}

void windows() {
  for (int64_t size = 1; size <= 9; ++size)
    for (int64_t kernel = 1; kernel <= 5; ++kernel)
      for (int64_t stride = 1; stride <= 6; ++stride)
        for (int64_t dilation = 1; dilation <= 6; ++dilation)
          for (int64_t padding = 0; padding <= 5; ++padding) {
            Geometry geo{1, 1, 1, 1, {1, 1, size}, {1, 1, 1}, {1, 1, kernel}, {1, 1, stride}, {0, 0, padding}, {1, 1, dilation}};
            const int64_t room = size + 2 * padding - dilation * (kernel - 1) - 1;
            if (room < 0) continue;
            geo.out[2] = room / stride + 1;
            windows_along(geo);
          }
}

}  // namespace

int main() {
  dividers();
  windows();
  std::printf("%d wrong\n", wrong);
  return wrong != 0;
}
