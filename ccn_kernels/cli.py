"""The ``ccn`` command."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from . import env_report
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

    demo = commands.add_parser("demo", help="train plain and compact networks on digits, attack both, compare speed")
    demo.add_argument(
        "--dataset", choices=("digits", "mnist"), default="digits", help="digits (default) needs no files"
    )
    demo.add_argument("--data", metavar="DIR", help="where MNIST's IDX files lie")
    demo.add_argument("--out", metavar="DIR", type=Path, help="default: runs/demo-DATASET")
    demo.add_argument("--epochs", type=_positive, help="default: 10 for digits, 3 for mnist")
    demo.add_argument("--seed", type=int, default=0)
    demo.set_defaults(run=_demo)
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be positive, got {value}")
    return value


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
