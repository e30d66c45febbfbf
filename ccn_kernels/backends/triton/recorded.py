"""What the compiler made of the kernels when somebody last looked, so that a change for the worse is seen."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import triton

from ...files import read_json, write

GROWTH = 1.1  # registers that may be added

Row = dict[str, Any]
Table = dict[tuple[str, str], Row]


def table(rows: Iterable[Row]) -> Table:
    """By kernel and configuration, each compiled for several shapes: all registers, and the worst of the rest."""
    found: Table = {}
    for row in rows:
        key = row["kernel"], row["config"]
        before = found.setdefault(key, {**row, "registers": []})
        found[key] = {
            "kernel": row["kernel"],
            "config": row["config"],
            "registers": [*before["registers"], row["registers"]],
            "spills": max(before["spills"], row["spills"]),
            "shared_bytes": max(before["shared_bytes"], row["shared_bytes"]),
            "wgmma": min(before["wgmma"], row["wgmma"]),
        }
    return found


def save(path: Path, arch: str, rows: Iterable[Row]) -> None:
    """Writes a row a line."""
    head = f'"triton": {json.dumps(triton.__version__)}, "arch": {json.dumps(arch)}'
    lines = ",\n".join(json.dumps(row) for _, row in sorted(table(rows).items()))
    write(path, lambda temporary: temporary.write_text(f'{{{head}, "rows": [\n{lines}\n]}}\n'))


def load(path: Path, arch: str) -> Table:
    """What was recorded for an architecture by this Triton.

    Raises:
        ValueError: the file is missing, or of another Triton or architecture: other compilers allot otherwise.
    """
    content = read_json(path)
    if content is None:
        raise ValueError(f"{path} is missing: --accept writes it")
    wanted = {"triton": triton.__version__, "arch": arch}
    for name, value in wanted.items():
        if content[name] != value:
            raise ValueError(f"{path} was recorded with {name} {content[name]}, this is {value}")
    return {(row["kernel"], row["config"]): row for row in content["rows"]}


def regressions(rows: Iterable[Row], before: Table) -> list[str]:
    """What is worse than recorded. A kernel that is no longer chosen is no regression."""
    found = []
    for key, row in table(rows).items():
        name, old = " ".join(key), before.get(key)
        if old is None:
            found.append(f"{name} is not on record")
            continue
        new_registers, old_registers = row["registers"], old["registers"]
        if len(new_registers) != len(old_registers):
            found.append(f"{name} is compiled {len(new_registers)} times, {len(old_registers)} on record")
        elif any(new > GROWTH * was for new, was in zip(new_registers, old_registers, strict=True)):
            found.append(f"{name} takes {new_registers} registers, {old_registers} on record")
        if row["spills"] > old["spills"]:
            found.append(f"{name} spills {row['spills']} bytes, {old['spills']} on record")
        if old["wgmma"] and not row["wgmma"]:
            found.append(f"{name} has lost its wgmma")
    return found
