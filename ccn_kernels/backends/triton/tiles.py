"""What is chosen, and for what: tiles, GPUs, and the passes over a call."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from .geometry import Geometry

SQUARES = ("loop", "rows", "images", "plane")
BOXED_SQUARES = ("images", "rows", "plane")  # of descriptors
_BATCHES = (1, 4, 16, 64, 128, 256)


@dataclasses.dataclass(frozen=True)
class Tile:
    """One configuration. A product is places x outputs, summed over depth (wgrad: outputs x depth, over places).

    Attributes:
        kernel: "descriptor", "persistent", "gather", "depthwise", or "hybrid" (cuDNN's product between our passes).
        splits: shares of the sum, added in a fixed order; 0 (for wgrad): as many as fill the GPU.
        warps: of a persistent program, those of one consumer (see persistent.py).
        squares: where a forward pass finds the patch's norm (see fprop.py).
        copies: that write a persistent tile, each some of its places, or of its outputs where these are no fewer.
        boxes: of x that a tall persistent program holds, its stages then being w's; 0 where it is not tall.
    """

    kernel: str
    places: int = 128
    outputs: int = 128
    depth: int = 64
    warps: int = 8
    stages: int = 3
    splits: int = 1
    squares: str = "plane"
    copies: int = 1
    boxes: int = 0


HYBRID = Tile("hybrid")
PERSISTENT_TILES = (
    Tile("persistent", 256, 64, 64, warps=4, stages=4, copies=8),
    Tile("persistent", 128, 128, 64, warps=4, stages=5, copies=2),
)
# These have not run on a GPU yet, so they are never chosen, nor offered to `ccn tune`: `make gpu` tries them.
UNTRIED_TILES = (
    Tile("persistent", 256, 64, 64, warps=4, stages=3, copies=4),
    Tile("persistent", 256, 64, 64, warps=4, stages=5, copies=4, boxes=3),
    Tile("persistent", 256, 64, 64, warps=4, stages=5, copies=2, boxes=2),
    Tile("persistent", 128, 128, 64, warps=4, stages=5, copies=2, boxes=3),
    Tile("persistent", 128, 128, 64, warps=4, stages=5, copies=2, boxes=2),
)


class Device(NamedTuple):
    """What the choice depends on. The interpreter counts as a Hopper GPU of a few processors."""

    name: str
    capability: int  # 90 for 9.0
    processors: int
    is_interpreter: bool = False

    @property
    def overlaps(self) -> bool:
        """Whether a launch can start before the one that it depends on is done (programmatic dependent launch)."""
        return self.capability >= 90 and not self.is_interpreter


class Request(NamedTuple):
    """A pass over a call: hashable, and the same for all batches of a class (see batch_class)."""

    kind: str  # "forward", "dgrad", "wgrad"
    geometry: Geometry
    dtype: str  # "float32", "float16", "bfloat16"
    precision: str  # of fp32 products: "tf32" or "ieee"
    channels_last: bool
    boxable: bool  # whether descriptors can read the operand, perhaps after a copy to channels_last
    writable: bool  # whether a descriptor can write the output

    @property
    def key(self) -> str:
        """What tables call it; the batch is not part of it."""
        g = self.geometry
        axes = ["x".join(map(str, part)) for part in (g.in_extent, g.kernel, g.stride, g.padding, g.dilation)]
        shape = "{}->{} g{} @{} k{} s{} p{} d{}".format(g.in_channels, g.out_channels, g.groups, *axes)
        dtype = self.precision if self.dtype == "float32" else self.dtype
        return f"{dtype} {'channels_last' if self.channels_last else 'contiguous'} {shape}"


def request(
    kind: str, geometry: Geometry, dtype: str, precision: str, channels_last: bool, boxable: bool, writable: bool
) -> Request:
    classed = geometry._replace(batch=batch_class(geometry.batch))
    return Request(kind, classed, dtype, precision, channels_last, boxable, writable)


def batch_class(batch: int) -> int:
    """The batch that stands for all batches of its class: within a class, no kernel is compiled anew."""
    return next((most for most in _BATCHES if batch <= most), _BATCHES[-1])
