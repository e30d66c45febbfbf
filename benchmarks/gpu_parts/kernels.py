"""A kernel's part as the ablation wants it."""

import triton
import triton.language as tl


@triton.jit
def no_squares(plane, at, extent, valid, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
               DILATION: tl.constexpr):  # fmt: skip
    """In the place of indexing.patch_squares: every norm is 1."""
    return tl.full(valid.shape, 1.0, tl.float32)
