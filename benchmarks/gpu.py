"""The GPU's one command: is it right, how fast is it, and against whom.

    python benchmarks/gpu.py [--parts kernel-notes,networks] [--budget 420] [--out DIR]

First the library is built with its CUDA kernels; where that cannot be done, the one that lies in the checkout serves.
Throughput is what `ccn bench` measures, part by part, into the GPU's record. Programs (the tests, compute-sanitizer)
and diagnostics of our kernels (tiles, launches, ablation, host time) go to a file beside it. A part that is done for
this state of the package is left alone; one that ran out of its budget goes on where it stopped when it is called
again. What crashes, hangs or loses the CUDA context is recorded as such, and the rest goes on without it. `--dry-run`
takes tiny shapes through all of it on a CPU.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from gpu_parts import NAMES, ROWS, THROUGHPUT
from gpu_parts.library import provide
from gpu_parts.record import Record, card, failures
from gpu_parts.run import DryClock, Run, running
from gpu_parts.summary import summary

from ccn_kernels import backends
from ccn_kernels.bench import record as throughput
from ccn_kernels.bench import work as bench
from ccn_kernels.bench.clock import GpuClock
from ccn_kernels.bench.providers import OURS
from ccn_kernels.bench.settings import PROVIDERS, Settings

CACHE = "TORCHINDUCTOR_CACHE_DIR"
LEAST = 10.0  # seconds of a budget that another process is started for
TINY: dict[str, Any] = {"device": "cpu", "suites": ("tiny",), "workloads": "", "dtypes": ("float32",), "rounds": 2}


def main() -> int:
    args = arguments()
    if not args.dry_run and not torch.cuda.is_available():
        sys.exit("PyTorch sees no CUDA GPU here; --dry-run needs none")
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault(CACHE, str(args.cache or args.out / "inductor.tmp"))
    if args.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"
    record, diagnostics = paths(args)
    if args.child:
        diagnose(args, diagnostics)
        return 0
    note(diagnostics, provide(args.out / "build.log", args.dry_run))
    broken = [part for part in args.parts if not (measure if part in THROUGHPUT else do)(part, args)]
    print(f"\n{record}\n{diagnostics}\n\n{summary(record, Record(diagnostics), args.parts)}", flush=True)
    ours = record.exists() and any(row["failure"] for row in throughput.Record.load(record).rows if is_ours(row))
    return 1 if broken or ours or any(wrong(Record(diagnostics), part) for part in args.parts) else 0


def is_ours(row: dict[str, Any]) -> bool:
    """A provider of ours, by a backend that is there: that one is not is said, and no failure."""
    return row["provider"] in OURS and backends.get(row["backend"]).unavailable() is None


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=parts, default=NAMES, help=f"of {','.join(NAMES)}; all by default")
    parser.add_argument("--rows", default="", metavar="REGEX", help="only rows or workloads whose names match")
    parser.add_argument("--budget", type=float, default=420, metavar="SECONDS", help="for each part")
    parser.add_argument("--rounds", type=int, help="turns that every contender takes (100; 2 in a dry run)")
    parser.add_argument("--out", type=Path, default=throughput.RESULTS, metavar="DIR")
    parser.add_argument("--cache", type=Path, metavar="DIR", help=f"torch.compile's (or set {CACHE})")
    parser.add_argument("--commit", help="what to record where git does not know the checkout")
    parser.add_argument("--again", action="store_true", help="do what is done already once more")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, interpreted, on a CPU")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.rounds = args.rounds or (2 if args.dry_run else 100)
    return args


def parts(text: str) -> tuple[str, ...]:
    unknown = set(text.split(",")) - set(NAMES)
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    return tuple(name for name in NAMES if name in text.split(","))


def paths(args: argparse.Namespace) -> tuple[Path, Path]:
    """The record's, and that of what is no throughput."""
    record = throughput.default_path("cuda").name if not args.dry_run else "dry-run.json"
    device = throughput.slug("cuda") if not args.dry_run else "dry-run"
    return args.out / record, args.out / f"{device}-diagnostics.json"


def note(path: Path, library: dict[str, str]) -> None:
    record = Record(path)
    record.data["library"] = library
    record.save()


# Throughput.


def measure(part: str, args: argparse.Namespace) -> bool:
    """One part's suites; whether nothing of the harness broke."""
    started = time.monotonic()
    for options in THROUGHPUT[part]:
        settings = settings_of(options, args)
        left = args.budget - (time.monotonic() - started)
        print(f"[{part}] {', '.join(settings.suites)}", flush=True)
        try:
            bench.run(replace(settings, budget=left))
        except (RuntimeError, ValueError) as error:
            print(f"[{part}] {error}", flush=True)
            return isinstance(error, ValueError) and bool(args.rows)  # no workload of this part has such a name
    return True


def settings_of(options: dict[str, Any], args: argparse.Namespace) -> Settings:
    if args.dry_run:
        networks = "networks" in options.get("suites", ())
        here = tuple(name for name in options.get("providers", ()) if name in PROVIDERS["cpu"])
        options = {
            **options,
            **TINY,
            "providers": here,
            "suites": ("tiny-networks",) if networks else ("tiny",),
            "threads": 1,
        }
    else:
        options = {"device": "cuda", **options, "rounds": args.rounds}
    if args.rows:
        options["workloads"] = args.rows
    return Settings(out=paths(args)[0], again=args.again, commit=args.commit, **options)


# Programs and diagnostics: the parent's side.


def do(part: str, args: argparse.Namespace) -> bool:
    """One part, by as many processes as it takes: another one follows where one has died."""
    path = paths(args)[1]
    started, left = time.monotonic(), args.budget
    if prepare(part, args, path)["missing"] == []:
        print(f"[{part}] is done already", flush=True)
        return True
    running(args.out).unlink(missing_ok=True)
    while True:
        code = subprocess.call(child_command(part, args, left))
        left = args.budget - (time.monotonic() - started)
        if code == 0 or not blame(part, path, running(args.out), code, spent=left < 0) or left < LEAST:
            break
    record = Record(path)
    record.part(part)["seconds"] += round(time.monotonic() - started, 1)
    record.save()
    return True


def prepare(part: str, args: argparse.Namespace, path: Path) -> dict[str, Any]:
    record = Record(path)
    device = "cpu" if args.dry_run else "cuda"
    record.data["machine"] = {**throughput.environment(device, torch.get_num_threads()), "card": card()}
    entry = record.begin(part, args.commit or throughput.git_commit())
    if args.again:
        record.forget(part, args.rows)
    record.save()
    return entry


def child_command(part: str, args: argparse.Namespace, left: float) -> list[str]:
    command = [sys.executable, str(Path(__file__).resolve()), "--child", "--parts", part, "--budget", str(left)]
    command += ["--rows", args.rows, "--rounds", str(args.rounds), "--out", str(args.out)]
    return [*command, "--dry-run"] if args.dry_run else command


def blame(part: str, path: Path, word: Path, code: int, spent: bool) -> bool:
    """Records what a process died of; whether another should take over."""
    record = Record(path)
    entry = record.part(part)
    if not word.exists():
        entry["failed"] = f"its process ended with {code}"
        record.save()
        return False
    if spent:
        return False  # cut short, not broken: the row stays missing
    last = json.loads(word.read_text())
    word.unlink()
    reason = f"{last['reason']}; its process ended with {code}"
    lost = entry.setdefault("lost", {}).setdefault(last["row"], {})
    if last["step"] is None or last["step"] in lost:
        entry["rows"][last["row"]] = {"failed": reason, "seconds": 0}
    else:
        lost[last["step"]] = reason
    record.save()
    return True


def wrong(record: Record, part: str) -> bool:
    entry = record.data["parts"].get(part, {})
    return "failed" in entry or any(failures(row) for row in entry.get("rows", {}).values())


# The child's side.


def diagnose(args: argparse.Namespace, path: Path) -> None:
    """Rows of one part, until its budget is spent."""
    (part,) = args.parts
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    run = Run(DryClock() if args.dry_run else GpuClock(), args.rounds, args.dry_run, args.budget, args.out, part)
    module, function = ROWS[part]
    rows = getattr(importlib.import_module(f"gpu_parts.{module}"), function)(run)
    record = Record(path)
    try:
        run.work(record, part, {key: row for key, row in rows.items() if re.search(args.rows, key)})
    finally:  # what gets here is no fault of the row that was at work
        running(args.out).unlink(missing_ok=True)
    entry = record.part(part)
    entry["missing"] = [key for key in rows if key not in entry["rows"]]
    record.save()


if __name__ == "__main__":
    sys.exit(main())
