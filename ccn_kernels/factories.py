"""What a user's ``FILE.py:FACTORY`` or ``PACKAGE.MODULE:FACTORY`` makes."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn


def made(target: str, option: str) -> Any:
    """Calls the factory, without arguments; a module in its place will do.

    Args:
        option: of the command line, that errors name.

    Raises:
        ValueError: there is no such file, module or name, or the factory fails.
    """
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise ValueError(f"{option} must be FILE.py:FACTORY or PACKAGE.MODULE:FACTORY, got {target!r}")
    module = _module(place, option)
    if not hasattr(module, name):
        raise ValueError(f"{option}: {place} has no {name!r}")
    factory = getattr(module, name)
    if isinstance(factory, nn.Module):
        return factory
    if not callable(factory):
        kind = type(factory).__name__
        raise ValueError(f"{option}: {name} in {place} must be a function that returns a model, got a {kind}")
    try:
        return factory()
    except Exception as error:
        raise ValueError(f"{option}: {target} fails: {_one_line(error)}") from error


def _module(place: str, option: str) -> ModuleType:
    """Imported as Python would run it: what lies beside the file (or in this directory) can be imported by it."""
    is_file = place.endswith(".py")
    path = Path(place).resolve()
    if is_file and not path.is_file():
        raise ValueError(f"{option}: there is no file {place}")
    sys.path.insert(0, str(path.parent if is_file else Path.cwd()))
    try:
        return _from_file(path) if is_file else importlib.import_module(place)
    except Exception as error:
        raise ValueError(f"{option}: {place} cannot be imported: {_one_line(error)}") from error


def _from_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
