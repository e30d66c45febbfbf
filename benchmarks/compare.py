"""Two records as a Markdown table of ratios, new to old, and their geometric means.

A ratio is marked ~ where the difference is smaller than the spread (p20 to p80) of either measurement.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from reading import Record, Row, load, markdown

CASE = ("suite", "workload", "batch", "pass", "timing", "dtype", "memory_format")
WHO = ("provider", "variant", "backend")
GROUP = ("suite", "pass", "timing", "dtype", *WHO)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=Path, metavar="OLD")
    parser.add_argument("new", type=Path, metavar="NEW")
    parser.add_argument("--provider", default="ccn", help="default: ccn")
    parser.add_argument("--passes", nargs="+", metavar="PASS", choices=("forward", "backward", "training"))
    args = parser.parse_args(arguments)
    try:
        print(compare(load(args.old), load(args.new), args.provider, args.passes))
    except ValueError as error:
        raise SystemExit(f"compare: {error}") from error


def compare(old: Record, new: Record, provider: str = "ccn", passes: Sequence[str] | None = None) -> str:
    before, after = (rows_of(record, provider, passes) for record in (old, new))
    keys = list(dict.fromkeys([*before, *after]))
    lines = [[*key, *verdict(before.get(key), after.get(key))] for key in keys]
    table = markdown(lines, [*CASE, *WHO[1:], "old µs", "new µs", "new / old"])
    return "\n\n".join([header(old, new, provider), table, means(before, after)])


def rows_of(record: Record, provider: str, passes: Sequence[str] | None) -> dict[tuple, Row]:
    """A provider's rows, by all that tells them apart."""
    rows = [row for row in record.rows if row["provider"] == provider]
    if not rows:
        known = ", ".join(sorted({row["provider"] for row in record.rows}))
        raise ValueError(f"{record.path} has no row of the provider {provider!r}; it has {known or 'none at all'}")
    found = {tuple(row[name] for name in CASE + WHO[1:]): row for row in rows if not passes or row["pass"] in passes}
    if not found:
        raise ValueError(f"{record.path} has no row of {provider} for --passes {' '.join(passes or ())}")
    return found


def header(old: Record, new: Record, provider: str) -> str:
    lines = [f"{provider}, by medians; below 1 the new one is faster; ~ is a tie", ""]
    for name, record in (("old", old), ("new", new)):
        where = record.environment
        lines.append(
            f"- {name}: {record.path.name}: {where['device']}, ccn_kernels {where['ccn_kernels']}, "
            f"PyTorch {where['torch']}, {where['date']}, commit {where['commit']}"
        )
    if old.environment["device"] != new.environment["device"]:
        lines += ["", "**The devices differ: these ratios compare machines, not only versions.**"]
    return "\n".join(lines)


def verdict(old: Row | None, new: Row | None) -> tuple[float | None, float | None, str]:
    """Both medians, and their ratio or why there is none."""
    medians = [row["median_us"] if row else None for row in (old, new)]
    if old is None or new is None:
        return *medians, "only in new" if old is None else "only in old"
    failures = [f"{name} failed: {row['failure']}" for name, row in (("old", old), ("new", new)) if row["failure"]]
    if failures:
        return *medians, "; ".join(failures)
    return *medians, f"{medians[1] / medians[0]:.3f}{' ~' if is_tie(old, new) else ''}"


def is_tie(old: Row, new: Row) -> bool:
    spread = max(row["p80_us"] - row["p20_us"] for row in (old, new))
    return abs(new["median_us"] - old["median_us"]) < spread


def means(before: dict[tuple, Row], after: dict[tuple, Row]) -> str:
    groups: dict[tuple, list[float]] = {}
    for key in (key for key in before if key in after):
        old, new = before[key], after[key]
        if not old["failure"] and not new["failure"]:
            ratio = new["median_us"] / old["median_us"]
            groups.setdefault(tuple(new[name] or "" for name in GROUP), []).append(ratio)
    if not groups:
        return "No row ran in both."
    lines = [
        [*key, len(ratios), f"{statistics.geometric_mean(ratios):.3f}", f"{max(ratios):.3f}"]
        for key, ratios in groups.items()
    ]
    return markdown(lines, [*GROUP, "rows", "geometric mean", "worst"])


if __name__ == "__main__":
    main()
