"""Files that are either whole or not there: written under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write(path: Path, save: Callable[[Path], Any]) -> None:
    """Calls ``save`` with a temporary path beside ``path``, then renames it.

    Raises:
        OSError: it cannot be written, for want of space or rights; the message names it.
    """
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode  # as the umask has it; safetensors would keep others from reading
        save(temporary)
        temporary.chmod(mode)
        temporary.replace(path)
    except Exception as error:  # libraries have errors of their own for a full disk
        raise OSError(f"cannot write {path}: {error}") from error
    finally:
        with contextlib.suppress(OSError):  # the one above says more
            temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Before hours are spent on what could not be kept.

    Raises:
        OSError: the folder cannot be made, or written to; the message names it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"cannot write to {folder}: {error}") from error


def write_json(path: Path, value: Any) -> None:
    write(path, lambda temporary: temporary.write_text(json.dumps(value, indent=2) + "\n"))


def read_json(path: Path) -> Any:
    """The value, or None where the file is missing.

    Raises:
        ValueError: the file is no JSON; the message names it.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}): delete it to do its work again") from error
