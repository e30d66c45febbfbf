"""VGG-11 on images of CIFAR-10's size: plain against compact, in training and inference."""

from __future__ import annotations

import functools
import gc
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ccn_kernels
from ccn_kernels import convert, models

from .measure import Contender, measure
from .run import Row, Rows, Run

BATCH = 256


def rows(run: Run) -> Rows:
    return {
        "training, bf16": functools.partial(row, run, training, False),
        "inference, bf16": functools.partial(row, run, inference, False),
        "training, autocast": functools.partial(row, run, training, True),
    }


def networks(run: Run) -> dict[str, Callable[[], nn.Module]]:
    if run.dry_run:
        return {"plain": small, "ours": lambda: convert.to_compact(small(), fuse_relu=True)}
    return {
        "plain": lambda: models.vgg11("sm"),
        "ours": lambda: models.vgg11("ccn"),
        "ours, relu apart": lambda: convert.to_compact(models.vgg11("sm")),
    }


def small() -> nn.Module:
    """For a dry run."""
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(8), nn.Flatten(), nn.Linear(128, 10)]
    return nn.Sequential(OrderedDict((str(i), layer) for i, layer in enumerate(layers)))


def row(run: Run, make: Callable[..., Callable[[], Any]], autocast: bool) -> Row:
    """Memory first, each network alone; then all take turns."""
    images, steps, peaks = 2 if run.dry_run else BATCH, {}, {}
    for name, network in networks(run).items():
        if name not in run.lost:
            run.step(name)
            peaks[name] = peak(run, lambda network=network: make(run, network(), images, autocast))
        steps[name] = functools.partial(contender, run, make, network, images, autocast)
    entries = measure(run, steps)
    for name, entry in entries.items():
        entry["peak bytes"] = peaks.get(name)
        for way in ("called", "replayed"):
            if way in entry:
                entry[f"images/s, {way}"] = round(1e6 * images / entry[way]["median"])
    return {"kind": "networks", "batch": images, "backends": ccn_kernels.available_backends(), "providers": entries}


def contender(run: Run, make: Any, network: Any, images: int, autocast: bool) -> Contender:
    return Contender(make(run, network(), images, autocast))


def peak(run: Run, make: Callable[[], Callable[[], Any]]) -> int | None:
    """Bytes allocated at most while a call runs, the network's own included."""
    if run.device != "cuda":
        return None
    gc.collect()
    run.clock.free()
    before = torch.cuda.memory_allocated()
    call = make()
    for _ in range(3):  # cuDNN tries its algorithms, each with a workspace of its own
        call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def prepared(run: Run, network: nn.Module, images: int, autocast: bool) -> tuple[nn.Module, Tensor, torch.autocast]:
    narrow = torch.float32 if run.dry_run else torch.bfloat16
    dtype = torch.float32 if autocast else narrow
    torch.manual_seed(0)
    network = network.to(run.device, dtype, memory_format=torch.channels_last)
    input = torch.rand(images, 3, 32, 32, device=run.device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    # the cache of cast weights would keep tensors of one graph for the next
    context = torch.autocast(run.device, torch.bfloat16, enabled=autocast and not run.dry_run, cache_enabled=False)
    return network, input, context


def inference(run: Run, network: nn.Module, images: int, autocast: bool) -> Callable[[], Tensor]:
    network, input, context = prepared(run, network.eval(), images, autocast)

    def call() -> Tensor:
        with torch.no_grad(), context:
            return network(input)

    return call


def training(run: Run, network: nn.Module, images: int, autocast: bool) -> Callable[[], Tensor]:
    """Forward, loss, backward and a step of SGD with momentum."""
    network, input, context = prepared(run, network.train(), images, autocast)
    target = torch.randint(10, (images,), device=run.device)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)

    def call() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with context:
            loss = F.cross_entropy(network(input).float(), target)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return call
