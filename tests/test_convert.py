import copy

import oracle
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

from ccn_kernels import CompactConv1d, CompactConv2d, CompactConv3d, CompactLinear, models
from ccn_kernels.convert import calibrate, compact_layers, to_compact


def network():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, groups=2), nn.BatchNorm2d(6), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(54, 5, bias=False),
    )


def names(model):
    return [name for name, module in model.named_modules() if module in compact_layers(model)]


def test_every_plain_layer_becomes_its_compact_kin_with_its_weights():
    plain = nn.ModuleList([nn.Conv1d(2, 3, 3), nn.Conv2d(2, 3, 3), nn.Conv3d(2, 3, 3), nn.Linear(2, 3)])
    compact = to_compact(plain, alpha=2.0, delta=0.1, learn_alpha=False)
    assert [type(m) for m in compact] == [CompactConv1d, CompactConv2d, CompactConv3d, CompactLinear]
    for old, new in zip(plain, compact, strict=True):
        assert torch.equal(old.weight, new.weight)
        assert torch.equal(old.bias, new.bias)
        assert (new.alpha.item(), new.delta, isinstance(new.alpha, nn.Parameter)) == (2.0, 0.1, False)


def test_the_original_is_left_alone_and_settings_are_kept():
    plain = network().eval()
    before = copy.deepcopy(plain)
    compact = to_compact(plain)
    assert [type(m) for m in plain.modules()] == [type(m) for m in before.modules()]
    assert names(compact) == ["0", "2.0", "4"]
    assert not compact[0].training
    x = torch.randn(2, 3, 8, 8).double()
    compact.double()
    expected = oracle.compact_conv(x, compact[0].weight, compact[0].bias, padding=1, padding_mode="reflect")
    torch.testing.assert_close(compact[0](x), expected)
    assert compact(x).shape == plain.double()(x).shape


def test_inplace_shares_the_parameters():
    plain = network()
    weight = plain[0].weight
    compact = to_compact(plain, inplace=True)
    assert compact is plain
    assert compact[0].weight is weight


def test_a_model_that_is_one_layer():
    assert type(to_compact(nn.Conv2d(3, 4, 3))) is CompactConv2d
    assert type(to_compact(nn.Linear(3, 4), inplace=True)) is CompactLinear


@pytest.mark.parametrize(
    ("settings", "converted"),
    [
        ({"only": "2.*"}, ["2.0"]),
        ({"only": ["0", "4"]}, ["0", "4"]),
        ({"skip": "0"}, ["2.0", "4"]),
        ({"only": ["0", "2.*"], "skip": ["2.0"]}, ["0"]),
    ],
)
def test_names_and_globs_choose(settings, converted):
    compact = to_compact(network(), **settings)
    assert names(compact) == converted
    assert compact.ccn_report.converted == converted
    assert set(compact.ccn_report.kept) == {"0", "2.0", "4"} - set(converted)
    assert all("only" in reason or "skip" in reason for reason in compact.ccn_report.kept.values())


@pytest.mark.parametrize("argument", ["only", "skip"])
def test_a_pattern_that_matches_nothing_is_an_error(argument):
    with pytest.raises(ValueError, match=f"{argument} names 'layer9"):
        to_compact(network(), **{argument: ["0", "layer9.*"]})


def test_shared_layers_stay_shared():
    layer = nn.Linear(4, 4)
    compact = to_compact(nn.Sequential(layer, nn.ReLU(), layer))
    assert compact[0] is compact[2]
    assert compact.ccn_report.converted == ["0"]
    assert len(list(compact.parameters())) == 3


class Subclass(nn.Linear):
    def forward(self, input):
        return super().forward(input) * 2


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda: CompactLinear(4, 4), "compact already"),
        (lambda: parametrizations.weight_norm(nn.Linear(4, 4)), "parametrised"),
        (lambda: weight_norm(nn.Linear(4, 4)), "hook"),
        (lambda: Subclass(4, 4), "subclass"),
        (lambda: nn.LazyLinear(4), "subclass"),
    ],
)
def test_what_cannot_be_converted_is_kept_with_the_reason(layer, reason):
    kept = layer()
    compact = to_compact(nn.Sequential(kept), inplace=True)
    assert compact[0] is kept
    assert reason in compact.ccn_report.kept["0"]
    assert reason in str(compact.ccn_report)


def test_attention_is_kept_whole():
    compact = to_compact(nn.TransformerEncoderLayer(8, 2, 16))
    assert names(compact) == ["linear1", "linear2"]
    assert "attention" in compact.ccn_report.kept["self_attn"]


def test_a_relu_that_follows_is_folded_in_on_request():
    plain = network().double()
    fused = to_compact(plain, fuse_relu=True)
    assert [layer.activation for layer in compact_layers(fused)] == ["relu", None, None]
    assert type(fused[1]) is nn.Identity
    assert type(fused[2][2]) is nn.ReLU  # it follows the batch norm
    x = torch.randn(2, 3, 8, 8).double()
    torch.testing.assert_close(fused(x), to_compact(plain)(x))


def test_what_was_done_is_logged(caplog):
    with caplog.at_level("INFO", logger="ccn_kernels"):
        to_compact(network())
    assert "converted 3 layers: 0, 2.0, 4" in caplog.text


def test_calibration_sets_the_mean_norm_layer_by_layer():
    model = to_compact(network(), delta=0.1).double().train()
    x = torch.randn(4, 3, 8, 8).double()
    assert calibrate(model, x) is model
    assert all(module.training for module in model.modules())
    model.eval()
    first = oracle.patch_norms(x, (3, 3), padding=1, padding_mode="reflect").mean() + 0.1
    torch.testing.assert_close(model[0].alpha.detach(), first)
    hidden = model[1](model[0](x))
    second = oracle.patch_norms(hidden, (3, 3), stride=2, groups=2).mean() + 0.1
    torch.testing.assert_close(model[2][0].alpha.detach(), second)
    third = model[3](model[2](hidden)).norm(dim=1).mean() + 0.1
    torch.testing.assert_close(model[4].alpha.detach(), third)


def test_a_calibrated_network_starts_nearer_to_the_original_s_outputs():
    plain = models.paper_mnist_cnn("sm").eval()
    x = torch.rand(16, 1, 28, 28)
    wanted = plain(x)

    def distance(model):
        return ((model(x) - wanted).norm() / wanted.norm()).item()

    compact = to_compact(plain)
    before = distance(compact)
    assert distance(calibrate(compact, x)) < before / 2
