"""`ccn bench --processes N`: plain against compact under DistributedDataParallel, and the collective's share.

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
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from .. import backends
from ..files import read_json, write_json
from .clock import clock_of
from .factory import FORMATS, Subject, load, one_line
from .measure import rounded
from .record import ROW, Record, Row, environment
from .settings import Settings
from .steps import Step, training
from .swap import swapped
from .timing import interleaved
from .work import surroundings

MODEL, INPUT = "ccn_kernels.models:vgg11", "x3x32x32"
BATCHES, ROUNDS = {"cpu": 16, "cuda": 256}, {"cpu": 11, "cuda": 50}
PROVIDERS = {"plain": "conv", "compact": "ccn"}


def run(
    processes: int,
    *,
    target: str = MODEL,
    input: str | None = None,
    memory_format: str = "channels_last",
    device: str = "cpu",
    rounds: int | None = None,
) -> list[Row]:
    """Rows of suite "ddp". Each process has its own batch (on a GPU: and its own GPU; on a CPU: one thread).

    Args:
        target, input: see ``factory.load``; the default is VGG-11 on images of CIFAR-10's size.
        rounds: turns of every kind of step; None for ``ROUNDS``.

    Raises:
        ValueError: fewer than two processes, or more than there are GPUs.
        RuntimeError: a process failed; the message is its own.
    """
    if processes < 2:
        raise ValueError(f"--processes must be at least 2, got {processes}")
    if device == "cuda" and processes > torch.cuda.device_count():
        raise ValueError(f"--processes must be at most {torch.cuda.device_count()}, the number of GPUs")
    if target == MODEL and input is None:
        input = f"{BATCHES[device]}{INPUT}"
    with tempfile.TemporaryDirectory() as folder:
        work = {"target": target, "input": input, "memory_format": memory_format, "rounds": rounds or ROUNDS[device]}
        _launch(processes, work | {"device": device}, Path(folder))
        return read_json(Path(folder) / "rows.json")


def _launch(processes: int, work: dict[str, Any], folder: Path) -> None:
    """Runs the processes to their end; stops them when interrupted."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", __name__, str(folder), json.dumps(work)]
    around = surroundings(Settings(out=folder, device=work["device"], threads=1))
    around["OMP_PROC_BIND"] = "false"  # all processes would be bound to the same processor
    log = folder / "log"
    with log.open("w") as output, subprocess.Popen(command, env=around, stdout=output, stderr=output) as launcher:
        try:
            status = launcher.wait()
        except BaseException:
            launcher.terminate()  # which stops its processes
            launcher.wait()
            raise
    if status:
        failures = sorted(folder.glob("failure-*"), key=lambda path: path.stat().st_mtime_ns)
        # the first one's failure is the cause of the others'
        raise RuntimeError(failures[0].read_text() if failures else f"the launcher failed: {log.read_text()[-2000:]}")


def main() -> None:
    """One process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("work", type=json.loads)
    args, rank = parser.parse_args(), int(os.environ["RANK"])
    try:
        with _group(args.work.pop("device")) as device:
            rows = measure(**args.work, device=device)
            if rank == 0:
                write_json(args.folder / "rows.json", rows)
    except Exception as error:
        (args.folder / f"failure-{rank}").write_text(f"process {rank}: {one_line(error)}")
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


def measure(target: str, input: str | None, memory_format: str, rounds: int, device: torch.device) -> list[Row]:
    """Both models' training steps with the gradients' all-reduce and without, all four taking turns."""
    subject = load(target, input, device=str(device), memory_format=FORMATS[memory_format])
    models = {"plain": subject.model, "compact": swapped(subject.model)[0]}
    steps: dict[tuple[str, bool], Step] = {}
    for kind, model in models.items():
        parallel = DistributedDataParallel(model.train())
        for reduces in (True, False):
            steps[kind, reduces] = _step(subject, parallel, reduces)
    times = interleaved(steps, rounds, _slowest(device))
    shared = {"memory_format": memory_format, **_facts(target, subject)}
    ran = {"plain": None, "compact": backends.select(None, device.type, getattr(torch, shared["dtype"]), 2)}
    return [
        _row(kind, shared["batch"], times[kind, True], times[kind, False])
        | shared
        | {"backend": ran[kind], "rounds": rounds}
        for kind in models
    ]


def _facts(target: str, subject: Subject) -> Row:
    """By the first input."""
    workload = "vgg11" if target == MODEL else target.rpartition("/")[2]
    input = next(leaf for leaf in tree_leaves((subject.args, subject.kwargs)) if isinstance(leaf, Tensor))
    return {"workload": workload, "batch": len(input), "dtype": str(input.dtype).removeprefix("torch.")}


def _step(subject: Subject, model: DistributedDataParallel, reduces: bool) -> Step:
    step = training(subject, model)

    def run() -> None:
        with nullcontext() if reduces else model.no_sync():
            step()

    return run


def _slowest(device: torch.device) -> Callable[[Callable[[], Any]], float]:
    """Microseconds of the slowest process, all of which begin together."""
    clock = clock_of(device.type)

    def sample(call: Callable[[], Any]) -> float:
        dist.barrier()
        elapsed = torch.tensor(clock.sample(call), dtype=torch.float64, device=device)
        dist.all_reduce(elapsed, dist.ReduceOp.MAX)
        return elapsed.item()

    return sample


def _row(kind: str, batch: int, times: dict[str, float], alone: dict[str, float]) -> Row:
    processes = dist.get_world_size()
    return dict.fromkeys(ROW) | {
        "suite": "ddp", "provider": PROVIDERS[kind], "timing": "eager", "pass": "training",
        "median_us": times["median"], "p20_us": times["p20"], "p80_us": times["p80"],
        "images_per_s": 1e6 * processes * batch / times["median"], "processes": processes,
        "collective_share": 1 - alone["median"] / times["median"],
    }  # fmt: skip


def keep(rows: list[Row], path: Path, device: str) -> None:
    """Adds rows to a device's record, whose other rows have threads and memory of their own."""
    here = environment(device, 1)
    del here["threads"], here["malloc"]
    Record.resume(path, here).put(map(rounded, rows))


def describe(rows: list[Row]) -> str:
    """A line a row, and what the swap costs."""
    plain, compact = rows
    head = f"{plain['workload']}, {plain['processes']} processes of {plain['batch']} images each"
    lines = [
        f"{row['provider']}: {row['images_per_s']:.1f} images/s, {row['median_us'] / 1e3:.1f} ms a step, "
        f"{row['collective_share']:.1%} of it in the collective"
        for row in rows
    ]
    ratio = compact["median_us"] / plain["median_us"]
    return "\n".join([head, *lines, f"a compact step takes {ratio:.2f} times as long as a plain one"])


if __name__ == "__main__":
    main()
