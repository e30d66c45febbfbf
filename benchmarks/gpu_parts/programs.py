"""Programs that are run for a part: within a time limit, and without this machine's paths in what they say."""

from __future__ import annotations

import os
import signal
import subprocess

from ccn_kernels.bench.record import ROOT, without_paths


def execute(command: list[str], limit: float, extra: dict[str, str] | None = None) -> tuple[int | None, str]:
    """Exit status (None: out of its seconds) and output. ``extra``: of the environment, where this package is found."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths, **(extra or {})}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", process_group=0,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with what it has started, which would keep the machine busy
        output, _ = process.communicate()
        return None, without_paths(output)
    return process.returncode, without_paths(output)
