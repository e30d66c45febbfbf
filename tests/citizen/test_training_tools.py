"""What PyTorch offers around a training loop: checkpointing, averages, optimisers, functional calls."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, vector_to_parameters
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

EXACTLY = {"rtol": 0, "atol": 0}


def network(kind, dtype=torch.float32):
    return nn.Sequential(
        kind(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), kind(6, 4, 3), nn.Flatten(), nn.Linear(64, 5)
    ).to(dtype)  # fmt: skip


def images(dtype=torch.float32):
    return torch.randn(4, 3, 8, 8, dtype=dtype)


def gradients(model, x, call=None):
    """Of the input and every parameter; ``call`` runs the model."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    output = model(x) if call is None else call(model, x)
    output.square().mean().backward()  # reentrant checkpoints refuse torch.autograd.grad
    return [x.grad, *(part.grad for part in model.parameters())]


CHECKPOINTS = {
    "reentrant": functools.partial(checkpoint, use_reentrant=True),
    "not reentrant": functools.partial(checkpoint, use_reentrant=False),
}


@pytest.mark.parametrize("how", CHECKPOINTS)
@pytest.mark.behaviour("Training", "activation checkpointing, reentrant or not, compiled too")
def test_checkpoint(kind, how):
    model, x = nn.Sequential(kind(3, 6, 3), nn.ReLU(), kind(6, 4, 3)), images()
    run = CHECKPOINTS[how]
    assert_close(gradients(model, x, run), gradients(model, x), **EXACTLY)
    assert_close(gradients(model, x, torch.compile(run, backend="aot_eager")), gradients(model, x))


class Counting(TorchDispatchMode):
    """How often an operator ran."""

    def __init__(self, operator):
        super().__init__()
        self.operator, self.calls = operator, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += function is self.operator
        return function(*args, **(kwargs or {}))


def keeping(*operators):
    """A checkpoint that keeps what these operators return, and recomputes the rest."""

    def policy(context, operator, *args, **kwargs):
        return CheckpointPolicy.MUST_SAVE if operator in operators else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = functools.partial(create_selective_checkpoint_contexts, policy)
    return functools.partial(checkpoint, use_reentrant=False, context_fn=contexts)


@pytest.mark.behaviour(
    "Training", "selective checkpointing that keeps the convolution", ours="works, by `torch.ops.ccn.compact_conv`"
)
def test_selective_checkpoint(kind):
    model, x = nn.Sequential(kind(3, 6, 3), nn.ReLU(), kind(6, 4, 3), nn.Tanh()), images()
    convolution = torch.ops.aten.convolution if kind is nn.Conv2d else torch.ops.ccn.compact_conv
    calls = {}
    for kept in ((), (convolution.default,)):
        with Counting(convolution.default) as counting:
            assert_close(gradients(model, x, keeping(*kept)), gradients(model, x), **EXACTLY)
        calls[kept] = counting.calls - 2  # without a checkpoint
        compiled = torch.compile(keeping(*kept), backend="aot_eager", fullgraph=True)
        assert_close(gradients(model, x, compiled), gradients(model, x))
    assert list(calls.values()) == [4, 2]


@pytest.mark.behaviour("Training", "`torch.use_deterministic_algorithms`: the same bits twice")
def test_deterministic_algorithms(kind):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, x = network(kind).to(device), images().to(device)
    torch.use_deterministic_algorithms(True)
    assert_close(gradients(model, x), gradients(model, x), **EXACTLY)


def step(model, x, optimiser):
    optimiser.zero_grad()
    model(x).square().sum().backward()
    optimiser.step()


@pytest.mark.parametrize("kernel", ["foreach", "fused"])
@pytest.mark.behaviour("Training", "optimisers' foreach and fused kernels: the steps of the loop over parameters")
def test_optimiser_kernels(kind, kernel):
    x = images(torch.float64)
    for optimiser in (torch.optim.AdamW, torch.optim.SGD):
        model = network(kind, torch.float64)
        start, looped = copy.deepcopy(model), copy.deepcopy(model)
        for one, choice in ((model, {kernel: True}), (looped, {"foreach": False})):
            chosen = optimiser(one.parameters(), lr=1e-3, **choice)
            for _ in range(3):
                step(one, x, chosen)
        assert_close(list(model.parameters()), list(looped.parameters()))
        assert not any(map(torch.equal, model.parameters(), start.parameters()))


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.behaviour("Training", "`clip_grad_norm_`, foreach or not")
def test_clipping(kind, foreach):
    model = network(kind)
    model(images()).square().sum().backward()
    before = [part.grad.clone() for part in model.parameters()]
    norm = torch.cat([part.flatten() for part in before]).norm()
    assert_close(clip_grad_norm_(model.parameters(), 0.1, foreach=foreach), norm)
    assert_close([part.grad for part in model.parameters()], [part * 0.1 / norm for part in before])


@pytest.mark.behaviour("Training", "`parameters_to_vector` and back; the model trains on")
def test_vector_of_parameters(kind):
    model, other, x = network(kind), network(kind), images()
    shapes = [part.shape for part in other.parameters()]
    vector_to_parameters(parameters_to_vector(model.parameters()), other.parameters())
    assert [part.shape for part in other.parameters()] == shapes
    for _ in range(2):
        assert_close(gradients(other, x), gradients(model, x), **EXACTLY)
        for one in (model, other):
            step(one, x, torch.optim.SGD(one.parameters(), lr=1e-3))


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.behaviour("Training", "`AveragedModel`: an exponential moving average, of buffers or not")
def test_ema(kind, use_buffers):
    model, x = network(kind), images()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=use_buffers)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    expected = None
    for _ in range(3):
        step(model, x, optimiser)
        average.update_parameters(model)
        state = {name: part.clone() for name, part in model.state_dict().items()}
        learned = {name for name, _ in model.named_parameters()}
        for name, part in state.items() if expected else ():
            if name in learned or (use_buffers and part.is_floating_point()):
                state[name] = 0.9 * expected[name] + 0.1 * part
        expected = state
    averaged = {name: part for name, part in average.module.state_dict().items() if "num_batches" not in name}
    assert_close(averaged, {name: expected[name] for name in averaged})


@pytest.mark.behaviour("Training", "stochastic weight averaging with `update_bn`")
def test_swa(kind):
    model, batches = network(kind), [images(), images()]
    average = AveragedModel(model)
    weights = []
    for x in batches:
        step(model, x, torch.optim.SGD(model.parameters(), lr=1e-3))
        average.update_parameters(model)
        weights.append([part.detach().clone() for part in model.parameters()])
    assert_close(list(average.parameters()), [(one + two) / 2 for one, two in zip(*weights, strict=True)])
    update_bn(batches, average)
    means = [average.module[0](x).mean((0, 2, 3)) for x in batches]
    assert_close(average.module[1].running_mean, sum(means) / 2)


@pytest.mark.behaviour("Training", "`functional_call`, and an ensemble: `stack_module_state` under `vmap` and `grad`")
def test_ensemble(kind):
    models, x = [network(kind).eval() for _ in range(3)], images()
    parameters, buffers = stack_module_state(models)
    skeleton = copy.deepcopy(models[0]).to("meta")

    def loss(parameters, buffers):
        return functional_call(skeleton, (parameters, buffers), (x,)).square().mean()

    stacked = vmap(grad(loss))(parameters, buffers)
    for index, model in enumerate(models):
        _, *expected = gradients(model, x)
        assert_close([part[index] for part in stacked.values()], expected)
        alone = grad(loss)(dict(model.named_parameters()), dict(model.named_buffers()))
        assert_close(list(alone.values()), expected)
