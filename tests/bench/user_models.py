"""Models as a user's file holds them."""

MODELS = """
import torch
from torch import nn
from torch.nn.utils import parametrizations, weight_norm


def several():
    shared = nn.Conv2d(4, 4, 3, padding=1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), shared, nn.Tanh(), shared,
        nn.Conv2d(4, 4, 3, padding=1), nn.Tanh(), weight_norm(nn.Conv2d(4, 4, 1)),
        parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), nn.Conv2d(4, 6, 3, stride=2, groups=2), nn.BatchNorm2d(6),
        nn.Flatten(), nn.LazyLinear(5),
    )


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.spare = nn.Embedding(10, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, ids, scale=1.0):
        hidden = self.mix(self.embed(ids) * scale)
        return {"hidden": (hidden, ids), "mean": hidden.mean(1)}


def bare_tokens():
    return Tokens()


def tokens():
    return Tokens(), (torch.zeros(2, 5, dtype=torch.long),)


def named_tokens():
    return Tokens(), {"ids": torch.zeros(2, 5, dtype=torch.long), "scale": torch.ones(5, 1)}


def zeros():
    head = nn.Conv2d(2, 2, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def frozen():
    return nn.Sequential(nn.Conv2d(2, 2, 1).requires_grad_(False), nn.Conv2d(2, 2, 1))


def untrained():
    return nn.Sequential(nn.Conv2d(2, 2, 1)).requires_grad_(False)


KEPT = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).eval()


def kept():
    return KEPT


def small():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))


def broken():
    raise KeyError("no such checkpoint")


def wants(argument):
    return small()


def nothing():
    return None


number = 3
"""


def written(folder):
    """The name of a factory to what `--mine` takes."""
    path = folder / "models.py"
    path.write_text(MODELS)
    return lambda name: f"{path}:{name}"
