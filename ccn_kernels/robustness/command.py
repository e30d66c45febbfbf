"""``ccn train``, ``attack``, ``certify``, ``table`` and ``figure``: their options, and what becomes of them."""

from __future__ import annotations

import argparse
import os
import typing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ..models import VARIANTS
from ..options import count, epsilon, none_or_count
from .config import METHODS, SCHEDULES, TrainConfig

EXTRA = "this needs the extra, `pip install 'ccn-kernels[robustness]'`"
SIZED = ("fgsm", "pgd")  # attacks of a given size; the others look for the smallest
ATTACKS = (*SIZED, "deepfool", "deepfool_2018", "cw")
BOUNDS = ("linearised", "hybrid", "interval", "lipschitz")
DEFINING = ("adversarial_epsilon", "adversarial_steps", "adversarial_warmup", "label_smoothing")  # a table's networks
EPSILONS = (0.1, 0.2, 0.3, 0.4)
PAPER_S = {"mnist": "mnist", "cifar10": "cifar10", "ilsvrc": "ilsvrc_val"}  # as the paper's numbers name data sets
HELP = {
    "milestones": "shares of the training after which the learning rate falls",
    "decay": "what it is multiplied by there",
    "clip": "the largest norm of a gradient; 0 for any",
    "adversarial_epsilon": "train on FGSM's images of this radius too (table 4)",
    "adversarial_steps": "PGD's images of so many steps, in the place of all clean ones",
    "adversarial_warmup": "share of the training over which that radius grows from 0",
    "label_smoothing": "what the true class's target lacks of 1; default: the variant's",
    "validation": "training images that are held out and judged after each epoch",
    "bf16": "bfloat16 autocast in training",
    "compile": "a mode of torch.compile; reduce-overhead brings CUDA graphs",
}


def add_parsers(commands: Any) -> None:
    """Adds the five to ``ccn``; importing this module is light."""
    train = commands.add_parser("train", help="train a network of the paper, in any variant")
    train.add_argument("--dataset", choices=tuple(SCHEDULES), default="digits")
    train.add_argument("--variant", choices=VARIANTS, default="ccn")
    train.add_argument("--compact-layer", metavar="conv1|...|fc3", help="a compact layer in this one place (table 13)")
    train.add_argument("--alpha", type=float, metavar="A", help="of all compact layers, and not learned")
    train.add_argument("--delta", type=float, metavar="D", help="of all compact layers")
    train.add_argument("--out", type=Path, metavar="DIR", help="default: runs/DATASET-NETWORK")
    train.add_argument("--data", type=Path, metavar="DIR", help="where the data set's files lie")
    add_machine(train)
    add_tree(train)
    add_schedule(train)
    train.set_defaults(run=with_extra(_train))

    attack = commands.add_parser("attack", help="attack a trained network")
    attack.add_argument("network", type=Path, metavar="DIR", help="what `ccn train` wrote")
    attack.add_argument("--attack", choices=ATTACKS, default="fgsm")
    attack.add_argument("--epsilons", type=epsilon, nargs="+", metavar="E",
                        help="radii in [0, 1] of fgsm and pgd, like 0.1 or 8/255; default: 0.1 to 0.4")  # fmt: skip
    attack.add_argument("--crafted-on", type=Path, metavar="DIR", help="FGSM's images for another network (transfer)")
    attack.add_argument("--count", type=count, metavar="N", help="the first N test images; default: all")
    attack.add_argument("--data", type=Path, metavar="DIR", help="where the data set's files lie")
    attack.add_argument("--seed", type=int, default=0)
    add_machine(attack)
    add_tree(attack, sized=False)
    attack.set_defaults(run=with_extra(_attack))

    certify = commands.add_parser("certify", help="radii within which no attack can succeed, proved image by image")
    certify.add_argument("networks", type=Path, nargs="+", metavar="DIR", help="what `ccn train` wrote, each of them")
    certify.add_argument("--images", type=count, default=20, metavar="N", help="the first N test images; default: 20")
    certify.add_argument("--methods", choices=BOUNDS, nargs="+", default=BOUNDS[:1],
                         help="linearised (default) takes seconds an image, the others a fraction")  # fmt: skip
    certify.add_argument("--data", type=Path, metavar="DIR", help="where the data set's files lie")
    certify.add_argument("--out", type=Path, metavar="FILE",
                         help="all radii as JSON; a network's own are kept in DIR/certified.json")  # fmt: skip
    certify.set_defaults(run=with_extra(_certify), device="cpu")

    for name, numbers in (("table", "1 to 9, 11 to 13"), ("figure", "1, 2, 5, 6")):
        parser = commands.add_parser(name, help=f"{name}s of the paper ({numbers}), trained and measured here")
        parser.add_argument("number", metavar="N|all")
        parser.add_argument("--scale", choices=("smoke", "small", "full"), default="smoke",
                            help="smoke (default): scikit-learn's digits, narrow networks, a minute a table; "
                                 "small: 5 epochs, fewer attacked images; full: as printed")  # fmt: skip
        parser.add_argument("--data", type=Path, metavar="DIR", help="where MNIST's and CIFAR-10's files lie")
        parser.add_argument("--out", type=Path, metavar="DIR", help="default: runs/paper-SCALE; what is there is kept")
        add_machine(parser)
        if name == "table":
            parser.add_argument("--datasets", nargs="+", choices=tuple(PAPER_S), default=tuple(PAPER_S),
                                help="default: all")  # fmt: skip
            parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=tuple(METHODS),
                                help="the networks that are measured; default: all")  # fmt: skip
            parser.add_argument("--images", type=Path, metavar="DIR", help="table 5's tree: train/CLASS/*, val/CLASS/*")
            add_tree(parser)
        add_schedule(parser, but=DEFINING)
        parser.set_defaults(run=with_extra(_table if name == "table" else _figure))


def add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="default: the GPU where there is one")


def add_tree(parser: argparse.ArgumentParser, sized: bool = True) -> None:
    group = parser.add_argument_group("trees of images")
    if sized:
        group.add_argument("--image-size", type=count, default=224, metavar="N")
    group.add_argument("--workers", type=none_or_count, default=0, metavar="N", help="processes that decode")
    group.add_argument("--on-corrupt", choices=("raise", "skip"), default="raise")


def add_schedule(parser: argparse.ArgumentParser, but: tuple[str, ...] = ()) -> None:
    """An option for every setting of training; None leaves it as it is scheduled."""
    group = parser.add_argument_group("training (defaults: the paper's for the data set)")
    kinds = {**typing.get_type_hints(TrainConfig), "adversarial_epsilon": epsilon, "label_smoothing": float,
             "compile": str}  # fmt: skip
    for field in fields(TrainConfig):
        if field.name in but:
            continue
        flag, kind, text = f"--{field.name.replace('_', '-')}", kinds[field.name], HELP.get(field.name)
        if kind is bool:
            group.add_argument(flag, action="store_const", const=True, help=text)
        elif field.name == "milestones":
            group.add_argument(flag, type=float, nargs="*", metavar="F", help=text)
        else:
            group.add_argument(flag, type=kind, metavar=flag[2].upper(), help=text)


def with_extra(command: Any) -> Any:
    def run(args: argparse.Namespace) -> None:
        try:
            command(args)
        except ModuleNotFoundError as error:
            raise RuntimeError(f"{error}: {EXTRA}") from error

    return run


def changes(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of training that were given."""
    found = {field.name: getattr(args, field.name, None) for field in fields(TrainConfig)}
    if found["milestones"] is not None:
        found["milestones"] = tuple(found["milestones"])
    return {name: value for name, value in found.items() if value is not None}


def one_process() -> None:
    """Raises ValueError under torchrun, whose processes would write the same files."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("one process does this: torchrun is for `ccn train`")


def device_of(args: argparse.Namespace) -> str:
    import torch

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: PyTorch sees no CUDA GPU here")
    if device == "cuda" and "LOCAL_RANK" in os.environ:  # torchrun's: a process has a GPU of its own
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    return device


def loading(args: argparse.Namespace, image_size: int) -> dict[str, Any]:
    return {"image_size": image_size, "workers": args.workers, "on_corrupt": args.on_corrupt}


def without_files(args: argparse.Namespace) -> None:
    if args.data is not None:
        raise ValueError(f"--data {args.data}: the network is of scikit-learn's digits, which need no files")


def _dataset(name: str, args: argparse.Namespace, image_size: int) -> Any:
    from . import data

    if name in ("digits", "digits32"):
        without_files(args)
    return data.load(name, args.data, device_of(args), **(loading(args, image_size) if name == "folder" else {}))


def _train(args: argparse.Namespace) -> None:
    from .config import ARCHITECTURE_OF
    from .runs import Network, folder_name
    from .training import train

    network = Network(
        ARCHITECTURE_OF.get(args.dataset, "vgg11"), args.variant, args.compact_layer, alpha=args.alpha, delta=args.delta
    )
    config = replace(SCHEDULES[args.dataset], **changes(args))
    folder = args.out or Path("runs") / f"{args.dataset}-{folder_name(network, config).removesuffix('-seed0')}"
    run = train(network, _dataset(args.dataset, args, args.image_size), config, folder, device_of(args))
    print(f"{run.network.title}: {run.record['test_accuracy']:.2f} % of the test images right\nwrote {folder}")


def _attack(args: argparse.Namespace) -> None:
    from . import evaluation, runs
    from .attacks import sized_for

    device = device_of(args)
    attack = sized_for(device, _made(args, device))
    run = runs.load(args.network, device)
    name, image_size = _trained_on(run, args.network)
    split = _dataset(name, args, image_size).test
    outcome = evaluation.evaluate(run, attack, split, args.count, args.network / "attacks", seed=args.seed)
    print(evaluation.summary(run, attack, outcome))


def _trained_on(run: Any, folder: Path) -> tuple[str, int]:
    """The data set's name, and its images' size."""
    from . import runs

    try:
        return run.record["data"]["name"], run.record["data"]["shape"][1]
    except runs.FOREIGN:
        raise ValueError(f"{folder} has no whole {runs.RECORD}: its data set is not known") from None


def _certify(args: argparse.Namespace) -> None:
    from ..files import write_json
    from . import certified_report, runs
    from .certified import NORMS

    loaded = [(folder, runs.load(folder)) for folder in args.networks]
    sets = {_trained_on(run, folder) for folder, run in loaded}
    if len(sets) > 1:
        raise ValueError(f"ccn certify takes networks of one data set, got {sorted(name for name, _ in sets)}")
    ((name, image_size),) = sets
    if name == "folder":
        raise ValueError("ccn certify reads mnist, cifar10 and the digits; for other images, call certified_radius")
    split = _dataset(name, args, image_size).test
    found = [
        certified_report.measure(run, split, args.images, args.methods, folder / "certified.json")
        for folder, run in loaded
    ]
    print("\n\n".join(certified_report.table(found, norm, args.methods) for norm in NORMS))
    if args.out:
        write_json(args.out, {"dataset": name, "networks": found})
        print(f"\nwrote {args.out}")


def _made(args: argparse.Namespace, device: str) -> Any:
    """The attack that is asked for."""
    from . import runs
    from .attacks import Transfer, by_name

    if args.epsilons and args.attack not in SIZED:
        raise ValueError(f"--epsilons is for {' and '.join(SIZED)}: {args.attack} looks for the smallest change")
    epsilons = tuple(args.epsilons or EPSILONS)
    if args.crafted_on is not None:
        if args.attack != "fgsm":
            raise ValueError(f"--crafted-on is for fgsm alone, got --attack {args.attack}")
        source = runs.load(args.crafted_on, device)
        return Transfer(source.model, source.digest, epsilons)
    return by_name(args.attack, epsilons)


def _lab(args: argparse.Namespace) -> Any:
    from .lab import Lab
    from .scales import SCALES

    one_process()
    table = args.command == "table"
    return Lab(
        SCALES[args.scale],
        _out(args),
        root=args.data,
        images=args.images if table else None,
        device=device_of(args),
        changes=changes(args),
        loading=loading(args, args.image_size) if table else None,
    )


def _out(args: argparse.Namespace) -> Path:
    return args.out or Path("runs") / f"paper-{args.scale}"


def _numbers(args: argparse.Namespace, known: tuple[int, ...]) -> tuple[int, ...]:
    if args.number == "all":
        return known
    if not args.number.isdecimal() or int(args.number) not in known:
        raise ValueError(f"{args.command} must be one of {', '.join(map(str, known))}, or all; got {args.number!r}")
    return (int(args.number),)


def _table(args: argparse.Namespace) -> None:
    from . import paper, tables

    lab, out = _lab(args), _out(args)
    datasets = [PAPER_S[name] for name in args.datasets]
    numbers = _numbers(args, paper.TABLES)
    if args.number == "all":
        if args.images is None and args.scale != "smoke" and "ilsvrc_val" in datasets:
            datasets.remove("ilsvrc_val")
            print("table 5 is left out: it needs a tree of images (--images DIR)", flush=True)
        numbers = tuple(number for number in numbers if tables.chosen(number, datasets, args.methods))
    for dataset in datasets:  # what is missing is said before anything is trained
        if any(dataset in paper.datasets(number) for number in numbers):
            lab.data(dataset)
    for number in numbers:
        print(tables.run(number, lab, datasets, out, args.methods), end="\n\n")
        print(f"wrote {out / f'table{number}'}.md, .csv, .json, .png\n", flush=True)


def _figure(args: argparse.Namespace) -> None:
    from . import features

    lab, out = _lab(args), _out(args)
    for number in _numbers(args, features.FIGURES):
        print(f"wrote {features.run(number, lab, out)}", flush=True)
