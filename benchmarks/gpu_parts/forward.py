"""The forward pass: rivals, our other tiles, torch.compile, and other dtypes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from providers import COMPILED
from shapes import PAPER, RESNET50, TINY, VGG11, Shape

from .case import LIMITS, RIVALS_SLACK, Case, forward
from .measure import Contender, measure
from .passes import HYBRIDS, Direct, Tiles, candidates, default_tile, label, precompile
from .run import Row, Rows, Run

RIVALS = ("plain", "plain, again", "plain, no bias", "two-branch, ones", "two-branch, pool")
RATES = {torch.bfloat16: 790e12, torch.float16: 790e12, torch.float32: 395e12}  # FLOP/s; fp32 means TF32
BANDWIDTH = 4.3e12  # bytes/s
OTHER_DTYPES = {"3-64@32", "64-128@16", "256-256@8", "64-64@56"}
TELLING = {*OTHER_DTYPES, "512-512@4", "256-256@14"}
DTYPES = {"float16": torch.float16, "tf32": torch.float32}


def rows(run: Run) -> Rows:
    dtype = torch.float32 if run.dry_run else torch.bfloat16
    shapes = TINY if run.dry_run else (*VGG11, *RESNET50)
    few_shapes = TINY[:1] if run.dry_run else [shape for shape in shapes if shape.name in OTHER_DTYPES]
    late = TINY[1:2] if run.dry_run else PAPER
    return {
        "ceilings": functools.partial(ceilings, run),
        **{f"{shape.name} rivals": functools.partial(rivals, run, shape, dtype) for shape in shapes},
        **{f"{shape.name} tiles": functools.partial(tiles, run, shape, dtype) for shape in shapes},
        **{
            f"{shape.name} {name}": functools.partial(rivals, run, shape, other)
            for name, other in DTYPES.items()
            for shape in few_shapes
        },
        **{f"paper {shape.name} rivals": functools.partial(rivals, run, shape, dtype) for shape in late},
        **{f"{shape.name} compiled": functools.partial(compiled, run, shape, dtype) for shape in telling(shapes)},
    }


def telling(shapes: Iterable[Shape]) -> list[Shape]:
    """Those that say most come first, for compilers take their time."""
    return sorted(shapes, key=lambda shape: shape.name not in TELLING)


def rivals(run: Run, shape: Shape, dtype: torch.dtype) -> Row:
    case = Case(shape, dtype, run.device)
    contenders = {name: functools.partial(of_layer, case, name) for name in (*RIVALS, "ours")}
    if dtype != torch.float16:  # whose product would overflow before it is divided
        contenders["ours, hybrid"] = functools.partial(of_tiles, case, HYBRIDS)
    return described(case, "rivals", floor(shape, dtype), measure(run, contenders), "forward")


def tiles(run: Run, shape: Shape, dtype: torch.dtype) -> Row:
    case = Case(shape, dtype, run.device)
    contenders = {name: functools.partial(of_layer, case, name) for name in ("plain", "ours")}
    contenders["ours, hybrid"] = functools.partial(of_tiles, case, HYBRIDS)
    found = few(run, candidates(case, "forward"))
    precompile(case, [({"forward": tile}, False) for tile in found.values()])
    for name, tile in found.items():
        contenders[name] = functools.partial(of_tiles, case, {"forward": tile})
    return described(case, "tiles", floor(shape, dtype), measure(run, contenders, ("replayed",)), "forward")


def compiled(run: Run, shape: Shape, dtype: torch.dtype) -> Row:
    case = Case(shape, dtype, run.device)
    contenders: dict[str, Callable[[], Contender]] = {
        name: functools.partial(of_layer, case, name) for name in ("plain", "ours")
    }
    contenders |= {name: functools.partial(of_compiled, run, case, name) for name in COMPILED}
    try:
        return described(case, "compiled", floor(shape, dtype), measure(run, contenders), "forward")
    finally:
        torch.compiler.reset()


def of_layer(case: Case, name: str) -> Contender:
    family = "plain" if name == "plain, again" else name if name.startswith("plain") else "ours"
    return Contender(forward(case.layer(name), case.x), case.expected(family), limit(case, name))


def of_compiled(run: Run, case: Case, name: str) -> Contender:
    return Contender(forward(case.compiled(name, run.dry_run), case.x), case.expected("ours"), limit(case, name))


def of_tiles(case: Case, wanted: Tiles) -> Contender:
    return Contender(Direct(case, wanted).forward, case.expected("ours"), limit(case, "ours"))


def limit(case: Case, name: str) -> float:
    return LIMITS[case.dtype] * (RIVALS_SLACK if name.startswith(("plain", "two-branch")) else 1)


def few(run: Run, found: dict[str, Any]) -> dict[str, Any]:
    """All of them; two in a dry run."""
    return dict(list(found.items())[:2]) if run.dry_run else found


def floor(shape: Shape, dtype: torch.dtype) -> dict[str, float]:
    """The least a fused pass must compute and move, and the microseconds that takes."""
    moved = (shape.inputs + shape.outputs + shape.weights) * dtype.itemsize
    return floor_of(shape.flop, moved, dtype)


def floor_of(flop: int, moved: int, dtype: torch.dtype) -> dict[str, float]:
    return {"flop": flop, "bytes": moved, "microseconds": 1e6 * max(flop / RATES[dtype], moved / BANDWIDTH)}


def described(case: Case, kind: str, least: dict[str, float], entries: dict[str, Any], *passes: str) -> Row:
    """A row: entries, each with its share of the floor (its own, if it says what it moves), and our default tiles."""
    for entry in entries.values():
        own = floor_of(entry["flop"], entry["bytes"], case.dtype) if "bytes" in entry else least
        if "replayed" in entry:
            entry["share of floor"] = float(f"{own['microseconds'] / entry['replayed']['median']:.3g}")
    return {
        "kind": kind, "shape": case.shape._asdict(), "dtype": str(case.dtype).removeprefix("torch."), "floor": least,
        "default tiles": {which: label(default_tile(case, which)) for which in passes}, "providers": entries,
    }  # fmt: skip


def ceilings(run: Run) -> Row:
    """What this GPU reaches today: a copy's bandwidth, cuBLAS's rate, and what an empty graph seems to take."""
    size, side = (1 << 12, 64) if run.dry_run else (1 << 30, 8192)
    dtype = torch.float32 if run.dry_run else torch.bfloat16
    source = torch.randn(size, device=run.device, dtype=dtype)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=run.device, dtype=dtype) for _ in range(2))
    product, one = torch.empty_like(a), torch.ones(1, device=run.device)
    contenders = {
        "copy": lambda: Contender(lambda: target.copy_(source)),
        "product": lambda: Contender(lambda: torch.mm(a, b, out=product)),
        "next to nothing": lambda: Contender(lambda: one.add_(1)),
    }
    entries = measure(run, contenders)
    copy, mm = (entries[name]["replayed"]["median"] * 1e-6 for name in ("copy", "product"))
    return {
        "kind": "ceilings", "providers": entries, "bytes/s": 2 * size * dtype.itemsize / copy,
        "flop/s": 2 * side**3 / mm,
    }  # fmt: skip
