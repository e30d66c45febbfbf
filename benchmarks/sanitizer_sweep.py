"""Forward and backward once through every kernel, over small shapes: what compute-sanitizer watches.

    python benchmarks/sanitizer_sweep.py [--backends cuda]

The last line says whether all results were right. On a CPU it sweeps Triton's kernels where Triton interprets them
(TRITON_INTERPRET=1), and those of `cuda` where they are emulated (CCN_EMULATED=1), under AddressSanitizer if that is
preloaded: `make sanitize-cuda`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpu_parts import sweep
from gpu_parts.checks import DONE, KERNELS

from ccn_kernels import backends
from ccn_kernels.bench.record import ROOT

EMULATED = os.environ.get("CCN_EMULATED") == "1"
DEVICE = "cpu" if EMULATED or backends.triton.interpreting() else "cuda"


def main() -> None:
    if EMULATED:
        emulate()
    wrong = [name for backend in arguments().backends for name in wrong_of(backend)]
    if wrong:
        sys.exit(f"sweep: wrong: {'; '.join(wrong)}")
    print(DONE, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ",".join(KERNELS)
    parser.add_argument("--backends", type=lambda text: text.split(","), default=KERNELS, help=f"of {names}; all")
    return parser.parse_args()


def emulate() -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    from emulator import emulated

    emulated.install()
    torch.use_deterministic_algorithms(True)  # what is allocated is NaN until it is written


def wrong_of(name: str) -> list[str]:
    """The calls of a backend that are wrong, by name."""
    reason = backends.explain(DEVICE)[name]
    if reason:
        sys.exit(f"sweep: {name}: {reason}")
    calls = importlib.import_module(f"gpu_parts.sweep_{name}")
    return sweep.wrong_of(calls.CALLS, calls.compute, DEVICE)


if __name__ == "__main__":
    main()
