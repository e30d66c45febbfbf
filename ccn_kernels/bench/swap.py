"""What a swap to compact layers does to a model: each layer alone, then the whole."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .. import backends
from ..convert import ConversionReport, to_compact
from ..spec import norm_dtype
from .case import incoming_gradient, limit, relative_error
from .clock import Clock
from .factory import Subject, duplicate, one_line
from .timing import interleaved

FLOAT64_LIMIT = 1e-10
PASSES = ("forward", "training")
KINDS = ("plain", "compact")


@dataclass
class Use:
    """Equal layers on equal inputs, and how often they run in one forward pass."""

    plain: nn.Module
    compact: nn.Module
    input: Tensor  # on the meta device
    names: list[str] = field(default_factory=list)
    calls: int = 0

    def __str__(self) -> str:
        return self.names[0]

    def fresh_input(self, device: str) -> Tensor:
        return torch.randn_like(self.input, device=device).requires_grad_(self.input.requires_grad)


def swapped(plain: nn.Module) -> tuple[nn.Module, ConversionReport]:
    compact: Any = to_compact(duplicate(plain), fuse_relu=True, inplace=True)
    return compact, compact.ccn_report


def uses(subject: Subject, compact: nn.Module, names: list[str]) -> list[Use]:
    """The layers of these names, which the swap replaced, in the order in which they run, on the inputs they see."""
    found: dict[Any, Use] = {}

    def note(name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        input = args[0] if args else kwargs["input"]
        new = compact.get_submodule(name)
        needs = (input.requires_grad, *(parameter.requires_grad for parameter in layer.parameters()))
        key = (repr(layer), new.activation, input.shape, input.stride(), input.dtype, needs)
        if key not in found:
            seen = torch.empty_like(input, device="meta").requires_grad_(input.requires_grad)
            found[key] = Use(_with_relu(subject.model, name) if new.activation else layer, new, seen)
        found[key].calls += 1
        if name not in found[key].names:
            found[key].names.append(name)

    layers = {name: subject.model.get_submodule(name) for name in names}
    handles = [
        layer.register_forward_pre_hook(functools.partial(note, name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        subject.model.train()
        with torch.enable_grad():
            subject.run()
    finally:
        for handle in handles:
            handle.remove()
    return list(found.values())


def _with_relu(model: nn.Module, name: str) -> nn.Module:
    """A layer and the ReLU after it, which the compact layer does in one: only together are they a fair rival."""
    siblings = list(model.get_submodule(name.rpartition(".")[0]).children())
    layer = model.get_submodule(name)
    return nn.Sequential(layer, next(after for before, after in pairwise(siblings) if before is layer))


def measure_layer(use: Use, clock: Clock, rounds: int) -> dict[str, Any]:
    """Microseconds of both layers in both passes; none where the compact one is wrong."""
    row: dict[str, Any] = {
        "layers": use.names,
        "calls": use.calls,
        "kind": kind(_bare(use.plain)),
        "input": list(use.input.shape),
        "relu_fused": use.compact.activation == "relu",
        "backend": _backend(use.compact, use.input.dtype, clock.device),
        "relative_error": None,
        "failure": None,
    }
    try:
        input = use.fresh_input(clock.device)
        grad = _gate(use, input, row)
        if row["failure"] is None:
            layers = {"plain": use.plain, "compact": use.compact}
            calls = {(who, way): _call(way, layer, input, grad) for way in PASSES for who, layer in layers.items()}
            for (who, way), times in interleaved(calls, rounds, clock.sample).items():
                row.setdefault(way, {})[who] = times
    except Exception as error:  # no memory, above all
        row["failure"] = one_line(error)
    return row


def _backend(layer: Any, dtype: torch.dtype, device: str) -> str:
    return backends.select(None, device, dtype, layer.weight.dim() - 2)


def kind(layer: Any) -> str:
    """ "Conv2d 3→64 3x3", and what else is not as usual."""
    if isinstance(layer, nn.Linear):
        return f"Linear {layer.in_features}→{layer.out_features}"
    text = f"{type(layer).__name__} {layer.in_channels}→{layer.out_channels} {'x'.join(map(str, layer.kernel_size))}"
    text += "" if set(layer.stride) == {1} else f", stride {'x'.join(map(str, layer.stride))}"
    text += "" if set(layer.dilation) == {1} else f", dilation {'x'.join(map(str, layer.dilation))}"
    return text + ("" if layer.groups == 1 else f", {layer.groups} groups")


def _bare(plain: nn.Module) -> nn.Module:
    return plain[0] if isinstance(plain, nn.Sequential) else plain


def _call(way: str, layer: nn.Module, input: Tensor, grad: Tensor) -> Callable[[], Any]:
    wanted = [tensor for tensor in (input, *layer.parameters()) if tensor.requires_grad]
    if way == "training" and wanted:
        return lambda: torch.autograd.grad(layer(input), wanted, grad)
    return torch.no_grad()(lambda: layer(input))


def _gate(use: Use, input: Tensor, row: dict[str, Any]) -> Tensor:
    """Holds outputs and gradients to the reference; returns the incoming gradient."""
    bare: Any = copy.deepcopy(use.compact)
    bare.backend, bare.activation = "reference", None
    before = bare(input)
    wide = before.detach().to(norm_dtype(before.dtype))
    along = wide if wide.any() else torch.ones_like(wide)  # layers whose weights begin as zeros
    grad = incoming_gradient(along, before.dtype, row["relu_fused"])
    expected = before.relu() if row["relu_fused"] else before
    actual = use.compact(input)
    pairs = [(actual, expected)]
    wanted, same = ([t for t in (input, *layer.parameters()) if t.requires_grad] for layer in (use.compact, bare))
    if wanted:
        found = torch.autograd.grad(actual, wanted, grad), torch.autograd.grad(expected, same, grad)
        pairs += zip(*found, strict=True)
    error = max(0.0 if torch.equal(*pair) else relative_error(*pair) for pair in pairs)
    most = _limit(input)
    row["relative_error"] = float(f"{error:.3g}")
    if not error <= most:  # NaN is wrong
        row["failure"] = f"wrong by {error:.2g} (at most {most:g})"
    return grad


def _limit(input: Tensor) -> float:
    """For two results that both round; on a GPU fp32 may mean TF32."""
    if input.dtype == torch.float64:
        return FLOAT64_LIMIT
    name = str(input.dtype).removeprefix("torch.")
    return limit("tf32" if name == "float32" and input.is_cuda else name, rival=True)
