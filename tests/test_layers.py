"""The layers as drop-in replacements: construction, padding modes, state, copies, dtypes, autocast."""

import copy
import inspect
import io
import itertools
import logging
import pickle

import oracle
import pytest
import torch
from torch import nn

from ccn_kernels import CompactConv1d, CompactConv2d, CompactConv3d, CompactLinear, layers

CONVS = {1: (CompactConv1d, nn.Conv1d), 2: (CompactConv2d, nn.Conv2d), 3: (CompactConv3d, nn.Conv3d)}
ALL = [*CONVS.values(), (CompactLinear, nn.Linear)]
EXTRA = {"alpha": 1.0, "learn_alpha": True, "delta": 0.01, "activation": None, "backend": None}
MODES = ("zeros", "reflect", "replicate", "circular")


@pytest.fixture(autouse=True)
def warning_not_given_yet(monkeypatch):
    """The warning about a missing alpha is given once a process."""
    monkeypatch.setattr(layers, "_warned_about_alpha", False)


def build(kind, *args, **settings):
    """A small layer of a class, compact or plain."""
    return kind(*((6, 4) if issubclass(kind, nn.Linear) else (6, 4, 3)), *args, **settings)


def example(kind, batch=2):
    return torch.randn(batch, 6, *[5] * (0 if issubclass(kind, nn.Linear) else len(build(kind).kernel_size)))


def expected(layer, x):
    """What the oracle makes of a layer's parameters and settings."""
    names = ("stride", "padding", "dilation", "groups", "padding_mode")
    geometry = {} if isinstance(layer, nn.Linear) else {name: getattr(layer, name) for name in names}
    settings = {"delta": layer.delta, "relu": layer.activation == "relu"}
    return oracle.compact_conv(x, layer.weight, layer.bias, layer.alpha.double(), **settings, **geometry)


@pytest.mark.parametrize(("compact", "plain"), ALL)
def test_constructors_take_the_plain_layers_arguments_first_and_ours_by_name(compact, plain):
    ours, theirs = (list(inspect.signature(kind).parameters.values()) for kind in (compact, plain))
    head, tail = ours[: len(theirs)], ours[len(theirs) :]
    assert [(p.name, p.default, p.kind) for p in head] == [(p.name, p.default, p.kind) for p in theirs]
    assert {p.name: p.default for p in tail} == EXTRA
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in tail)


@pytest.mark.parametrize(("compact", "plain"), ALL)
def test_layers_are_subclasses_initialised_alike(compact, plain):
    torch.manual_seed(3)
    ours = build(compact)
    torch.manual_seed(3)
    theirs = build(plain)
    assert isinstance(ours, plain)
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)


@pytest.mark.parametrize(("compact", "plain"), ALL)
@pytest.mark.parametrize("learn", [True, False])
def test_alpha_is_a_scalar_parameter_or_buffer(compact, plain, learn):
    layer = build(compact, alpha=2.5, learn_alpha=learn, dtype=torch.float64)
    assert layer.alpha.shape == ()
    assert layer.alpha.dtype == torch.float64
    assert layer.alpha.item() == 2.5
    assert ("alpha" in dict(layer.named_parameters())) == learn
    assert ("alpha" in dict(layer.named_buffers())) == (not learn)
    assert "alpha" in layer.state_dict()
    layer(example(compact).double()).sum().backward()
    assert (layer.alpha.grad is not None) == learn


@pytest.mark.parametrize(("compact", "plain"), ALL)
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("bias", [True, False])
def test_layers_compute_what_the_oracle_does(backend, compact, plain, activation, bias):
    layer = build(compact, bias=bias, alpha=1.5, delta=0.1, activation=activation, backend=backend)
    x = example(compact)
    torch.testing.assert_close(layer(x), expected(layer, x).float())


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "settings",
    [
        {"padding": 2},
        {"padding": 1, "stride": 2, "groups": 2},
        {"padding": "same", "dilation": 2},
        {"padding": "valid"},
    ],
    ids=str,
)
def test_padded_values_count_in_the_norm_under_every_mode_but_zeros(backend, settings, mode, rank):
    layer = build(CONVS[rank][0], padding_mode=mode, backend=backend, **settings)
    x = example(type(layer))
    torch.testing.assert_close(layer(x), expected(layer, x).float())


@pytest.mark.parametrize("mode", MODES)
def test_an_even_kernel_with_same_padding(backend, mode):
    layer = CompactConv2d(3, 4, (2, 4), padding="same", padding_mode=mode, backend=backend)
    x = torch.randn(2, 3, 5, 6, requires_grad=True)
    y = layer(x)
    want = expected(layer, x)
    assert y.shape[2:] == x.shape[2:]
    torch.testing.assert_close(y, want.float())
    found, wanted = (torch.autograd.grad(t.square().sum(), x, retain_graph=True)[0] for t in (y, want))
    torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_input_norm_is_that_of_the_patches(mode, rank):
    layer = build(CONVS[rank][0], padding=1, stride=2, groups=2, padding_mode=mode)
    x = example(type(layer))
    names = ("stride", "padding", "dilation", "groups", "padding_mode")
    want = oracle.patch_norms(x, layer.kernel_size, **{name: getattr(layer, name) for name in names})
    torch.testing.assert_close(layer.input_norm(x), want.float())


def test_input_norm_of_a_linear_layer_is_that_of_its_features():
    x = torch.randn(2, 3, 6)
    torch.testing.assert_close(CompactLinear(6, 4).input_norm(x), x.double().norm(dim=-1, keepdim=True).float())


@pytest.mark.parametrize(("compact", "plain"), ALL)
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_made_from_a_plain_one_shares_its_parameters(compact, plain, bias):
    base = build(plain, bias=bias, dtype=torch.float64).eval()
    base.weight.requires_grad_(False)
    make = compact.from_linear if plain is nn.Linear else compact.from_conv
    layer = make(base, alpha=3.0, learn_alpha=False, delta=0.5, activation="relu", backend="reference")
    assert type(layer) is compact
    assert layer.weight is base.weight
    assert layer.bias is base.bias
    assert not layer.training
    found = (layer.alpha.item(), layer.alpha.dtype, layer.delta, layer.activation, layer.backend)
    assert found == (3.0, torch.float64, 0.5, "relu", "reference")
    assert "alpha" in dict(layer.named_buffers())
    with pytest.raises(TypeError):
        make(base, unknown=1)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_layer_made_from_a_convolution_keeps_its_geometry(rank):
    settings = {"stride": 2, "padding": 1, "dilation": 2, "groups": 2, "padding_mode": "circular"}
    layer = CONVS[rank][0].from_conv(build(CONVS[rank][1], **settings))
    x = torch.randn(2, 6, *[7] * rank)
    torch.testing.assert_close(layer(x), expected(layer, x).float())
    assert layer.stride == (2,) * rank
    same = CONVS[rank][0].from_conv(build(CONVS[rank][1], padding="same"))
    assert same(x).shape[2:] == x.shape[2:]


def normed(layer):
    return torch.nn.utils.parametrizations.weight_norm(layer)


@pytest.mark.parametrize("given", [
    nn.ConvTranspose2d(3, 3, 3), nn.Conv1d(3, 4, 3), nn.Linear(3, 4), nn.LazyConv2d(4, 3), CompactConv2d(3, 4, 3),
    normed(nn.Conv2d(3, 4, 3)), None,
], ids=lambda given: type(given).__name__)  # fmt: skip
def test_what_is_no_plain_convolution_is_refused(given):
    """It would be taken for another layer than it is."""
    with pytest.raises(TypeError, match=r"conv must be (an|a plain) nn\.Conv2d"):
        CompactConv2d.from_conv(given)
    if type(given) is not nn.Linear:
        with pytest.raises(TypeError, match=r"linear must be an nn\.Linear"):
            CompactLinear.from_linear(given)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_a_weight_that_a_hook_computes_is_refused():
    with pytest.raises(TypeError, match=r"conv must be a plain nn\.Conv2d: its weight is computed by a hook"):
        CompactConv2d.from_conv(torch.nn.utils.weight_norm(nn.Conv2d(3, 4, 3)))


def test_subclasses_make_their_own_kind():
    class Mine(CompactConv2d):
        pass

    assert type(Mine.from_conv(nn.Conv2d(3, 4, 3))) is Mine


@pytest.mark.parametrize(("compact", "plain"), ALL)
def test_a_plain_layers_state_loads_strictly_keeps_alpha_and_warns_once(compact, plain, caplog):
    theirs, ours = (nn.Sequential(build(kind), nn.ReLU(), nn.Flatten()) for kind in (plain, compact))
    ours[0].alpha.data.fill_(7.0)
    with caplog.at_level(logging.WARNING, logger="ccn_kernels"):
        for _ in range(2):
            result = ours.load_state_dict(theirs.state_dict(), strict=True)
            assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert torch.equal(ours[0].weight, theirs[0].weight)
    assert ours[0].alpha.item() == 7.0
    warnings = [record for record in caplog.records if record.name == "ccn_kernels"]
    assert len(warnings) == 1
    assert "0.alpha" in warnings[0].getMessage()


def test_strict_loading_still_reports_what_else_is_missing():
    layer = CompactConv2d(3, 4, 3)
    state = nn.Conv2d(3, 4, 3).state_dict()
    del state["bias"]
    with pytest.raises(RuntimeError, match="bias"):
        layer.load_state_dict(state)
    with pytest.raises(RuntimeError, match="extra"):
        layer.load_state_dict({**nn.Conv2d(3, 4, 3).state_dict(), "extra": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="alpha"):  # an empty state is no plain layer's
        layer.load_state_dict({})


@pytest.mark.parametrize(("compact", "plain"), ALL)
@pytest.mark.parametrize("learn", [True, False])
def test_state_round_trip_carries_alpha_silently(compact, plain, learn, caplog):
    one, two = (build(compact, alpha=alpha, learn_alpha=learn) for alpha in (4.0, 1.0))
    buffer = io.BytesIO()
    torch.save(one.state_dict(), buffer)
    buffer.seek(0)
    two.load_state_dict(torch.load(buffer))
    x = example(compact)
    assert torch.equal(one(x), two(x))
    assert not caplog.records


@pytest.mark.parametrize(("compact", "plain"), ALL)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_copies_are_equal_and_apart(compact, plain, copied):
    layer = build(compact, alpha=2.0, learn_alpha=False, delta=0.3, activation="relu", backend="reference")
    twin, x = copied(layer), example(compact)
    assert torch.equal(twin(x), layer(x))
    assert twin._settings == layer._settings
    twin.alpha.fill_(5.0)
    assert layer.alpha.item() == 2.0
    assert not torch.equal(twin(x), layer(x))


def test_repr_tells_what_is_not_a_plain_layers():
    plain = repr(CompactConv2d(3, 4, 3, stride=2))
    assert plain == "CompactConv2d(3, 4, kernel_size=(3, 3), stride=(2, 2), delta=0.01)"
    full = repr(CompactLinear(3, 4, activation="relu", backend="reference", learn_alpha=False, delta=0.5))
    for part in ("in_features=3", "delta=0.5", "activation='relu'", "backend='reference'", "learn_alpha=False"):
        assert part in full


@pytest.mark.parametrize(("compact", "plain"), ALL)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_a_module_moves_to_another_dtype(backend, compact, plain, dtype):
    layer, x = build(compact, backend=backend).to(dtype), example(compact).to(dtype)
    assert {p.dtype for p in layer.parameters()} == {dtype}
    y = layer(x)
    y.sum().backward()
    assert y.dtype == layer.weight.grad.dtype == layer.alpha.grad.dtype == dtype
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), expected(layer, x), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("compact", "plain"), ALL)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_autocast_treats_layers_as_it_treats_plain_ones(backend, compact, plain, kind):
    """fp64 is the one dtype that autocast leaves alone; parameters keep theirs, and so do their gradients."""
    mine, yours = (build(k) for k in (compact, plain))
    mine.backend = backend
    if kind == torch.float64:
        mine, yours = mine.double(), yours.double()
    x = example(compact).to(kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, like = mine(x), yours(x)
    assert y.dtype == like.dtype
    y.sum().backward()
    like.sum().backward()
    assert mine.weight.grad.dtype == yours.weight.grad.dtype
    if kind != torch.float64:
        assert y.dtype == torch.bfloat16
        rounded = copy.deepcopy(mine).bfloat16()
        rounded.alpha = mine.alpha  # a scale is no operand of the convolution
        assert torch.equal(y, rounded(x.bfloat16()))


def test_autocast_leaves_the_norm_in_fp32(backend):
    """Sixteen channels of 200 sum to squares of 640000: fine in bf16, but with three digits that the norm must have."""
    layer = CompactLinear(16, 4, bias=False, backend=backend)
    x = torch.full((2, 16), 200.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    layer.weight.data = layer.weight.data.bfloat16().float()
    torch.testing.assert_close(y.float(), expected(layer, x).float(), rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize(("compact", "plain"), ALL)
def test_backend_and_settings_are_checked_at_construction(compact, plain):
    for settings, name in (
        ({"backend": "fastest"}, "backend"),
        ({"activation": "gelu"}, "activation"),
        ({"delta": -0.1}, "delta"),
        ({"delta": float("nan")}, "delta"),
        ({"alpha": float("nan")}, "alpha"),
    ):
        with pytest.raises(ValueError, match=name):
            build(compact, **settings)
    for alpha in ("1", True):
        with pytest.raises(TypeError, match="alpha"):
            build(compact, alpha=alpha)


def test_layers_train(backend):
    """A step of SGD on every parameter, alpha included, lowers a loss."""
    model = nn.Sequential(
        CompactConv2d(3, 8, 3, padding=1, activation="relu", backend=backend),
        nn.Flatten(),
        CompactLinear(200, 4, backend=backend),
    )
    x, target = torch.randn(16, 3, 5, 5), torch.arange(16) % 4
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for _ in range(20):
        optimiser.zero_grad()
        losses.append(nn.functional.cross_entropy(model(x), target))
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 0.7 * losses[0]
    assert all(not torch.equal(layer.alpha.detach(), torch.ones(())) for layer in (model[0], model[2]))


@pytest.mark.parametrize(("compact", "plain"), ALL)
def test_a_layer_on_the_meta_device_tells_its_shapes(compact, plain):
    layer, like = (build(kind, device="meta") for kind in (compact, plain))
    x = example(compact).to("meta")
    assert layer.alpha.is_meta
    assert layer(x).shape == like(x).shape


def test_mixed_settings_do_not_leak_between_layers():
    """No state is shared between calls: two layers give alone what they give in turns."""
    kinds = [{"delta": d, "activation": a} for d, a in itertools.product((0.0, 1.0), (None, "relu"))]
    stack, x = [CompactConv2d(6, 4, 3, **kind) for kind in kinds], torch.randn(2, 6, 5, 5)
    alone = [layer(x) for layer in stack]
    for layer, before in zip(reversed(stack), reversed(alone), strict=True):
        assert torch.equal(layer(x), before)
