"""`make cuda-kernels`: what the compiler made of csrc/cuda, read from a library built for GPUs that need not be there.

Fails where any kernel spills or keeps an array in local memory, where a tile kernel's loop has lost its matrix
instructions or its 16-byte copies, and where a loop has grown by over 10 % against the counts on record.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import triton
from tabulate import tabulate

from ccn_kernels.files import read_json, write_json

HERE = Path(__file__).parent
LIMIT = 1.10  # how far a loop's instructions may exceed the recorded ones
TILES = ("convolve<", "weight_gradient<")
SHOWN = {"HMMA": r"(^|\s)HMMA", "LDSM": "LDSM", "LDGSTS": r"LDGSTS\S*\.128", "FFMA": r"\bFFMA", "DFMA": r"\bDFMA"}

Counts = dict[str, int]


class Kernel(NamedTuple):
    """One kernel for one architecture: resources a thread, and instructions of its innermost loop that multiplies."""

    name: str
    registers: int
    local_bytes: int
    loop: Counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", type=Path)
    parser.add_argument("--accept", action="store_true", help="record what is counted now")
    args = parser.parse_args()
    faults = []
    for arch, kernels in read(args.library).items():
        record = HERE / f"cuda-{arch}.json"
        tiles = {kernel.name: kernel.loop for kernel in kernels if kernel.name.startswith(TILES)}
        print(f"{arch}: {len(kernels)} kernels; loops of the tiles:\n{table(kernels)}\n")
        if args.accept:
            write_json(record, tiles)
        faults += [f"{arch}: {fault}" for fault in check(kernels, tiles, read_json(record) or {})]
    if faults:
        sys.exit("\n".join([*faults, "if that is meant: make cuda-kernels ACCEPT=1, and commit the counts"]))
    print("no spills, no local memory, no loop over its record")


def table(kernels: list[Kernel]) -> str:
    rows = [[k.name, k.registers, *k.loop.values()] for k in kernels if k.name.startswith(TILES)]
    return tabulate(sorted(rows), headers=["kernel", "registers", *SHOWN, "all"])


def check(kernels: list[Kernel], tiles: dict[str, Counts], recorded: dict[str, Counts]) -> list[str]:
    """What is wrong: nothing, for a library that may be shipped."""
    faults = [f"{k.name}: {k.local_bytes} bytes of local memory a thread" for k in kernels if k.local_bytes]
    faults += [f"{name}: on record, but not in the library" for name in recorded.keys() - tiles.keys()]
    for name, loop in tiles.items():
        wanted = ["HMMA", "LDSM"] if "TensorCores" in name else ["DFMA" if "double" in name else "FFMA"]
        if "TensorCores<float" in name and name.startswith("weight_gradient"):
            wanted.remove("LDSM")  # which transposes 16-bit elements alone
        faults += [f"{name}: no {kind} in its loop" for kind in [*wanted, "LDGSTS"] if not loop[kind]]
        before = recorded.get(name)
        if before is None:
            faults.append(f"{name}: not on record")
        elif loop["all"] > LIMIT * before["all"]:
            faults.append(f"{name}: {loop['all']} instructions in its loop, {before['all']} on record")
    return faults


def read(library: Path) -> dict[str, list[Kernel]]:
    """A library's kernels by architecture."""
    found: dict[str, list[Kernel]] = {}
    usage = resources(cuobjdump(library, "-res-usage"))
    for arch, symbol, lines in functions(cuobjdump(library, "-sass")):
        registers, local_bytes = usage[arch, symbol]
        found.setdefault(arch, []).append(Kernel(readable(symbol), registers, local_bytes, count(loop_of(lines))))
    return found


def cuobjdump(library: Path, option: str) -> str:
    command = [triton.knobs.nvidia.cuobjdump.path, option, library]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def resources(text: str) -> dict[tuple[str, str], tuple[int, int]]:
    """Registers, and bytes of stack and local memory, by architecture and symbol."""
    found, arch = {}, ""
    for line in text.splitlines():
        if match := re.match(r"arch = (\S+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function (\S+):", line):
            symbol = match[1]
        elif match := re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", line):
            found[arch, symbol] = int(match[1]), int(match[2]) + int(match[3])
    return found


def functions(text: str):
    """(architecture, symbol, [(address, instruction)]) of each kernel."""
    arch, symbol, lines = "", "", []
    for line in text.splitlines():
        if match := re.match(r"arch = (\S+)|\s*Function : (\S+)", line):
            if lines:
                yield arch, symbol, lines
            arch, symbol, lines = match[1] or arch, match[2] or symbol, []
        elif match := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+([^;]+);", line):
            lines.append((int(match[1], 16), match[2]))
    if lines:
        yield arch, symbol, lines


def readable(symbol: str) -> str:
    name = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout.strip()
    return re.sub(r"ccn::cuda::|c10::|^void |\(ccn.*|\(.*\)$", "", name)


def loop_of(lines: list[tuple[int, str]]) -> list[str]:
    """The shortest loop that holds all products: from a branch's target back to the branch."""
    products = [address for address, text in lines if re.search(r"(^|\s)HMMA", text)]
    products = products or [address for address, text in lines if re.search(r"\b[FD]FMA\b", text)]
    loops = []
    for address, text in lines:
        match = re.search(r"\bBRA\b.* 0x([0-9a-f]+)", text)
        if match and int(match[1], 16) < address:
            inside = sum(int(match[1], 16) <= product <= address for product in products)
            loops.append((-inside, address - int(match[1], 16), int(match[1], 16), address))
    if not loops:
        return []
    _, _, first, last = min(loops)
    return [text for address, text in lines if first <= address <= last]


def count(loop: list[str]) -> Counts:
    found = {name: sum(bool(re.search(pattern, text)) for text in loop) for name, pattern in SHOWN.items()}
    return {**found, "all": len(loop)}


if __name__ == "__main__":
    main()
