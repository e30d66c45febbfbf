"""Launches by our own C++, all of a pass in one call: Triton's launcher takes longer than a small layer's kernels."""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .launch import Launch, is_descriptor

DRIVER = "libcuda.so.1"
NUMBERS = {"i1": "?", "i8": "b", "i16": "h", "i32": "i", "i64": "q", "u32": "I", "u64": "Q", "fp64": "d"}
WARP = 32
# what kernels may ask for that we do not provide
BEYOND = ("global_scratch_size", "profile_scratch_size", "launch_cooperative_grid", "instrumentation_mode")


@functools.cache
def module() -> ModuleType | None:
    """The compiled module; None in a pure-Python install, where Triton launches."""
    try:
        from ... import _C
    except ImportError:
        return None
    return _C


class Batch(NamedTuple):
    """Kernels that are launched together, and the tensors whose addresses they take."""

    launches: Any
    parts: list[int]
    device: int

    def replay(self, tensors: list[Any]) -> None:
        stream = torch._C._cuda_getCurrentRawStream(self.device)
        self.launches.run(stream, [tensors[part].data_ptr() for part in self.parts])


def batch(traced: Sequence[tuple[Launch, Any]], parts: Mapping[int, int], device: int) -> Batch | None:
    """Launches, each with what it was compiled to, as one call; None where Triton's own launcher is needed.

    Args:
        parts: for the identity of each tensor, its number among those of a replay.
    """
    native = module()
    if native is None or not all(_is_plain(compiled) for _, compiled in traced):
        return None
    packer, launches = _Packer(native, parts), native.Launches(DRIVER, device)
    for launch, compiled in traced:
        launches.add(packer.kernel(launch, compiled))
    return Batch(launches, list(packer.used), device)


def _is_plain(compiled: Any) -> bool:
    """Whether a kernel takes nothing but its arguments and a grid of blocks."""
    metadata = compiled.metadata
    boxes = [kind for kind in compiled.src.signature.values() if str(kind).startswith("tensordesc")]
    mapped = len(metadata.tensordesc_meta or ()) == len(boxes)  # else they are taken apart, as before Hopper
    return mapped and metadata.num_ctas == 1 and not any(getattr(metadata, name, None) for name in BEYOND)


def hooked() -> bool:
    """Whether a profiler listens to Triton's launcher."""
    runtime = triton.knobs.runtime
    return any(getattr(hook, "calls", hook) for hook in (runtime.launch_enter_hook, runtime.launch_exit_hook))


class _Packer:
    """Arguments as compiled kernels take them."""

    def __init__(self, native: ModuleType, parts: Mapping[int, int]) -> None:
        self.native, self._parts = native, parts
        self.used: dict[int, int] = {}  # for each tensor that is needed, its place among the addresses of a run

    def kernel(self, launch: Launch, compiled: Any) -> Any:
        """Without constants, and with two addresses of scratch memory that no kernel of ours needs."""
        metadata = compiled.metadata
        parameters: list[Any] = []
        maps = iter(metadata.tensordesc_meta or ())
        for name, kind in compiled.src.signature.items():
            parameters += self._parameters(launch.arguments[name], kind, maps)
        parameters += [self.native.Value(bytes(8))] * 2
        grid, threads = (*launch.grid, 1, 1)[:3], WARP * metadata.num_warps
        return self.native.Kernel(
            compiled.function, grid, threads, metadata.shared, bool(metadata.launch_pdl), parameters
        )

    def _parameters(self, value: Any, kind: Any, maps: Iterator[Mapping[str, Any]]) -> Iterator[Any]:
        if isinstance(kind, tuple):
            for part, inner in zip(value, kind, strict=True):
                yield from self._parameters(part, inner, maps)
        elif is_descriptor(value):
            yield self._boxes(value, next(maps))
            yield from (self._number("i32", extent) for extent in value.shape)
            yield from (self._number("i64", stride) for stride in value.strides)
        elif isinstance(value, Tensor):
            yield self.native.Address(self._place(value))
        elif kind != "constexpr":
            yield self._number(kind, value)

    def _number(self, kind: str, value: float) -> Any:
        if kind == "fp32":  # struct refuses what rounds to infinity
            return self.native.Value(bytes(ctypes.c_float(value)))
        return self.native.Value(struct.pack(NUMBERS[kind], value))

    def _place(self, tensor: Tensor) -> int:
        return self.used.setdefault(self._parts[id(tensor)], len(self.used))

    def _boxes(self, descriptor: Any, meta: Mapping[str, Any]) -> Any:
        from triton.backends.nvidia.driver import TMA_DTYPE_DEVICE_TO_HOST as TYPES

        strides = [meta["elem_size"] * stride for stride in descriptor.strides]
        return self.native.Boxes(
            self._place(descriptor.base), TYPES[meta["elem_type"]], meta["swizzle"], descriptor.shape, strides,
            meta["block_size"],
        )  # fmt: skip
