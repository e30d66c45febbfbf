"""Builds the compiled library with ninja, or says why it did not.

CCN_BUILD=auto (default)  what can be built is; what cannot is recorded, and the install stays pure Python
          none            pure Python
          cpu, cuda       fail loudly when that backend cannot be built ("cuda" includes "cpu")

CXX, CUDA_HOME, TORCH_CUDA_ARCH_LIST and MAX_JOBS are honoured. No GPU is needed, nor a CUDA build of PyTorch: the
library keeps to the LibTorch stable ABI, so that one build serves later releases of PyTorch.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
MODES = ("auto", "none", "cpu", "cuda")
TORCH_TARGET = (2, 10)  # the oldest PyTorch that the stable ABI is asked to serve
STABLE_ABI = f"-DTORCH_TARGET_VERSION=0x{TORCH_TARGET[0]:02x}{TORCH_TARGET[1]:02x}000000000000"

COMMON = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
LOOPS = ["-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math"]
INSTRUCTION_SETS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"],
}
X86 = platform.machine() in ("x86_64", "AMD64")


def compiler() -> str | None:
    """The C++ compiler, by CXX or PATH."""
    named = os.environ.get("CXX")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)


def nvcc() -> str | None:
    """The CUDA compiler, by CUDA_HOME or PATH."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return (shutil.which("nvcc", path=os.path.join(home, "bin")) if home else None) or shutil.which("nvcc")


def cuda_sources() -> list[Path]:
    return sorted((CSRC / "cuda").glob("*.cu"))


def why_no_cpu() -> str | None:
    if sys.platform != "linux":
        return f"native builds are for Linux, this is {sys.platform}"
    if compiler() is None:
        return "no C++ compiler: neither CXX nor g++, clang++ or c++ on PATH"
    for module in ("torch", "ninja", "pybind11"):
        if importlib.util.find_spec(module) is None:
            hint = ": use --no-build-isolation where torch is installed" if module == "torch" else ""
            return f"{module} is not installed where the package is built{hint}"
    import torch

    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < TORCH_TARGET:
        return f"PyTorch {torch.__version__} is older than {TORCH_TARGET[0]}.{TORCH_TARGET[1]}"
    return None


def why_no_cuda(mode: str) -> str | None:
    if not cuda_sources():
        return "this version has no CUDA C++ kernels"
    if nvcc() is None:
        return "no nvcc: neither CUDA_HOME/bin nor PATH has one"
    import torch

    if mode == "auto" and torch.version.cuda is None:
        return "this PyTorch has no CUDA (CCN_BUILD=cuda builds all the same)"
    return None


def plan() -> dict[str, str]:
    """For each component, "built" or the reason why it will not be."""
    mode = os.environ.get("CCN_BUILD", "auto")
    if mode not in MODES:
        raise SystemExit(f"CCN_BUILD must be one of {', '.join(MODES)}, got {mode!r}")
    if mode == "none":
        return dict.fromkeys(("cpu", "cuda"), "CCN_BUILD=none")
    cpu = why_no_cpu()
    cuda = cpu or ("CCN_BUILD=cpu" if mode == "cpu" else why_no_cuda(mode))
    for component, reason in (("cpu", cpu), ("cuda", cuda)):
        if reason and mode in (component, "cuda"):
            raise SystemExit(f"CCN_BUILD={mode}: the {component} backend cannot be built: {reason}")
    return {"cpu": cpu or "built", "cuda": cuda or "built"}


PLAN = plan()


def without_torch() -> list[tuple[str, Path, list[str]]]:
    """Name, source and flags of the objects that need no PyTorch; `make guard` counts their instructions."""
    loops = [
        (f"{file}_{name}", CSRC / "cpu" / f"{file}.cpp", [*COMMON, *LOOPS, f"-DCCN_ISA={name}", *flags])
        for name, flags in INSTRUCTION_SETS.items()
        for file in ("passes", "direct", "depthwise", "depthwise_backward", "winograd")
        if X86 or not flags
    ]
    return [("dispatch", CSRC / "cpu" / "dispatch.cpp", COMMON + ["-DCCN_X86"] * X86), *loops]


def arch_flags() -> list[str]:
    """nvcc's flags for TORCH_CUDA_ARCH_LIST ("8.0;9.0a;10.0+PTX"); every major architecture where it is not set."""
    wanted = re.split(r"[;, ]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip())
    if wanted == [""]:
        return ["-arch=all-major"]
    flags = []
    for entry in wanted:
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", entry)
        if not match:
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST must look like '8.0;9.0a;10.0+PTX', got {entry!r}")
        arch = "".join(match.group(1, 2, 3))
        flags.append(f"-gencode=arch=compute_{arch},code=sm_{arch}")
        if match.group(4):
            flags.append(f"-gencode=arch=compute_{arch},code=compute_{arch}")
    return flags


def write_build_info(package: Path) -> None:
    package.mkdir(parents=True, exist_ok=True)
    temporary = package / "_build_info.json.tmp"
    temporary.write_text(json.dumps(PLAN, indent=2) + "\n")
    temporary.replace(package / "_build_info.json")


class BuildPy(build_py):
    """Records what was built, or why not, inside the package."""

    def run(self) -> None:
        super().run()
        write_build_info(ROOT / "ccn_kernels" if self.editable_mode else Path(self.build_lib) / "ccn_kernels")


class NinjaBuild(build_ext):
    """Writes build.ninja for the library and for the pybind11 module, and runs it."""

    def get_ext_filename(self, fullname: str) -> str:
        if fullname.split(".")[-1] == "libccn_native":  # not a Python module: no interpreter's tag in its name
            return os.path.join(*fullname.split(".")) + ".so"
        return super().get_ext_filename(fullname)

    def run(self) -> None:
        super().run()
        in_source = self.inplace or self.editable_mode  # which setuptools unsets while it builds
        write_build_info((ROOT if in_source else Path(self.build_lib)) / "ccn_kernels")

    def build_extensions(self) -> None:
        try:
            self.run_ninja()
        except (subprocess.CalledProcessError, OSError) as error:
            if os.environ.get("CCN_BUILD", "auto") != "auto":
                raise
            print(f"ccn_kernels: the native build failed, installing pure Python: {error}", file=sys.stderr)
            for component in PLAN:
                PLAN[component] = f"its build failed ({error})"
            self.extensions = []

    def run_ninja(self) -> None:
        import ninja

        folder = Path(self.build_temp).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        outputs = {ext.name.split(".")[-1]: Path(self.get_ext_fullpath(ext.name)).resolve() for ext in self.extensions}
        for output in outputs.values():
            output.parent.mkdir(parents=True, exist_ok=True)
        write_ninja(folder / "build.ninja", outputs["libccn_native"], outputs["_C"])
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        subprocess.run([Path(ninja.BIN_DIR) / "ninja", "-C", str(folder), *jobs], check=True)


def write_ninja(path: Path, library: Path, module: Path) -> None:
    import pybind11
    import torch
    from ninja import ninja_syntax

    torch_root = Path(torch.__file__).parent
    torch_flags = [STABLE_ABI, "-isystem", str(torch_root / "include")]
    python_flags = ["-isystem", pybind11.get_include(), "-isystem", sysconfig.get_paths()["include"], *describe()]

    with path.open("w") as file:
        ninja = ninja_syntax.Writer(file)
        ninja.rule("cxx", f"{compiler()} -MMD -MF $out.d $flags -c $in -o $out", depfile="$out.d", deps="gcc")
        ninja.rule("nvcc", f"{nvcc()} -MD -MF $out.d $flags -c $in -o $out", depfile="$out.d", deps="gcc")
        ninja.rule("link", f"{compiler()} -shared $in -o $out $flags")
        ninja.rule("nvlink", f"{nvcc()} -shared -cudart=static $in -o $out $flags")

        def compile(name: str, source: Path, flags: list[str], rule: str = "cxx") -> str:
            return ninja.build(f"{name}.o", rule, str(source), variables={"flags": flags})[0]

        objects = [
            compile("library", CSRC / "library.cpp", COMMON + torch_flags),
            compile("geometry", CSRC / "geometry.cpp", COMMON + torch_flags),
            compile("cpu", CSRC / "cpu" / "compact_conv.cpp", COMMON + torch_flags),
            *(compile(*described) for described in without_torch()),
        ]
        linker, linker_flag = "link", "-Wl,"
        if PLAN["cuda"] == "built":
            cuda_flags = ["-std=c++20", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", *arch_flags(), *torch_flags]
            objects += [compile(f"cuda_{s.stem}", s, cuda_flags, "nvcc") for s in cuda_sources()]
            linker, linker_flag = "nvlink", "-Xlinker="  # nvcc knows where its runtime lies
        # Without --no-as-needed the linker drops libtorch, and the library's weak symbols stay null.
        link = [f"-L{torch_root / 'lib'}", f"{linker_flag}--no-as-needed", "-ltorch", "-ltorch_cpu"]
        ninja.build(str(library), linker, objects, variables={"flags": link})
        bound = [
            compile("bindings", CSRC / "bindings.cpp", COMMON + python_flags),
            compile("launches", CSRC / "launches.cpp", COMMON),
        ]
        ninja.build(str(module), "link", bound, variables={"flags": ["-ldl"]})


def describe() -> list[str]:
    """Definitions that tell bindings.cpp what is being built."""
    import torch

    facts = {
        "CCN_TORCH_VERSION": torch.__version__,
        "CCN_TORCH_TARGET": ".".join(map(str, TORCH_TARGET)),
        "CCN_INSTRUCTION_SETS": " ".join(name for name, flags in INSTRUCTION_SETS.items() if X86 or not flags),
        "CCN_CUDA": nvcc_version() if PLAN["cuda"] == "built" else "no",
        "CCN_CUDA_ARCHITECTURES": os.environ.get("TORCH_CUDA_ARCH_LIST", "all") if PLAN["cuda"] == "built" else "none",
    }
    return [f"'-D{name}=\"{value}\"'" for name, value in facts.items()]


def nvcc_version() -> str:
    text = subprocess.run([nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"release (\S+),", text)
    return match.group(1) if match else "unknown"


if __name__ == "__main__":
    native = [Extension(f"ccn_kernels.{name}", []) for name in ("libccn_native", "_C")]
    setup(
        ext_modules=native if PLAN["cpu"] == "built" else [],
        cmdclass={"build_py": BuildPy, "build_ext": NinjaBuild},
    )
