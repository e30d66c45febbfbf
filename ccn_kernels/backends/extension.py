"""Loads the compiled library once, when it is first needed, and remembers why it could not be."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import torch

PACKAGE = Path(__file__).resolve().parent.parent
LIBRARY = PACKAGE / "libccn_native.so"
BUILD_INFO = PACKAGE / "_build_info.json"
HOW_TO_BUILD = (
    "to build it, install a C++ compiler, torch, ninja, pybind11 and setuptools, then run "
    "`CCN_BUILD={component} pip install --no-build-isolation ccn-kernels`"
)


@functools.cache
def build_info() -> dict[str, str]:
    """What setup.py recorded: for each component "built", or the reason why it was left out."""
    try:
        return json.loads(BUILD_INFO.read_text())
    except FileNotFoundError:
        reason = "the package was not installed: setup.py has not run"
        return {"cpu": reason, "cuda": reason}


@functools.cache
def _load_error() -> str | None:
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        return f"{LIBRARY.name} does not load: {error}"
    return None


@functools.cache
def missing(component: str) -> str | None:
    """Why the compiled ``component`` ("cpu" or "cuda") cannot be used; None, with the library loaded, if it can."""
    state = build_info().get(component, "unknown")
    if state != "built":
        return f"the {component} backend was not built ({state}); " + HOW_TO_BUILD.format(component=component)
    return _load_error()
