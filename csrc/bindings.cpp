// The Python module _C: what was built, and nothing that PyTorch's ABI could break.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

namespace {

std::map<std::string, std::string> build() {
  return {{"compiler", __VERSION__},
          {"torch", CCN_TORCH_VERSION},
          {"stable ABI of torch", CCN_TORCH_TARGET},
          {"instruction sets", CCN_INSTRUCTION_SETS},
          {"CUDA", CCN_CUDA},
          {"CUDA architectures", CCN_CUDA_ARCHITECTURES}};
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "What this build of ccn_kernels contains.";
  module.def("build", &build, "Name and value of each fact about the build.");
}
