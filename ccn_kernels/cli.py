"""The ``ccn`` command."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from . import env_report
from .options import count
from .version import __version__

INTERRUPTED = 130  # the shell's code for a process that Ctrl-C stopped


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    args = _parser().parse_args(arguments)
    try:
        args.run(args)
    except KeyboardInterrupt:
        print("\nstopped; what was finished is kept, run the command again to go on", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError, RuntimeError) as error:
        print(f"ccn: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ccn", description="Compact convolution: kernels, networks, robustness.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    env = commands.add_parser("env", help="what is built and what is found; bug reports start with it")
    env.add_argument("--json", action="store_true", help="print JSON")
    env.set_defaults(run=lambda args: env_report.main(args.json))

    kernels = commands.add_parser("kernels", help="compile the Triton kernels for a GPU that need not be there")
    kernels.add_argument("--arch", default="sm_90", metavar="sm_80|sm_90|sm_100|...")
    kernels.add_argument("--json", action="store_true", help="print JSON")
    kernels.add_argument("--check", action="store_true", help="fail on spills and other faults")
    kernels.add_argument("--against", metavar="FILE", type=Path, help="fail on what is worse than on record there")
    kernels.add_argument("--accept", action="store_true", help="record what is compiled now in FILE")
    _add_dtypes(kernels)
    kernels.set_defaults(run=_kernels)

    tune = commands.add_parser("tune", help="measure tiles on this GPU and write the fastest into a table")
    tune.add_argument("--out", metavar="FILE", type=Path, default=Path("ccn-tuned.json"))
    tune.add_argument("--again", action="store_true", help="measure anew what the table holds")
    _add_dtypes(tune)
    _add_layer(tune)
    tune.set_defaults(run=_tune)

    from .bench import command as bench  # extras, but these parts of them import nothing
    from .robustness import command as robustness
    from .robustness import report_command, study_command

    bench.add_parser(commands)
    robustness.add_parsers(commands)
    report_command.add_parser(commands)
    study_command.add_parser(commands)

    demo = commands.add_parser("demo", help="train plain and compact networks on digits, attack both, compare speed")
    demo.add_argument(
        "--dataset", choices=("digits", "mnist"), default="digits", help="digits (default) needs no files"
    )
    demo.add_argument("--data", metavar="DIR", help="where MNIST's IDX files lie")
    demo.add_argument("--out", metavar="DIR", type=Path, help="default: runs/demo-DATASET")
    demo.add_argument("--epochs", type=count, help="default: 10 for digits, 3 for mnist")
    demo.add_argument("--seed", type=int, default=0)
    demo.set_defaults(run=_demo)
    return parser


def _add_dtypes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtypes", nargs="+", choices=("bfloat16", "float16", "tf32"), default=["bfloat16", "tf32"], metavar="DTYPE"
    )


def _add_layer(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("one layer of your own (default: the named ones)")
    group.add_argument("--channels", nargs=2, type=count, metavar=("IN", "OUT"))
    for name, default in (("size", 1), ("batch", 256), ("kernel", 3), ("stride", 1), ("groups", 1), ("rank", 2)):
        group.add_argument(f"--{name}", type=count, default=default)
    group.add_argument("--padding", type=int, default=1)
    group.add_argument("--contiguous", action="store_true", help="not channels_last")


def _kernels(args: argparse.Namespace) -> None:
    offline, recorded = _triton_module("offline"), _triton_module("recorded")
    if args.accept and args.against is None:
        raise ValueError("--accept needs --against FILE, the file to write")
    before = recorded.load(args.against, args.arch) if args.against and not args.accept else None
    rows, faults = [], []
    for row in offline.report(args.arch, args.dtypes):
        rows.append(row)
        found = offline.faults(row, args.arch)
        faults += [f"{row['kernel']} {row['config']} {fault}" for fault in found]
        if not args.json:
            numbers = " ".join(f"{name}={value}" for name, value in row.items() if name not in ("kernel", "config"))
            print(f"{row['kernel']} {row['config']}: {numbers}", flush=True)
    if args.json:
        print(json.dumps(rows, indent=2))
    if args.accept:
        recorded.save(args.against, args.arch, rows)
    worse = recorded.regressions(rows, before) if before is not None else []
    if worse or (faults and args.check):
        found = [*(faults if args.check else []), *worse]
        hint = ["what is worse than on record, and meant: --accept writes it"] if worse else []
        raise RuntimeError("\n".join([f"{len(found)} faults in {len(rows)} kernels for {args.arch}", *found, *hint]))


def _tune(args: argparse.Namespace) -> None:
    from . import workloads
    from .backends import triton

    reason = triton.unavailable()
    if reason is None and triton.interpreting():
        reason = "TRITON_INTERPRET=1 is set: an interpreter's times say nothing"
    if reason is not None:
        raise RuntimeError(f"cannot tune: {reason}")
    tune = _triton_module("tune")
    layers = workloads.LAYERS
    if args.channels:
        names = ("size", "kernel", "stride", "padding", "groups", "rank")
        settings = {name: getattr(args, name) for name in names}
        inputs, outputs = args.channels
        layers = (workloads.Layer("own", args.batch, inputs, outputs, **settings, channels_last=not args.contiguous),)
    for line in tune.tune(layers, args.dtypes, args.out, triton.device(None), again=args.again):
        print(line, flush=True)
    print(f"wrote {args.out}; it is used where CCN_TUNED={args.out} is set")


def _triton_module(name: str) -> ModuleType:
    """A module of the Triton backend, which imports triton."""
    try:
        return importlib.import_module(f"{__package__}.backends.triton.{name}")
    except ImportError as error:
        raise RuntimeError(f"{error}: this needs the extra, `pip install 'ccn-kernels[triton]'`") from error


def _demo(args: argparse.Namespace) -> None:
    try:
        from .robustness import demo
    except ImportError as error:
        raise RuntimeError(f"{error}: the demo needs the extra, `pip install 'ccn-kernels[robustness]'`") from error
    default = demo.DEFAULTS[args.dataset]
    config = dataclasses.replace(default, epochs=args.epochs or default.epochs, seed=args.seed)
    demo.run(args.dataset, args.data, args.out or Path("runs") / f"demo-{args.dataset}", config)


if __name__ == "__main__":
    raise SystemExit(main())
