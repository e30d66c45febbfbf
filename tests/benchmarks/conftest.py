"""Records as the harness writes them, with planted times; the scripts of benchmarks/ as modules."""

import json
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

ENVIRONMENT = {
    "device": "AMD EPYC", "driver": None, "torch": "2.13.0", "triton": None, "cuda": None, "date": "2026-11-24",
    "commit": "abc1234", "ceilings": {"bytes_per_s": 2e10, "flop_per_s": {"float32": 2.5e11}}, "python": "3.11.7",
    "ccn_kernels": "0.1.0", "threads": 2, "capability": "AVX2", "malloc": None,
}  # fmt: skip
GPU = {
    "device": "NVIDIA H200", "driver": "580", "triton": "3.6.0", "cuda": "13.0", "capability": None, "threads": None,
    "ceilings": {"bytes_per_s": 4.3e12, "flop_per_s": {"bfloat16": 7.9e14}},
}  # fmt: skip


def make_row(provider="ccn", median=1000.0, workload="64-128@16", **others):
    """A row of the kernel-notes suite; a spread of 2 %."""
    times = {"median_us": median, "p20_us": 0.99 * median, "p80_us": 1.01 * median} if median else {}
    return {
        "workload": workload, "suite": "kernel-notes", "provider": provider, "variant": None,
        "backend": "cpu" if provider == "ccn" else None, "timing": "eager", "pass": "forward", "dtype": "float32",
        "memory_format": "channels_last", "batch": 64, "median_us": None, "p20_us": None, "p80_us": None,
        "peak_mb": 10.0, "share_of_floor": 0.5, "relative_error": 1e-7, "failure": None, "flop": 10**9,
        "bytes": 10**7, "floor_us": 500.0, "images_per_s": None, "rounds": 31, **times, **others,
    }  # fmt: skip


@pytest.fixture
def save(tmp_path):
    """Writes a record of these rows; keywords change its environment."""

    def write(rows, name="amd-epyc-0.1.0.json", **environment):
        path = tmp_path / name
        path.write_text(json.dumps({"environment": {**ENVIRONMENT, **environment}, "rows": rows}))
        return path

    return write


@pytest.fixture
def row():
    return make_row


@pytest.fixture
def everything(save):
    """A record with rows for every picture, of a CPU or a GPU."""

    def write(gpu=False):
        rows = gpu_rows() if gpu else cpu_rows()
        return save(rows, "nvidia-h200-0.1.0.json", **GPU) if gpu else save(rows)

    return write


CPU_SHAPES = [
    ("3-64@32", 64),
    ("32-32@28", 128),
    ("64-128@16", 64),
    ("128-256@8", 64),
    ("256-256@8", 64),
    ("512-512@4", 64),
]
GPU_SHAPES = ["3-64@32", "64-128@16", "128-256@8", "256-256@8", "256-512@4", "512-512@4", "512-512@2", "64-64@56",
              "128-128@56 stride 2", "128-128@28", "256-256@14", "512-512@7"]  # fmt: skip


def layer_rows(workload, batch, step, times, **others):
    """A row a provider and form, by microseconds; contiguous is the slower format."""
    into, out, size = (int(number) for number in re.findall(r"\d+", workload)[:3])
    flop = 18 * batch * size**2 * into * out * (3 if step == "training" else 1)
    moved = 4 * batch * size**2 * (into + out)
    shared = {"workload": workload, "batch": batch, "pass": step, "flop": flop, "bytes": moved, **others}
    return [
        make_row(provider, factor * median, variant=variant, memory_format=format,
                 peak_mb=moved / 1e6 * (1.5 if provider == "two_branch" else 1.1 if provider == "ccn" else 1), **shared)
        for (provider, variant), median in times.items()
        for format, factor in (("channels_last", 1.0), ("contiguous", 1.1))
    ]  # fmt: skip


def cpu_rows():
    rows = []
    for number, (workload, batch) in enumerate(CPU_SHAPES):
        for step, base in (("forward", 5000.0), ("training", 16000.0)):
            plain = base * (1 + number)
            slower = {("two_branch", "ones"): 1.4, ("two_branch", "pool"): 1.5, ("two_branch_compiled", "ones"): 1.3,
                      ("ccn", None): 1.2 - 0.04 * number, ("conv", None): 1.0, ("conv", "again"): 0.1,
                      ("conv_nobias", None): 0.98}  # fmt: skip
            rows += layer_rows(workload, batch, step, {who: plain * by for who, by in slower.items()})
    for workload, batch in (("vgg11", 32), ("resnet50", 4)):
        for step in ("forward", "training"):
            rows += [
                make_row(provider, 1e5, workload, suite="networks", batch=batch, variant=form, peak_mb=peak,
                         images_per_s=30.0, **{"pass": step})
                for provider, form, peak in (("conv", None, 400.0), ("ccn", None, 410.0), ("ccn", "relu apart", 480.0))
            ]  # fmt: skip
    return rows + growth_rows()


def growth_rows():
    sizes = {"batch": (1, 8, 64, 512), "image": (8, 16, 28, 56, 64, 112, 128, 224), "channels": (1, 32, 1024),
             "kernel": (1, 3, 7, 11)}  # fmt: skip
    rows = []
    for axis, values in sizes.items():
        for step in ("forward", "training"):
            for value in values:
                batch, image, channels, kernel = (value if axis == own else middle for own, middle in zip(
                    sizes, (32, 32, 64, 3), strict=True))  # fmt: skip
                cost = batch * image**2 * channels * kernel / 1e2 * (1 if step == "forward" else 3)
                workload = f"{channels}-{channels}@{image}" + ("" if kernel == 3 else f" {kernel}x{kernel}")
                times = {("conv", None): cost, ("ccn", None): 1.1 * cost + 50}
                rows += layer_rows(workload, batch, step, times, suite=f"growth-{axis}")
    return rows


def gpu_rows():
    times = {("conv", None): 30.0, ("conv_nobias", None): 26.0, ("two_branch", "ones"): 110.0,
             ("two_branch", "pool"): 100.0, ("two_branch_compiled", "pool"): 45.0, ("cudnn_epilogue", None): 29.0,
             ("two_branch_max_autotune", "pool"): 38.0, ("ccn", None): 24.0}  # fmt: skip
    return [
        row
        for workload in GPU_SHAPES
        for step in ("forward", "training")
        for timing, factor in (("graph", 1), ("eager", 3))
        for row in layer_rows(
            workload, 256, step, {who: time * factor for who, time in times.items()}, dtype="bfloat16", timing=timing
        )
    ]
