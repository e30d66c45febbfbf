"""The `cuda` backend's kernels on a CPU: compiled as C++ over emulator.h, and put in the backend's place."""

import os
import runpy
import subprocess
from pathlib import Path

import torch

from ccn_kernels.backends import cuda

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FOLDER = ROOT / "build" / "emulator"  # kept between runs: ninja builds what has changed
OPERATORS = "ccn_emulated"
CAREFUL = ["-fsanitize=address", "-g1"]
PRELOADED = "LD_PRELOAD"


def build(sanitize: bool = False) -> Path:
    """Compiles csrc/cuda as C++; returns the library. ``sanitize``: for a process with AddressSanitizer preloaded."""
    import ninja  # which tests of other kernels do without
    from ninja import ninja_syntax

    setup = runpy.run_path(str(ROOT / "setup.py"))
    torch_root = Path(torch.__file__).parent
    folder = FOLDER / "address" if sanitize else FOLDER
    optimised = ["-O1", *CAREFUL] if sanitize else ["-O2"]
    flags = ["-std=c++20", *optimised, "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
    flags += ["-U_FORTIFY_SOURCE"]  # it takes a fiber's jump for a smashed stack
    flags += ["-DCCN_EMULATED", f"-I{HERE}", f"-I{ROOT / 'csrc'}", setup["STABLE_ABI"]]
    flags += ["-isystem", str(torch_root / "include")]
    sources = [*setup["cuda_sources"](), ROOT / "csrc" / "geometry.cpp", HERE / "library.cpp"]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "build.ninja").open("w") as file:
        writer = ninja_syntax.Writer(file)
        compile = f"{setup['compiler']()} -x c++ -MMD -MF $out.d {' '.join(flags)} -c $in -o $out"
        writer.rule("cxx", compile, depfile="$out.d", deps="gcc")
        libraries = f"-L{torch_root / 'lib'} -Wl,--no-as-needed -ltorch -ltorch_cpu"
        writer.rule("link", f"{setup['compiler']()} -shared {' '.join(optimised)} $in -o $out {libraries}")
        objects = [writer.build(f"{source.stem}.o", "cxx", str(source))[0] for source in sources]
        writer.build("libccn_emulated.so", "link", objects)
    plain = {name: value for name, value in os.environ.items() if name != PRELOADED}  # the compiler needs no sanitizer
    subprocess.run([Path(ninja.BIN_DIR) / "ninja", "-C", str(folder), "--quiet"], check=True, env=plain)
    return folder / "libccn_emulated.so"


def install() -> None:
    """From here on, `cuda` takes CPU tensors."""
    torch.ops.load_library(str(build(sanitize="libasan" in os.environ.get(PRELOADED, ""))))
    cuda.OPERATORS = OPERATORS
    cuda.unavailable = lambda: None
    cuda.unsupported = lambda request: None if request.device == "cpu" else "it is emulated, on a CPU"


def device() -> str:
    """What the kernels of `cuda` run on in this process."""
    return "cpu" if cuda.OPERATORS == OPERATORS else "cuda"
