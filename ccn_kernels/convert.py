"""Swaps a model's plain layers for compact ones, and fits their scales to data."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from . import layers

logger = logging.getLogger("ccn_kernels")

_CONVS: dict[type[nn.Module], Any] = {
    nn.Conv1d: layers.CompactConv1d,
    nn.Conv2d: layers.CompactConv2d,
    nn.Conv3d: layers.CompactConv3d,
}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PLAIN = (*_CONVS, nn.Linear)
_COMPACT = (*_CONVS.values(), layers.CompactLinear)


@dataclass
class ConversionReport:
    """What :func:`to_compact` did: layer names, and the reason for each that it left alone."""

    converted: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        kept = "".join(f"\n  kept {name}: {reason}" for name, reason in self.kept.items())
        return f"converted {len(self.converted)} layers: {', '.join(self.converted) or 'none'}{kept}"


def to_compact(
    model: nn.Module,
    *,
    only: str | Iterable[str] | None = None,
    skip: str | Iterable[str] | None = None,
    alpha: float = 1.0,
    learn_alpha: bool = True,
    delta: float = 0.01,
    fuse_relu: bool = False,
    inplace: bool = False,
) -> nn.Module:
    """A copy of ``model`` with its ``nn.Conv*d`` and ``nn.Linear`` replaced by compact layers; weights are kept.

    Args:
        only, skip: names or glob patterns (``"features.*"``) of the layers to convert, or to leave alone.
        alpha, learn_alpha, delta: for every new layer.
        fuse_relu: fold an ``nn.ReLU`` that directly follows a converted layer in an ``nn.Sequential`` into it.
        inplace: convert ``model`` itself. Its parameters are kept either way, shared layers stay shared.

    Returns:
        The converted model; ``model.ccn_report`` says what was converted, and what not and why.

    Raises:
        ValueError: a pattern of ``only`` or ``skip`` matches no layer.
    """
    if not inplace:
        model = copy.deepcopy(model)
    only, skip = _patterns("only", only, model), _patterns("skip", skip, model)
    report = ConversionReport()
    settings = {"alpha": alpha, "learn_alpha": learn_alpha, "delta": delta}
    replaced: dict[nn.Module, nn.Module] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        reason = _reason_to_keep(name, module, model, only, skip)
        if reason is None:
            if module not in replaced:
                replaced[module] = _convert(module, settings)
                report.converted.append(name)
            model = _replace(model, name, replaced[module])
        elif reason:
            report.kept[name] = reason
    if fuse_relu:
        _fuse_relus(model, set(replaced.values()))
    model.ccn_report = report  # type: ignore[assignment]
    logger.info("%s", report)
    return model


def compact_layers(model: nn.Module) -> list[Any]:
    """The model's compact layers, each once."""
    return [module for module in model.modules() if isinstance(module, _COMPACT)]


def calibrate(model: nn.Module, batch: Tensor) -> nn.Module:
    """Sets each compact layer's alpha to the mean of its patches' ``norm + delta`` over ``batch``, front to back.

    A converted pretrained model then starts near the original's outputs. Runs the model once, in evaluation mode;
    returns it.
    """
    handles = [layer.register_forward_pre_hook(_set_alpha, with_kwargs=True) for layer in compact_layers(model)]
    training = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            model.eval()(batch)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
    return model


def _set_alpha(layer: Any, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
    norm = layer.input_norm(args[0] if args else kwargs["input"])
    layer.alpha.fill_(norm.mean() + layer.delta)


def shardable(model: nn.Module) -> nn.Module:
    """Gives each compact layer's learnable alpha one axis: FSDP, 1 and 2, and PowerSGD refuse 0-dim parameters.

    Changes ``model`` itself and returns it. Call it after :func:`calibrate`, and before the model is sharded and the
    optimiser made: the alphas, of shape [1] then, are new Parameters. Shared ones stay shared. ``load_state_dict``
    takes the state of a model whose alphas are 0-dim, and the other way round.
    """
    given: dict[nn.Parameter, nn.Parameter] = {}
    for layer in compact_layers(model):
        alpha = layer.alpha
        if isinstance(alpha, nn.Parameter):
            layer.alpha_shape = (1,)
            if alpha.dim() == 0:
                shaped = nn.Parameter(alpha.detach().reshape(1), alpha.requires_grad)
                layer.alpha = given.setdefault(alpha, shaped)
    return model


def _patterns(argument: str, value: str | Iterable[str] | None, model: nn.Module) -> list[str] | None:
    if value is None:
        return None
    patterns = [value] if isinstance(value, str) else list(value)
    modules = model.named_modules(remove_duplicate=False)
    names = [name for name, module in modules if isinstance(module, (*_PLAIN, nn.MultiheadAttention))]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"{argument} names {pattern!r}, which matches no layer that could be converted")
    return patterns


def _reason_to_keep(
    name: str, module: nn.Module, model: nn.Module, only: list[str] | None, skip: list[str] | None
) -> str | None:
    """None: convert it. "": not a layer that could be. Else: why it stays."""
    if not isinstance(module, (*_PLAIN, nn.MultiheadAttention)):
        return ""
    if isinstance(module, _COMPACT):
        return "it is compact already"
    if only is not None and not any(fnmatchcase(name, pattern) for pattern in only):
        return "`only` does not name it"
    if skip is not None and any(fnmatchcase(name, pattern) for pattern in skip):
        return "`skip` names it"
    if isinstance(module, nn.MultiheadAttention):
        return "attention reads its projections' weights itself, so compact layers inside would have no effect"
    if parametrize.is_parametrized(module):
        return "it is parametrised: remove the parametrisation first"
    if type(module) not in _PLAIN:
        return f"{type(module).__name__} is a subclass whose behaviour is not known"
    parent = model.get_submodule(name.rpartition(".")[0])
    if isinstance(parent, nn.TransformerEncoderLayer):
        return "nn.TransformerEncoderLayer reads its weights itself in evaluation"
    if "weight" not in module._parameters:
        return "its weight is computed by a hook (weight or spectral norm): remove it first"
    if any(getattr(module, hooks) for hooks in _HOOKS):
        return "it has hooks, which a new layer would not have"
    return None


def _convert(module: nn.Module, settings: dict) -> nn.Module:
    if isinstance(module, nn.Linear):
        return layers.CompactLinear.from_linear(module, **settings)
    return _CONVS[type(module)].from_conv(module, **settings)


def _replace(model: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    """The model with ``layer`` in the place called ``name``, which is "" where the model itself is the layer."""
    if not name:
        return layer
    model.set_submodule(name, layer)
    return model


def _fuse_relus(model: nn.Module, converted: set[nn.Module]) -> None:
    uses = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    for parent in model.modules():
        if not isinstance(parent, nn.Sequential):
            continue
        for index in range(len(parent) - 1):
            layer: Any = parent[index]
            if layer in converted and uses[layer] == 1 and type(parent[index + 1]) is nn.ReLU:
                layer.activation = "relu"
                parent[index + 1] = nn.Identity()
