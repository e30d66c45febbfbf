"""A small network with every kind of layer that is converted."""

from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2, padding_mode="reflect", padding=1)
        )
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.ModuleDict({"hidden": nn.Linear(8, 6), "out": nn.Linear(6, 4, bias=False)})

    def forward(self, x):
        x = self.norm(self.features(x)).relu().mean((2, 3))
        return self.head["out"](self.head["hidden"](x).relu())


NAMES = ["features.0", "features.2", "head.hidden", "head.out"]
