"""The layer as a module: how it is built, moved, saved, loaded, copied, and wrapped."""

import copy
import io
import pickle

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, skip_init
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ccn_kernels import CompactConv2d

SECTION = "Modules and state"


def images(count=2):
    return torch.randn(count, 3, 8, 8)


@pytest.mark.behaviour(SECTION, "`state_dict`, strictly, by `torch.save` and `torch.load(weights_only=True)`")
def test_a_state_dict(network):
    buffer, twin = io.BytesIO(), copy.deepcopy(network)
    torch.save(network.state_dict(), buffer)
    for parameter in twin.parameters():
        parameter.data.fill_(3.0)
    buffer.seek(0)
    assert str(twin.load_state_dict(torch.load(buffer, weights_only=True))) == "<All keys matched successfully>"
    x = images()
    assert torch.equal(twin(x), network(x))


@pytest.mark.behaviour(SECTION, "safetensors")
def test_safetensors(network, tmp_path):
    twin = copy.deepcopy(network)
    safetensors.torch.save_model(network, tmp_path / "model.safetensors")
    for parameter in twin.parameters():
        parameter.data.fill_(3.0)
    assert safetensors.torch.load_model(twin, tmp_path / "model.safetensors") == (set(), [])
    x = images()
    assert torch.equal(twin(x), network(x))


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.behaviour(
    SECTION, "a plain layer's checkpoint, strictly", ours="works; alpha keeps its value, and a log says so"
)
def test_a_plain_checkpoint(kind, assign):
    state = nn.Conv2d(3, 4, 3).state_dict()
    layer = kind(3, 4, 3)
    assert layer.load_state_dict(state, strict=True, assign=assign).missing_keys == []
    assert torch.equal(layer.weight, state["weight"])
    assert kind is nn.Conv2d or layer.alpha == 1.0


@pytest.mark.parametrize("learn", [True, False])
@pytest.mark.behaviour(
    SECTION, "the same into a layer on the meta device, `assign=True`", ours="works; alpha gets its initial value"
)
def test_a_plain_checkpoint_on_meta(kind, learn):
    state = nn.Conv2d(3, 4, 3).state_dict()
    layer = kind(3, 4, 3, device="meta", **({} if kind is nn.Conv2d else {"alpha": 3.0, "learn_alpha": learn}))
    layer.load_state_dict(state, strict=True, assign=True)
    assert layer(images()).isfinite().all()
    if kind is CompactConv2d:
        assert (layer.alpha.item(), isinstance(layer.alpha, nn.Parameter)) == (3.0, learn)


@pytest.mark.behaviour(
    SECTION, "`to_empty` from the meta device, then `reset_parameters`", ours="works; alpha gets its initial value"
)
def test_meta_then_reset(kind):
    layer = kind(3, 4, 3, device="meta", **({} if kind is nn.Conv2d else {"alpha": 3.0})).to_empty(device="cpu")
    assert kind is nn.Conv2d or layer.alpha == 3.0
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(torch.nan)
    layer.reset_parameters()
    assert layer.weight.std() > 0
    assert layer(images()).isfinite().all()
    assert kind is nn.Conv2d or layer.alpha == 3.0


@pytest.mark.behaviour(SECTION, "`skip_init`", ours="works; alpha gets its initial value")
def test_skip_init(kind):
    layer = skip_init(kind, 3, 4, 3)
    assert layer.weight.shape == (4, 3, 3, 3)
    assert kind is nn.Conv2d or layer.alpha == 1.0


@pytest.mark.behaviour(SECTION, "`torch.set_default_dtype`, `with torch.device(...)`")
def test_defaults(kind):
    torch.set_default_dtype(torch.float64)
    try:
        layer = kind(3, 4, 3)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in layer.parameters()} == {torch.float64}
    with torch.device("meta"):
        assert all(p.is_meta for p in kind(3, 4, 3).parameters())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
@pytest.mark.behaviour(SECTION, "`copy.deepcopy`, `pickle`")
def test_copies(network, copied):
    twin, x = copied(network), images()
    assert torch.equal(twin(x), network(x))
    assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in network.parameters()}


@pytest.mark.behaviour(SECTION, "`half()`, `double()`, `to(dtype)`, `to(memory_format=channels_last)`")
def test_moves(kind):
    layer, x = kind(4, 8, 3), torch.randn(2, 4, 6, 6)
    expected = layer(x)
    for dtype, moved in ((torch.float16, layer.half), (torch.float64, layer.double), (torch.bfloat16, layer.bfloat16)):
        y = moved()(x.to(dtype))
        assert {p.dtype for p in layer.parameters()} == {y.dtype} == {dtype}
        torch.testing.assert_close(y.float(), expected, rtol=2e-2, atol=2e-2)
    last = layer.float().to(memory_format=torch.channels_last)(x)
    assert last.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.behaviour(SECTION, "`share_memory`")
def test_shared_memory(kind):
    assert all(p.is_shared() for p in kind(3, 4, 3).share_memory().parameters())


NORMS = {"weight norm": parametrizations.weight_norm, "spectral norm": parametrizations.spectral_norm}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.behaviour(SECTION, "parametrisations: weight norm, spectral norm")
def test_parametrisations(kind, name):
    layer, x = NORMS[name](kind(3, 4, 3)), images()
    y = layer(x)
    y.square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in layer.parameters())
    nn.utils.parametrize.remove_parametrizations(layer.eval(), "weight")
    torch.testing.assert_close(layer(x), y, rtol=1e-3, atol=1e-3)


@pytest.mark.behaviour(SECTION, "pruning")
def test_pruning(kind):
    layer = kind(3, 4, 3)
    prune.ln_structured(layer, "weight", amount=0.5, n=2, dim=0)
    y = layer(images()) - layer.bias[:, None, None]
    assert (y.abs().amax((0, 2, 3)) == 0).sum() == 2


@pytest.mark.behaviour(SECTION, "forward, pre-forward and full backward hooks")
def test_hooks(kind):
    layer, seen = kind(3, 4, 3), []
    layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    layer.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    layer.register_full_backward_hook(lambda module, ins, outs: seen.append((ins[0].shape, outs[0].shape)))
    layer(images().requires_grad_()).sum().backward()
    before, after = (2, 3, 8, 8), (2, 4, 6, 6)
    assert seen == [before, after, (before, after)]


@pytest.mark.behaviour(SECTION, "folding a batch norm into the layer: `fuse_conv_bn_eval`")
def test_folding_a_batch_norm(kind):
    pair = nn.Sequential(kind(3, 4, 3), nn.BatchNorm2d(4))
    pair(images(8))
    pair.eval()
    x = images()
    torch.testing.assert_close(fuse_conv_bn_eval(*pair)(x), pair(x))
