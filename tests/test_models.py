"""The networks of the paper: parameters counted by hand from table 10, and which layers each variant makes compact."""

import pytest
import torch
from torch import nn

from ccn_kernels import CompactConv2d, CompactLinear, models

MNIST_LAYERS = [*(f"conv{i}" for i in range(1, 5)), "fc1", "fc2", "fc3"]
VGG_LAYERS = [*(f"conv{i}" for i in range(1, 9)), "fc1", "fc2", "fc3"]

# Weights and biases, written out from table 10. Four valid 3x3 convolutions and two pools leave 4 x 4 x 64 features.
MNIST = (
    (1 * 9 * 32 + 32)
    + (32 * 9 * 32 + 32)
    + (32 * 9 * 64 + 64)
    + (64 * 9 * 64 + 64)
    + (1024 * 200 + 200)
    + (200 * 200 + 200)
    + (200 * 10 + 10)
)
# Padded convolutions and four pools leave 2 x 2 x 512 features of a 32 x 32 image.
VGG = (
    (3 * 9 * 64 + 64)
    + (64 * 9 * 128 + 128)
    + (128 * 9 * 256 + 256)
    + (256 * 9 * 256 + 256)
    + (256 * 9 * 512 + 512)
    + 3 * (512 * 9 * 512 + 512)
    + (2048 * 512 + 512)
    + (512 * 512 + 512)
    + (512 * 10 + 10)
)
ALPHAS = {"l2sm": lambda layers: 1, "ccn": len, "ccn+ls": len}
MNIST_NORM, VGG_NORM = 2 * (32 + 32 + 64 + 64), 2 * (64 + 128 + 256 + 256 + 4 * 512)  # a scale and a shift a channel


def count(model):
    return sum(p.numel() for p in model.parameters())


def compact_names(model):
    return [name for name, layer in model.named_modules() if isinstance(layer, (CompactConv2d, CompactLinear))]


def seeded(make, *args, **settings):
    torch.manual_seed(11)
    return make(*args, **settings)


def test_the_counts_are_those_worked_out_beforehand():
    assert (MNIST, VGG) == (312202, 10537354)


@pytest.mark.parametrize("variant", models.VARIANTS)
def test_the_mnist_network(variant):
    model = models.paper_mnist_cnn(variant)
    norm = MNIST_NORM if variant == "bn" else 0
    assert count(model) == MNIST + norm + ALPHAS.get(variant, lambda layers: 0)(MNIST_LAYERS)
    check_network(model, torch.rand(2, 1, 28, 28), MNIST_LAYERS, variant)


@pytest.mark.parametrize("variant", models.VARIANTS)
def test_vgg11(variant):
    model = models.vgg11(variant)
    norm = VGG_NORM if variant == "bn" else 0
    assert count(model) == VGG + norm + ALPHAS.get(variant, lambda layers: 0)(VGG_LAYERS)
    check_network(model, torch.rand(2, 3, 32, 32), VGG_LAYERS, variant)


def check_network(model, x, layers, variant):
    """Shape, finite gradients for every parameter, and compact layers where the variant wants them."""
    logits = model(x)
    assert logits.shape == (2, 10)
    nn.functional.cross_entropy(logits, torch.tensor([1, 7])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    expected = {"l2sm": ["fc3"], "ccn": layers, "ccn+ls": layers}.get(variant, [])
    assert compact_names(model) == expected
    assert all(model.get_submodule(name).delta == 0.01 for name in expected)


@pytest.mark.parametrize("variant", models.VARIANTS)
def test_every_hidden_layer_is_followed_by_its_activation(variant):
    """A ReLU may be fused, and BReLU clamps to [0, 1]: what leaves a layer says so, whoever computes it."""
    model, seen = models.paper_mnist_cnn(variant).eval(), {}
    for name, module in model.named_children():
        module.register_forward_hook(lambda _, args, out, name=name: seen.update({name: (args[0], out)}))
    model(torch.rand(2, 1, 28, 28))
    for name in ("pool1", "pool2", "flatten", "fc2", "fc3"):
        entering = seen[name][0]
        assert entering.min() >= 0
        assert entering.min() < entering.max()
        assert variant != "brelu" or entering.max() <= 1
    assert seen["fc3"][1].min() < 0  # logits are not rectified


@pytest.mark.parametrize(("make", "layers"), [(models.paper_mnist_cnn, MNIST_LAYERS), (models.vgg11, VGG_LAYERS)])
def test_a_compact_layer_at_each_place(make, layers):
    size = (1, 28, 28) if make is models.paper_mnist_cnn else (3, 32, 32)
    x, plain = torch.rand(1, *size), seeded(make, "sm")
    for place in layers:
        model = seeded(make, "sm", compact_layer=place)
        assert compact_names(model) == [place]
        assert count(model) == count(plain) + 1
        assert not torch.equal(model(x), plain(x))


@pytest.mark.parametrize("make", [models.paper_mnist_cnn, models.vgg11])
def test_one_seed_gives_the_networks_of_table_13(make):
    """A compact fc3 alone is L2SM to the bit, and none at all is SM: outputs, and gradients of the images."""
    x = torch.rand(3, *((1, 28, 28) if make is models.paper_mnist_cnn else (3, 32, 32)))
    pairs = [
        (seeded(make, "sm", compact_layer="fc3"), seeded(make, "l2sm")),
        (seeded(make, "sm", compact_layer=None), seeded(make, "sm")),
    ]
    results = []
    for one, two in pairs:
        found = []
        for model in (one, two):
            image = x.clone().requires_grad_()
            y = model(image)
            found.append((y.detach(), torch.autograd.grad(y[:, 0].sum(), image)[0]))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        results.append(found[0][0])
    assert not torch.equal(*results)


@pytest.mark.parametrize("make", [models.paper_mnist_cnn, models.vgg11])
def test_unknown_names_are_value_errors(make):
    for variant in ("softmax", "", None):
        with pytest.raises(ValueError, match="variant"):
            make(variant)
    for place in ("fc4", "conv9", "pool1", "", 1):
        with pytest.raises(ValueError, match="compact_layer"):
            make("sm", compact_layer=place)
    with pytest.raises(ValueError, match="padding"):
        models.paper_mnist_cnn("sm", padding="full")
    with pytest.raises(ValueError, match="width"):
        make("sm", width=0)


def test_vgg11_takes_other_images_and_classes():
    model = models.vgg11("ccn", num_classes=7, in_channels=1)
    assert model(torch.rand(1, 1, 32, 32)).shape == (1, 7)
    assert count(model) == VGG - 2 * 9 * 64 - 3 * 513 + len(VGG_LAYERS)


def test_options_of_the_mnist_network():
    padded = models.paper_mnist_cnn("ccn", padding="same")
    assert padded(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    assert count(padded) == MNIST + (3136 - 1024) * 200 + len(MNIST_LAYERS)
    dropping = models.paper_mnist_cnn("sm", dropout=0.5)
    assert dropping.dropout.p == 0.5
    x = torch.rand(2, 1, 28, 28)
    assert not torch.equal(dropping(x), dropping(x))
    assert torch.equal(dropping.eval()(x), dropping(x))


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_the_mnist_network_at_half_the_width(padding):
    network = models.paper_mnist_cnn("ccn", padding=padding, width=0.5)
    assert [network.get_submodule(f"conv{i}").out_channels for i in range(1, 5)] == [16, 16, 32, 32]
    assert [network.get_submodule(f"fc{i}").out_features for i in range(1, 4)] == [100, 100, 10]
    assert network(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_images_are_centred_inside_the_model():
    """Attack libraries hand over images in [0, 1]: a grey image must look like zeros to the first layer."""
    model, seen = models.paper_mnist_cnn("sm"), []
    model.conv1.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(torch.full((1, 1, 28, 28), 0.5))
    assert seen[0].abs().max() == 0


@pytest.mark.parametrize("make", [models.paper_mnist_cnn, models.vgg11])
def test_a_grey_image_has_finite_gradients(make):
    """All of its patches are zero: the case that turns naive implementations into NaN."""
    shape = (1, 1, 28, 28) if make is models.paper_mnist_cnn else (1, 3, 32, 32)
    x = torch.full(shape, 0.5, requires_grad=True)
    model = make("ccn")
    model(x).square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_label_smoothing_gives_the_true_class_nine_tenths():
    for variant in models.VARIANTS:
        smoothing = models.label_smoothing(variant, 10)
        assert smoothing == (pytest.approx(1 / 9) if variant in ("ls", "ccn+ls") else 0)
    for classes in (10, 1000):
        smoothing = models.label_smoothing("ls", classes)
        assert 1 - smoothing + smoothing / classes == pytest.approx(0.9)


def test_initialisation_is_kaiming_with_zero_biases():
    model = models.vgg11("ccn")
    for name in ("conv5", "fc1"):
        layer = model.get_submodule(name)
        fan_in = layer.weight[0].numel()
        assert layer.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)
        assert layer.bias.abs().max() == 0
        assert layer.alpha.item() == 1.0
