import itertools

import pytest
import torch

from ccn_kernels import models
from ccn_kernels.layers import CompactConv2d, CompactLinear

NETWORKS = {"mnist": (models.paper_mnist_cnn, (1, 28, 28), 7), "cifar": (models.vgg11, (3, 32, 32), 11)}
CONVS = {"mnist": 4, "cifar": 8}


def conv_parameters(*widths):
    return sum(a * b * 9 + b for a, b in itertools.pairwise(widths))


def linear_parameters(*widths):
    return sum(a * b + b for a, b in itertools.pairwise(widths))


# table 10, valid and same padding, by hand
PLAIN_PARAMETERS = {
    "mnist": conv_parameters(1, 32, 32, 64, 64) + linear_parameters(1024, 200, 200, 10),
    "cifar": conv_parameters(3, 64, 128, 256, 256, 512, 512, 512, 512) + linear_parameters(2048, 512, 512, 10),
}


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("variant", models.VARIANTS)
def test_every_variant_has_table_10_s_parameters_and_trains(network, variant):
    make, shape, layers = NETWORKS[network]
    model = make(variant)
    logits = model(torch.rand(2, *shape))
    assert logits.shape == (2, 10)
    logits.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    extra = {"ccn": layers, "ccn+ls": layers, "l2sm": 1}.get(variant, 0)  # an alpha a compact layer
    if variant == "bn":
        extra = sum(2 * m.num_features for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
        assert extra > 0
    assert count(model) == PLAIN_PARAMETERS[network] + extra


@pytest.mark.parametrize("network", NETWORKS)
def test_a_compact_layer_at_any_one_place(network):
    make, shape, layers = NETWORKS[network]
    names = [f"conv{i + 1}" for i in range(CONVS[network])] + ["fc1", "fc2", "fc3"]
    assert len(names) == layers
    for name in names:
        model = make("sm", compact_layer=name)
        compact = [n for n, m in model.named_modules() if isinstance(m, (CompactConv2d, CompactLinear))]
        assert compact == [name]
        assert model(torch.rand(1, *shape)).isfinite().all()


def test_one_seed_gives_every_variant_the_same_weights():
    def logits(*args, **kwargs):
        torch.manual_seed(3)
        model = models.paper_mnist_cnn(*args, **kwargs)
        return model(torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0)))

    assert torch.equal(logits("sm", compact_layer="fc3"), logits("l2sm"))
    assert torch.equal(logits("sm"), logits("ls"))
    assert not torch.equal(logits("sm"), logits("l2sm"))


def test_bounded_relu_is_bounded():
    model = models.paper_mnist_cnn("brelu")
    hidden = model[:-1](torch.rand(8, 1, 28, 28) * 10)
    assert hidden.min() >= 0
    assert hidden.max() <= 1


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_padding_and_dropout_are_options(padding):
    model = models.paper_mnist_cnn("ccn", padding=padding, dropout=0.5)
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    assert any(isinstance(module, torch.nn.Dropout) for module in model)


def test_vgg11_takes_other_classes_and_channels():
    assert models.vgg11("ccn", 7, 1)(torch.rand(2, 1, 32, 32)).shape == (2, 7)


def test_label_smoothing_gives_the_true_class_nine_tenths():
    assert models.label_smoothing("ls") == pytest.approx(1 / 9)
    assert 1 - models.label_smoothing("ccn+ls", 1000) * 999 / 1000 == pytest.approx(0.9)
    assert models.label_smoothing("ccn") == 0


@pytest.mark.parametrize("network", NETWORKS)
def test_what_is_unknown_is_named(network):
    make = NETWORKS[network][0]
    with pytest.raises(ValueError, match="variant must be one of"):
        make("resnet")
    with pytest.raises(ValueError, match="compact_layer must be one of"):
        make("sm", compact_layer="conv9")
    with pytest.raises(ValueError, match="padding"):
        models.paper_mnist_cnn(padding="full")
