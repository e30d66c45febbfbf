"""Which layers are plain ones: those whose weight a compact layer can take over."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from .arguments import DTYPES

PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def why_not(module: nn.Module) -> str | None:
    """Why a layer is no plain one, though it may be derived from one; None where it is."""
    weight = module._parameters.get("weight")
    if parametrize.is_parametrized(module):
        return "it is parametrised: remove the parametrisation first"
    if isinstance(module, LazyModuleMixin):
        return f"{kind(module)} does not know its shape yet: run the model once first"
    if type(module) not in PLAIN:
        return f"{kind(module)} is a subclass whose behaviour is not known"
    if weight is None:
        return "its weight is computed by a hook (weight or spectral norm): remove it first"
    if weight.dtype not in DTYPES:
        return f"its weight is {weight.dtype}"
    if vars(module).keys() & {"forward", "_conv_forward"}:
        return "its forward was replaced, on this one object"
    return None


def kind(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
