"""The Triton backend's passes driven directly: with tiles that are asked for, and launch by launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..backends import triton as backend
from ..backends.triton.backward_pass import Backward
from ..backends.triton.forward_pass import Forward
from ..backends.triton.launch import Launch, Problem
from ..backends.triton.tiles import HYBRID, Tile
from .case import ALPHA, Case, Family, Named

Tiles = dict[str, Tile]
ALL = [True, True, True, True]
HYBRIDS = {"forward": HYBRID, "dgrad": HYBRID, "wgrad": HYBRID}


class Direct:
    """A case's passes without autograd and dispatcher."""

    def __init__(self, case: Case, tiles: Tiles | None = None, relu: bool = False) -> None:
        self.case, self.relu, self._tiles = case, relu, tiles
        plain: Any = case.plain()
        self.weight, self.bias = plain.weight.detach(), plain.bias.detach()
        self.alpha = torch.tensor(ALPHA, device=case.device, dtype=case.dtype)

    def problem(self, issue: Callable[[Launch], Any] = Launch.run) -> Problem:
        spec, x = self.case.layer.spec._replace(relu=self.relu), self.case.x
        return Problem(x, self.weight, spec, backend.device(x.device.index), issue, self._tiles)

    def calls(self, which: str) -> Callable[[], Named]:
        """A pass as one call, as every provider has it."""
        if which == "forward":
            return self.forward
        grad = self.case.grad(Family(compact=True, relu=self.relu))
        if which == "training":
            return lambda: self.training(grad)
        saved = self.forward(save_quotient=not self.relu)
        return lambda: self.backward(saved, grad)

    @torch.no_grad()
    def forward(self, issue: Callable[[Launch], Any] = Launch.run, save_quotient: bool = False) -> Named:
        results = Forward(self.problem(issue), self.bias, self.alpha, save_quotient).run()
        return dict(zip(("output", "quotient", "norm"), results, strict=True))

    @torch.no_grad()
    def backward(
        self, saved: Named, grad: Tensor, mask: list[bool] = ALL, issue: Callable[[Launch], Any] = Launch.run
    ) -> Named:
        output, quotient = (saved["output"], None) if self.relu else (None, saved["quotient"])
        found = Backward(self.problem(issue), grad, self.bias, self.alpha, output, quotient, saved["norm"], mask).run()
        wanted = zip(("input", "weight", "alpha", "bias"), found, mask, strict=True)
        return {name: gradient for name, gradient, asked in wanted if asked}

    def training(self, grad: Tensor) -> Named:
        saved = self.forward(save_quotient=not self.relu)
        return {"output": saved["output"], **self.backward(saved, grad)}
