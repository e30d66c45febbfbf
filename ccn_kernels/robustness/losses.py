"""What gradient attacks climb: losses of logits [N, K], labels [N] and targets [N], one value an image."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """The best wrong class's logit less the right one's: above 0 where the network errs. No scale saturates it."""
    return _best_other(logits, labels) - _of(logits, labels)


def difference_of_logits_ratio(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """The margin over the distance from the first logit to the third (DLR, Croce and Hein, 2020): free of scale."""
    ordered = logits.sort(dim=1, descending=True).values
    return margin(logits, labels, targets) / (ordered[:, 0] - ordered[:, 2] + 1e-12)


def targeted_ratio(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """DLR towards a target, the same paper's equation 7."""
    ordered = logits.sort(dim=1, descending=True).values
    spread = ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2
    return (_of(logits, targets) - _of(logits, labels)) / (spread + 1e-12)


LOSSES: dict[str, Loss] = {
    "ce": cross_entropy,
    "margin": margin,
    "dlr": difference_of_logits_ratio,
    "targeted": targeted_ratio,
}
CLASSES = {"ce": 2, "margin": 2, "dlr": 3, "targeted": 4}  # that a loss needs


def _of(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None]).squeeze(1)


def _best_other(logits: Tensor, classes: Tensor) -> Tensor:
    others = logits.scatter(1, classes[:, None], -torch.inf)
    return others.amax(1)
