"""The command ``ccn study``: its options, and what becomes of them. Importing it is light."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..options import count, epsilon, none_or_count
from .command import (
    add_machine,
    add_schedule,
    changes,
    device_of,
    one_process,
    with_extra,
)
from .config import METHODS, TRAININGS

FILES = ("digits", "mnist", "cifar10")


def add_parser(commands: Any) -> None:
    """Adds it to ``ccn``."""
    parser = commands.add_parser(
        "study",
        description="--adversarial-steps (7), --adversarial-warmup (1/3) are of pgd; fgsm trains as in table 4.",
        help="does compactness help? networks trained plainly and on attacks, over seeds, under all attacks",
    )
    parser.add_argument("--dataset", choices=FILES, default="digits")
    parser.add_argument("--data", type=Path, metavar="DIR", help="where the data set's files lie")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: runs/study; what is there is added to")
    parser.add_argument("--methods", nargs="*", choices=tuple(METHODS), default=("SM", "L2SM", "CCN", "CCN+LS"))
    parser.add_argument("--trainings", nargs="+", choices=TRAININGS, default=TRAININGS)
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", default=(0, 1, 2))
    parser.add_argument("--alphas", type=float, nargs="+", metavar="A", help="of CCN, one at a time, not learned")
    parser.add_argument("--deltas", type=float, nargs="+", metavar="D", help="of CCN, one at a time")
    parser.add_argument("--smoothings", type=float, nargs="+", metavar="S", help="of CCN's labels, one at a time")
    parser.add_argument("--epsilons", type=epsilon, nargs="+", metavar="E",
                        help="L-infinity radii, like 0.1 or 8/255; adversarial training takes the largest")  # fmt: skip
    parser.add_argument("--count", type=count, default=1000, metavar="N", help="the first N test images (1000)")
    parser.add_argument(
        "--black-box", type=none_or_count, default=50, metavar="N", help="of them, those that Square sees (50)"
    )
    add_machine(parser)
    add_schedule(parser, but=("adversarial_epsilon", "label_smoothing", "seed"))
    parser.set_defaults(run=with_extra(_study))


def _study(args: argparse.Namespace) -> None:
    one_process()
    from . import data, study
    from .report.collect import EPSILONS

    device = device_of(args)
    dataset = data.load(args.dataset, args.data, device)
    radii = tuple(args.epsilons or EPSILONS[dataset.shape[0]]["linf"])
    settings = study.Settings(radii, args.count, args.black_box, changes=changes(args))
    traded = {"alpha": args.alphas, "delta": args.deltas, "label_smoothing": args.smoothings}
    chosen = study.kinds(args.methods, args.trainings, {name: values for name, values in traded.items() if values})
    if not chosen:
        raise ValueError("a network must be given: --methods, or CCN with --alphas, --deltas or --smoothings")
    out = args.out or Path("runs") / "study"
    print(study.run(chosen, args.seeds, dataset, settings, out, device), end="\n\n")
    summary = out / dataset.name / "study"
    written = [suffix for suffix in (".md", ".json", ".png") if summary.with_suffix(suffix).exists()]
    print(f"wrote {summary}{', '.join(written)}")
