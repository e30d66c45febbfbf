"""Progress bars that do not fill logs."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

SECONDS_IN_LOGS = 30


def bar(*args: Any, **options: Any) -> tqdm:
    """tqdm's bar; where nobody looks at it as it moves, in a file, a line in half a minute."""
    watched = sys.stderr.isatty() or hasattr(sys, "ps1")  # a terminal, a notebook
    rarely = {} if watched else {"mininterval": SECONDS_IN_LOGS, "maxinterval": SECONDS_IN_LOGS}
    return tqdm(*args, **rarely, **options)
