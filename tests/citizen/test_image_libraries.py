"""Networks of torchvision and timm, where a CUDA PyTorch is: torchvision breaks beside a CPU build."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conversions import computes_and_trains, takes_states
from torch import nn

from ccn_kernels.convert import to_compact

SIZE = 64
SETTINGS = {
    "torchvision": {"vit_b_16": {"image_size": SIZE}},
    "timm": {"vit_tiny_patch16_224": {"img_size": SIZE}},
}
NAMES = {
    "torchvision": ("resnet50", "convnext_tiny", "mobilenet_v2", "efficientnet_b0", "vit_b_16"),
    "timm": ("resnet50", "convnext_tiny", "mobilenetv2_100", "efficientnet_b0", "vit_tiny_patch16_224"),
}
FOUND = [(library, name) for library in NAMES if importlib.util.find_spec(library) for name in NAMES[library]]
KEPT = {"vit_b_16": 12}  # torchvision's attention is nn.MultiheadAttention


class Classifier(nn.Module):
    """A network of images to logits, called as transformers' are."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, pixel_values, labels):
        logits = self.network(pixel_values)
        return SimpleNamespace(logits=logits, loss=F.cross_entropy(logits, labels))


@pytest.mark.parametrize(("library", "name"), FOUND)
def test_networks(library, name):
    models = importlib.import_module("torchvision.models" if library == "torchvision" else "timm.models")
    plain = Classifier(getattr(models, name)(num_classes=3, **SETTINGS[library].get(name, {})))
    for weight in plain.parameters():  # some start with a head of zeros, which gives zeros plain and compact
        if weight.dim() > 1 and not weight.any():
            nn.init.normal_(weight)
    compact = to_compact(plain)
    attention = [layer for layer, reason in compact.ccn_report.kept.items() if reason.startswith("attention")]
    assert len(attention) >= KEPT.get(name, 0)
    assert compact.ccn_report.kept.keys() == set(attention)
    batch = {"pixel_values": torch.randn(2, 3, SIZE, SIZE), "labels": torch.tensor([0, 2])}
    computes_and_trains(plain, compact, batch)
    takes_states(plain, compact, batch)
