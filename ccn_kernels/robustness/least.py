"""Attacks that look for the smallest change that fools, by Foolbox."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import foolbox
from torch import Tensor, nn

from . import balls
from .attacks import Outcome, predictions, run_foolbox

_BY_GRADIENTS = {
    # in L2, FMN stops far out on these networks: where it leaves half of the images at 3, DDN leaves none at 2
    "linf": ("FMN", lambda steps: foolbox.attacks.LInfFMNAttack(steps=steps, gamma=0.2)),
    "l2": ("DDN", lambda steps: foolbox.attacks.DDNAttack(steps=steps)),
}


@dataclass(frozen=True)
class LeastChange:
    """Looks for the smallest change that fools: "gradient", by fast minimum norm in L-infinity (Pintor et al., 2021)
    and by decoupled direction and norm in L2 (Rony et al., 2019); or "hsj", HopSkipJump, which sees nothing but the
    predicted class (Chen et al., 2020).

    An outcome has ``distance`` [N] in the norm: it tells of every radius at once.
    """

    kind: str = "gradient"
    norm: str = "linf"
    steps: int = 60
    batch_size: int = 250

    def __post_init__(self) -> None:
        if self.kind not in ("gradient", "hsj"):
            raise ValueError(f"kind must be 'gradient' or 'hsj', got {self.kind!r}")
        balls.check((0.0,), self.norm)

    @property
    def name(self) -> str:
        return f"{self.title.lower()}-{self.norm}"

    @property
    def title(self) -> str:
        return "HopSkipJump" if self.kind == "hsj" else _BY_GRADIENTS[self.norm][0]

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Outcome:
        distance, fooled = images.new_zeros(len(images)), predictions(model, images) != labels
        right = ~fooled
        if right.any():
            attacked, success = run_foolbox(self._foolbox(), model, images[right], labels[right], None)
            distance[right], fooled[right] = balls.size(attacked - images[right], self.norm), success
        return {"fooled": fooled, "distance": distance}

    def _foolbox(self) -> Any:
        if self.kind == "gradient":
            return _BY_GRADIENTS[self.norm][1](self.steps)
        return foolbox.attacks.HopSkipJumpAttack(
            steps=self.steps,
            constraint=self.norm,  # type: ignore[arg-type]
            max_gradient_eval_steps=400,
        )
