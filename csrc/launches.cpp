#include "launches.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <stdexcept>

namespace ccn {
namespace {

constexpr size_t kMapBytes = 128;
constexpr size_t kMostAxes = 5;
constexpr int kNoInterleave = 0, kPromoteTo128Bytes = 2, kZerosOutside = 0;
constexpr int kOverlapped = 6;  // CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
constexpr int kMendedDriver = 13010;
constexpr uint64_t kSmallTensor = 128 * 1024;

// As cuda.h lays them out.
struct LaunchAttribute {
  int id;
  char pad[8 - sizeof(int)];
  union {
    char whole[64];
    int number;
  } value;
};

struct LaunchConfig {
  unsigned grid[3], block[3], shared_bytes;
  void* stream;
  LaunchAttribute* attributes;
  unsigned attribute_count;
};

struct alignas(kMapBytes) TensorMap {
  std::array<uint64_t, kMapBytes / sizeof(uint64_t)> words;
};

}  // namespace

// The functions of the driver that are needed, and what its errors say.
class Driver {
 public:
  static const Driver& open(const std::string& library) {
    static std::mutex mutex;
    static std::map<std::string, std::unique_ptr<Driver>> opened;
    std::lock_guard lock(mutex);
    auto& driver = opened[library];
    if (!driver) driver.reset(new Driver(library));
    return *driver;
  }

  // A thread that has not used CUDA yet has no context.
  void make_current(int ordinal) const {
    void* context = nullptr;
    check(context_(&context), "cuCtxGetCurrent");
    if (context) return;
    int device = 0;
    check(device_(&device, ordinal), "cuDeviceGet");
    check(retain_(&context, device), "cuDevicePrimaryCtxRetain");
    check(set_context_(context), "cuCtxSetCurrent");
  }

  TensorMap encode(const Boxes& boxes, uint64_t address) const {
    const size_t rank = boxes.shape.size();
    std::array<uint64_t, kMostAxes> shape{}, strides{};
    std::array<uint32_t, kMostAxes> box{}, steps{1, 1, 1, 1, 1};
    std::reverse_copy(boxes.shape.begin(), boxes.shape.end(), shape.begin());
    std::reverse_copy(boxes.strides.begin(), boxes.strides.end() - 1, strides.begin());  // the innermost one is known
    std::reverse_copy(boxes.box.begin(), boxes.box.end(), box.begin());
    TensorMap map;
    check(encode_(&map, boxes.type, static_cast<uint32_t>(rank), reinterpret_cast<void*>(address), shape.data(),
                  strides.data(), box.data(), steps.data(), kNoInterleave, boxes.swizzle, kPromoteTo128Bytes,
                  kZerosOutside),
          "cuTensorMapEncodeTiled");
    if (version_ <= kMendedDriver && last_byte(boxes) < kSmallTensor) map.words[1] &= ~(uint64_t{1} << 21);
    return map;
  }

  void launch(const LaunchConfig& config, uint64_t function, void** parameters) const {
    check(launch_(&config, reinterpret_cast<void*>(function), parameters, nullptr), "cuLaunchKernelEx");
  }

 private:
  explicit Driver(const std::string& library) : handle_(dlopen(library.c_str(), RTLD_LAZY | RTLD_LOCAL)) {
    if (!handle_) throw std::runtime_error(std::string("the CUDA driver cannot be opened: ") + dlerror());
    find(error_, "cuGetErrorString");
    find(context_, "cuCtxGetCurrent");
    find(set_context_, "cuCtxSetCurrent");
    find(device_, "cuDeviceGet");
    find(retain_, "cuDevicePrimaryCtxRetain");
    find(encode_, "cuTensorMapEncodeTiled");
    find(launch_, "cuLaunchKernelEx");
    int (*version)(int*);
    find(version, "cuDriverGetVersion");
    check(version(&version_), "cuDriverGetVersion");
  }

  template <class Function>
  void find(Function& function, const char* name) {
    function = reinterpret_cast<Function>(dlsym(handle_, name));
    if (!function) throw std::runtime_error(std::string("the CUDA driver lacks ") + name);
  }

  void check(int result, const char* name) const {
    if (result == 0) return;
    const char* words = nullptr;
    error_(result, &words);
    throw std::runtime_error(std::string(name) + ": " + (words ? words : "unknown error"));
  }

  // Of drivers up to 13.1, maps of small tensors must be mended, as CUTLASS and Triton 3.9 do.
  static uint64_t last_byte(const Boxes& boxes) {
    uint64_t last = 1;
    for (size_t axis = 0; axis < boxes.shape.size(); ++axis) last += (boxes.shape[axis] - 1) * boxes.strides[axis];
    return last;
  }

  void* handle_;
  int version_ = 0;
  int (*error_)(int, const char**);
  int (*context_)(void**);
  int (*set_context_)(void*);
  int (*device_)(int*, int);
  int (*retain_)(void**, int);
  int (*encode_)(TensorMap*, int, uint32_t, void*, const uint64_t*, const uint64_t*, const uint32_t*, const uint32_t*,
                 int, int, int, int);
  int (*launch_)(const LaunchConfig*, void*, void**, void**);
};

// A kernel with a place for each of its parameters.
struct Launches::Prepared {
  Kernel kernel;
  std::vector<TensorMap> storage;  // of any parameter: none needs more, or a stricter alignment
  std::vector<void*> pointers;
  std::vector<uint64_t> mapped;  // for each parameter, the address that its map was made for

  explicit Prepared(const Kernel& given) : kernel(given), storage(given.parameters.size()), mapped(storage.size()) {
    for (size_t index = 0; index < storage.size(); ++index) {
      pointers.push_back(&storage[index]);
      const Parameter& parameter = kernel.parameters[index];
      if (const auto* value = std::get_if<Value>(&parameter)) {
        if (value->bytes.empty() || value->bytes.size() > kMapBytes) throw std::invalid_argument("a value's size");
        std::memcpy(&storage[index], value->bytes.data(), value->bytes.size());
      } else if (const auto* boxes = std::get_if<Boxes>(&parameter)) {
        const size_t rank = boxes->shape.size();
        if (rank < 1 || rank > kMostAxes || boxes->strides.size() != rank || boxes->box.size() != rank)
          throw std::invalid_argument("shape, strides and box must have the same one to five axes");
      }
    }
  }

  void place(const Driver& driver, const std::vector<uint64_t>& addresses) {
    for (size_t index = 0; index < storage.size(); ++index) {
      if (const auto* address = std::get_if<Address>(&kernel.parameters[index])) {
        storage[index].words[0] = addresses.at(address->part);
      } else if (const auto* boxes = std::get_if<Boxes>(&kernel.parameters[index])) {
        const uint64_t base = addresses.at(boxes->part);
        if (mapped[index] == base) continue;
        storage[index] = driver.encode(*boxes, base);
        mapped[index] = base;
      }
    }
  }
};

Launches::Launches(const std::string& library, int device) : driver_(Driver::open(library)), device_(device) {}
Launches::~Launches() = default;

void Launches::add(const Kernel& kernel) { kernels_.push_back(std::make_unique<Prepared>(kernel)); }

void Launches::run(uint64_t stream, const std::vector<uint64_t>& addresses) {
  std::lock_guard lock(mutex_);
  driver_.make_current(device_);
  for (const auto& prepared : kernels_) {
    const Kernel& kernel = prepared->kernel;
    prepared->place(driver_, addresses);
    LaunchAttribute overlapped{kOverlapped, {}, {}};
    overlapped.value.number = 1;
    const LaunchConfig config{{kernel.grid[0], kernel.grid[1], kernel.grid[2]},
                              {kernel.threads, 1, 1},
                              kernel.shared_bytes,
                              reinterpret_cast<void*>(stream),
                              &overlapped,
                              kernel.overlapped ? 1u : 0u};
    if (kernel.grid[0] && kernel.grid[1] && kernel.grid[2])
      driver_.launch(config, kernel.function, prepared->pointers.data());
  }
}

}  // namespace ccn
