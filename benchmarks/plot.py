"""Pictures of records: speed-ups, roofline, peak memory, and cost as work grows. What was not measured is left out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import bars
import curves
from reading import Record, load
from style import NotMeasured

from ccn_kernels.files import write

PICTURES = {
    "speedup": bars.speedup,
    "roofline": curves.roofline,
    "memory": bars.memory,
    "growth": curves.growth,
}
DPI = 130


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("records", nargs="+", type=Path, metavar="RECORD")
    parser.add_argument("--out", type=Path, default=Path("docs"), metavar="DIR", help="default: docs")
    args = parser.parse_args(arguments)
    try:
        for path in args.records:
            draw(load(path), args.out)
    except ValueError as error:
        raise SystemExit(f"plot: {error}") from error


def draw(record: Record, folder: Path) -> list[Path]:
    """Draws what the record has rows for, says what it lacks, and returns the files."""
    drawn = []
    for name, picture in PICTURES.items():
        path = folder / f"{record.name}-{name}.png"
        try:
            figure = picture(record)
        except NotMeasured as missing:
            print(f"{path} is left out: {record.path.name} has no {missing}")
            continue
        # Neither time nor version inside: the same record gives the same bytes.
        write(path, lambda temporary, figure=figure: figure.savefig(temporary, dpi=DPI, metadata={"Software": None}))
        print(path)
        drawn.append(path)
    return drawn


if __name__ == "__main__":
    main()
