import copy
import inspect
import pickle

import oracle
import pytest
import torch
from torch import nn

import ccn_kernels
from ccn_kernels import CompactConv1d, CompactConv2d, CompactConv3d, CompactLinear, layers

PAIRS = {
    CompactConv1d: (nn.Conv1d, (3, 4, 3), (2, 3, 7)),
    CompactConv2d: (nn.Conv2d, (3, 4, 3), (2, 3, 7, 6)),
    CompactConv3d: (nn.Conv3d, (3, 4, 3), (2, 3, 5, 6, 4)),
    CompactLinear: (nn.Linear, (3, 4), (2, 3)),
}


@pytest.fixture(params=PAIRS, ids=lambda cls: cls.__name__)
def pair(request):
    """(compact class, plain class, constructor arguments, input shape)"""
    return request.param, *PAIRS[request.param]


def share(compact, plain, **settings):
    return (compact.from_linear if compact is CompactLinear else compact.from_conv)(plain, **settings)


def test_the_signature_is_the_plain_layer_s_and_ours(pair):
    compact, plain, args, _ = pair
    theirs, ours = (list(inspect.signature(cls).parameters.values()) for cls in (plain, compact))
    assert [(p.name, p.default) for p in ours[: len(theirs)]] == [(p.name, p.default) for p in theirs]
    added = {p.name: p.default for p in ours[len(theirs) :]}
    assert added == {"alpha": 1.0, "learn_alpha": True, "delta": 0.01, "activation": None, "backend": None}
    assert all(p.kind is p.KEYWORD_ONLY for p in ours[len(theirs) :])
    assert isinstance(compact(*args), plain)


def test_alpha_is_a_parameter_or_a_buffer(pair):
    compact, _, args, _ = pair
    learned = compact(*args, alpha=2.5)
    assert isinstance(learned.alpha, nn.Parameter)
    assert (learned.alpha.shape, learned.alpha.item()) == ((), 2.5)
    fixed = compact(*args, learn_alpha=False)
    assert "alpha" in dict(fixed.named_buffers())
    assert "alpha" not in dict(fixed.named_parameters())


def test_from_plain_shares_the_parameters(pair):
    compact, plain, args, shape = pair
    source = plain(*args, dtype=torch.float64).eval()
    layer = share(compact, source, alpha=3.0, delta=0.1, activation="relu")
    assert layer.weight is source.weight
    assert layer.bias is source.bias
    assert (layer.alpha.dtype, layer.alpha.device) == (source.weight.dtype, source.weight.device)
    assert not layer.training
    x = torch.randn(shape).double()
    torch.testing.assert_close(layer(x), oracle.compact_conv(x, source.weight, source.bias, 3.0, delta=0.1, relu=True))
    assert share(compact, plain(*args, bias=False)).bias is None


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [2, (1, 2), "same"])
def test_every_padding_mode(backend, mode, padding):
    layer = CompactConv2d(3, 4, (2, 3), padding=padding, padding_mode=mode, backend=backend, dtype=torch.float64)
    x = torch.randn(2, 3, 7, 6).double()
    expected = oracle.compact_conv(x, layer.weight, layer.bias, padding=padding, padding_mode=mode)
    torch.testing.assert_close(layer(x), expected)
    norms = oracle.patch_norms(x, (2, 3), padding=padding, padding_mode=mode)
    torch.testing.assert_close(layer.input_norm(x), norms)


def test_a_plain_layer_s_state_is_taken_strictly_with_one_warning(pair, caplog, monkeypatch):
    compact, plain, args, _ = pair
    monkeypatch.setattr(layers, "_warned_about_alpha", False)
    model, state = nn.Sequential(compact(*args, alpha=2.0), compact(*args)), {}
    for index in range(2):
        state |= {f"{index}.{name}": value for name, value in plain(*args).state_dict().items()}
    model.load_state_dict(state, strict=True)
    assert torch.equal(model[1].weight, state["1.weight"])
    assert model[0].alpha.item() == 2.0
    (record,) = caplog.records
    assert "0.alpha" in record.getMessage()
    del state["0.weight"]
    with pytest.raises(RuntimeError, match=r"0\.weight"):
        model.load_state_dict(state)


def test_state_copy_and_pickle_keep_everything(pair):
    compact, _, args, shape = pair
    layer = compact(*args, alpha=2.0, delta=0.1, activation="relu", backend="reference")
    x = torch.randn(shape)
    other = compact(*args, delta=0.1, activation="relu", backend="reference")
    other.load_state_dict(layer.state_dict())
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), other):
        assert torch.equal(twin(x), layer(x))
        assert repr(twin) == repr(layer)
    assert repr(layer).endswith("delta=0.1, activation='relu', backend='reference')")


def test_the_dtype_follows_the_module(pair):
    compact, _, args, shape = pair
    layer = compact(*args).to(torch.bfloat16)
    assert layer.alpha.dtype == torch.bfloat16
    assert layer(torch.randn(shape).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"delta": -1}, "delta"), ({"activation": "tanh"}, "activation"), ({"backend": "x"}, "backend")],
)
def test_bad_settings_are_refused_at_once(pair, settings, name):
    compact, _, args, _ = pair
    with pytest.raises(ValueError, match=name):
        compact(*args, **settings)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_as_conv2d(backend, dtype):
    layer, x = CompactConv2d(3, 4, 3, backend=backend), torch.randn(2, 3, 7, 6, requires_grad=True)
    with torch.autocast("cpu", dtype):
        output, plain = layer(x), nn.Conv2d(3, 4, 3)(x)
    assert output.dtype == plain.dtype == dtype
    narrowed = [t.detach().to(dtype) for t in (x, layer.weight, layer.bias)]
    torch.testing.assert_close(output.double(), oracle.compact_conv(*narrowed), rtol=0.02, atol=0.02)
    with torch.autocast("cpu", dtype):  # some call backward inside
        output.float().square().sum().backward()
    assert (x.grad.dtype, layer.weight.grad.dtype, layer.alpha.grad.dtype) == (torch.float32,) * 3
    expected = oracle.gradients(*narrowed, layer.alpha, 2 * output.detach())
    torch.testing.assert_close(x.grad.double(), expected["input"], rtol=0.05, atol=0.05)


def test_autocast_leaves_fp64_alone():
    with torch.autocast("cpu", torch.bfloat16):
        layer = CompactConv2d(3, 4, 3, dtype=torch.float64)
        assert layer(torch.randn(1, 3, 5, 5).double()).dtype == torch.float64


class Counter:
    """A compiler that only counts the graphs that it is given."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("dynamic", [None, True, False])
def test_no_graph_breaks_and_no_more_graphs_than_conv2d(backend, dynamic, grad):
    counts = {}
    for cls, settings in ((nn.Conv2d, {}), (CompactConv2d, {"backend": backend})):
        torch.compiler.reset()
        layer = cls(3, 4, 3, padding=1, **settings)
        counts[cls] = Counter()
        compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend=counts[cls])
        for batch in (2, 3, 5, 4):
            x = torch.randn(batch, 3, 6, 6, requires_grad=grad)
            torch.testing.assert_close(compiled(x), layer(x))
    assert counts[CompactConv2d].graphs <= counts[nn.Conv2d].graphs


@pytest.mark.parametrize("activation", [None, "relu"])
def test_inductor_equals_eager_in_training(backend, activation):
    torch.compiler.reset()
    conv = CompactConv2d(3, 4, 3, activation=activation, backend=backend)
    after = nn.Identity() if activation else nn.ReLU(inplace=True)
    model = nn.Sequential(conv, after, nn.Flatten(), CompactLinear(64, 5, backend=backend))
    x = torch.randn(2, 3, 6, 6)
    results = {}
    for name, call in (("eager", model), ("compiled", torch.compile(model, fullgraph=True))):
        leaf = x.clone().requires_grad_()
        output = call(leaf)
        results[name] = [output, *torch.autograd.grad(output.square().sum(), [leaf, *model.parameters()])]
    for eager, compiled in zip(results["eager"], results["compiled"], strict=True):
        torch.testing.assert_close(eager, compiled)


def test_compiled_autocast():
    torch.compiler.reset()
    layer = CompactConv2d(3, 4, 3)
    x = torch.randn(2, 3, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        output = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
        torch.testing.assert_close(output, layer(x))
    output.float().sum().backward()
    assert layer.weight.grad.isfinite().all()


def test_public_names():
    for name in ccn_kernels.__all__:
        assert getattr(ccn_kernels, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ccn_kernels.nothing  # noqa: B018
