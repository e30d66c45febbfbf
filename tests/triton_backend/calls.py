"""Calls whose tiles a test chooses, on the device that runs Triton's kernels here: the interpreter or a GPU."""

from typing import NamedTuple

import oracle
import problems
import torch

from ccn_kernels.arguments import resolve
from ccn_kernels.backends import triton
from ccn_kernels.backends.triton.backward_pass import Backward
from ccn_kernels.backends.triton.forward_pass import Forward
from ccn_kernels.backends.triton.launch import Launch, Problem
from ccn_kernels.backends.triton.tiles import HYBRID, Tile

INTERPRETED = triton.interpreting()
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
DTYPES = [torch.float32, torch.float16] + ([] if INTERPRETED else [torch.bfloat16])  # interpreted, bf16 comes out wrong
NARROW = DTYPES[1:]
EVERY = [True] * 4
NAMES = ("input", "weight", "alpha", "bias")  # of gradients, as masks order them

# What a tile of each pass launches.
KERNELS = {
    ("forward", "descriptor"): "forward_descriptor",
    ("forward", "persistent"): "forward_persistent",
    ("forward", "gather"): "forward_gather",
    ("forward", "depthwise"): "forward_depthwise",
    ("forward", "hybrid"): "forward_epilogue",
    ("dgrad", "descriptor"): "dgrad_descriptor",
    ("dgrad", "gather"): "dgrad_gather",
    ("dgrad", "hybrid"): "input_epilogue",
    ("wgrad", "descriptor"): "wgrad_descriptor",
    ("wgrad", "gather"): "wgrad_gather",
    ("wgrad", "hybrid"): "wgrad_reduce",
}


class Run(NamedTuple):
    """What one forward and backward pass gave, on the CPU, and what they launched."""

    results: dict[str, torch.Tensor]
    norm: torch.Tensor
    launches: list[Launch]

    def launched(self, name):
        return [launch for launch in self.launches if launch.kernel.__name__ == name]


def small(kernel, places=32, outputs=16, depth=16, **settings):
    """A tile that little problems fill and overhang."""
    return Tile(kernel, places, outputs, depth, warps=4, stages=2, **settings)


def cheap(dtype):
    """A forward pass or wgrad for tests of another: ATen's product, or where fp16 forbids it a coarse tile."""
    return small("gather", 128, 64, 64) if dtype == torch.float16 else HYBRID


def moved(tensor, device=DEVICE, dtype=None):
    return problems.moved(tensor, device, dtype)


def placed(problem, device=DEVICE):
    return problems.placed(problem, device)


def resolved(problem):
    """The checked call, as the backend gets it."""
    activation = "relu" if problem.relu else None
    geometry = {"stride": 1, "padding": 0, "dilation": 1, **problem.geometry} if problem.rank else {}
    axes = [geometry.get(name, ()) for name in ("stride", "padding", "dilation")]
    return resolve(problem.rank, *problem.operands, *axes, geometry.get("groups", 1), problem.delta, activation)


def run(problem, *, mask=EVERY, save_quotient=None, **tiles):
    """Both passes with the given ``tiles`` ("forward", "dgrad", "wgrad"), those not given chosen by default.

    The quotient is saved where autograd would: not under the fused ReLU.
    """
    here, launches = placed(problem), []
    call = resolved(here)
    save_quotient = not problem.relu if save_quotient is None else save_quotient

    def issue(launch):
        launches.append(launch)
        launch.run()

    kernels = Problem(call.input, call.weight, call.spec, triton.device(here.input.device.index), issue, tiles)
    output, quotient, norm = Forward(kernels, call.bias, call.alpha, save_quotient).run()
    saved = (output if problem.relu else None, quotient if save_quotient else None, norm)
    parts = Backward(kernels, here.grad, call.bias, call.alpha, *saved, mask).run()
    results = {"output": output, **dict(zip(NAMES, parts, strict=True))}
    if problem.bias is None:
        del results["bias"]
    return Run({name: value.cpu() for name, value in results.items()}, norm.cpu(), launches)


def public(problem, backend="triton"):
    """Output and gradients of the public function."""
    return problems.run_on(problem, DEVICE, backend)


def check(problem, **tiles):
    """The passes agree with the oracle, and the chosen tiles are what ran; passes not chosen are cheap."""
    narrow = cheap(problem.input.dtype)
    tiles = {"forward": narrow, "dgrad": HYBRID, "wgrad": narrow, **tiles}
    found = run(problem, mask=[True, True, True, problem.bias is not None], **tiles)
    for kind, tile in tiles.items():
        launched = found.launched(KERNELS[kind, tile.kernel])
        assert len(launched) == 1, (kind, tile)
        if tile.splits > 1:
            assert launched[0].grid[1] == tile.splits
    problems.assert_accurate(problem, found.results)
    norm = oracle.patch_norms(problem.input, problem.weight.shape[2:], **problem.geometry)
    torch.testing.assert_close(found.norm.double(), norm, rtol=1e-5, atol=0)
    return found
