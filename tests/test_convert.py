"""to_compact: what it replaces, what it leaves and why."""

import copy
import functools
import logging
import threading

import oracle
import pytest
import torch
from nets import NAMES, Net
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from transformers.models.bit.modeling_bit import WeightStandardizedConv2d
from transformers.pytorch_utils import Conv1D

from ccn_kernels import CompactConv1d, CompactConv2d, CompactConv3d, CompactLinear
from ccn_kernels.convert import compact_layers, to_compact
from ccn_kernels.functional import compact_linear


def compact_names(model):
    compact = compact_layers(model)
    return [name for name, module in model.named_modules() if module in compact]


def test_every_plain_layer_is_replaced_and_weights_are_kept():
    model = Net()
    before = copy.deepcopy(model.state_dict())
    result = to_compact(model)
    assert compact_names(result) == result.ccn_report.converted == NAMES
    assert result.ccn_report.kept == {}
    assert compact_names(model) == []
    after = result.state_dict()
    assert {name for name in after if name not in before} == {f"{name}.alpha" for name in NAMES}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert result.features[2].padding_mode == "reflect"
    assert result(torch.randn(2, 3, 6, 6)).shape == (2, 4)


def test_a_copy_shares_no_memory_with_the_original():
    model = Net()
    result = to_compact(model)
    for one, two in zip(model.parameters(), (p for n, p in result.named_parameters() if "alpha" not in n), strict=True):
        assert one.data_ptr() != two.data_ptr()


def test_in_place_keeps_the_very_parameters_so_that_an_optimiser_goes_on():
    model = Net()
    parameters, head = list(model.parameters()), model.head
    result = to_compact(model, inplace=True)
    assert result is model
    assert model.head is head
    kept = [p for name, p in model.named_parameters() if not name.endswith("alpha")]
    assert all(one is two for one, two in zip(kept, parameters, strict=True))


def test_settings_reach_every_layer():
    result = to_compact(Net().double(), alpha=3.0, learn_alpha=False, delta=0.5)
    for name in NAMES:
        layer = result.get_submodule(name)
        assert (layer.alpha.item(), layer.delta, layer.alpha.dtype) == (3.0, 0.5, torch.float64)
        assert f"{name}.alpha" in dict(result.named_buffers())


@pytest.mark.parametrize(
    ("settings", "converted"),
    [
        ({"only": "features.*"}, NAMES[:2]),
        ({"only": ["features.0", "head.out"]}, [NAMES[0], NAMES[3]]),
        ({"only": "*.[02]"}, NAMES[:2]),
        ({"skip": "features.0"}, NAMES[1:]),
        ({"skip": ("*.hidden", "*.2")}, [NAMES[0], NAMES[3]]),
        ({"only": "head.*", "skip": "head.out"}, [NAMES[2]]),
        ({"only": iter(["head.out"])}, [NAMES[3]]),
        ({"skip": "*"}, []),
    ],
    ids=str,
)
def test_layers_are_chosen_by_name_or_pattern(settings, converted):
    result = to_compact(Net(), **settings)
    assert compact_names(result) == result.ccn_report.converted == converted
    assert sorted([*result.ccn_report.kept, *converted]) == sorted(NAMES)
    for name, reason in result.ccn_report.kept.items():
        assert ("only" in reason) or ("skip" in reason), name


@pytest.mark.parametrize("argument", ["only", "skip"])
@pytest.mark.parametrize("pattern", ["conv1", ["features.*", "classifier"]], ids=str)
def test_a_pattern_that_names_nothing_is_an_error(argument, pattern):
    with pytest.raises(ValueError, match=argument):
        to_compact(Net(), **{argument: pattern})


@pytest.mark.parametrize("pattern", ["norm", "features"])
def test_a_pattern_that_names_no_layer_that_could_be_converted_is_an_error(pattern):
    """`only="features"` for "features.*" would convert nothing at all, and say nothing."""
    with pytest.raises(ValueError, match="only"):
        to_compact(Net(), only=pattern)


def test_the_root_itself_may_be_the_layer():
    for plain, kind in ((nn.Conv2d(3, 4, 3), CompactConv2d), (nn.Linear(3, 4), CompactLinear)):
        result = to_compact(plain)
        assert type(result) is kind
        assert torch.equal(result.weight, plain.weight)
        assert result.ccn_report.converted == [""]
        assert "none" not in str(result.ccn_report)
        assert to_compact(plain, inplace=True).weight is plain.weight


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_convolutions_of_every_rank(rank):
    kinds = {1: (nn.Conv1d, CompactConv1d), 2: (nn.Conv2d, CompactConv2d), 3: (nn.Conv3d, CompactConv3d)}
    plain = kinds[rank][0](4, 6, 3, stride=2, padding=1, dilation=2, groups=2, bias=False)
    result, x = to_compact(nn.Sequential(plain))[0], torch.randn(2, 4, *[7] * rank)
    assert type(result) is kinds[rank][1]
    geometry = {"stride": 2, "padding": 1, "dilation": 2, "groups": 2}
    torch.testing.assert_close(result(x), oracle.compact_conv(x, plain.weight, **geometry).float())


def test_shared_layers_and_tied_weights_stay_shared():
    model = nn.Module()
    model.one = nn.Linear(4, 4)
    model.two = model.one
    model.tied = nn.Linear(4, 4)
    model.tied.weight = model.one.weight
    model.block = nn.Sequential(nn.Conv2d(3, 3, 1))
    model.again = model.block
    result = to_compact(model)
    assert type(result.one) is CompactLinear
    assert result.two is result.one
    assert compact_layers(result).count(result.one) == 1
    assert result.tied is not result.one
    assert result.tied.weight is result.one.weight
    assert result.again is result.block
    assert type(result.block[0]) is CompactConv2d
    assert len(result.ccn_report.converted) == 3


def test_mode_and_frozen_parameters_are_kept():
    model = Net().eval()
    model.features[0].weight.requires_grad_(False)
    result = to_compact(model)
    assert not any(module.training for module in result.modules())
    assert not result.features[0].weight.requires_grad
    assert result.features[2].weight.requires_grad


@pytest.mark.parametrize("settings", [{"skip": "two"}, {"only": "two"}], ids=str)
@pytest.mark.parametrize("inplace", [True, False])
def test_a_layer_of_several_names_is_chosen_by_any_and_stays_one_layer(settings, inplace):
    model = nn.Module()
    model.one = model.two = nn.Linear(4, 4)
    model.three = nn.Linear(4, 4)
    result = to_compact(model, inplace=inplace, **settings)
    assert result.one is result.two
    assert type(result.one) is (CompactLinear if "only" in settings else nn.Linear)
    assert type(result.three) is (nn.Linear if "only" in settings else CompactLinear)
    assert set(result.ccn_report.kept) == ({"three"} if "only" in settings else {"one", "two"})


class Pyramid(nn.Module):
    """Calls registered layers through a plain list, as detectors do; others it holds in lists alone."""

    def __init__(self):
        super().__init__()
        self.lateral = nn.Linear(4, 4)
        self.called, self.hidden, self.by_key = [self.lateral], [nn.Linear(4, 4)], {"a": nn.Sequential(nn.Linear(4, 4))}

    def forward(self, x):
        return self.called[0](x)


@pytest.mark.parametrize("inplace", [True, False])
def test_layers_in_plain_lists(inplace):
    """Were the registered layer replaced by another, the list would go on with the plain one, and nobody would know."""
    result, x = to_compact(Pyramid(), inplace=inplace), torch.randn(3, 4)
    torch.testing.assert_close(result(x), compact_linear(x, result.lateral.weight, result.lateral.bias))
    assert set(result.ccn_report.kept) == {"hidden[0]", "by_key['a']"}
    assert "ModuleList" in result.ccn_report.kept["hidden[0]"]
    assert type(result.hidden[0]) is nn.Linear


def test_a_users_own_attributes_of_a_layer_are_kept():
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].fan_in = model[0].weight.shape[1]
    result = to_compact(model)
    assert result[0].fan_in == 4
    assert list(dict(result[0].named_parameters())) == ["weight", "bias", "alpha"]


@pytest.mark.parametrize("settings", [{"delta": -1.0}, {"alpha": "one"}], ids=str)
def test_a_wrong_setting_leaves_the_model_as_it_was(settings):
    model = nn.Sequential(nn.Linear(4, 4))
    before = vars(model[0]).copy()
    with pytest.raises((TypeError, ValueError), match=r"delta|alpha"):
        to_compact(model, inplace=True, **settings)
    assert type(model[0]) is nn.Linear
    assert vars(model[0]) == before


def test_a_model_that_cannot_be_copied_says_so_and_can_be_converted_in_place():
    model = nn.Sequential(nn.Linear(4, 4))
    model.lock = threading.Lock()
    with pytest.raises(RuntimeError, match=r"cannot be copied; inplace=True.*lock"):
        to_compact(model)
    assert type(to_compact(model, inplace=True)[0]) is CompactLinear


def test_a_tied_embedding_and_its_linear_stay_tied():
    model = nn.ModuleDict({"embedding": nn.Embedding(7, 4), "head": nn.Linear(4, 7, bias=False)})
    model["head"].weight = model["embedding"].weight
    result = to_compact(model)
    assert type(result["head"]) is CompactLinear
    assert result["head"].weight is result["embedding"].weight
    assert result["head"].weight is not model["head"].weight
    assert result.ccn_report.kept == {}


def test_alpha_is_where_and_of_what_type_the_weight_is():
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert to_compact(nn.Linear(2, 2, dtype=dtype)).alpha.dtype == dtype
    assert to_compact(nn.Linear(2, 2, device="meta")).alpha.is_meta


def test_a_compiled_model_is_converted_too():
    model, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(3, 4)
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    to_compact(compiled, inplace=True, alpha=3.0)
    torch.testing.assert_close(compiled(x), compact_linear(x, model[0].weight, model[0].bias, 3.0))


class Odd(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1


def with_its_own_forward(layer):
    """As accelerate's hooks do."""
    layer.forward = functools.partial(nn.Linear.forward, layer)
    return layer


ODD_ONES = {
    "parametrised": (lambda: parametrizations.weight_norm(nn.Linear(4, 4)), "parametri"),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(4, 4)), "parametri"),
    "spectral norm": (lambda: spectral_norm(nn.Conv2d(3, 4, 3)), "hook"),
    "pruned": (lambda: prune.random_unstructured(nn.Linear(4, 4), "weight", 0.5), "hook"),
    "a subclass": (lambda: Odd(4, 4), "Odd"),
    "lazy": (lambda: nn.LazyLinear(4), "LazyLinear"),
    "compact already": (lambda: CompactLinear(4, 4, delta=0.3), "already"),
    "lazy and convolving": (lambda: nn.LazyConv2d(4, 3), "run the model once first"),
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 3), "neither"),
    "quantised": (lambda: torch.ao.nn.quantized.dynamic.Linear(4, 4), "quantized"),
    "transformers' own": (lambda: Conv1D(4, 4), "Conv1D"),
    "weight-standardised": (lambda: WeightStandardizedConv2d(3, 4, 3), "WeightStandardizedConv2d is a subclass"),
    "scripted": (lambda: torch.jit.script(nn.Linear(4, 4)), "Script"),
    "complex": (lambda: nn.Linear(4, 4, dtype=torch.complex64), "complex64"),
    "with a forward of its own": (lambda: with_its_own_forward(nn.Linear(4, 4)), "forward"),
    "lazy, but no layer": (lambda: nn.LazyBatchNorm2d(), None),
    "an embedding": (lambda: nn.Embedding(4, 4), None),
    "a norm": (lambda: nn.LayerNorm((4, 4)), None),
}


@pytest.mark.parametrize("name", ODD_ONES)
def test_what_cannot_be_replaced_is_kept_with_a_reason(name):
    make, reason = ODD_ONES[name]
    model = nn.Sequential(nn.Linear(4, 4), make())
    kind = type(model[1])
    result = to_compact(model, inplace=True)
    assert type(result[1]) is kind
    assert result.ccn_report.converted == ["0"]
    assert set(result.ccn_report.kept) == ({"1"} if reason else set())
    assert reason is None or reason in result.ccn_report.kept["1"]


def test_a_lazy_layer_is_converted_once_the_model_has_run():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d())
    with pytest.raises(RuntimeError, match=r"cannot be copied.*uninitialized"):
        to_compact(model)
    model(torch.randn(2, 3, 5, 5))
    assert to_compact(model).ccn_report.converted == ["0"]


@pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm.:FutureWarning")
def test_the_weight_norm_of_old_is_kept_with_a_reason():
    result = to_compact(nn.Sequential(weight_norm(nn.Conv1d(3, 4, 3))), inplace=True)
    assert "hook" in result.ccn_report.kept["0"]


def test_attention_is_kept_with_a_reason():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "head": nn.Linear(8, 4)})
    result = to_compact(model)
    assert result.ccn_report.converted == ["head"]
    assert "attention" in result.ccn_report.kept["attention"]
    x = torch.randn(3, 2, 8)
    for one, two in zip(model["attention"](x, x, x), result["attention"](x, x, x), strict=True):
        assert torch.equal(one, two)


def test_a_plain_layer_inside_attention_is_kept_as_well():
    """Attention reads out_proj.weight, whatever class out_proj is of."""
    attention = nn.MultiheadAttention(8, 2)
    attention.out_proj = nn.Linear(8, 8)
    assert "attention" in to_compact(attention).ccn_report.kept["out_proj"]


def test_a_transformer_layer_computes_alike_in_training_and_evaluation():
    """Its fast path in evaluation reads linear1.weight itself: compact layers inside would then have no effect."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    result, x = to_compact(layer, alpha=5.0), torch.randn(2, 3, 8)
    training = result.train()(x).detach()
    with torch.no_grad():
        torch.testing.assert_close(result.eval()(x), training)


def test_converting_twice_changes_nothing_more():
    once = to_compact(Net(), alpha=2.0)
    twice = to_compact(once, alpha=5.0)
    assert twice.ccn_report.converted == []
    assert set(twice.ccn_report.kept) == set(NAMES)
    assert all(twice.get_submodule(name).alpha.item() == 2.0 for name in NAMES)


def test_fusing_folds_a_relu_that_follows_in_a_sequential():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 4))
    model.append(nn.ReLU(inplace=True)).append(nn.ReLU6())
    x = torch.randn(2, 3, 6, 6)
    plain, fused = to_compact(model), to_compact(model, fuse_relu=True)
    assert [fused[i].activation for i in (0, 2, 5)] == ["relu", None, "relu"]
    assert [type(fused[i]) for i in (1, 6, 7)] == [nn.Identity, nn.Identity, nn.ReLU6]
    torch.testing.assert_close(fused(x), plain(x))
    assert plain[0].activation is None
    assert type(plain[1]) is nn.ReLU


def test_fusing_leaves_relus_after_layers_that_were_not_converted():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), CompactLinear(4, 4), nn.ReLU())
    result = to_compact(model, skip="0", fuse_relu=True)
    assert type(result[1]) is nn.ReLU
    x = torch.randn(3, 4)
    torch.testing.assert_close(result(x), model(x))


def test_fusing_spares_a_layer_that_is_used_elsewhere_without_a_relu():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    x = torch.randn(5, 4)
    torch.testing.assert_close(to_compact(model, fuse_relu=True)(x), to_compact(model)(x))


def test_fusing_spares_a_relu_that_is_used_elsewhere():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(4, 4), relu, nn.Tanh(), relu)
    x = torch.randn(5, 4)
    torch.testing.assert_close(to_compact(model, fuse_relu=True)(x), to_compact(model)(x))


class Tapped(nn.Sequential):
    def forward(self, x):
        return [x := module(x) for module in self]


def test_fusing_spares_a_sequential_with_a_forward_of_its_own():
    """It may give away what the layer computes before the ReLU, as perceptual losses do."""
    model, x = Tapped(nn.Linear(4, 4), nn.ReLU()), torch.randn(5, 4)
    torch.testing.assert_close(to_compact(model, fuse_relu=True)(x), to_compact(model)(x))


@pytest.mark.parametrize("place", [0, 1])
def test_fusing_spares_what_hooks_look_at(place):
    model, x, seen = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(5, 4), []
    model[place].register_forward_hook(lambda module, args, output: seen.append(output))
    for fuse in (True, False):
        to_compact(model, fuse_relu=fuse)(x)
    torch.testing.assert_close(*seen)
    assert type(to_compact(model, fuse_relu=True)[1]) is nn.ReLU


def test_fusing_keeps_modes_and_is_reported():
    result = to_compact(nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU())).eval(), fuse_relu=True)
    assert not any(module.training for module in result.modules())
    assert result.ccn_report.fused == ["0.0"]
    assert "with the ReLU that follows: 0.0" in str(result.ccn_report)


def test_hooks_of_a_layer_are_carried_over():
    """A conversion that drops a user's hooks in silence would change what the model does."""
    model, seen = nn.Sequential(nn.Linear(4, 4)), []
    model[0].register_forward_hook(lambda module, args, output: seen.append(type(module)))
    to_compact(model)(torch.randn(2, 4))
    assert seen == [CompactLinear]


def test_a_conversion_of_nothing_is_a_warning(caplog):
    to_compact(nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(3, 3, 1)))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "converted 0 layers: none\n  kept 1: torch.nn" in record.getMessage()


def test_the_report_is_logged_and_printed(caplog):
    with caplog.at_level(logging.INFO, logger="ccn_kernels"):
        result = to_compact(Net(), skip="head.out")
    text = str(result.ccn_report)
    assert [record.getMessage() for record in caplog.records if record.name == "ccn_kernels"] == [text]
    for part in ("converted 3 layers", *NAMES[:3], "kept head.out: `skip` names it"):
        assert part in text
    assert "none" in str(to_compact(nn.ReLU()).ccn_report)
