"""DeepFool as libraries of 2018 had it, to explain the paper's tables."""

from __future__ import annotations

from typing import Any

import eagerpy
import torch
from foolbox.attacks import L2DeepFoolAttack
from foolbox.attacks.base import get_criterion
from torch import Tensor


class ClippedDeepFool(L2DeepFoolAttack):
    """Each step starts from the clipped image, where today's adds its steps up and clips their sum.

    What a step wants beyond [0, 1] is lost, so an image whose way out leads along the border stalls.
    """

    def run(self, model: Any, inputs: Any, criterion: Any, *, early_stop: float | None = None, **kwargs: Any) -> Any:
        x, restore = eagerpy.astensor_(inputs)
        criterion, images = get_criterion(criterion), x.raw
        with torch.no_grad():
            logits = model(images)
        classes = logits.topk(
            min(self.candidates or logits.shape[1], logits.shape[1])
        ).indices  # [N, K], likeliest first
        for _ in range(self.steps):
            images = images.detach().requires_grad_()
            logits = model(images)
            done = criterion(eagerpy.astensor(images), eagerpy.astensor(logits)).raw
            if done.all():
                break
            step = self._step(logits.gather(1, classes), images)
            moved = (images + (1 + self.overshoot) * step).clamp(*model.bounds)
            images = torch.where(done.view(-1, *[1] * (images.dim() - 1)), images, moved)
        return restore(eagerpy.astensor(images.detach()))

    def _step(self, logits: Tensor, images: Tensor) -> Tensor:
        """To the nearest of the borders between the first class and the others, as if they were planes."""
        gaps = (logits[:, 1:] - logits[:, :1]).unbind(1)
        gradients = torch.stack(
            [torch.autograd.grad(gap.sum(), images, retain_graph=True)[0] for gap in gaps], dim=1
        )  # [N, K - 1, C, H, W]
        losses, grads = eagerpy.astensor(torch.stack(gaps, dim=1).detach()), eagerpy.astensor(gradients)
        distances = self.get_distances(losses, grads)
        best, rows = distances.argmin(axis=1), range(len(images))
        return self.get_perturbations(distances[rows, best] + 1e-4, grads[rows, best]).raw
