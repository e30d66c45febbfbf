"""The compiled library with its CUDA kernels: built in place, or else what lies in the checkout."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from ccn_kernels.backends import cuda
from ccn_kernels.bench.record import without_paths

from .programs import execute

LIMIT = 900.0  # seconds that a build may take
BUILD = ("setup.py", "build_ext", "--inplace")


def provide(log: Path, dry_run: bool = False) -> dict[str, str]:
    """What became of a build, and whether there are CUDA kernels now: for the record. Its output goes into ``log``.

    setup.py knows what a build needs; ninja leaves alone what is up to date.
    """
    built = "not tried in a dry run" if dry_run else build(log)
    reason = cuda.unavailable()
    found = f"none: {without_paths(reason)}" if reason else "built here" if built == "done" else "found in the checkout"
    return {"build": built, "CUDA kernels": found}


def build(log: Path) -> str:
    """ "done", or the last thing that the build said. What the environment asks for goes before what is asked here."""
    wanted = {"CCN_BUILD": "cuda", "TORCH_CUDA_ARCH_LIST": architecture(torch.cuda.get_device_capability())}
    wanted = {name: os.environ.get(name, value) for name, value in wanted.items()}
    code, output = execute([sys.executable, *BUILD], LIMIT, wanted)
    log.write_text(output)
    if code is None:
        return f"it took longer than {LIMIT:.0f} s"
    return "done" if code == 0 else last_line(output)


def architecture(capability: tuple[int, int]) -> str:
    """As TORCH_CUDA_ARCH_LIST has it; from 9.0 on with what belongs to that architecture alone."""
    return "{}.{}".format(*capability) + "a" * (capability >= (9, 0))


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it said nothing")
