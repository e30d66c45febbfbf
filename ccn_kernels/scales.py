"""The compact layers of a model, and their alphas: fitted to data, grouped for an optimiser, given an axis."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .layers import CompactConv1d, CompactConv2d, CompactConv3d, CompactLinear

logger = logging.getLogger("ccn_kernels")

COMPACT = (CompactConv1d, CompactConv2d, CompactConv3d, CompactLinear)


def compact_layers(model: nn.Module) -> list[Any]:
    """The model's compact layers, each once."""
    return [module for module in model.modules() if isinstance(module, COMPACT)]


def calibrate(model: nn.Module, batch: Any) -> nn.Module:
    """Sets each compact layer's alpha to the mean of its patches' ``norm + delta`` over ``batch``, front to back.

    A converted pretrained model then starts near the original's outputs. Runs the model once, in evaluation mode and
    without compilation; nothing but alphas changes. A layer that runs several times gets the mean over all its uses.
    A layer that the batch does not reach keeps its alpha, and a warning names it.

    Args:
        batch: the model's input. A mapping is given as keyword arguments, a tuple as positional ones; a model whose
            one argument is itself a mapping or a tuple takes it in a tuple: ``(inputs,)``.

    Returns:
        The model.

    Raises:
        ValueError: the model has no compact layer, or an alpha is parametrised, or the batch has no element, or a
            layer's mean norm is not a finite number in alpha's dtype. No alpha is changed then, nor where the model
            itself raises.
    """
    names = {layer: name for name, layer in model.named_modules() if isinstance(layer, COMPACT)}
    if not names:
        raise ValueError("model has no compact layers: to_compact returns a converted copy, unless inplace=True")
    if computed := [name for layer, name in names.items() if parametrize.is_parametrized(layer, "alpha")]:
        raise ValueError(f"alpha is parametrised in {', '.join(computed)}: remove the parametrisation first")
    args, kwargs = _arguments(batch)
    means = {layer: _Mean(name) for layer, name in names.items()}
    # compiled code may not heed new hooks
    with torch.no_grad(), _measuring(model, means), torch.compiler.set_stance("force_eager"):
        model(*args, **kwargs)
    if missed := [mean.name for mean in means.values() if not mean.patches]:
        logger.warning(
            "calibrate: the batch did not reach %s: alpha is unchanged. If the model computes with such a layer's "
            "weight itself, the layer is not compact in effect: convert with skip=[...]",
            ", ".join(missed),
        )
    return model


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups for a ``torch.optim`` optimiser: alphas are not decayed, all else is by ``weight_decay``.

    Weight decay would pull a scale towards 0, and the layer's whole output with it. Each parameter is in one group,
    once, even where layers share it; frozen ones too, so that they may be thawed later.

        optimizer = torch.optim.AdamW(param_groups(model, 0.05), lr=1e-4)
    """
    alphas = {layer.alpha for layer in compact_layers(model)}
    groups: tuple[list[Tensor], list[Tensor]] = [], []
    for parameter in model.parameters():
        groups[parameter in alphas].append(parameter)
    decayed, scales = groups
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": scales, "weight_decay": 0.0}]


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


class _Mean:
    """A hook that keeps a layer's alpha at the mean of the divisors it has seen so far."""

    def __init__(self, name: str) -> None:
        self.name, self.total, self.patches = name, 0.0, 0

    def __call__(self, layer: Any, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        norm = layer.input_norm(args[0] if args else kwargs["input"])
        if not norm.numel():  # an expert that this batch sends nothing, say
            return
        self.total += float(norm.mean()) * norm.numel()
        self.patches += norm.numel()
        layer.alpha.fill_(self.total / self.patches + layer.delta)
        if not layer.alpha.isfinite().all():
            raise ValueError(f"the mean patch norm in layer {self.name!r} is not a finite {layer.alpha.dtype}")


@contextmanager
def _measuring(model: nn.Module, means: dict[Any, _Mean]) -> Iterator[None]:
    """The model in evaluation mode, with hooks; afterwards as it was, and where something is raised alphas too."""
    alphas = [layer.alpha.clone() for layer in means]
    handles = [layer.register_forward_pre_hook(mean, with_kwargs=True) for layer, mean in means.items()]
    training = {module: module.training for module in model.modules()}
    try:
        for module in training:
            module.training = False  # eval() may do more: a user's train(mode) that merges weights, say
        yield
    except BaseException:
        for layer, alpha in zip(means, alphas, strict=True):
            layer.alpha.copy_(alpha)
        raise
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode


def _arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args = batch if isinstance(batch, tuple) else () if isinstance(batch, Mapping) else (batch,)
    kwargs = dict(batch) if isinstance(batch, Mapping) else {}
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and not value.numel():
            raise ValueError(f"batch is empty: it has a tensor of shape {list(value.shape)}")
    return args, kwargs
