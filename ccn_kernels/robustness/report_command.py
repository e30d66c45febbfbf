"""The command ``ccn report``: its options, and what becomes of them. Importing it is light."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..options import count, epsilon, none_or_count, radius
from .command import (
    add_machine,
    add_tree,
    device_of,
    loading,
    one_process,
    with_extra,
    without_files,
)


def add_parser(commands: Any) -> None:
    """Adds it to ``ccn``."""
    parser = commands.add_parser(
        "report", help="judge networks by the strongest attacks and check their gradients: HTML, JSON, Markdown"
    )
    parser.add_argument("networks", type=Path, nargs="*", metavar="CHECKPOINT", help="what `ccn train` wrote")
    parser.add_argument(
        "--model", metavar="FILE.py:FACTORY", help="a network of your own: images in [0, 1], logits out"
    )
    parser.add_argument("--weights", type=Path, metavar="F", help="its weights: safetensors, or a state dict")
    parser.add_argument("--data", type=Path, metavar="DIR", help="MNIST's files, CIFAR-10's, or a tree of images")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: runs/report; what is there is gone on with")
    parser.add_argument("--count", type=count, default=1000, metavar="N", help="the first N test images (1000)")
    parser.add_argument(
        "--black-box",
        type=none_or_count,
        default=100,
        metavar="N",
        help="images for Square and transfer (100); 0: none",
    )
    parser.add_argument("--queries", type=count, default=500, metavar="N", help="of Square, for each image (500)")
    parser.add_argument(
        "--hops", type=none_or_count, default=10, metavar="N", help="images for HopSkipJump (10); 0: none"
    )
    parser.add_argument("--epsilons", type=epsilon, nargs="+", metavar="E", help="L-infinity radii, like 0.1 or 8/255")
    parser.add_argument("--l2", type=radius, nargs="*", metavar="E", help="L2 radii; none leaves L2 out")
    parser.add_argument("--seed", type=int, default=0)
    add_machine(parser)
    add_tree(parser)
    parser.set_defaults(run=with_extra(_report))


def _report(args: argparse.Namespace) -> None:
    one_process()
    from . import report

    if not args.networks and args.model is None:
        raise ValueError("a network must be given: CHECKPOINT..., or --model FILE.py:FACTORY")
    if args.weights is not None and args.model is None:
        raise ValueError("--weights goes with --model: a CHECKPOINT brings its own")
    device = device_of(args)
    data, subjects = _subjects(args, device)
    settings = report.Settings(
        _radii(args, data.shape[0]), args.count, args.black_box, args.queries, args.hops, args.seed
    )
    out = args.out or Path("runs") / "report"
    print(f"wrote {report.run(subjects, data, settings, out)}, and the same as .json and .md")


def _subjects(args: argparse.Namespace, device: str) -> tuple[Any, list[Any]]:
    """The data set, and all networks that are judged on it."""
    from . import own, runs
    from .data import load

    found: list[Any] = [runs.load(path, device) for path in args.networks]
    trained_on = [one.record.get("data", {}) for one in found]
    names = {data.get("name") for data in trained_on}
    if len(names) > 1:
        raise ValueError(f"all networks must be of one data set, got {', '.join(sorted(map(str, names)))}")
    if args.model is not None:
        found.append(own.load(args.model, args.weights, device))
    if names == {"digits"} or names == {"digits32"}:
        without_files(args)
        return load(names.pop(), None, device), found
    if args.data is None:
        raise ValueError("data folder must be given (--data DIR)")
    sizes = [data["shape"][1] for data in trained_on if data]  # that trees are cut to
    return own.dataset(args.data, device, **loading(args, max(sizes, default=args.image_size))), found


def _radii(args: argparse.Namespace, channels: int) -> dict[str, tuple[float, ...]]:
    from .report.collect import EPSILONS

    usual = EPSILONS.get(channels, EPSILONS[3])
    radii = {"linf": tuple(args.epsilons or usual["linf"]), "l2": usual["l2"] if args.l2 is None else tuple(args.l2)}
    return {norm: found for norm, found in radii.items() if found}
