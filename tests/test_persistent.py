"""The persistent kernel for Hopper, compiled for it and run on a CPU, instruction by instruction."""

import math
import re
from types import SimpleNamespace

import oracle
import pytest
import torch
from emulator import ptx
from problems import relative_error

from ccn_kernels.backends.triton import limits, native, offline
from ccn_kernels.backends.triton.forward_pass import Forward
from ccn_kernels.backends.triton.launch import Problem, is_descriptor
from ccn_kernels.backends.triton.tiles import PERSISTENT_TILES, UNTRIED_TILES, Device
from ccn_kernels.spec import ConvSpec

NARROW, WIDE = PERSISTENT_TILES
SHORT, TALL_NARROW, TALL_NARROWER, TALL_WIDE, TALL_WIDER = UNTRIED_TILES
PACKED = SimpleNamespace(Value=ptx.Value, Address=ptx.Address, Boxes=ptx.Boxes, Kernel=ptx.Kernel)


def emulate(launch, seed, change=lambda text: text):
    """Runs a launch as native.py would pack it. ``change``: of its code."""
    with offline.target(90):
        compiled = launch.kernel.warmup(**launch.arguments, grid=launch.grid, **launch.options)
    compiled.module, compiled.function = "loaded", 0
    values = [value.base if is_descriptor(value) else value for value in launch.arguments.values()]
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    packer = native._Packer(PACKED, {id(tensor): part for part, tensor in enumerate(tensors)})
    kernel = packer.kernel(launch, compiled)
    ptx.Launch(change(compiled.asm["ptx"]), kernel, [tensors[part] for part in packer.used]).run(seed)


class Call:
    """A random call of a shape, a tile for it, and what became of it."""

    def __init__(self, tile, batch, channels, outputs, size, *, kernel=3, padding=1, dilation=1, dtype=torch.bfloat16,
                 bias=True, relu=False, quotient=False, processors=1, change=lambda text: text, traced=False,
                 seed=0):  # fmt: skip
        torch.manual_seed(seed)
        last = {"memory_format": torch.channels_last}
        self.x = torch.randn(batch, channels, *size).to(dtype).contiguous(**last)
        self.x[0] = 0
        self.w = torch.randn(outputs, channels, kernel, kernel).to(dtype).contiguous(**last)
        self.bias, self.alpha = torch.randn(outputs).to(dtype) if bias else None, torch.tensor(1.25)
        self.geometry = {"padding": padding, "dilation": dilation}
        self.relu = relu
        self.trace = None

        def issue(launch):
            if launch.kernel.__name__ == "sum_of_squares":
                launch.arguments["plane"].copy_(self.x.float().square().sum(1).flatten(1)[:, None])
            else:
                if traced:
                    self.trace = torch.zeros(launch.grid[0], -(-launch.arguments["tiles"] // launch.grid[0]), 4).long()
                self.launch = launch._replace(arguments={**launch.arguments, "trace": self.trace})
                emulate(self.launch, seed, change)

        spec = ConvSpec((1, 1), (padding,) * 2, (dilation,) * 2, 1, 0.01, relu)
        problem = Problem(self.x, self.w, spec, Device("", 90, processors), issue, {"forward": tile})
        self.y, self.quotient, self.norm = Forward(problem, self.bias, self.alpha, quotient).run()

    def check(self):
        allowed = 4e-3 if self.x.dtype == torch.bfloat16 else 5e-4
        operands = [t if t is None else t.double() for t in (self.x, self.w, self.bias)]
        exact = oracle.compact_conv(*operands, self.alpha.double(), delta=0.01, relu=self.relu, **self.geometry)
        assert relative_error(self.y, exact) < allowed
        norm = oracle.patch_norms(self.x, self.w.shape[2:], **self.geometry)
        torch.testing.assert_close(self.norm.double(), norm, rtol=1e-5, atol=0)
        if self.quotient.numel():
            exact = oracle.compact_conv(*operands[:2], delta=0.01, **self.geometry)
            assert relative_error(self.quotient, exact) < allowed


@pytest.mark.parametrize(
    ("resident", "call"),
    [
        (True, lambda: Call(NARROW, 3, 64, 56, (11, 13), relu=True)),
        (True, lambda: Call(WIDE, 4, 128, 128, (13, 10), kernel=1, padding=0, bias=False)),
        (False, lambda: Call(NARROW, 3, 128, 64, (9, 14), quotient=True)),
        (
            False,
            lambda: Call(
                WIDE, 2, 64, 136, (10, 9), padding=2, dilation=2, bias=False, dtype=torch.float16, processors=2
            ),
        ),
        (False, lambda: Call(WIDE, 2, 64, 128, (5, 18), quotient=True, seed=1)),
        (True, lambda: Call(SHORT, 3, 64, 56, (11, 13), relu=True)),
    ],
    ids=["resident", "resident pixels", "ring, quotient", "two blocks, fp16", "quotient", "few stages"],
)
def test_results_are_right(resident, call):
    """Ragged edges on all sides, more tiles than consumers, weights in one block or two."""
    call = call()
    assert call.launch.arguments["RESIDENT"] == resident
    assert call.launch.arguments["tiles"] >= 3 * call.launch.grid[0]
    call.check()


TALL = {
    "resident": (True, lambda: Call(TALL_NARROW, 5, 64, 56, (16, 24), relu=True)),
    "resident, quotient": (True, lambda: Call(TALL_NARROWER, 5, 64, 56, (13, 20), quotient=True)),
    "ring": (False, lambda: Call(TALL_NARROWER, 5, 128, 64, (15, 14), quotient=True)),
    "two blocks, fp16": (
        False,
        lambda: Call(TALL_WIDE, 9, 64, 136, (12, 10), bias=False, dtype=torch.float16, processors=2),
    ),
    "dilated": (False, lambda: Call(TALL_WIDER, 4, 64, 128, (16, 14), padding=2, dilation=2)),
    "one image": (False, lambda: Call(TALL_WIDE, 1, 192, 128, (33, 20), quotient=True)),
    "even kernel": (False, lambda: Call(TALL_WIDER, 7, 128, 128, (14, 14), kernel=2, padding=0)),
}


@pytest.mark.parametrize("name", TALL)
def test_tall_tiles(name):
    """`make test-oldest-triton` compiles them; a newer Triton, which cannot, has them refused."""
    resident, make = TALL[name]
    if limits.triton_release() != limits.TALL_GLUON:
        with pytest.raises(ValueError, match="alone allows, found"):
            make()
        return
    call = make()
    assert call.launch.arguments["RESIDENT"] == resident
    assert call.launch.arguments["tiles"] >= 3 * call.launch.grid[0]
    call.check()


def test_a_trace_tells_whose_turn_it_was():
    """Of each tile: its turn, its last product under way, all products done, all copies issued."""
    call = Call(NARROW, 3, 64, 56, (11, 13), traced=True)
    call.check()
    clocks = call.trace.flatten(0, 1)
    assert (clocks.diff(dim=1) > 0).all()
    assert (clocks[1:, 0] > clocks[:-1, 1]).all(), "a turn begins when the one before it is over"


FAULTS = {
    "stages are released too early": (r"(wgmma\.wait_group\S+\s+)1;", r"\g<1>2;"),
    "a tile ends too early": (r"(wgmma\.wait_group\S+\s+)0;", r"\g<1>1;"),
    "buffers are filled too early": (r"(bulk\.wait_group\.read\s+)1;", r"\g<1>9;"),
    "half is enough": (r"(expect_tx\S+ _, \[%r\d+\], )(\d+);", lambda found: f"{found[1]}{int(found[2]) // 2};"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("tile", [WIDE, TALL_WIDE], ids=["wide", "tall"])
def test_faults_are_seen(tile, fault):
    if tile.boxes and limits.triton_release() != limits.TALL_GLUON:
        with pytest.raises(ValueError, match="alone allows, found"):
            Call(tile, 3, 64, 128, (16, 16))
        return
    pattern, instead = FAULTS[fault]

    def change(text):
        changed, count = re.subn(pattern, instead, text)
        assert count, "nothing was changed"
        return changed

    with pytest.raises(AssertionError, match=r"^(?!nothing was changed)"):
        Call(tile, 3, 64, 128, (16, 16), change=change).check()


@pytest.mark.parametrize("size", [10, 25, 26, 27])
def test_weights_stay_by_the_box_that_is_launched(size, monkeypatch):
    """The same for all batches of a class, and within what a block may have."""
    monkeypatch.setattr(limits, "triton_release", lambda: limits.TALL_GLUON)
    monkeypatch.setattr("ccn_kernels.backends.triton.persistent.swizzled", lambda descriptor: descriptor)
    found = set()
    for batch in (5, 12, 13, 16):
        launches = []
        x = torch.empty(batch, 64, size, size, dtype=torch.bfloat16, device="meta", memory_format=torch.channels_last)
        w = torch.empty(64, 64, 3, 3, dtype=torch.bfloat16, device="meta")
        spec = ConvSpec((1, 1), (1, 1), (1, 1), 1, 0.01, False)
        problem = Problem(x, w, spec, Device("", 90, 132), launches.append, {"forward": TALL_NARROW})
        Forward(problem, None, torch.empty((), device="meta"), False).run()
        arguments = launches[-1].arguments
        rows, *rest = arguments["BOX"]
        held = arguments["BOXES"] * (rows + 2) * math.prod(rest) + 64 * (9 if arguments["RESIDENT"] else 5)
        assert 2 * 64 * held + 4 * 2 * 64 * 64 < limits.SHARED_LIMITS[90]
        found.add((arguments["BOX"], arguments["RESIDENT"]))
    assert len(found) == 1
