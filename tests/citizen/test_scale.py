"""Several processes, threads and replicas. What needs process groups or forks runs in processes.py and forked.py."""

import copy
import importlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset

HERE = Path(__file__).parent
EXACTLY = {"rtol": 0, "atol": 0}
AFTER_SHARDABLE = "works, after `convert.shardable(model)`"


def label(kind):
    return "plain" if kind is nn.Conv2d else "compact"


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """Asserts that two processes, one group, passed a check; tells else what they said."""
    folder = tmp_path_factory.mktemp("group")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with (folder / "log").open("w") as log:
        launcher = subprocess.Popen([*command, HERE / "processes.py", folder], stdout=log, stderr=log)
        try:
            launcher.wait(timeout=300)
        finally:
            launcher.terminate()  # which stops its processes
            launcher.wait()

    def assert_passed(check, kind):
        passed = [(folder / f"{check}-{label(kind)}-{rank}").exists() for rank in range(2)]
        assert passed == [True, True], (folder / "log").read_text()[-8000:]

    return assert_passed


@pytest.mark.behaviour("Scale", "`DistributedDataParallel`, unused parameters and static graphs: trains as one process")
def test_ddp(kind, group):
    group("ddp", kind)


@pytest.mark.behaviour("Scale", "`torch.compile` of a `DistributedDataParallel` model")
def test_ddp_compiled(kind, group):
    group("ddp_compiled", kind)


@pytest.mark.behaviour("Scale", "`DistributedDataParallel` with the PowerSGD hook", ours=AFTER_SHARDABLE)
def test_ddp_power_sgd(kind, group):
    group("ddp_power_sgd", kind)


@pytest.mark.behaviour("Scale", "`FullyShardedDataParallel` (FSDP1): trains as one process", ours=AFTER_SHARDABLE)
def test_fsdp1(kind, group):
    group("fsdp1", kind)


@pytest.mark.behaviour("Scale", "FSDP2, `fully_shard` of layers and model: trains as one process", ours=AFTER_SHARDABLE)
def test_fsdp(kind, group):
    group("fsdp_says_what_it_needs", kind)
    group("fsdp", kind)


@pytest.mark.behaviour(
    "Scale",
    "FSDP2 of a model on the meta device: `to_empty`, `reset_parameters`, or a full state",
    ours=AFTER_SHARDABLE,
)
def test_fsdp_from_meta(kind, group):
    group("fsdp_from_meta", kind)
    group("fsdp_from_meta_with_a_plain_state", kind)


@pytest.mark.behaviour("Scale", "FSDP2 in bf16 by `MixedPrecisionPolicy`; `clip_grad_norm_`", ours=AFTER_SHARDABLE)
def test_fsdp_in_bf16(kind, group):
    group("fsdp_in_bf16", kind)


@pytest.mark.behaviour("Scale", "FSDP2: full states to and from an unsharded model, checkpoints", ours=AFTER_SHARDABLE)
def test_fsdp_states(kind, group):
    group("fsdp_states", kind)


@pytest.mark.behaviour(
    "Scale",
    "tensor parallelism of a linear layer: `RowwiseParallel`, `ColwiseParallel`",
    ours="`RowwiseParallel` works; `ColwiseParallel`: AssertionError, PyTorch's, as it cuts alpha too",
)
def test_tensor_parallel(kind, group):
    group("tensor_parallel", kind)


@pytest.mark.behaviour("Scale", "`DTensor`: a batch in parts, compiled too", ours="works, by the reference's operators")
def test_distributed_tensors(kind, group):
    group("distributed_tensors", kind)


@pytest.mark.behaviour("Scale", "`nn.DataParallel` and its replicas: gradients reach the model's parameters")
def test_data_parallel(kind, monkeypatch):
    there = {"device": "cuda" if torch.cuda.is_available() else "cpu", "dtype": torch.float64}
    model, x = nn.Sequential(kind(3, 6, 3), nn.ReLU(), kind(6, 4, 3)).to(**there), torch.randn(4, 3, 8, 8, **there)
    assert_close(nn.DataParallel(model)(x), model(x))

    def to_every_device(tensors, devices, detach=False):
        return [[tensor.clone() for tensor in tensors] for _ in devices]

    replication = importlib.import_module("torch.nn.parallel.replicate")
    monkeypatch.setattr(replication, "_broadcast_coalesced_reshape", to_every_device)
    replicas = replication.replicate(model, [0, 1])
    outputs = torch.cat([replica(part) for replica, part in zip(replicas, x.chunk(2), strict=True)])
    wanted = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    assert_close(torch.autograd.grad(outputs.square().sum(), list(model.parameters())), wanted)


@pytest.mark.behaviour("Scale", "forward and backward in a process forked off one that used threads: the same bits")
def test_fork(kind):
    command = [sys.executable, HERE / "forked.py", label(kind)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert child.returncode == 0, child.stderr


class Features(Dataset):
    """Images seen through a layer, in the worker that fetches them."""

    def __init__(self, layer):
        self.layer = layer
        self.images = torch.randn(8, 3, 12, 12)

    def __len__(self):
        return len(self.images)

    @torch.no_grad()
    def __getitem__(self, index):
        return self.layer(self.images[index])


@pytest.mark.behaviour("Scale", "a layer in a `DataLoader`'s workers: in the dataset and in `collate_fn`")
def test_data_loader(kind):
    data, second = Features(kind(3, 6, 3)), kind(6, 4, 3)
    data.layer(data.images).sum().backward()  # which starts the threads that a fork leaves behind

    @torch.no_grad()
    def collate(items):
        return second(torch.stack(items))

    settings = {"num_workers": 2, "multiprocessing_context": "fork", "timeout": 60}
    loaded = torch.cat(list(DataLoader(data, batch_size=2, collate_fn=collate, **settings)))
    assert_close(loaded, collate([data[index] for index in range(8)]))


def in_threads(call, arguments, threads):
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(call, arguments, timeout=120))


def trained(model):
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.linspace(-1, 1, 4 * 3 * 10 * 10).reshape(4, 3, 10, 10)
    for _ in range(5):
        optimiser.zero_grad()
        model(x).square().mean().backward()
        optimiser.step()
    return list(model.parameters())


@pytest.mark.behaviour("Scale", "four threads: each trains a model of its own, or all ask one layer; the same bits")
def test_threads(kind):
    models = [nn.Sequential(kind(3, 8, 3), nn.ReLU(), kind(8, 8, 3, groups=8)) for _ in range(4)]
    expected = in_threads(trained, copy.deepcopy(models), threads=1)
    assert_close(in_threads(trained, models, threads=4), expected, **EXACTLY)

    @torch.no_grad()  # of each thread
    def ask(input):
        return models[0](input)

    inputs = list(torch.randn(16, 2, 3, 16, 16))
    assert_close(in_threads(ask, inputs, threads=4), in_threads(ask, inputs, threads=1), **EXACTLY)
