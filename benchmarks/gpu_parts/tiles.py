"""The forward pass by every candidate tile, beside cuDNN's; and what all diagnostics share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ccn_kernels.bench import providers
from ccn_kernels.bench.case import Case, limit
from ccn_kernels.bench.direct import HYBRIDS, Direct, Tiles
from ccn_kernels.bench.floor import of_layer
from ccn_kernels.bench.providers import Entrant
from ccn_kernels.bench.settings import DTYPES
from ccn_kernels.workloads import KERNEL_NOTES, TINY, Layer

from .measure import Contender, measure
from .passes import OURS, candidates, default_tile, label, precompile
from .run import Row, Rows, Run


def layers(run: Run) -> tuple[Layer, ...]:
    return TINY if run.dry_run else KERNEL_NOTES


def case_of(run: Run, layer: Layer) -> Case:
    return Case(layer, run.dtype, "channels_last", run.device)


def rows(run: Run) -> Rows:
    return {layer.name: functools.partial(tiles, run, layer) for layer in layers(run)}


def tiles(run: Run, layer: Layer) -> Row:
    case = case_of(run, layer)
    contenders: dict[str, Callable[[], Contender]] = {
        "conv": functools.partial(of_provider, case, Entrant("conv")),
        "ours": functools.partial(of_tiles, case, None),
        "ours, hybrid": functools.partial(of_tiles, case, HYBRIDS),
    }
    found = few(run, candidates(case, "forward"))
    precompile(case, [({"forward": tile}, False) for tile in found.values()])
    for name, tile in found.items():
        contenders[name] = functools.partial(of_tiles, case, {"forward": tile})
    return described(run, case, "tiles", forward_floor(run, layer), measure(run, contenders, ("replayed",)), "forward")


def of_provider(case: Case, entrant: Entrant) -> Contender:
    made = providers.contender(entrant, case, "forward")
    return Contender(made.call, made.expected, made.limit)


def of_tiles(case: Case, wanted: Tiles | None) -> Contender:
    return Contender(Direct(case, wanted).forward, case.expected(OURS), limit(case.dtype_name, rival=False))


def few(run: Run, found: dict[str, Any]) -> dict[str, Any]:
    """All of them; two in a dry run."""
    return dict(list(found.items())[:2]) if run.dry_run else found


def forward_floor(run: Run, layer: Layer) -> dict[str, float]:
    return run.floor(*of_layer(layer, "forward", DTYPES[run.dtype].itemsize))


def described(run: Run, case: Case, kind: str, least: dict[str, float], entries: dict[str, Any], *passes: str) -> Row:
    """A row: entries, each with its share of the floor (its own, if it says what it moves), and our default tiles."""
    for entry in entries.values():
        own = run.floor(entry["flop"], entry["bytes"]) if "bytes" in entry else least
        if "replayed" in entry:
            entry["share of floor"] = float(f"{own['microseconds'] / entry['replayed']['median']:.3g}")
    return {
        "kind": kind, "shape": case.layer._asdict(), "dtype": case.dtype_name, "floor": least,
        "default tiles": {which: label(default_tile(case, which)) for which in passes}, "providers": entries,
    }  # fmt: skip
