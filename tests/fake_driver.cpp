// A CUDA driver that does nothing but remember what it was asked for (see test_launches.py).
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

struct Config {
  unsigned grid[3], block[3], shared_bytes;
  void* stream;
  int* attributes;
  unsigned attribute_count;
};

std::vector<std::vector<size_t>> sizes;  // of the parameters of each launch; the last ones are those of all that follow
size_t launches = 0;
std::vector<uint64_t> numbers;     // function, grid, block, shared bytes, stream, attributes, of every launch
std::vector<unsigned char> bytes;  // parameters of every launch
std::vector<uint64_t> encoded;     // what every tensor map was made of
bool has_context = false;
int failure = 0;

}  // namespace

extern "C" {

void fake_expect(const uint64_t* given, size_t count) { sizes.emplace_back(given, given + count); }
void fake_fail(int result) { failure = result; }
size_t fake_numbers(uint64_t* out) { return out ? (std::memcpy(out, numbers.data(), 8 * numbers.size()), 0) : numbers.size(); }
size_t fake_encoded(uint64_t* out) { return out ? (std::memcpy(out, encoded.data(), 8 * encoded.size()), 0) : encoded.size(); }
size_t fake_bytes(unsigned char* out) { return out ? (std::memcpy(out, bytes.data(), bytes.size()), 0) : bytes.size(); }
int fake_has_context() { return has_context; }

int cuGetErrorString(int, const char** words) {
  *words = "as asked";
  return 0;
}
int cuDriverGetVersion(int* version) {
  *version = 13000;
  return 0;
}
int cuCtxGetCurrent(void** context) {
  *context = has_context ? &has_context : nullptr;
  return 0;
}
int cuCtxSetCurrent(void*) {
  has_context = true;
  return 0;
}
int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return 0;
}
int cuDevicePrimaryCtxRetain(void** context, int) {
  *context = &has_context;
  return 0;
}

int cuTensorMapEncodeTiled(uint64_t* map, int type, uint32_t rank, void* address, const uint64_t* shape,
                           const uint64_t* strides, const uint32_t* box, const uint32_t* steps, int interleave,
                           int swizzle, int promotion, int outside) {
  for (int word = 0; word < 16; ++word) map[word] = ~uint64_t{0};
  map[0] = reinterpret_cast<uint64_t>(address);
  for (uint64_t number : {uint64_t(type), uint64_t(rank), map[0]}) encoded.push_back(number);
  encoded.insert(encoded.end(), shape, shape + rank);
  encoded.insert(encoded.end(), strides, strides + rank - 1);
  encoded.insert(encoded.end(), box, box + rank);
  encoded.insert(encoded.end(), steps, steps + rank);
  for (int number : {interleave, swizzle, promotion, outside}) encoded.push_back(uint64_t(number));
  return 0;
}

int cuLaunchKernelEx(const Config* config, void* function, void** parameters, void** extra) {
  if (failure || extra) return failure ? failure : 1;
  numbers.push_back(reinterpret_cast<uint64_t>(function));
  numbers.insert(numbers.end(), config->grid, config->grid + 3);
  numbers.insert(numbers.end(), config->block, config->block + 3);
  numbers.push_back(config->shared_bytes);
  numbers.push_back(reinterpret_cast<uint64_t>(config->stream));
  numbers.push_back(config->attribute_count);
  numbers.push_back(config->attribute_count ? uint64_t(config->attributes[0]) : 0);
  numbers.push_back(config->attribute_count ? uint64_t(config->attributes[2]) : 0);  // its value, after the padding
  const auto& expected = sizes[std::min(launches++, sizes.size() - 1)];
  for (size_t index = 0; index < expected.size(); ++index) {
    const auto* source = static_cast<const unsigned char*>(parameters[index]);
    bytes.insert(bytes.end(), source, source + expected[index]);
  }
  return 0;
}

}  // extern "C"
