"""What the record says: tables of the parts, and the targets."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from .record import Record, failures

Entry = dict[str, Any]
Providers = dict[str, Entry]
TWO_BRANCH = ("two-branch, ones", "two-branch, pool")
COMPILED = ("two-branch, ones, compiled", "two-branch, pool, compiled")
MAX_AUTOTUNE = "two-branch, pool, max-autotune"
SHARES = {"Cin = 3": 80, "Cout >= 256": 65, "Cout = 128": 55, "Cout = 64": 40}  # percent of the floor


def summary(record: Record, parts: Iterable[str]) -> str:
    """Tables of these parts, all targets, and what is missing or wrong."""
    blocks = {
        "tests": [("tests", checks(record, "tests"))],
        "sanitizer": [("sanitizer", checks(record, "sanitizer"))],
        "forward": [
            ("ceilings, measured", ceilings(record)),
            ("forward, microseconds, replayed, and ratios", layers(record, "forward")),
        ],
        "training": [
            ("forward and backward, microseconds, replayed, and ratios", layers(record, "training")),
            ("backward, microseconds; by launch, with the share of the floor of each", launches(record)),
        ],
        "ablation": [("forward kernel, by where its squares come from, microseconds", ablation(record))],
        "networks": [("networks", networks(record))],
        "host": [("host, microseconds a call", host(record))],
    }
    chosen = [*(block for part in parts for block in blocks[part]), ("targets", targets(record))]
    return "\n\n".join([*(f"{title}\n{text}" for title, text in chosen if text), *missing(record), *wrongs(record)])


def table(lines: Iterable[Sequence[Any]], headers: Sequence[str]) -> str:
    """Without the columns that say nothing."""
    lines = list(lines)
    columns = [i for i in range(len(headers)) if any(line[i] is not None for line in lines)]
    headers, lines = [headers[i] for i in columns], [[line[i] for i in columns] for line in lines]
    if not lines:
        return ""
    try:
        from tabulate import tabulate
    except ImportError:
        return "\n".join("  ".join(cell(value) for value in line) for line in [headers, *lines])
    return tabulate(lines, headers, tablefmt="plain", floatfmt=".2f", missingval="-")


def cell(value: Any) -> str:
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


# Reading rows.


def median(providers: Providers, name: str, way: str = "replayed") -> float | None:
    """Of a provider that ran and was right."""
    return providers.get(name, {}).get(way, {}).get("median")


def fastest(providers: Providers, names: Iterable[str], way: str = "replayed") -> float | None:
    known = [time for name in names if (time := median(providers, name, way)) is not None]
    return min(known, default=None)


def ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a / b


def rows_of(record: Record, part: str, kind: str, dtype: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Shapes and rows of a kind, in the record's main dtype unless another is named."""
    narrow = "float32" if record.data["machine"].get("device") == "dry run" else "bfloat16"
    for key, row in record.rows(part).items():
        if row.get("kind") == kind and row.get("dtype", narrow) == (dtype or narrow) and not key.startswith("paper"):
            yield row["shape"]["name"], row


def providers_of(record: Record, part: str, kind: str) -> dict[str, Providers]:
    return {name: row["providers"] for name, row in rows_of(record, part, kind)}


def best_tile(providers: Providers) -> tuple[str | None, float | None]:
    """The fastest of our tiles, and its time over the default's."""
    ours = median(providers, "ours")
    tiles = {name: time for name in providers if not is_rival(name) and (time := median(providers, name))}
    name = min(tiles, key=tiles.__getitem__, default=None)
    return name, ratio(tiles[name] if name else None, ours)


def is_rival(name: str) -> bool:
    return name.startswith(("plain", "two-branch", "cudnn"))


# Tables.


def layers(record: Record, part: str) -> str:
    """One line a shape; all but the first two columns are ratios."""
    compiled, tiles = providers_of(record, part, "compiled"), providers_of(record, part, "tiles")
    lines = []
    for name, p in providers_of(record, part, "rivals").items():
        c, ours = compiled.get(name, {}), median(p, "ours")
        lines.append([
            name, median(p, "plain"), ours, ratio(ours, median(p, "plain")), ratio(ours, median(p, "plain, no bias")),
            ratio(median(p, "ours, relu"), median(p, "plain, relu")), ratio(median(p, "ours, hybrid"), ours),
            ratio(fastest(p, TWO_BRANCH), ours), ratio(fastest(c, COMPILED), median(c, "ours")),
            ratio(median(c, MAX_AUTOTUNE), median(c, "ours")), p.get("ours", {}).get("share of floor"),
            ratio(median(p, "ours", "called"), median(p, "plain", "called")),
            *(best_tile(tiles[name]) if name in tiles else (None, None)),
        ])  # fmt: skip
    return table(lines, [
        "shape", "plain", "ours", "ours/plain", "/no bias", "relu/relu", "hybrid/ours", "2-branch/ours",
        "compiled/ours", "max-autotune/ours", "of floor", "called/plain", "best tile", "tile/ours",
    ])  # fmt: skip


def launches(record: Record) -> str:
    lines = []
    for name, p in providers_of(record, "training", "launches").items():
        parts = [
            f"{key.split(' ', 1)[1]} {time:.1f} ({entry.get('share of floor', 0):.0%})"
            for key, entry in p.items()
            if key[0].isdigit() and (time := median(p, key)) is not None
        ]
        whole = [median(p, key) for key in ("ours, backward", "cudnn, backward", "cudnn, dgrad", "cudnn, wgrad")]
        best = [best_gradient(record, name, kind) for kind in ("dgrad", "wgrad")]
        lines.append([name, *whole, "; ".join(parts), *best])
    return table(
        lines, ["shape", "ours", "cudnn", "its dgrad", "its wgrad", "ours by launch", "best dgrad", "best wgrad"]
    )


def best_gradient(record: Record, shape: str, kind: str) -> str | None:
    found = providers_of(record, "training", kind).get(shape)
    if found is None:
        return None
    name, share = best_tile(found)
    return f"{name} ({share:.2f} of ours)" if name and share else None


def ablation(record: Record) -> str:
    rows = providers_of(record, "ablation", "ablation")
    names = list(dict.fromkeys(name for p in rows.values() for name in p))
    return table(([shape, *(median(p, name) for name in names)] for shape, p in rows.items()), ["shape", *names])


def networks(record: Record) -> str:
    lines = [
        [key, name, entry.get("images/s, called"), entry.get("images/s, replayed"),
         None if entry.get("peak bytes") is None else entry["peak bytes"] / 2**20]
        for key, row in record.rows("networks").items()
        for name, entry in row.get("providers", {}).items()
    ]  # fmt: skip
    return table(lines, ["step", "network", "images/s, called", "images/s, graph", "peak MiB"])


def host(record: Record) -> str:
    rows = {key: row["providers"] for key, row in record.rows("host").items() if "providers" in row}
    names = list(dict.fromkeys(name for p in rows.values() for name in p))
    return table(([name, *(median(p, name, "called") for p in rows.values())] for name in names), ["by", *rows])


def checks(record: Record, part: str) -> str:
    lines = []
    for key, row in record.rows(part).items():
        said = row.get("unavailable") or row.get("failed") or row.get("counts") or row.get("summary") or "right"
        lines.append(f"{key}: {said}")
    return "\n".join(lines)


def ceilings(record: Record) -> str:
    row = record.rows("forward").get("ceilings", {})
    if "bytes/s" not in row:
        return ""
    nothing = median(row["providers"], "next to nothing")
    return (
        f"copy {row['bytes/s'] / 1e12:.2f} TB/s, product {row['flop/s'] / 1e12:.0f} TFLOP/s, "
        f"a graph of one tiny kernel {nothing:.1f} microseconds"
    )


def missing(record: Record) -> list[str]:
    return [
        f"{name}: {len(part['missing'])} rows are missing, call again for them: {', '.join(part['missing'])}"
        for name, part in record.data["parts"].items()
        if part.get("missing")
    ]


def wrongs(record: Record) -> list[str]:
    """What failed, shortened: the record has all of it."""
    lines = [f"{name}: {part['failed']}" for name, part in record.data["parts"].items() if "failed" in part]
    for part in record.data["parts"]:
        for key, row in record.rows(part).items():
            lines += [f"{part}, {key}: {text[:300]}" for text in failures(row)]
    return ["failures\n" + "\n".join(lines)] if lines else []


# Targets: name, goal, what was measured, and whether it is met.


def targets(record: Record) -> str:
    return table(
        (
            [name, goal, text, None if met is None else "yes" if met else "no"]
            for name, goal, text, met in [*speeds(record), *compilers(record), *shares(record), *costs(record)]
        ),
        ["target", "goal", "measured", "met"],
    )


Target = tuple[str, str, str, bool | None]


def target(name: str, goal: float, values: list[float], *, most: bool = True, worst: float | None = None) -> Target:
    """Judges a geometric mean (``most``: it may be at most the goal) and, if a bound is named, the worst value."""
    sign = "<=" if most else ">="
    text = f"{sign} {goal}" + (f", none {'above' if most else 'below'} {worst}" if worst is not None else "")
    if not values:
        return name, text, "not measured", None
    mean, extreme = statistics.geometric_mean(values), max(values) if most else min(values)
    met = mean <= goal if most else mean >= goal
    if worst is not None:
        met = met and (extreme <= worst if most else extreme >= worst)
    return name, text, f"{mean:.3f} (worst {extreme:.3f} of {len(values)})", met


def ratios(
    rows: dict[str, Providers], above: Callable[[Providers], float | None], below: Callable[[Providers], float | None]
) -> list[float]:
    found = (ratio(above(p), below(p)) for p in rows.values())
    return [value for value in found if value is not None]


def of(name: str, way: str = "replayed") -> Callable[[Providers], float | None]:
    return lambda providers: median(providers, name, way)


def best(names: Iterable[str], way: str = "replayed") -> Callable[[Providers], float | None]:
    return lambda providers: fastest(providers, names, way)


def speeds(record: Record) -> list[Target]:
    forward, training = (providers_of(record, part, "rivals") for part in ("forward", "training"))
    found = [
        target("forward / nn.Conv2d(bias=True)", 0.85, ratios(forward, of("ours"), of("plain")), worst=1.2),
        target("forward / convolution without bias", 1.0, ratios(forward, of("ours"), of("plain, no bias"))),
        target("forward + backward / nn.Conv2d(bias=True)", 1.0, ratios(training, of("ours"), of("plain"))),
        target("the same, each with ReLU", 1.0, ratios(training, of("ours, relu"), of("plain, relu"))),
    ]
    for way in ("replayed", "called"):
        for name, rows, goal in (("forward", forward, 4.0), ("forward + backward", training, 3.0)):
            values = ratios(rows, best(TWO_BRANCH, way), of("ours", way))
            found.append(target(f"two-branch eager / ours, {name}, {way}", goal, values, most=False))
    noise = ratios(forward, of("plain, again"), of("plain"))
    return [*found, ("plain, measured twice", "", target("", 1.0, noise)[2], None)]


def compilers(record: Record) -> list[Target]:
    found = []
    for part, goal in (("forward", 1.35), ("training", 1.25)):
        values = ratios(providers_of(record, part, "compiled"), of(MAX_AUTOTUNE), of("ours"))
        found.append(target(f"max-autotune / ours, {part}", goal, values, most=False))
    return found


def shares(record: Record) -> list[Target]:
    classes: dict[str, list[float]] = {name: [] for name in SHARES}
    for _, row in rows_of(record, "forward", "rivals"):
        share = row["providers"].get("ours", {}).get("share of floor")
        name = class_of(row["shape"])
        if share is not None and name in classes:
            classes[name].append(100 * share)
    return [
        target(f"percent of the floor, {name}", goal, classes[name], most=False, worst=goal)
        for name, goal in SHARES.items()
    ]


def class_of(shape: dict[str, Any]) -> str:
    if shape["in_channels"] == 3:
        return "Cin = 3"
    return "Cout >= 256" if shape["out_channels"] >= 256 else f"Cout = {shape['out_channels']}"


def costs(record: Record) -> list[Target]:
    """The sum of squares, the memory of a training step, the host."""
    squares = [
        found
        for _, row in rows_of(record, "ablation", "ablation")
        if (found := ratio(median(row["providers"], squares_of(row)), median(row["providers"], "none"))) is not None
    ]
    steps = record.rows("networks").get("training, bf16", {}).get("providers", {})
    calls = record.rows("host").get("forward, no grad", {}).get("providers", {})
    return [
        target("kernel / the same without squares", 1.03, squares),
        target("peak memory of a training step / plain", 1.05, memory(steps, "ours")),
        target("the same, ReLU apart", 1.05, memory(steps, "ours, relu apart")),
        target("host time / F.conv2d, no grad", 1.5, host_ratio(calls)),
    ]


def squares_of(row: dict[str, Any]) -> str:
    """Where the default tile finds its squares."""
    named = [way for way in ("rows", "images", "plane") if way in row["default tiles"]["forward"].split()]
    return named[0] if named else "loop"


def memory(steps: Providers, name: str) -> list[float]:
    ours, plain = (steps.get(who, {}).get("peak bytes") for who in (name, "plain"))
    return [ours / plain] if ours and plain else []


def host_ratio(calls: Providers) -> list[float]:
    found = ratio(median(calls, "ours, compact_conv2d", "called"), median(calls, "plain, F.conv2d", "called"))
    return [] if found is None else [found]
