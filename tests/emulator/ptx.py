"""Compiled PTX on a CPU: all warps of each program, their barriers, bulk copies and tensor-core products.

It knows the instructions that persistent.py compiles to, and takes launches as native.py packs them. Warps go on in
random order; products and stores happen as late as what waits for them allows, loads then or earlier, and until a load
is there its bytes are NaNs: so that what is not waited for shows.
"""

import math
import random
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from .ptx_code import NANS, Blocked, parse, raw

CHUNK = 16  # bytes: what swizzling moves as a whole


class Value(NamedTuple):
    """A parameter, as `_C.Value`."""

    bytes: bytes


class Address(NamedTuple):
    """As `_C.Address`."""

    part: int


class Boxes(NamedTuple):
    """As `_C.Boxes`: strides in bytes."""

    part: int
    type: int
    swizzle: int
    shape: list[int]
    strides: list[int]
    box: list[int]

    @property
    def bytes(self) -> int:
        return math.prod(self.box) * self.strides[-1]

    def chunks(self, at: list[int], base: int, shared: int):
        """Of a box in order: addresses in shared memory, in global memory, and which are inside of the tensor."""
        size = self.strides[-1]
        assert self.box[-1] * size == 128, "rows of 128 bytes"
        assert self.swizzle == 3, "swizzled by 128 bytes"
        assert shared % 1024 == 0, "aligned to what its swizzle repeats by"
        assert at[-1] * size % CHUNK == 0
        offsets = np.indices([*self.box[:-1], 128 // CHUNK]).reshape(len(self.box), -1)
        place = offsets * np.array([1] * (len(at) - 1) + [CHUNK // size])[:, None] + np.array(at)[:, None]
        inside = ((place >= 0) & (place < np.array(self.shape)[:, None])).all(0)
        linear = shared + CHUNK * np.arange(offsets.shape[1])
        return linear ^ (linear >> 7 & 7) << 4, base + (place * np.array(self.strides)[:, None]).sum(0), inside


class Kernel(NamedTuple):
    """As `_C.Kernel`."""

    function: int
    grid: tuple[int, ...]
    threads: int
    shared_bytes: int
    overlapped: bool
    parameters: list[Any]


class Global:
    """The memory behind tensors, at their own addresses; each byte may be written once."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self.storages = []
        for tensor in tensors:
            storage = tensor.untyped_storage()
            memory = torch.tensor([], dtype=torch.uint8).set_(storage).numpy()
            self.storages.append((storage.data_ptr(), memory, np.zeros(len(memory), bool)))

    def _find(self, addresses: np.ndarray, size: int):
        for base, memory, written in self.storages:
            index = addresses.astype(np.int64)[:, None] - base + np.arange(size)
            if len(index) and index.min() >= 0 and index.max() < len(memory):
                return memory, written, index
        raise AssertionError("outside of all tensors")

    def read(self, addresses: np.ndarray, size: int) -> np.ndarray:
        memory, _, index = self._find(addresses, size)
        return memory[index]

    def write(self, addresses: np.ndarray, values: np.ndarray) -> None:
        memory, written, index = self._find(addresses, values.shape[1])
        assert not written[index].any(), "written twice"
        memory[index], written[index] = values, True


class Barrier:
    """An mbarrier: a phase ends with its last arrival and its last byte."""

    def __init__(self, count: int) -> None:
        self.count = self.pending = count
        self.bytes = self.phase = 0

    def arrive(self, expected: int = 0) -> None:
        assert self.pending > 0, "too many arrivals"
        self.pending -= 1
        self.complete(-expected)

    def complete(self, size: int) -> None:
        self.bytes -= size
        if self.pending == self.bytes == 0:
            self.phase += 1
            self.pending = self.count


class Launch:
    """A kernel's code and parameters; ``run`` runs all programs, one after the other."""

    def __init__(self, text: str, kernel: Kernel, tensors: list[torch.Tensor]) -> None:
        self.kernel, self.memory = kernel, Global(tensors)
        self.code, self.registers = parse(text)
        threads = int(re.search(r"\.reqntid (\d+)", text)[1])
        assert threads == kernel.threads, "as many threads as it was compiled for"
        self.bases = [tensor.data_ptr() for tensor in tensors]

    def parameter(self, index: int) -> int:
        given = self.kernel.parameters[index]
        return self.bases[given.part] if isinstance(given, Address) else int.from_bytes(given.bytes, "little")

    def run(self, seed: int) -> None:
        with np.errstate(all="ignore"):
            for number in range(self.kernel.grid[0]):
                Program(self, number, random.Random(f"{seed} {number}")).run()


class Program:
    """One program: its warps, its shared memory, and what is under way."""

    def __init__(self, launch: Launch, number: int, rng: random.Random) -> None:
        self.launch, self.number, self.rng = launch, number, rng
        self.shared = np.full(launch.kernel.shared_bytes, NANS, np.uint8)
        self.barriers: dict[int, Barrier] = {}
        self.met: dict[str, set[Warp]] = {}  # at named barriers
        self.passes: dict[str, int] = {}
        self.loads: list[tuple[Boxes, list[int], int, int]] = []
        self.spare_registers = 0
        self.warps = [Warp(self, index) for index in range(launch.kernel.threads // 32)]

    def run(self) -> None:
        blocked: set[Warp] = set()
        early = self.rng.choice((0.01, 0.3))  # how often loads land before they must
        while not all(warp.done for warp in self.warps):
            able = [warp for warp in self.warps if not warp.done and warp not in blocked]
            if self.loads and (not able or self.rng.random() < early):
                self._land()
                blocked.clear()
                continue
            assert able, "deadlock at " + ", ".join(warp.line for warp in self.warps if not warp.done)
            warp = self.rng.choice(able)
            if warp.advance(self.rng.choice((1, 10, 100, 1000))):
                blocked.clear()
            else:
                blocked.add(warp)
        assert not self.loads, "loads under way at the end"

    def make_barrier(self, at: int, count: int) -> None:
        self.barriers[at] = Barrier(count)

    def _land(self) -> None:
        boxes, at, target, barrier = self.loads.pop(self.rng.randrange(len(self.loads)))
        addresses, sources, inside = boxes.chunks(at, self.launch.bases[boxes.part], target)
        values = np.zeros((len(addresses), CHUNK), np.uint8)
        if inside.any():
            values[inside] = self.launch.memory.read(sources[inside], CHUNK)
        self.shared[addresses[:, None] + np.arange(CHUNK)] = values
        self.barriers[barrier].complete(boxes.bytes)

    def store(self, boxes: Boxes, at: list[int], source: int) -> None:
        addresses, targets, inside = boxes.chunks(at, self.launch.bases[boxes.part], source)
        if inside.any():
            values = self.shared[addresses[:, None] + np.arange(CHUNK)]
            self.launch.memory.write(targets[inside], values[inside])


class Warp:
    """Registers hold raw bits, one number a lane."""

    def __init__(self, program: Program, number: int) -> None:
        self.program, self.number = program, number
        self.values: dict[str, np.ndarray] = {}
        self.next, self.done, self.steps = 0, False, 0
        self.products: list[list[Callable]] = [[]]  # groups that were committed, and the one being made
        self.stores: list[list[Callable]] = [[]]
        self.passing: int | None = None  # the pass of a named barrier that it waits for
        self.registers = program.launch.registers

    @property
    def line(self) -> str:
        return self.program.launch.code[self.next][0]

    def advance(self, most: int) -> int:
        """Runs so many instructions, or until it must wait; returns how many steps it made."""
        before = self.steps
        try:
            while not self.done and self.steps < before + most:
                target = self.program.launch.code[self.next][1](self)
                self.next = self.next + 1 if target is None else target
                self.steps += 1
        except Blocked:
            pass
        return self.steps - before

    def put(self, name: str, values: np.ndarray, on: np.ndarray | None = None) -> None:
        bits = raw(values if np.ndim(values) else np.full(32, values))
        if on is not None and not on.all():
            bits = np.where(on, bits, self.values.get(name, 0))
        self.values[name] = bits
