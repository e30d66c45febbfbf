"""The `cuda` backend's kernels on a CPU: compiled as C++ over emulator.h, and put in the backend's place."""

import runpy
import subprocess
from pathlib import Path

import torch

from ccn_kernels.backends import cuda

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FOLDER = ROOT / "build" / "emulator"  # kept between runs: ninja builds what has changed
OPERATORS = "ccn_emulated"


def build() -> Path:
    """Compiles csrc/cuda as C++; returns the library."""
    import ninja  # which tests of other kernels do without
    from ninja import ninja_syntax

    setup = runpy.run_path(str(ROOT / "setup.py"))
    torch_root = Path(torch.__file__).parent
    flags = ["-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
    flags += ["-U_FORTIFY_SOURCE"]  # it takes a fiber's jump for a smashed stack
    flags += ["-DCCN_EMULATED", f"-I{HERE}", f"-I{ROOT / 'csrc'}", setup["STABLE_ABI"]]
    flags += ["-isystem", str(torch_root / "include")]
    sources = [*setup["cuda_sources"](), ROOT / "csrc" / "geometry.cpp", HERE / "library.cpp"]
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "build.ninja").open("w") as file:
        writer = ninja_syntax.Writer(file)
        compile = f"{setup['compiler']()} -x c++ -MMD -MF $out.d {' '.join(flags)} -c $in -o $out"
        writer.rule("cxx", compile, depfile="$out.d", deps="gcc")
        libraries = f"-L{torch_root / 'lib'} -Wl,--no-as-needed -ltorch -ltorch_cpu"
        writer.rule("link", f"{setup['compiler']()} -shared $in -o $out {libraries}")
        objects = [writer.build(f"{source.stem}.o", "cxx", str(source))[0] for source in sources]
        writer.build("libccn_emulated.so", "link", objects)
    subprocess.run([Path(ninja.BIN_DIR) / "ninja", "-C", str(FOLDER), "--quiet"], check=True)
    return FOLDER / "libccn_emulated.so"


def install() -> None:
    """From here on, `cuda` takes CPU tensors."""
    torch.ops.load_library(str(build()))
    cuda.OPERATORS = OPERATORS
    cuda.unavailable = lambda: None
    cuda.unsupported = lambda request: None if request.device == "cpu" else "it is emulated, on a CPU"


def device() -> str:
    """What the kernels of `cuda` run on in this process."""
    return "cpu" if cuda.OPERATORS == OPERATORS else "cuda"
