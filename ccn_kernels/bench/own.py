"""The options of `ccn bench` that lead elsewhere than to named workloads; importing this module is light."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

OPTIONS = ("mine", "input", "json", "processes")
TAKES = {
    "processes": {"mine", "input", "device", "formats", "rounds", "out"},
    "mine": {"input", "json", "device", "dtypes", "formats", "rounds", "threads"},
}


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a model of your own; it takes one of --formats and one of --dtypes")
    group.add_argument("--mine", metavar="FILE.py:FACTORY", help="what a swap to compact layers does, layer by layer")
    group.add_argument("--input", metavar="8x3x224x224", help="its shape, unless the factory returns (model, inputs)")
    group.add_argument("--json", metavar="FILE", help="the figures as JSON")
    group.add_argument("--processes", type=int, metavar="N", help="training with DDP: VGG-11, or the model of --mine")


def run(args: argparse.Namespace) -> bool:
    """False where the options ask for named workloads.

    Raises:
        ValueError: an option that does not go with the others.
    """
    given = {name: value for name, value in vars(args).items() if name not in ("command", "run") and value}
    leader = "processes" if args.processes is not None else "mine" if args.mine is not None else None
    if leader is None:
        _refuse(given.keys() & set(OPTIONS), "goes with --mine only")
        return False
    _refuse(given.keys() - TAKES[leader] - {leader}, f"does not go with --{leader}")
    chosen = _given(args, "rounds", "input")
    if args.formats:
        chosen["memory_format"] = _one(args, "formats")
    _mine(args, chosen) if leader == "mine" else _processes(args, chosen)
    return True


def _mine(args: argparse.Namespace, chosen: dict[str, Any]) -> None:
    from . import mine
    from .settings import Settings

    dtype = _one(args, "dtypes")
    if dtype not in (None, *mine.DTYPES):
        raise ValueError(f"--dtypes must be one of {', '.join(mine.DTYPES)} with --mine, got {dtype}")
    settings = Settings(out=Path(), **_given(args, "device", "threads", "rounds"))
    mine.start(settings, target=args.mine, dtype=dtype, out=args.json, **chosen)


def _processes(args: argparse.Namespace, chosen: dict[str, Any]) -> None:
    from . import ddp
    from .record import default_path
    from .settings import Settings

    device = Settings(out=Path(), **_given(args, "device", "rounds")).device
    rows = ddp.run(args.processes, target=args.mine or ddp.MODEL, device=device, **chosen)
    path = args.out or default_path(device)
    ddp.keep(rows, path, device)
    print(f"{ddp.describe(rows)}\n\n{path}")


def _one(args: argparse.Namespace, option: str) -> str | None:
    names = getattr(args, option) or ()
    if len(names) > 1:
        raise ValueError(f"--{option} takes one name here, got {', '.join(names)}")
    return names[0] if names else None


def _given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _refuse(names: set[str], why: str) -> None:
    if names:
        raise ValueError(f"--{sorted(names)[0].replace('_', '-')} {why}")
