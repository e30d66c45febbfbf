"""The L2-constrained softmax loss, which compact convolution generalises."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from . import reference


def l2_softmax_loss(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    alpha: Tensor | float,
    *,
    delta: float = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Equation 1: cross-entropy of logits ``W (alpha * f / (||f|| + delta)) + b``.

    Shapes:
        features [..., D]; weight [K, D]; bias [K] or None; target [...] of class indices. Returns a scalar.

    Args:
        alpha: the radius that features are scaled to, a number or a 0-dim tensor.
        delta: added to the norm; 0 in the paper's equation, 0.01 in its networks.
        label_smoothing: as in ``F.cross_entropy``; 1 / 9 gives the paper's {0.9, 1 / 90} for ten classes.
    """
    logits = reference.compact_linear(features, weight, bias, alpha, delta=delta)
    classes = logits.shape[-1]
    return F.cross_entropy(logits.reshape(-1, classes), target.reshape(-1), label_smoothing=label_smoothing)
