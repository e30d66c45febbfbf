"""Records as the harness writes them, with planted times; the scripts of benchmarks/ as modules."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

ENVIRONMENT = {
    "device": "AMD EPYC", "driver": None, "torch": "2.13.0", "triton": None, "cuda": None, "date": "2026-11-24",
    "commit": "abc1234", "ceilings": {"bytes_per_s": 2e10, "flop_per_s": {"float32": 1e11}}, "python": "3.11.7",
    "ccn_kernels": "0.1.0", "threads": 2, "capability": "AVX2", "malloc": None, "rounds": 31,
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
        "bytes": 10**7, "floor_us": 500.0, "images_per_s": None, **times, **others,
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
