"""What a measuring process is at, left in a file for the process that will ask why this one died."""

from __future__ import annotations

import faulthandler
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from .record import Row

STEP_LIMIT = 600.0  # seconds after which a step counts as hung
LOST = 3  # exit status of a process whose CUDA context is gone


class Watch:
    """``step`` names the rows that would be to blame from now on; ``clear`` says that none is."""

    def __init__(self, path: Path, limit: float = STEP_LIMIT) -> None:
        self._path, self._limit = path, limit
        self._rows: list[Row] = []

    def step(self, rows: Iterable[Row]) -> None:
        self._rows = list(rows)
        self._leave_word("it crashed or hung")
        faulthandler.dump_traceback_later(self._limit, exit=True)

    def clear(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._path.unlink(missing_ok=True)

    def leave(self, reason: str) -> NoReturn:
        """Ends this process; another one does the rest."""
        self._leave_word(reason)
        os._exit(LOST)

    def _leave_word(self, reason: str) -> None:
        self._path.write_text(json.dumps({"rows": self._rows, "reason": reason}))


def last_word(path: Path) -> tuple[list[Row], str] | None:
    """The rows to blame and the reason; None where the process was at none."""
    if not path.exists():
        return None
    word = json.loads(path.read_text())
    path.unlink()
    return word["rows"], word["reason"]
