"""What was measured, on what."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from typing import Any

import torch
import triton

import ccn_kernels

from .record import today

CARD = "driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu"


def file_name(dry_run: bool) -> str:
    """The GPU's."""
    if dry_run:
        return "dry-run.json"
    if not torch.cuda.is_available():
        sys.exit("PyTorch sees no CUDA GPU here; --dry-run needs none")
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(0).lower()).strip("-") + ".json"


def machine(dry_run: bool) -> dict[str, Any]:
    versions = {
        "date": today(), "python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda,
        "triton": triton.__version__, "ccn_kernels": ccn_kernels.__version__,
    }  # fmt: skip
    if dry_run:
        return {"device": "dry run", **versions}
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name, "processors": properties.multi_processor_count,
        "L2 bytes": properties.L2_cache_size, "cudnn": torch.backends.cudnn.version(), **versions, "card": card(),
    }  # fmt: skip


def card() -> dict[str, str]:
    """Driver, clocks, power and temperature, as found."""
    command = ["nvidia-smi", f"--query-gpu={CARD}", "--format=csv,noheader", "--id=0"]
    try:
        values = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(CARD.split(","), values.strip().split(", "), strict=False))
