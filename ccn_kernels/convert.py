"""Swaps a model's plain layers for compact ones; what is then done with their alphas is in scales.py."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from . import layers
from .plain import PLAIN, kind, why_not
from .scales import COMPACT, calibrate, compact_layers, param_groups, shardable

__all__ = ["ConversionReport", "calibrate", "compact_layers", "param_groups", "shardable", "to_compact"]

logger = logging.getLogger("ccn_kernels")

_COMPACT: tuple[Any, ...] = (layers.CompactConv1d, layers.CompactConv2d, layers.CompactConv3d, layers.CompactLinear)
_COMPACT_OF: dict[type[nn.Module], Any] = dict(zip(PLAIN, _COMPACT, strict=True))


@dataclass
class ConversionReport:
    """What :func:`to_compact` did: layer names, and the reason for each that it left alone."""

    converted: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    fused: list[str] = field(default_factory=list)  # those of the converted that took in the ReLU after them

    def __str__(self) -> str:
        fused = f"\n  with the ReLU that follows: {', '.join(self.fused)}" if self.fused else ""
        kept = "".join(f"\n  kept {name}: {reason}" for name, reason in self.kept.items())
        names = ", ".join(name or "the model itself" for name in self.converted) if self.converted else "none"
        layers = "layer" if len(self.converted) == 1 else "layers"
        return f"converted {len(self.converted)} {layers}: {names}{fused}{kept}"


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
    """A copy of ``model`` with its ``nn.Conv*d`` and ``nn.Linear`` made compact layers; weights are kept.

    A layer stays the object that it is and becomes one of the compact class. So all that refers to it sees the compact
    layer, be it under several names or in a plain list; its parameters, hooks, mode and other attributes stay.

    Args:
        only, skip: names or glob patterns (``"features.*"``) of the layers to convert, or to leave alone. A layer with
            several names is converted when ``only`` matches one of them, and left alone when ``skip`` does.
        alpha, learn_alpha, delta: for every new layer. Alpha takes the weight's dtype and device, and is learnt even
            where the weight is frozen, unless ``learn_alpha`` is False.
        fuse_relu: fold an ``nn.ReLU`` that directly follows a converted layer in an ``nn.Sequential`` into it.
        inplace: convert ``model`` itself, and with it every layer that it shares with other models.

    Returns:
        The converted model; ``model.ccn_report`` says what was converted, and what not and why. The same is logged,
        as a warning where no layer was converted.

    Raises:
        ValueError: a pattern of ``only`` or ``skip`` matches no layer, or ``delta`` is negative.
        RuntimeError: the model cannot be copied.
    """
    if not inplace:
        model = _copied(model)
    only, skip = _patterns("only", only, model), _patterns("skip", skip, model)
    report, converted = ConversionReport(), []
    for module, names in _names(model).items():
        reason = _reason_to_keep(module, names, model, only, skip)
        if reason is None:
            _convert(module, alpha, learn_alpha, delta)
            converted.append(module)
            report.converted.append(names[0])
        elif reason:
            report.kept |= dict.fromkeys(names, reason)
    report.kept |= dict.fromkeys(_out_of_sight(model), "only a plain list, tuple or dict holds it: use nn.ModuleList")
    if fuse_relu:
        report.fused = _fuse_relus(model, set(converted))
    model.ccn_report = report  # type: ignore[assignment]
    logger.log(logging.INFO if converted else logging.WARNING, "%s", report)
    return model


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise RuntimeError(f"model cannot be copied; inplace=True converts it as it is. {error}") from error


def _names(model: nn.Module) -> dict[nn.Module, list[str]]:
    """All modules, and all names that each one has."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return names


def _out_of_sight(model: nn.Module) -> Iterator[str]:
    """Plain layers that modules hold in a list, tuple or dict, and that are registered nowhere."""
    known = set(model.modules())
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            items = value if isinstance(value, dict) else dict(enumerate(value)) if _is_list(value) else {}
            for key, item in items.items():
                if isinstance(item, nn.Module) and item not in known and any(map(_could_be, item.modules())):
                    yield f"{name}.{attribute}[{key!r}]".lstrip(".")


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _could_be(module: nn.Module) -> bool:
    return isinstance(module, (*PLAIN, nn.MultiheadAttention))


def _patterns(argument: str, value: str | Iterable[str] | None, model: nn.Module) -> list[str] | None:
    if value is None:
        return None
    patterns = [value] if isinstance(value, str) else list(value)
    names = [name for name, module in model.named_modules(remove_duplicate=False) if _could_be(module)]
    for pattern in patterns:
        if not _matching(names, [pattern]):
            raise ValueError(f"{argument} names {pattern!r}, which matches no layer that could be converted")
    return patterns


def _matching(names: list[str], patterns: list[str]) -> list[str]:
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _reason_to_keep(
    module: nn.Module, names: list[str], model: nn.Module, only: list[str] | None, skip: list[str] | None
) -> str | None:
    """None: convert it. "": not a layer that could be. Else: why it stays."""
    if isinstance(module, COMPACT):
        return "it is compact already"
    if not _could_be(module):
        return f"{kind(module)} is neither nn.Conv*d nor nn.Linear" if _looks_alike(module) else ""
    if only is not None and not _matching(names, only):
        return "`only` does not name it"
    if skip is not None and (named := _matching(names, skip)):
        return "`skip` names it" if len(names) == 1 else f"`skip` names it, as {named[0]}"
    parents = [model.get_submodule(name.rpartition(".")[0]) for name in names]
    if any(isinstance(each, nn.MultiheadAttention) for each in (module, *parents)):
        return "attention reads its projections' weights itself, so compact layers inside would have no effect"
    if any(isinstance(parent, nn.TransformerEncoderLayer) for parent in parents):
        return "nn.TransformerEncoderLayer reads its weights itself in evaluation"
    return why_not(module)


def _looks_alike(module: nn.Module) -> bool:
    """Whether it multiplies by a matrix or kernel: transposed convolutions, transformers' Conv1D, quantised layers."""
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    matrix = weight is not None and not is_lazy(weight) and weight.dim() > 1
    packed = callable(getattr(type(module), "weight", None))  # torch.ao.nn.quantized
    return (matrix or packed) and not isinstance(module, (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm))


def _convert(module: nn.Module, alpha: float, learn_alpha: bool, delta: float) -> None:
    """Makes the very module compact. A new one in its place would miss who else refers to it, and lose its hooks."""
    plain = type(module)
    module.__class__ = _COMPACT_OF[plain]
    try:
        module._add_scale(alpha, learn_alpha, delta, None, None)  # type: ignore[operator]
    except Exception:  # a wrong setting
        module.__class__ = plain
        raise


def _fuse_relus(model: nn.Module, converted: set[nn.Module]) -> list[str]:
    """Only where no code but ``nn.Sequential.forward`` can come between the two, and nobody watches there."""
    uses = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    fused = []
    for name, parent in model.named_modules():
        if not isinstance(parent, nn.Sequential) or type(parent).forward is not nn.Sequential.forward:
            continue
        for index in range(len(parent) - 1):
            layer: Any = parent[index]
            relu = parent[index + 1]
            if layer in converted and uses[layer] == 1 and type(relu) is nn.ReLU and not _watched(layer, relu):
                layer.activation = "relu"
                parent[index + 1] = nn.Identity().train(relu.training)
                fused.append(f"{name}.{list(parent._modules)[index]}".lstrip("."))
    return fused


def _watched(layer: nn.Module, relu: nn.Module) -> bool:
    hooks = ("_forward_hooks", "_backward_hooks", "_backward_pre_hooks", "_forward_pre_hooks")
    return any(getattr(layer, kind) for kind in hooks[:3]) or any(getattr(relu, kind) for kind in hooks)
