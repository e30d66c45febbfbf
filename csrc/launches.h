// Kernels that are loaded already, launched by the CUDA driver: several by one call, with the addresses of this time.
//
// Needs no CUDA to be compiled: the driver is opened where it is used, and its few types are declared here.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <variant>
#include <vector>

namespace ccn {

// A number, as the kernel takes it.
struct Value {
  std::string bytes;
};

// Of a tensor, by its place among the addresses of a run.
struct Address {
  size_t part;
};

// Boxes over a tensor: what cuTensorMapEncodeTiled takes beside the address; outermost axis first, strides in bytes.
struct Boxes {
  size_t part;
  int type, swizzle;
  std::vector<uint64_t> shape, strides;
  std::vector<uint32_t> box;
};

using Parameter = std::variant<Value, Address, Boxes>;

struct Kernel {
  uint64_t function;  // a CUfunction
  std::array<unsigned, 3> grid;
  unsigned threads, shared_bytes;
  bool overlapped;  // may start while the launch before it runs
  std::vector<Parameter> parameters;
};

class Driver;

// Not to be copied: kernels' parameters are kept in place from run to run.
class Launches {
 public:
  // `library`: the driver's, "libcuda.so.1". Throws where it cannot be opened.
  Launches(const std::string& library, int device);
  ~Launches();
  Launches(const Launches&) = delete;
  Launches& operator=(const Launches&) = delete;

  // Throws where a parameter is none that a kernel can take.
  void add(const Kernel& kernel);

  // Throws where the driver refuses a launch, with its words.
  void run(uint64_t stream, const std::vector<uint64_t>& addresses);

 private:
  struct Prepared;

  const Driver& driver_;
  int device_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Prepared>> kernels_;
};

}  // namespace ccn
