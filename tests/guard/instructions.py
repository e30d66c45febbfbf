"""`make guard`: the instructions that the CPU kernels' passes take on small layers, against those on record.

Callgrind counts them: the same source, compiler and instruction set give the same count on a busy machine as on an idle
one. Valgrind has no AVX-512, so what is counted is the AVX2 code.
"""

from __future__ import annotations

import argparse
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ccn_kernels.files import read_json, write_json

HERE = Path(__file__).parent
DRIVER, RECORD = HERE / "passes.cpp", HERE / "instructions.json"
LIMIT, OTHER_COMPILER = 1.03, 1.25  # how far a count may exceed the recorded one

Counts = dict[str, int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accept", action="store_true", help="record what is counted now")
    args = parser.parse_args()
    if shutil.which("valgrind") is None:
        raise SystemExit("guard: valgrind is not on PATH; it comes with the system's packages")
    setup = runpy.run_path(str(HERE.parent.parent / "setup.py"))
    compiler = setup["compiler"]() or sys.exit("guard: no C++ compiler")
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder), compiler, [*setup["without_torch"](), ("driver", DRIVER, setup["COMMON"])])
        instruction_set, counts = count(Path(folder), program)
    key = f"{version(compiler)}, {instruction_set}"
    recorded = read_json(RECORD) or {}
    if args.accept:
        write_json(RECORD, {**recorded, key: counts})
        print(f"{len(counts)} counts recorded for {key}")
        return
    problems, notes = compare(counts, key, recorded)
    print("\n".join(notes))
    if problems:
        raise SystemExit("\n".join([*problems, "if that is meant: make guard ACCEPT=1, and commit the counts"]))


def build(folder: Path, compiler: str, sources: list[tuple[str, Path, list[str]]]) -> Path:
    """The program that runs the passes, of objects by name, source and flags."""

    def compile(name: str, source: Path, flags: list[str]) -> str:
        subprocess.run([compiler, *flags, "-c", source, "-o", folder / f"{name}.o"], check=True)
        return str(folder / f"{name}.o")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile, *zip(*sources, strict=True)))
    program = folder / "passes"
    subprocess.run([compiler, *objects, "-o", program], check=True)
    return program


def count(folder: Path, program: Path) -> tuple[str, Counts]:
    """The instruction set that ran, and instructions by layer and pass."""
    command = ["valgrind", "--quiet", "--tool=callgrind", "--collect-atstart=no"]
    done = subprocess.run(
        [*command, f"--callgrind-out-file={folder / 'out'}", program], stdout=subprocess.PIPE, text=True, check=True
    )
    instruction_set, *names = done.stdout.splitlines()
    return instruction_set, {name: total(folder / f"out.{part}") for part, name in enumerate(names, 1)}


def total(dump: Path) -> int:
    found = re.search(r"^totals: (\d+)$", dump.read_text(errors="replace"), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{dump} has no total: has callgrind changed its format?")
    return int(found[1])


def version(compiler: str) -> str:
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]


def compare(counts: Counts, key: str, recorded: dict[str, Counts]) -> tuple[list[str], list[str]]:
    """What fails, and what is worth saying."""
    instruction_set = key.rpartition(", ")[2]
    alike = [name for name in recorded if name.endswith(f", {instruction_set}")]
    if not alike:
        return [f"no counts are recorded for {instruction_set}"], []
    nearest, limit, notes = key, LIMIT, []
    if key not in recorded:
        nearest, limit = alike[0], OTHER_COMPILER
        notes.append(f"this is {key}; compared with {nearest}, so up to {limit - 1:.0%} more is let pass")
    before = recorded[nearest]
    problems = [f"{name}: on record, but not counted" for name in before if name not in counts]
    problems += [f"{name}: counted, but not on record" for name in counts if name not in before]
    changes = {name: counts[name] / before[name] for name in before if name in counts}
    for name, change in changes.items():
        if change > limit:
            problems.append(f"{name}: {counts[name]} instructions, {change - 1:+.1%} against {before[name]}")
    fewer = [name for name, change in changes.items() if change < 1 / limit]
    notes.append(f"{len(changes)} counts within {limit - 1:.0%}" if not problems else f"{len(problems)} counts are off")
    if fewer:
        notes.append(f"fewer than on record, make guard ACCEPT=1 would hold on to it: {', '.join(fewer)}")
    return problems, notes


if __name__ == "__main__":
    sys.exit(main())
