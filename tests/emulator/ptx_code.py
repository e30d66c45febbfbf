"""The instructions of compiled PTX that the kernels of a test take, as functions of a warp (see ptx.py)."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

LANES = np.arange(32)
NANS = 0xFF  # what is not there yet
DTYPES = {f"{letter}{8 * size}": np.dtype(f"{kind}{size}")
          for letter, kind in (("b", "u"), ("u", "u"), ("s", "i"), ("f", "f")) for size in (1, 2, 4, 8)
          if (letter, size) != ("f", 1)} | {"pred": np.dtype(bool)}  # fmt: skip
SPECIAL = {
    "%tid.x": lambda warp: 32 * warp.number + LANES,
    "%ctaid.x": lambda warp: warp.program.number,
    "%nctaid.x": lambda warp: warp.program.launch.kernel.grid[0],
    "%clock64": lambda warp: sum(other.steps for other in warp.program.warps),
}


class Blocked(Exception):
    """A warp waits."""


def settle(groups: list[list[Callable]], left: int) -> None:
    while len(groups) > left + 1:
        for what in groups.pop(0):
            what()


def typed(bits: np.ndarray, kind: str) -> np.ndarray:
    dtype = DTYPES[kind]
    return bits.astype(bool) if kind == "pred" else bits.astype(f"u{dtype.itemsize}").view(dtype)


def raw(values: np.ndarray) -> np.ndarray:
    values = np.ascontiguousarray(values)
    return (values if values.dtype == bool else values.view(f"u{values.dtype.itemsize}")).astype(np.uint64)


def narrow(values: np.ndarray, kind: str) -> np.ndarray:
    """fp32 to the bits of a type of 16 bits, to nearest even."""
    dtype = {"bf16": torch.bfloat16, "f16": torch.float16}[kind]
    return torch.from_numpy(np.ascontiguousarray(values)).to(dtype).view(torch.int16).numpy().view(np.uint16)


def widen(bits: np.ndarray, kind: str) -> np.ndarray:
    bits = bits.astype(np.uint16)
    return (bits.astype(np.uint32) << 16).view(np.float32) if kind == "bf16" else bits.view(np.float16).astype("f4")


def split(text: str) -> list[str]:
    """By the commas outside of brackets."""
    return [part.strip() for part in re.findall(r"(?:\{[^}]*\}|\[(?:\{[^}]*\}|[^]{])*\]|[^,{[])+", text)]


def names(text: str) -> list[str]:
    return [name.strip() for name in text.strip("{} ").split(",")]


def source(text: str) -> Callable[[Any], np.ndarray]:
    """How a warp reads an operand: a register, a number, the address of a parameter (its index), or shared memory's."""
    if text in SPECIAL:
        return lambda warp: np.broadcast_to(SPECIAL[text](warp), 32).astype(np.uint64)
    if text.startswith("%"):
        return lambda warp: warp.values[text]
    parameter = re.search(r"_param_(\d+)", text)
    number = int(parameter[1]) if parameter else 0 if text == "global_smem" else None
    if number is None:
        number = int(text[2:], 16) if text.startswith("0f") else int(text.rstrip("U"), 0)
    constant = np.full(32, number & (2**64 - 1), np.uint64)
    return lambda warp: constant


def address(text: str) -> Callable[[Any], np.ndarray]:
    base, _, offset = text.strip("[] ").replace(" ", "").partition("+")
    read, more = source(base), np.int64(int(offset or 0))
    return lambda warp: read(warp).view(np.int64) + more


def truncated(a, b):
    """C's quotient."""
    return (np.abs(a.astype(np.int64)) // np.abs(b.astype(np.int64)) * np.sign(a) * np.sign(b)).astype(a.dtype)


def product(part: list[str]) -> Callable:
    """mul and mad of integers: .lo, .hi, .wide."""
    bits, wide = int(part[-1][1:]), np.uint64 if part[-1][0] == "u" else np.int64

    def multiply(a, b, c=0):
        found = a.astype(wide) * b.astype(wide)
        found = found >> wide(bits) if part[1] == "hi" else found
        return found + np.asarray(c).astype(wide)

    return multiply


def shift(a, count, left):
    wide = a.astype(np.int64 if a.dtype.kind == "i" else np.uint64)
    count = np.minimum(count, 63).astype(wide.dtype)
    return wide << count if left else wide >> count


PLAIN = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and,
    "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert, "neg": np.negative, "sqrt": np.sqrt,
    "rem": lambda a, b: (a.astype(np.int64) - truncated(a, b).astype(np.int64) * b).astype(a.dtype),
    "fma": lambda a, b, c: (a.astype(np.float64) * b + c).astype(np.float32),
    "bfe": lambda a, first, count: a >> first & ((1 << count.astype(np.uint64)) - 1).astype(a.dtype),
}  # fmt: skip
COMPARE = {"lt": np.less, "gt": np.greater, "eq": np.equal, "ne": np.not_equal, "neu": np.not_equal,
           "le": np.less_equal, "ge": np.greater_equal}  # fmt: skip


def arithmetic(op: str, part: list[str]) -> tuple[Callable, list[str], str] | None:
    """Of an instruction that computes each lane from that lane: the function, the operands' kinds, the result's."""
    kind = part[-1]
    if op in ("mul", "mad") and part[1] in ("lo", "hi", "wide"):
        result = kind[0] + str((2 if part[1] == "wide" else 1) * int(kind[1:]))
        return product(part), [kind, kind, result], result
    if op == "div":
        return (np.divide if kind == "f32" else truncated), [kind] * 2, kind
    if op in ("shl", "shr"):
        return (lambda a, count: shift(a, count, op == "shl")), [kind, "u32"], kind
    if op == "selp":
        return (lambda a, b, chosen: np.where(chosen, a, b)), [kind, kind, "pred"], kind
    if op == "setp":
        return COMPARE[part[1]], [kind] * 2, "pred"
    if op == "bfe":
        return PLAIN[op], [kind, "u32", "u32"], kind
    if op == "cvt" and part[1] == "rn":  # cvt.rn.bf16x2.f32: the first operand is the high half
        halves = part[2].removesuffix("x2")
        return (lambda high, low: narrow(high, halves).astype("u4") << 16 | narrow(low, halves)), ["f32"] * 2, "u32"
    if op == "cvt" and kind in ("bf16", "f16"):
        return (lambda a: widen(a, kind)), ["u16"], "f32"
    if op == "cvt":
        return (lambda a: a.astype(DTYPES[part[-2]])), [kind], part[-2]
    if op in ("cvta", "mov"):
        return (lambda a: a), [kind], kind
    return (PLAIN[op], [kind] * 3, kind) if op in PLAIN else None


class Line:
    """One instruction: ``run`` of a warp returns the number of the next one, or None for the one behind it."""

    def __init__(self, text: str, labels: dict[str, int], tables: dict[str, list[str]]) -> None:
        guard = re.match(r"@(!?)(%p\d+)\s+(.*)", text)
        self.guard = source(guard[2]) if guard else None
        self.unless = bool(guard and guard[1])
        self.opcode, _, rest = (guard[3] if guard else text).partition(" ")
        self.part, self.args = self.opcode.split("."), split(rest)
        self.op, self.kind = self.part[0], self.part[-1]
        self.labels, self.tables = labels, tables

    def on(self, warp: Any) -> np.ndarray:
        return np.ones(32, bool) if self.guard is None else self.guard(warp).astype(bool) ^ self.unless

    def compiled(self) -> Callable[[Any], int | None]:
        if not any(arg.startswith("{") for arg in self.args):
            found = arithmetic(self.op, self.part)
            if found is not None:
                return self._arithmetic(*found)
        for length in (3, 2, 1):
            method = getattr(self, "_".join(["run", *self.part[:length]]), None)
            if method is not None:
                return method()
        raise NotImplementedError(f"{self.opcode} {self.args}")

    def _arithmetic(self, function: Callable, kinds: list[str], result: str) -> Callable:
        target, sources = self.args[0], [source(arg) for arg in self.args[1:]]
        plain = self.guard is None

        def run(warp):
            values = function(*(typed(read(warp), kind) for read, kind in zip(sources, kinds, strict=False)))
            warp.put(target, values.astype(DTYPES[result], copy=False), None if plain else self.on(warp))

        return run

    def run_mov(self):
        """Of several registers to or from one that holds them all."""
        to, given = self.args
        parts = names(to if to.startswith("{") else given)
        bits = int(self.kind[1:]) // len(parts)
        if to.startswith("{"):
            read = source(given)

            def run(warp):
                for index, name in enumerate(parts):
                    warp.put(name, read(warp) >> np.uint64(bits * index) & np.uint64(2**bits - 1))
        else:
            reads = [source(name) for name in parts]

            def run(warp):
                warp.put(to, sum(read(warp) << np.uint64(bits * index) for index, read in enumerate(reads)))

        return run

    def run_bra(self):
        target = self.labels[self.args[0]]

        def run(warp):
            on = self.on(warp)
            assert on.all() or not on.any(), "warps do not diverge"
            return target if on.all() else None

        return run

    def run_brx(self):
        read, table = source(self.args[0]), self.tables[self.args[1]]
        return lambda warp: self.labels[table[int(read(warp)[0])]]

    def run_ret(self):
        def run(warp):
            settle(warp.products, 0)
            assert not any(warp.stores), "stores under way at the end"
            warp.done = True

        return run

    def run_ld_param(self):
        index = int(re.search(r"_param_(\d+)", self.args[1])[1])
        return lambda warp: warp.put(self.args[0], np.uint64(warp.program.launch.parameter(index)))

    def run_ld(self):
        size, targets, where = DTYPES[self.kind].itemsize, names(self.args[0]), address(self.args[1])
        shared = self.part[1] == "shared"

        def run(warp):
            on, found = self.on(warp), np.zeros((32, size * len(targets)), np.uint8)
            if on.any():
                at = where(warp)[on]
                memory = warp.program.shared if shared else warp.program.launch.memory
                index = at[:, None] + np.arange(found.shape[1])
                found[on] = memory[index] if shared else memory.read(at, found.shape[1])
            for number, target in enumerate(targets):
                bits = np.ascontiguousarray(found[:, size * number :][:, :size]).view(f"u{size}")[:, 0]
                warp.put(target, bits, on)

        return run

    def run_st(self):
        size, reads = DTYPES[self.kind].itemsize, [source(name) for name in names(self.args[1])]
        where, shared = address(self.args[0]), self.part[1] == "shared"

        def run(warp):
            on = self.on(warp)
            if not on.any():
                return
            parts = [read(warp).astype(f"u{size}")[:, None].view(np.uint8) for read in reads]
            values, at = np.concatenate(parts, 1)[on], where(warp)[on]
            if shared:
                warp.program.shared[at[:, None] + np.arange(values.shape[1])] = values
            else:
                warp.program.launch.memory.write(at, values)

        return run

    def run_stmatrix(self):
        where, reads = address(self.args[0]), [source(name) for name in names(self.args[1])]
        transposed = "trans" in self.part

        def run(warp):
            at = where(warp)
            for index, read in enumerate(reads):
                matrix = read(warp).astype(np.uint32).view(np.uint16).reshape(8, 8)  # a lane holds two neighbours
                rows = np.ascontiguousarray(matrix.T if transposed else matrix).view(np.uint8)
                start = at[8 * index : 8 * index + 8]
                assert not (start % 16).any()
                warp.program.shared[start[:, None] + np.arange(16)] = rows

        return run

    def run_shfl(self):
        read, lane = source(self.args[1]), source(self.args[2])
        assert self.part[2] == "idx"
        return lambda warp: warp.put(self.args[0].split("|")[0], read(warp)[lane(warp).astype(int) % 32])

    def run_elect(self):
        def run(warp):
            lane, flag = self.args[0].split("|")
            warp.put(lane, np.uint64(0))
            warp.put(flag, LANES == 0)

        return run

    def run_wgmma_mma_async(self):
        columns, kind = int(re.search(r"n(\d+)k16", self.opcode)[1]), self.kind
        accumulators, (left, right, keep) = names(self.args[0]), map(source, self.args[1:4])
        assert self.args[4:] == ["1", "1", "0", "0"]
        assert len(accumulators) == columns // 2

        def run(warp):
            a, b, keeps = (int(read(warp)[0]) for read in (left, right, keep))
            warp.products[-1].append(lambda: multiply(warp, a, b, keeps, accumulators, columns, kind))

        return run

    def run_wgmma(self):
        if self.part[1] == "wait_group":
            return lambda warp: settle(warp.products, int(self.args[0]))
        return (lambda warp: warp.products.append([])) if self.part[1] == "commit_group" else (lambda warp: None)

    def run_cp_async_bulk(self):
        if self.part[3] == "wait_group":
            return lambda warp: settle(warp.stores, int(self.args[0]))
        if self.part[3] == "commit_group":
            return lambda warp: warp.stores.append([])
        loads = "mbarrier::complete_tx::bytes" in self.opcode
        tensor, place = split(self.args[1 if loads else 0].strip()[1:-1])
        which, axes = source(tensor), [source(axis) for axis in reversed(names(place))]
        shared, barrier = address(self.args[0 if loads else 1]), address(self.args[2]) if loads else None

        def run(warp):
            on = self.on(warp)
            if not on.any():
                return
            (lane,) = LANES[on]  # one thread asks
            program, at = warp.program, [int(typed(read(warp), "s32")[lane]) for read in axes]
            boxes, where = program.launch.kernel.parameters[int(which(warp)[lane])], int(shared(warp)[lane])
            if loads:
                program.shared[where : where + boxes.bytes] = NANS
                program.loads.append((boxes, at, where, int(barrier(warp)[lane])))
            else:
                warp.stores[-1].append(lambda: program.store(boxes, at, where))

        return run

    def run_mbarrier(self):
        what = self.part[1]
        where = address(self.args[0 if what == "init" else 1])
        number = source(self.args[-1]) if what != "arrive" or "expect_tx" in self.part else None

        def run(warp):
            on = self.on(warp)
            if not on.any():
                return
            lane, barriers = int(np.argmax(on)), warp.program.barriers
            at, given = int(where(warp)[lane]), int(number(warp)[lane]) if number else 0
            if what == "init":
                warp.program.make_barrier(at, given)
            elif what == "arrive":
                assert on.sum() == 1
                barriers[at].arrive(given)
            elif barriers[at].phase & 1 == given & 1:  # a wait, until it succeeds
                raise Blocked

        return run

    def run_bar(self):
        name, count = self.args[0], int(self.args[1]) // 32 if len(self.args) > 1 else None

        def run(warp):
            program = warp.program
            met, passed = program.met.setdefault(name, set()), program.passes.setdefault(name, 0)
            if warp.passing is None:
                warp.passing = passed
                met.add(warp)
                warp.steps += 1
                if len(met) == (count or len(program.warps)):
                    met.clear()
                    program.passes[name] += 1
            if program.passes[name] == warp.passing:
                raise Blocked
            warp.passing = None

        return run

    run_barrier = run_bar

    def run_setmaxnreg(self):
        wanted = int(self.args[0])

        def run(warp):
            program = warp.program
            if "inc" in self.part and wanted - warp.registers > program.spare_registers:
                raise Blocked
            program.spare_registers += warp.registers - wanted
            warp.registers = wanted

        return run

    def run_fence(self):
        return lambda warp: None

    run_griddepcontrol = run_bar_warp = run_fence


def multiply(warp: Any, a: int, b: int, keeps: int, accumulators: list[str], columns: int, kind: str) -> None:
    """A warp's 16 rows of a product of 64 rows, both operands in shared memory, rows of 128 bytes."""

    def operand(descriptor, first, count):
        assert descriptor >> 62 == 1, "swizzled by 128 bytes"
        row = first + np.arange(count)
        start, step = (descriptor & 0x3FFF) << 4, (descriptor >> 32 & 0x3FFF) << 4
        at = (start + row // 8 * step + row % 8 * 128)[:, None] + 2 * np.arange(16)
        at = at ^ (at >> 7 & 7) << 4
        return widen(warp.program.shared.view(np.uint16)[at >> 1], kind).astype(np.float64)

    found = operand(a, 16 * (warp.number % 4), 16) @ operand(b, 0, columns).T
    index = np.arange(len(accumulators))[:, None]
    values = found[LANES // 4 + 8 * (index % 4 // 2), 8 * (index // 4) + 2 * (LANES % 4) + index % 2]
    if keeps:
        values = values + typed(np.stack([warp.values[name] for name in accumulators]), "f32")
    warp.values.update(zip(accumulators, raw(values.astype(np.float32)), strict=True))


def parse(text: str) -> tuple[list[tuple[str, Callable]], int]:
    """Instructions, as text and as functions of a warp; and how many registers a thread starts with."""
    body = re.sub(r"//.*", "", text[text.index(".entry") :])
    body = body[body.index("{") + 1 :].partition(".section")[0]
    tables = {name: names(targets) for name, targets in re.findall(r"(\S+):\s*\.branchtargets([^;]*);", body)}
    body = re.sub(r"\S+:\s*\.branchtargets[^;]*;", "", body)
    labels: dict[str, int] = {}
    lines: list[str] = []
    skipped = ""
    for line in (line.strip() for line in body.splitlines()):
        if line.startswith((".loc", ".reg", ".file")) or line in ("", "{", "}", "waitLoop:", "skipWait:"):
            continue
        if "skipWait" in line:  # around a wait that has a predicate
            skipped = line.split()[0].replace("@!", "@") + " "
        elif line.endswith(":"):
            labels[line[:-1]] = len(lines)
        elif "waitLoop" not in line:
            lines.append(skipped + " ".join(line.rstrip(";").split()))
            skipped = ""
    registers = int(re.search(r"\.maxnreg (\d+)", text)[1])
    return [(line, Line(line, labels, tables).compiled()) for line in lines], registers
