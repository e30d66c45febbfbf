"""What is built and what is found: ``ccn env``, ``python -m ccn_kernels.env_report``. Bug reports start with it."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import shutil
from pathlib import Path

import torch

from . import backends
from .backends import extension
from .version import __version__

_PACKAGES = ("torch", "triton", "numpy", "foolbox", "pybind11", "ninja")


def report() -> dict[str, dict[str, str]]:
    """Sections of name and finding, as :func:`text` prints them."""
    return {
        "ccn_kernels": {"version": __version__, **_build()},
        "backends": {name: reason or "available" for name, reason in _reasons().items()},
        "packages": {name: _version(name) for name in _PACKAGES},
        "machine": _machine(),
    }


def text() -> str:
    """The report, a line a finding."""
    lines = []
    for section, findings in report().items():
        lines.append(section)
        lines.extend(f"  {name + ':':<18} {finding}" for name, finding in findings.items())
    return "\n".join(lines)


def _reasons() -> dict[str, str | None]:
    return {backend.NAME: backend.unavailable() for backend in backends.PREFERENCE}


def _build() -> dict[str, str]:
    findings = {f"{component} component": state for component, state in extension.build_info().items()}
    try:
        from . import _C
    except ImportError as error:
        return {**findings, "compiled with": f"nothing compiled ({error})"}
    return {**findings, "compiled with": ", ".join(f"{k} {v}" for k, v in _C.build().items())}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def processor() -> str:
    """The CPU's name."""
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    found = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(found, "") or platform.processor() or platform.machine()


def _machine() -> dict[str, str]:
    gpu = "none visible"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        gpu = f"{', '.join(names)} (CUDA {torch.version.cuda})"
    return {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": processor(),
        "cpu threads": str(torch.get_num_threads()),
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": gpu,
        "nvcc": "on PATH" if shutil.which("nvcc") else "not on PATH",  # reports are published: no path of this machine
        backends.ENVIRONMENT: os.environ.get(backends.ENVIRONMENT, "not set"),
    }


def main(as_json: bool = False) -> None:
    print(json.dumps(report(), indent=2) if as_json else text())


if __name__ == "__main__":
    main()
