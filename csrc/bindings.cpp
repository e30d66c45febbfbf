// The Python module _C: what was built, and launches of kernels; nothing that PyTorch's ABI could break.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

#include "launches.h"

namespace py = pybind11;

namespace {

std::map<std::string, std::string> build() {
  return {{"compiler", __VERSION__},
          {"torch", CCN_TORCH_VERSION},
          {"stable ABI of torch", CCN_TORCH_TARGET},
          {"instruction sets", CCN_INSTRUCTION_SETS},
          {"CUDA", CCN_CUDA},
          {"CUDA architectures", CCN_CUDA_ARCHITECTURES}};
}

void bind_launches(py::module_& module) {
  py::class_<ccn::Value>(module, "Value", "A number among a kernel's parameters.")
      .def(py::init([](const py::bytes& bytes) { return ccn::Value{bytes}; }), py::arg("bytes"));
  py::class_<ccn::Address>(module, "Address", "A tensor's address, by its place among those of a run.")
      .def(py::init<size_t>(), py::arg("part"));
  py::class_<ccn::Boxes>(module, "Boxes", "Boxes over a tensor, outermost axis first, strides in bytes.")
      .def(py::init<size_t, int, int, std::vector<uint64_t>, std::vector<uint64_t>, std::vector<uint32_t>>(),
           py::arg("part"), py::arg("type"), py::arg("swizzle"), py::arg("shape"), py::arg("strides"), py::arg("box"));
  py::class_<ccn::Kernel>(module, "Kernel", "A loaded kernel, its grid and its parameters.")
      .def(py::init<uint64_t, std::array<unsigned, 3>, unsigned, unsigned, bool, std::vector<ccn::Parameter>>(),
           py::arg("function"), py::arg("grid"), py::arg("threads"), py::arg("shared_bytes"), py::arg("overlapped"),
           py::arg("parameters"));
  py::class_<ccn::Launches>(module, "Launches", "Kernels that are launched together.")
      .def(py::init<const std::string&, int>(), py::arg("library"), py::arg("device"))
      .def("add", &ccn::Launches::add, py::arg("kernel"))
      .def("run", &ccn::Launches::run, py::arg("stream"), py::arg("addresses"),
           py::call_guard<py::gil_scoped_release>());
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "What this build of ccn_kernels contains, and launches of kernels.";
  module.def("build", &build, "Name and value of each fact about the build.");
  bind_launches(module);
}
