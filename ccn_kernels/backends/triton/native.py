"""Launches by our own C++, all of a pass in one call: Triton's launcher takes longer than a small layer's kernels."""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .launch import Launch

DRIVER = "libcuda.so.1"
NUMBERS = {"i1": "?", "i8": "b", "i16": "h", "i32": "i", "i64": "q", "u32": "I", "u64": "Q", "fp32": "f", "fp64": "d"}
WARP = 32


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


def batch(kernels: list[tuple[Launch, Any]], parts: Mapping[int, int], device: int) -> Batch | None:
    """The compiled launches as one call, or None where this module cannot stand in for Triton's launcher.

    Args:
        parts: for the identity of each tensor, its number among those of a replay.
    """
    native = module()
    if native is None or not all(_is_plain(compiled) for _, compiled in kernels):
        return None
    used: dict[int, int] = {}  # which address of a run is which tensor
    launches = native.Launches(DRIVER, device)
    for launch, compiled in kernels:
        try:
            parameters = list(
                _parameters(launch, compiled, lambda tensor: used.setdefault(parts[id(tensor)], len(used)))
            )
        except KeyError:  # a type of number that none of our kernels takes today
            return None
        grid, metadata = (*launch.grid, 1, 1)[:3], compiled.metadata
        launches.add(
            native.Kernel(
                compiled.function,
                grid,
                WARP * metadata.num_warps,
                metadata.shared,
                bool(metadata.launch_pdl),
                parameters,
            )
        )
    return Batch(launches, list(used), device)


def _is_plain(compiled: Any) -> bool:
    """Whether a kernel takes nothing but its parameters and a grid of blocks."""
    metadata = compiled.metadata
    needs = ("global_scratch_size", "profile_scratch_size", "launch_cooperative_grid", "gsan")
    return metadata.num_ctas == 1 and not any(getattr(metadata, name, None) for name in needs)


def _parameters(launch: Launch, compiled: Any, address: Any) -> Iterator[Any]:
    """As the compiled kernel takes them: its arguments without constants, then two addresses of scratch memory."""
    maps = iter(compiled.metadata.tensordesc_meta or ())
    for name, kind in compiled.src.signature.items():
        yield from _parameter(launch.arguments[name], kind, maps, address)
    for _ in range(2):
        yield module().Value(bytes(8))  # type: ignore[union-attr]


def _parameter(value: Any, kind: Any, maps: Iterator[dict[str, Any]], address: Any) -> Iterator[Any]:
    native = module()
    assert native is not None
    if isinstance(kind, tuple):
        for part, inner in zip(value, kind, strict=True):
            yield from _parameter(part, inner, maps, address)
    elif isinstance(value, TensorDescriptor):
        yield _boxes(value, next(maps), address(value.base))
        for number in value.shape:
            yield native.Value(struct.pack("i", number))
        for number in value.strides:
            yield native.Value(struct.pack("q", number))
    elif isinstance(value, Tensor):
        yield native.Address(address(value))
    elif kind != "constexpr":
        yield native.Value(struct.pack(NUMBERS[kind], value))


def _boxes(descriptor: TensorDescriptor, meta: Mapping[str, Any], part: int) -> Any:
    size = meta["elem_size"]
    strides = [size * stride for stride in descriptor.strides]
    return module().Boxes(  # type: ignore[union-attr]
        part, _types()[meta["elem_type"]], meta["swizzle"], descriptor.shape, strides, meta["block_size"]
    )


@functools.cache
def _types() -> Mapping[int, int]:
    """The driver's number of a type, by Triton's."""
    from triton.backends.nvidia.driver import TMA_DTYPE_DEVICE_TO_HOST

    return TMA_DTYPE_DEVICE_TO_HOST


def hooked() -> bool:
    """Whether a profiler asks Triton's launcher to tell it of launches."""
    runtime = triton.knobs.runtime
    return bool(runtime.launch_enter_hook.calls or runtime.launch_exit_hook.calls)
