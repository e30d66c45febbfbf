"""How networks are trained: the paper's schedules, and its names. Imports no torch, so that the command line may."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

METHODS = {"SM": "sm", "LS": "ls", "BReLU": "brelu", "L2SM": "l2sm", "CCN": "ccn", "CCN+LS": "ccn+ls", "BN": "bn",
           "LRN": "lrn"}  # fmt: skip  # the paper's names

TRAININGS = ("plain", "fgsm", "pgd")  # of `ccn study`

# settings: what they must be, in words and as a test
RULES: dict[tuple[str, ...], tuple[str, Callable[[Any], bool]]] = {
    ("epochs", "batch_size"): ("1 or more", lambda value: value >= 1),
    ("learning_rate", "decay"): ("positive and finite", lambda value: 0 < value < math.inf),
    ("milestones",): ("between 0 and 1", lambda value: all(0 < share < 1 for share in value)),
    ("warmup_steps", "validation", "adversarial_steps"): ("0 or more", lambda value: value >= 0),
    ("clip", "weight_decay"): ("0 or more, and finite", lambda value: 0 <= value < math.inf),
    ("momentum",): ("in [0, 1)", lambda value: 0 <= value < 1),
    ("adversarial_epsilon", "adversarial_warmup"): ("in [0, 1]", lambda value: 0 <= value <= 1),
    ("label_smoothing",): ("in [0, 0.5]", lambda value: value is None or 0 <= value <= 0.5),
    ("seed",): ("in [0, 2**63)", lambda value: 0 <= value < 1 << 63),
}


@dataclass(frozen=True)
class TrainConfig:
    """How it is trained. The defaults are the paper's for MNIST (section 5), but for warm-up and clipping.

    Args:
        milestones: shares of the training after which the learning rate falls.
        decay: what it is multiplied by there.
        warmup_steps, clip: not in the paper; without these two the plain network diverges at its learning rate. The
            gradient's norm is cut at ``clip``; 0 leaves it alone.
        adversarial_epsilon: half of every batch is FGSM's image at this L-infinity radius (table 4); 0 for none.
        adversarial_steps: all of every batch is PGD's image after so many steps instead; 0 for FGSM.
        adversarial_warmup: share of the training over which that radius grows from 0; without, PGD's images of a large
            one keep a network that has learned nothing yet from learning.
        label_smoothing: what the true class's target lacks of 1; None for the variant's, 0.1 or 0.
        validation: training images that are held out, and judged after each epoch.
        bf16: autocast; attacks, and the images of adversarial training, stay in float32.
        compile: None, or a mode of ``torch.compile``; "reduce-overhead" brings CUDA graphs.

    Raises:
        ValueError: a setting is out of its range; the message names it.
    """

    epochs: int = 50
    batch_size: int = 128
    learning_rate: float = 0.1
    milestones: tuple[float, ...] = (0.6, 0.8)
    decay: float = 0.1
    warmup_steps: int = 100
    clip: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    adversarial_epsilon: float = 0.0
    adversarial_steps: int = 0
    adversarial_warmup: float = 0.0
    label_smoothing: float | None = None
    validation: int = 0
    seed: int = 0
    bf16: bool = False
    compile: str | None = None
    channels_last: bool = False

    def __post_init__(self) -> None:
        for names, (wanted, holds) in RULES.items():
            for name in names:
                if not holds(getattr(self, name)):
                    raise ValueError(f"{name} must be {wanted}, got {getattr(self, name)}")
        for name in ("adversarial_steps", "adversarial_warmup"):
            if getattr(self, name) and not self.adversarial_epsilon:
                raise ValueError(f"{name} is of adversarial training: give an adversarial_epsilon above 0, too")


SCHEDULES = {
    "mnist": TrainConfig(),
    "cifar10": TrainConfig(epochs=200, milestones=(0.3, 0.6, 0.8), decay=0.2),
    "digits": TrainConfig(epochs=10, batch_size=32, learning_rate=0.05, warmup_steps=20),  # 1,347 images
    "digits32": TrainConfig(epochs=10, batch_size=32, learning_rate=0.05, warmup_steps=20),
    "folder": TrainConfig(epochs=90, milestones=(1 / 3, 2 / 3), learning_rate=0.05),  # the paper states none
}
ARCHITECTURE_OF = {"mnist": "mnist_cnn", "digits": "mnist_cnn"}  # all else is VGG-11's
