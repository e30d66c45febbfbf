"""How networks are trained: the paper's schedules, and its names. Imports nothing, so that the command line may."""

from __future__ import annotations

from dataclasses import dataclass

METHODS = {"SM": "sm", "LS": "ls", "BReLU": "brelu", "L2SM": "l2sm", "CCN": "ccn", "CCN+LS": "ccn+ls", "BN": "bn",
           "LRN": "lrn"}  # fmt: skip  # the paper's names


@dataclass(frozen=True)
class TrainConfig:
    """How it is trained. The defaults are the paper's for MNIST (section 5), but for warm-up and clipping.

    Args:
        milestones: shares of the training after which the learning rate falls.
        decay: what it is multiplied by there.
        warmup_steps, clip: not in the paper; without these two the plain network diverges at its learning rate.
        adversarial_epsilon: half of every batch is FGSM's image at this L-infinity radius (table 4); 0 for none.
        validation: training images that are held out, and judged after each epoch.
        bf16: autocast; attacks, and the images of adversarial training, stay in float32.
        compile: None, or a mode of ``torch.compile``; "reduce-overhead" brings CUDA graphs.
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
    validation: int = 0
    seed: int = 0
    bf16: bool = False
    compile: str | None = None
    channels_last: bool = False


SCHEDULES = {
    "mnist": TrainConfig(),
    "cifar10": TrainConfig(epochs=200, milestones=(0.3, 0.6, 0.8), decay=0.2),
    "digits": TrainConfig(epochs=10, batch_size=32, learning_rate=0.05, warmup_steps=20),  # 1,347 images
    "digits32": TrainConfig(epochs=10, batch_size=32, learning_rate=0.05, warmup_steps=20),
    "folder": TrainConfig(epochs=90, milestones=(1 / 3, 2 / 3), learning_rate=0.05),  # the paper states none
}
ARCHITECTURE_OF = {"mnist": "mnist_cnn", "digits": "mnist_cnn"}  # all else is VGG-11's
