"""`ccn bench`: its options, and what becomes of them."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import own

# Options whose values are lists of names, separated by commas; settings.py knows the names.
LISTS = {
    "suites": "default: kernel-notes",
    "providers": "default: all that need no compiling",
    "backends": "ours, by name, or `fastest` (default)",
    "passes": "of forward, backward, training; default: forward,training",
    "dtypes": "of float32, tf32, float16, bfloat16; default: float32 on a CPU, bfloat16 on a GPU",
    "formats": "of channels_last (default), contiguous",
}
QUICK = {"rounds": 5, "batch_scale": 0.25}


def add_parser(commands: Any) -> None:
    """The options of the command; importing this module is light."""
    parser = commands.add_parser("bench", help="time compact layers against plain ones and other peers, on this device")
    parser.set_defaults(run=run)
    parser.add_argument("--device", help="cpu or cuda; default: the GPU where there is one")
    for name, text in LISTS.items():
        parser.add_argument(f"--{name}", type=names, metavar="A,B", help=text)
    parser.add_argument("--workloads", metavar="REGEX", help="only those whose names match")
    parser.add_argument("--rounds", type=int, metavar="N", help="turns of each contender; default: 31, on a GPU 100")
    parser.add_argument("--batch", type=int, metavar="N", help="for every workload")
    parser.add_argument("--batch-scale", type=float, metavar="F", help="times every workload's own batch")
    parser.add_argument("--threads", type=int, metavar="N", help="of a CPU; default: PyTorch's own number")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="start nothing new after so long")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the record; called again, it is gone on with")
    parser.add_argument("--again", action="store_true", help="measure anew what the record holds")
    parser.add_argument("--quick", action="store_true", help="5 rounds at a quarter of the batch, in a file of its own")
    own.add_options(parser)


def names(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)


def run(args: argparse.Namespace) -> None:
    if own.run(args):
        return
    from .record import default_path
    from .settings import Settings
    from .tell import summary
    from .work import run, selected

    options = {name: value for name, value in vars(args).items()
               if name not in ("command", "run", "quick", "out", *own.OPTIONS) and value is not None}  # fmt: skip
    options = {**(QUICK if args.quick else {}), **options}
    settings = Settings(out=args.out or Path(), **options)
    if args.out is None:
        settings = replace(settings, out=default_path(settings.device, "-quick" if args.quick else ""))
    record = run(settings)
    print(f"{summary(selected(record, settings))}\n\n{settings.out}")
