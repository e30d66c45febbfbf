"""`ccn bench --processes N`: DistributedDataParallel on this machine, plain against compact, and the collective's share.

Started as a module under ``torch.distributed.run`` it is one of the processes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ..files import read_json, write_json
from .factory import Subject, brief, load
from .gauges import sampler
from .steps import Step, training
from .swap import swapped
from .timing import interleaved

MODEL, INPUT = "ccn_kernels.models:vgg11", "x3x32x32"
BATCHES = {"cpu": 16, "cuda": 256}
PROVIDERS = {"plain": "conv", "compact": "ccn"}
Row = dict[str, Any]


def run(
    processes: int, *, target: str = MODEL, input: str | None = None, device: str | None = None, rounds: int = 11
) -> list[Row]:
    """Rows of suite "ddp". Each process has its own batch (on a GPU: and its own GPU; on a CPU: one thread).

    Args:
        target, input: see ``factory.load``; None is VGG-11 on images of CIFAR-10's size.

    Raises:
        ValueError: fewer than two processes, or more than there are GPUs.
        RuntimeError: a process failed; the message is its own.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if processes < 2:
        raise ValueError(f"--processes must be at least 2, got {processes}")
    if device == "cuda" and processes > torch.cuda.device_count():
        raise ValueError(f"--processes must be at most {torch.cuda.device_count()}, the number of GPUs")
    if target == MODEL and input is None:
        input = f"{BATCHES[device]}{INPUT}"
    with tempfile.TemporaryDirectory() as folder:
        settings = {"target": target, "input": input, "device": device, "rounds": rounds, "folder": folder}
        _launch(processes, settings)
        return read_json(Path(folder) / "rows.json")


def _launch(processes: int, settings: dict[str, Any]) -> None:
    """Runs the processes to their end; stops them when interrupted."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", __name__, json.dumps(settings)]
    threads = {"OMP_NUM_THREADS": "1"} if settings["device"] == "cpu" else {}
    log = Path(settings["folder"]) / "log"
    with (
        log.open("w") as output,
        subprocess.Popen(command, env={**os.environ, **threads}, stdout=output, stderr=output) as launcher,
    ):
        try:
            status = launcher.wait()
        except BaseException:
            launcher.terminate()  # which stops its processes
            raise
    if status:
        failures = sorted(Path(settings["folder"]).glob("failure-*"))
        raise RuntimeError(failures[0].read_text() if failures else f"the launcher failed: {log.read_text()[-2000:]}")


def main() -> None:
    """One process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", type=json.loads)
    settings = parser.parse_args().settings
    rank, folder = int(os.environ["RANK"]), Path(settings["folder"])
    try:
        with _group(settings["device"]) as device:
            rows = measure(settings["target"], settings["input"], device, settings["rounds"])
            if rank == 0:
                write_json(folder / "rows.json", rows)
    except Exception as error:
        (folder / f"failure-{rank}").write_text(f"process {rank}: {brief(error)}")
        raise


@contextmanager
def _group(kind: str) -> Iterator[torch.device]:
    device = torch.device(kind, int(os.environ["LOCAL_RANK"])) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def measure(target: str, input: str | None, device: torch.device, rounds: int) -> list[Row]:
    """Both models' training steps with the gradients' all-reduce and without, all four taking turns."""
    subject = load(target, input, device=str(device))
    models = {"plain": subject.model, "compact": swapped(subject.model)[0]}
    steps: dict[tuple[str, bool], Step] = {}
    for kind, model in models.items():
        parallel = DistributedDataParallel(model.train())
        for reduces in (True, False):
            steps[kind, reduces] = _step(subject, parallel, reduces)
    times = interleaved(steps, rounds, _slowest(device))
    return [_row(target, subject, device, kind, times[kind, True], times[kind, False]) for kind in models]


def _step(subject: Subject, model: DistributedDataParallel, reduces: bool) -> Step:
    step = training(subject, model)

    def run() -> None:
        with nullcontext() if reduces else model.no_sync():
            step()

    return run


def _slowest(device: torch.device) -> Callable[[Callable[[], Any]], float]:
    """Microseconds of the slowest process, all of which begin together."""
    sample = sampler(device)

    def slowest(call: Callable[[], Any]) -> float:
        dist.barrier()
        elapsed = torch.tensor(sample(call), dtype=torch.float64, device=device)
        dist.all_reduce(elapsed, dist.ReduceOp.MAX)
        return elapsed.item()

    return slowest


def _row(target: str, subject: Subject, device: torch.device, kind: str, times: dict, alone: dict) -> Row:
    first = next(iter([*subject.args, *subject.kwargs.values()]))
    world, batch = dist.get_world_size(), len(first)
    workload = "vgg11" if target == MODEL else target
    return {
        "workload": workload, "suite": "ddp", "provider": PROVIDERS[kind], "variant": None, "backend": None,
        "timing": "eager", "pass": "training", "dtype": str(first.dtype).removeprefix("torch."),
        "memory_format": "contiguous", "batch": batch, "median_us": times["median"], "p20_us": times["p20"],
        "p80_us": times["p80"], "peak_mb": None, "share_of_floor": None, "relative_error": None, "failure": None,
        "flop": None, "bytes": None, "floor_us": None, "images_per_s": 1e6 * world * batch / times["median"],
        "processes": world, "collective_share": 1 - alone["median"] / times["median"],
    }  # fmt: skip


def describe(rows: list[Row]) -> str:
    """A line a row, and what the swap costs."""
    lines = [
        f"{row['workload']}, {row['provider']}: {row['images_per_s']:.1f} images/s by {row['processes']} processes of "
        f"{row['batch']} images each, {row['median_us'] / 1e3:.1f} ms a step, {row['collective_share']:.1%} of it in the "
        "collective"
        for row in rows
    ]
    plain, compact = rows
    return "\n".join(
        [*lines, f"a compact step takes {compact['median_us'] / plain['median_us']:.2f} times a plain one's"]
    )


if __name__ == "__main__":
    main()
