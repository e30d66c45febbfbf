"""One of the processes of test_scale.py: ``torchrun --nproc-per-node 2 processes.py FOLDER``.

It notes in FOLDER the name of every check that passed. NCCL where each process can have a GPU of its own, else Gloo.
"""

import copy
import datetime
import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from ccn_kernels.convert import shardable, to_compact
from ccn_kernels.functional import compact_conv2d

RANK, PROCESSES = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
DEVICE = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.device_count() >= PROCESSES else "cpu"
FULL = StateDictOptions(full_state_dict=True)
SHARED = Path(sys.argv[1])


class Network(nn.Module):
    """Its batch norm's large eps lets the scale of what it normalises matter: alpha gets a gradient."""

    def __init__(self, spare=False):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8, eps=1.0), nn.ReLU(inplace=True),
            nn.Conv2d(8, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 5),
        )  # fmt: skip
        self.spare = nn.Linear(54, 5) if spare else None

    def forward(self, input):
        return self.layers(input)


def network(compact, **options):
    torch.manual_seed(0)
    model = Network(**options).to(DEVICE)
    return to_compact(model, alpha=2.0, inplace=True) if compact else model


def data():
    """Each process's part of the batch."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4 * PROCESSES, 3, 8, 8, generator=generator)
    return images.to(DEVICE).chunk(PROCESSES), torch.arange(4 * PROCESSES, device=DEVICE).remainder(5).chunk(PROCESSES)


def train(model, parts, optimiser):
    """Three steps on these parts of the batch; the mean of their gradients."""
    images, targets = data()
    optimiser = optimiser(model.parameters(), lr=0.05)
    for _ in range(3):
        optimiser.zero_grad()
        for part in parts:
            loss = nn.functional.cross_entropy(model(images[part]), targets[part])
            (loss / len(parts)).backward()
        optimiser.step()


def alone(compact, optimiser, **options):
    """What one process makes of the whole batch."""
    model = network(compact, **options)
    train(model, range(PROCESSES), optimiser)
    return model


def assert_alike(model, expected):
    for (name, actual), wanted in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert_close(actual, wanted, msg=lambda text, name=name: f"{name}: {text}")
        assert_close(actual.grad, wanted.grad, msg=lambda text, name=name: f"the gradient of {name}: {text}")


def ddp(compact):
    for settings in ({}, {"find_unused_parameters": True}, {"static_graph": True}):
        model = network(compact, spare=bool(settings))
        train(DistributedDataParallel(model, **settings), [RANK], torch.optim.SGD)
        assert_alike(model, alone(compact, torch.optim.SGD, spare=bool(settings)))


def ddp_compiled(compact):
    model = network(compact)
    train(torch.compile(DistributedDataParallel(model), backend="aot_eager"), [RANK], torch.optim.SGD)
    assert_alike(model, alone(compact, torch.optim.SGD))


def ddp_power_sgd(compact):
    """Gradients that travel as factors, of full rank here."""
    model = network(compact)
    parallel = DistributedDataParallel(shardable(model))
    state = PowerSGDState(None, matrix_approximation_rank=8, start_powerSGD_iter=2, min_compression_rate=0.1)
    parallel.register_comm_hook(state, powerSGD_hook)
    train(parallel, [RANK], torch.optim.SGD)
    expected = shardable(network(compact))
    train(expected, range(PROCESSES), torch.optim.SGD)
    assert_alike(model, expected)


def fsdp1(compact):
    model = FullyShardedDataParallel(shardable(network(compact)), device_id=torch.device(DEVICE))
    train(model, [RANK], torch.optim.AdamW)
    with FullyShardedDataParallel.summon_full_params(model):
        expected = shardable(alone(compact, torch.optim.AdamW))
        assert_close(dict(model.module.named_parameters()), dict(expected.named_parameters()))


def sharded(model, **settings):
    """Each layer that has parameters on its own, then the rest; batch norm keeps its precision."""
    for layer in shardable(model).layers:
        if list(layer.parameters()):
            fully_shard(layer, **({} if isinstance(layer, nn.BatchNorm2d) else settings))
    return fully_shard(model, **settings)


def assert_holds(model, expected, **tolerance):
    """The sharded model has the other's parameters."""
    actual = {name: part.full_tensor() for name, part in model.named_parameters()}
    assert_close(actual, dict(shardable(expected).named_parameters()), **tolerance)


def fsdp(compact):
    for optimiser in (torch.optim.SGD, torch.optim.AdamW):
        model = sharded(network(compact))
        train(model, [RANK], optimiser)
        assert_holds(model, alone(compact, optimiser))


def fsdp_from_meta(compact):
    """Sharded before there are any numbers; memory that nobody wrote is NaN."""
    torch.use_deterministic_algorithms(True)
    with torch.device("meta"):
        model = Network()
    model = sharded(to_compact(model, alpha=2.0) if compact else model).to_empty(device=DEVICE)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    torch.use_deterministic_algorithms(False)
    for name, part in model.named_parameters():
        value = part.full_tensor()
        if name.endswith("alpha"):
            assert_close(value, torch.full_like(value, 2.0))
        assert value.isfinite().all(), name


def fsdp_from_meta_with_a_plain_state(compact):
    """Materialised by a checkpoint of plain layers alone: alphas get their value, on every process its part."""
    plain = network(False)
    with torch.device("meta"):
        model = Network()
    model = sharded(to_compact(model, alpha=2.0) if compact else model)
    set_model_state_dict(model, plain.state_dict(), options=FULL)
    model(data()[0][RANK])
    whole = get_model_state_dict(model, options=FULL)
    for name, value in plain.state_dict().items():
        assert "running" in name or "tracked" in name or torch.equal(whole[name], value), name
    assert all(value == 2.0 for name, value in whole.items() if name.endswith("alpha"))


def tensor_parallel(compact):
    """Two linear layers, the first by its outputs and the second by its inputs; ours by its inputs alone."""
    torch.manual_seed(0)
    mesh = init_device_mesh(torch.device(DEVICE).type, (PROCESSES,))
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)).to(DEVICE)
    model = to_compact(model) if compact else model
    x = data()[0][0][:, 0, 0, :6]
    expected = model(x)
    if compact:
        with pytest.raises(AssertionError):  # it cuts every parameter, alpha too
            parallelize_module(copy.deepcopy(model), mesh, {"0": ColwiseParallel()})
    plan = {"2": RowwiseParallel(input_layouts=Replicate())} | (
        {} if compact else {"0": ColwiseParallel(output_layouts=Replicate())}
    )
    assert_close(parallelize_module(model, mesh, plan)(x), expected)


def fsdp_in_bf16(compact):
    """Computes as the model in bf16 does; clips by the norm that all processes' gradients have together."""
    model = sharded(network(compact), mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    expected = network(compact).to(torch.bfloat16)
    expected.layers[1].float()
    images, _ = data()
    output = model(images[RANK])
    assert_close(output, expected(images[RANK].to(torch.bfloat16)))
    output.float().square().sum().backward()
    gradients = [part.grad.full_tensor() for part in model.parameters()]
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    assert_close(norm.full_tensor(), torch.cat([gradient.flatten() for gradient in gradients]).norm())


def fsdp_states(compact):
    """A whole state out of shards, into a model and into shards again; a checkpoint of shards."""
    model = sharded(network(compact))
    train(model, [RANK], torch.optim.SGD)
    whole = network(compact)
    whole.load_state_dict(get_model_state_dict(model, options=FULL))
    loaded = sharded(network(compact))
    set_model_state_dict(loaded, whole.state_dict(), options=FULL)
    dcp.save(get_model_state_dict(model), checkpoint_id=SHARED / f"checkpoint-{compact}")
    resumed = sharded(network(compact))
    state = get_model_state_dict(resumed)
    dcp.load(state, checkpoint_id=SHARED / f"checkpoint-{compact}")
    set_model_state_dict(resumed, state)
    assert all(scale.shape == () for name, scale in whole.named_parameters() if name.endswith("alpha"))
    for each in (model, loaded, resumed):
        assert_holds(each, whole, rtol=0, atol=0)


def distributed_tensors(compact):
    """A layer on every process, the batch in parts."""
    layer = network(compact).layers[0]
    images = torch.cat(data()[0])
    expected = layer(images)
    wanted = torch.autograd.grad(expected.square().mean(), list(layer.parameters()))
    mesh = init_device_mesh(torch.device(DEVICE).type, (PROCESSES,))
    distribute_module(layer, mesh)
    parts = distribute_tensor(images, mesh, [Shard(0)])
    if compact:
        with pytest.raises(RuntimeError, match="PyTorch's own operators alone"):
            compact_conv2d(parts, layer.weight, backend="cpu")
    assert_close(torch.compile(layer, backend="aot_eager", fullgraph=True)(parts).full_tensor(), expected)
    output = layer(parts)
    assert output.placements == (Shard(0),)
    assert_close(output.full_tensor(), expected)
    output.square().mean().backward()
    assert_close([part.grad.full_tensor() for part in layer.parameters()], list(wanted))


def fsdp_says_what_it_needs(compact):
    if compact:
        with pytest.raises(ValueError, match=r"Change .*alpha to a 1D tensor"):
            fully_shard(network(compact))


CHECKS = (
    ddp, ddp_compiled, ddp_power_sgd,
    fsdp1, fsdp_says_what_it_needs, fsdp, fsdp_from_meta, fsdp_from_meta_with_a_plain_state, fsdp_in_bf16, fsdp_states,
    distributed_tensors, tensor_parallel,
)  # fmt: skip


def main():
    if DEVICE != "cpu":
        torch.cuda.set_device(DEVICE)
        torch.backends.cudnn.allow_tf32 = False
    dist.init_process_group("gloo" if DEVICE == "cpu" else "nccl", timeout=datetime.timedelta(seconds=60))
    for check in CHECKS:
        for compact in (False, True):
            check(compact)
            (SHARED / f"{check.__name__}-{'compact' if compact else 'plain'}-{RANK}").touch()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
