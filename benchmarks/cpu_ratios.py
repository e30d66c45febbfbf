"""The CPU table: time of the fused and the two-branch layer, as ratios to F.conv2d with bias.

Every provider runs in both memory formats, interleaved in one process; medians; each provider counts in its faster
format. malloc's page churn is off (fresh pages can cost more than a convolution), by environment variables that
this script sets for itself.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import providers
import torch
from shapes import CPU, Shape
from tabulate import tabulate
from tqdm import tqdm

import ccn_kernels
from ccn_kernels.bench.timing import interleaved
from ccn_kernels.files import write_json

MALLOC = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
MODES = {"forward": providers.forward, "training": providers.training_step}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cpu.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = [measure(shape, mode, args.rounds) for shape in tqdm(CPU, unit="shape") for mode in MODES]
    write_json(args.out, {"machine": machine(), "rounds": args.rounds, "rows": rows})
    print(table(rows))


def measure(shape: Shape, mode: str, rounds: int) -> dict[str, Any]:
    """Medians, p20 and p80 in milliseconds of every provider in every format."""
    providers.check(shape)
    calls: dict[tuple[str, str], Callable[[], None]] = {}
    for provider in providers.PROVIDERS:
        for name, memory_format in FORMATS.items():
            layer = providers.make(provider, shape, memory_format)
            calls[provider, name] = MODES[mode](layer, shape.input(memory_format))
    times = interleaved(calls, rounds, milliseconds)
    return {"shape": shape._asdict(), "mode": mode, "milliseconds": {", ".join(key): t for key, t in times.items()}}


def milliseconds(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - started)


def best(row: dict[str, Any], provider: str) -> float:
    """A provider's median in its faster format (and, for the two-branch module, its faster form)."""
    return min(time["median"] for name, time in row["milliseconds"].items() if name.startswith(provider))


def table(rows: list[dict[str, Any]]) -> str:
    headers = [
        "shape",
        "batch",
        "mode",
        "F.conv2d ms",
        "two-branch / F.conv2d",
        "fused / F.conv2d",
        "fused / two-branch",
    ]
    lines = []
    for row in rows:
        plain, two, fused = (best(row, provider) for provider in ("plain", "two-branch", "fused"))
        name = row["shape"]["name"].replace("-", "→")
        lines.append([name, row["shape"]["batch"], row["mode"], plain, two / plain, fused / plain, fused / two])
    return tabulate(lines, headers, tablefmt="github", floatfmt=".2f")


def machine() -> dict[str, str]:
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": _cpu_name(),
        "threads": str(torch.get_num_threads()),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ccn_kernels": ccn_kernels.__version__,
        "malloc": " ".join(f"{name}={value}" for name, value in MALLOC.items()),
    }


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in MALLOC.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **MALLOC})
    main()
