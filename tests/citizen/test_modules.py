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
from torch.utils import mkldnn
from transformers import PretrainedConfig, PreTrainedModel

from ccn_kernels import CompactConv2d, layers

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
def test_a_plain_checkpoint(kind, assign, caplog, monkeypatch):
    monkeypatch.setattr(layers, "_warned_about_alpha", False)  # it is said once a process
    state = nn.Conv2d(3, 4, 3).state_dict()
    layer = kind(3, 4, 3)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(3.0)
    assert layer.load_state_dict(state, strict=True, assign=assign).missing_keys == []
    assert torch.equal(layer.weight, state["weight"])
    assert [record.name for record in caplog.records] == ([] if kind is nn.Conv2d else ["ccn_kernels"])
    assert kind is nn.Conv2d or layer.alpha == 3.0


@pytest.mark.parametrize("learn", [True, False])
@pytest.mark.parametrize("thawed", [True, False])
@pytest.mark.behaviour(
    SECTION, "the same into a layer on the meta device, `assign=True`", ours="works; alpha gets its initial value"
)
def test_a_plain_checkpoint_on_meta(kind, learn, thawed):
    state = nn.Conv2d(3, 4, 3).state_dict()
    layer = kind(3, 4, 3, device="meta", **({} if kind is nn.Conv2d else {"alpha": 3.0, "learn_alpha": learn}))
    layer.requires_grad_(thawed).load_state_dict(state, strict=True, assign=True)
    assert layer(images()).isfinite().all()
    assert all(parameter.requires_grad == thawed for parameter in layer.parameters())
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
@pytest.mark.behaviour(SECTION, "parametrisations: weight norm, spectral norm; a plain one's checkpoint")
def test_parametrisations(kind, name):
    layer, x = NORMS[name](kind(3, 4, 3)), images()
    layer.load_state_dict(NORMS[name](nn.Conv2d(3, 4, 3)).state_dict(), strict=True)
    y = layer(x)
    y.square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in layer.parameters())
    nn.utils.parametrize.remove_parametrizations(layer.eval(), "weight")
    torch.testing.assert_close(layer(x), y, rtol=1e-3, atol=1e-3)


@pytest.mark.behaviour(SECTION, "pruning; a plain layer's pruned checkpoint")
def test_pruning(kind):
    layer = kind(3, 4, 3)
    prune.ln_structured(layer, "weight", amount=0.5, n=2, dim=0)
    layer.load_state_dict(prune.ln_structured(nn.Conv2d(3, 4, 3), "weight", amount=0.5, n=2, dim=0).state_dict())
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


@pytest.mark.behaviour(
    SECTION, "folding a batch norm into the layer: `fuse_conv_bn_eval`", ours="works for a layer without an activation"
)
def test_folding_a_batch_norm(kind):
    pair = nn.Sequential(kind(3, 4, 3), nn.BatchNorm2d(4))
    pair(images(8))
    pair.eval()
    x = images()
    torch.testing.assert_close(fuse_conv_bn_eval(*pair)(x), pair(x))


class Pretrained(PreTrainedModel):
    """A model whose checkpoints transformers reads, of which layers it initialises those that a checkpoint lacks."""

    config_class = PretrainedConfig

    def __init__(self, config, kind=CompactConv2d):
        super().__init__(config)
        self.conv = kind(3, 4, 3, **({} if kind is nn.Conv2d else {"alpha": 3.0}))
        self.post_init()

    def _init_weights(self, module):
        if hasattr(module, "reset_alpha"):
            module.reset_alpha()

    def forward(self, input):
        return self.conv(input)


@pytest.mark.behaviour(
    SECTION,
    "transformers' `from_pretrained` of a plain model's checkpoint",
    ours="works, given `reset_alpha()` in `_init_weights`",
)
def test_from_pretrained(kind, tmp_path):
    plain = Pretrained(PretrainedConfig(), nn.Conv2d)
    plain.save_pretrained(tmp_path)
    model, x = Pretrained.from_pretrained(tmp_path, kind=kind), images()
    assert torch.equal(model.conv.weight, plain.conv.weight)
    assert kind is nn.Conv2d or model.conv.alpha == 3.0
    torch.testing.assert_close(model(x).shape, plain(x).shape)


@pytest.mark.behaviour(
    SECTION,
    "tools that swap layers by `isinstance`: `torch.utils.mkldnn.to_mkldnn`",
    ours="not: the layer becomes a plain one",
)
def test_tools_that_ask_isinstance(kind):
    model, x = nn.Sequential(kind(3, 4, 3)).eval(), images()
    with torch.no_grad():
        expected = nn.functional.conv2d(x, model[0].weight, model[0].bias)
        torch.testing.assert_close(mkldnn.to_mkldnn(model)(x.to_mkldnn()).to_dense(), expected)
