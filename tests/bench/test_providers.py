"""Every provider computes what it should, over all kinds of layers, and the gate sees it when it does not."""

from types import SimpleNamespace

import pytest
import torch

from ccn_kernels import functional
from ccn_kernels.bench import frontend, measure, providers
from ccn_kernels.bench.case import ALPHA, DELTA, Case, Family, incoming_gradient
from ccn_kernels.bench.providers import Entrant, contender
from ccn_kernels.workloads import Layer

LAYERS = [
    Layer("plain", 2, 3, 8, 5),
    Layer("strided", 2, 8, 6, 6, stride=2),
    Layer("stem", 1, 3, 4, 9, kernel=7, stride=2, padding=3),
    Layer("1x1", 2, 8, 4, 3, kernel=1, padding=0),
    Layer("grouped", 2, 8, 4, 5, groups=2),
    Layer("depthwise", 2, 6, 6, 5, groups=6),
    Layer("1-d", 2, 4, 6, 9, rank=1),
    Layer("3-d", 2, 4, 6, 4, rank=3),
    Layer("linear", 4, 16, 8, kernel=1, padding=0, rank=0),
]
ENTRANTS = [
    Entrant("conv"), Entrant("conv", "relu"), Entrant("conv_nobias"), Entrant("two_branch", "ones"),
    Entrant("two_branch", "pool"), Entrant("ccn", None, "reference"), Entrant("ccn", "relu", "reference"),
]  # fmt: skip


def case_of(layer, dtype="float32"):
    return Case(layer, dtype, "channels_last" if layer.rank > 1 else "contiguous", "cpu")


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_all_pass_the_gate_in_all_passes(layer):
    case = case_of(layer)
    for entrant in ENTRANTS:
        for which in ("forward", "backward", "training"):
            made, row = contender(entrant, case, which), {}
            measure.judge(made, made.call(), row)
            assert 0 <= row["relative_error"] < 1e-5


@pytest.mark.parametrize("which", ["forward", "backward", "training"])
def test_what_a_pass_returns(which):
    case = case_of(LAYERS[0])
    names = {"forward": {"output"}, "backward": {"input", "weight", "bias", "alpha"}}
    names["training"] = names["forward"] | names["backward"]
    assert contender(ENTRANTS[-1], case, which).call().keys() == names[which]
    assert "alpha" not in contender(Entrant("conv"), case, which).expected
    assert not {"alpha", "bias"} & contender(Entrant("conv_nobias"), case, which).expected.keys()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_dtypes_are_judged_by_their_own_limits(dtype):
    case, row = case_of(LAYERS[0], dtype), {}
    made = contender(ENTRANTS[3], case, "training")
    measure.judge(made, made.call(), row)
    assert made.limit == {"bfloat16": 3e-2, "float16": 6e-3}[dtype]  # a rival's
    assert contender(ENTRANTS[-1], case, "training").limit == pytest.approx(made.limit / 3)


def test_the_gate_sees_a_scale_a_bias_or_a_delta_left_out():
    case = case_of(LAYERS[0])
    plain = case.plain()
    for alpha, bias, delta in ((1.0, plain.bias, DELTA), (ALPHA, None, DELTA), (ALPHA, plain.bias, 0.0)):
        made = contender(ENTRANTS[-2], case, "forward")
        output = functional.compact_conv2d(case.x, plain.weight, bias, alpha, padding=1, delta=delta)
        with pytest.raises(measure.Failed, match="output is wrong by"):
            measure.judge(made, {"output": output}, {})


def test_all_have_the_same_weights_and_leave_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = case_of(LAYERS[0]), case_of(LAYERS[0])
    assert torch.equal(first.plain().weight, second.plain(bias=False).weight)
    assert torch.equal(first.x, second.x)
    assert torch.equal(torch.rand(1), expected)


def test_formats_reach_operands_and_gradients():
    case = case_of(LAYERS[0])
    family = Family(compact=True)
    for tensor in (case.x, case.plain().weight, case.grad(family)):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
        assert not tensor.is_contiguous()


def test_the_incoming_gradient_is_shut_where_rounding_may_decide_about_a_relu():
    output = torch.tensor([1.0, 0.01, -0.01, -1.0])
    assert (incoming_gradient(output, torch.float32, True) == 0).tolist() == [False, True, True, False]
    assert incoming_gradient(output, torch.bfloat16, False).dtype == torch.bfloat16


def test_who_takes_part():
    found = providers.entrants(("two_branch", "two_branch_max_autotune", "ccn"), ["cpu", "reference"], rank=2)
    assert found == [
        Entrant("two_branch", "ones"), Entrant("two_branch", "pool"), Entrant("two_branch_max_autotune", "pool"),
        Entrant("ccn", None, "cpu"), Entrant("ccn", None, "reference"), Entrant("ccn", "relu", "cpu"),
        Entrant("ccn", "relu", "reference"),
    ]  # fmt: skip
    assert providers.entrants(("two_branch", "two_branch_compiled"), [], rank=0) == [
        Entrant("two_branch"), Entrant("two_branch_compiled"),
    ]  # fmt: skip


def test_a_backend_s_own_provider_is_measured_beside_the_chosen_one():
    found = providers.entrants(("ccn", "ccn_cuda", "ccn_triton"), ["triton"], rank=2)
    assert found == [
        Entrant("ccn", None, "triton"), Entrant("ccn", "relu", "triton"), Entrant("ccn_cuda", None, "cuda"),
        Entrant("ccn_triton", None, "triton"),
    ]  # fmt: skip
    case = case_of(LAYERS[0])
    assert providers.module(found[2], case).backend == "cuda"
    assert providers.family_of(found[2]) == providers.family_of(found[0])


def test_a_backend_s_own_provider_is_judged_as_ours(monkeypatch):
    monkeypatch.setitem(providers.OURS, "ccn_cuda", "reference")
    made, row = contender(providers.entrants(["ccn_cuda"], [], rank=2)[0], case_of(LAYERS[0]), "training"), {}
    measure.judge(made, made.call(), row)
    assert made.limit == contender(ENTRANTS[-1], case_of(LAYERS[0]), "training").limit


@pytest.mark.parametrize("layer", [LAYERS[1], LAYERS[7]], ids=lambda layer: layer.name)
def test_cudnn_s_graph_is_given_the_reciprocal_divisors(layer):
    case = case_of(layer)
    norm = providers.TwoBranch(case.plain(), case, pool=True)._pooled(case.x.square().sum(1, keepdim=True)).sqrt()
    torch.testing.assert_close(frontend.reciprocal(case), 1 / (norm + DELTA))


@pytest.mark.parametrize(
    ("layer", "which", "reason"),
    [(LAYERS[0], "training", "forward pass alone"), (LAYERS[6], "forward", "two or three spatial axes"),
     (LAYERS[4], "forward", "several groups")],
)  # fmt: skip
def test_cudnn_s_graph_says_what_it_cannot_do(layer, which, reason):
    with pytest.raises(RuntimeError, match=reason):
        frontend.fused_graph(SimpleNamespace(layer=layer, device="cuda"), which)
    with pytest.raises(RuntimeError, match="CUDA GPU"):
        frontend.fused_graph(case_of(layer), which)
