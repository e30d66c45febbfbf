"""What is to be done: a job is one pass of one layer or network in one memory format, by all who take part."""

from __future__ import annotations

import functools
import re
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import backends
from ..workloads import Layer
from . import networks, providers
from .case import ALPHA, Case, exact_products, precision, relative_error
from .floor import of_layer
from .networks import Network
from .providers import Contender, Entrant
from .record import Row
from .settings import DTYPES, FASTEST, FORMATS, Settings, suites

# Of a network's logits, against its own in exact fp32: rounding adds up from layer to layer.
NETWORK_LIMITS = {"float32": 1e-3, "tf32": 5e-2, "float16": 5e-2, "bfloat16": 2e-1}


class Job(NamedTuple):
    suite: str
    work: Layer | Network
    which: str  # the pass
    dtype: str
    memory_format: str

    @property
    def key(self) -> Row:
        """As the record's rows have it."""
        return {
            "suite": self.suite, "workload": self.work.name, "batch": self.work.batch, "pass": self.which,
            "dtype": self.dtype, "memory_format": self.memory_format,
        }  # fmt: skip

    def __str__(self) -> str:
        return " ".join(str(value) for value in self.key.values())


def jobs(settings: Settings) -> list[Job]:
    """Raises ValueError where no workload of the suites matches."""
    known, found = suites(settings.device), []
    for suite in settings.suites:
        for work in known[suite]:
            if re.search(settings.workloads, work.name):
                scaled = settings.batch or max(1, round(settings.batch_scale * work.batch))
                found += _of_work(suite, work._replace(batch=scaled), settings)
    if not found:
        names = ", ".join(dict.fromkeys(work.name for suite in settings.suites for work in known[suite]))
        raise ValueError(f"--workloads {settings.workloads!r} matches none; there are {names}")
    return found


def _of_work(suite: str, work: Layer | Network, settings: Settings) -> list[Job]:
    formats, passes = settings.formats, settings.passes
    if isinstance(work, Network):
        passes = tuple(which for which in passes if which != "backward")  # a step is not taken apart
    elif work.rank < 2:
        formats = ("contiguous",)  # there is no other
    return [Job(suite, work, which, dtype, format) for dtype in settings.dtypes for format in formats
            for which in passes]  # fmt: skip


def entrants(job: Job, settings: Settings) -> list[Entrant]:
    """All who take part. Of networks, plain and compact by each backend: the other providers have none."""
    rank = job.work.rank if isinstance(job.work, Layer) else 2

    def chosen(name: str) -> str:
        fastest = name == FASTEST
        return backends.select(None, settings.device, DTYPES[job.dtype], rank) if fastest else name

    names = [chosen(name) for name in settings.backends]
    if isinstance(job.work, Layer):
        return providers.entrants(settings.providers, names, rank)
    found = [Entrant("conv")] if "conv" in settings.providers else []
    for name in names if "ccn" in settings.providers else ():
        found += [Entrant("ccn", variant, name) for variant in (None, "relu apart")[: 1 + job.work.fuses]]
    return found


def cost(job: Job) -> tuple[int, int] | None:
    """Operations and bytes; of layers only."""
    return of_layer(job.work, job.which, DTYPES[job.dtype].itemsize) if isinstance(job.work, Layer) else None


def contender(job: Job, entrant: Entrant, device: str) -> Contender:
    """Raises whatever keeps the entrant from taking part; what it says becomes the row's failure."""
    if isinstance(job.work, Network):
        return _network(job, entrant, device)
    return providers.contender(entrant, _case(job.work, job.dtype, job.memory_format, device), job.which)


@functools.lru_cache(maxsize=2)  # a layer's memory formats are measured together
def _case(layer: Layer, dtype: str, memory_format: str, device: str) -> Case:
    return Case(layer, dtype, memory_format, device)


def _network(job: Job, entrant: Entrant, device: str) -> Contender:
    assert isinstance(job.work, Network)
    dtype, memory_format = DTYPES[job.dtype], getattr(torch, FORMATS[job.memory_format])
    images = job.work.images().to(device, dtype).contiguous(memory_format=memory_format)
    network: Any = _made(job.work, entrant, entrant.backend)
    network = network.to(device, dtype, memory_format=memory_format)
    error = _error(job, network, _made(job.work, entrant, "reference").to(device), images)
    if job.which == "forward":
        call = networks.inference(network, images)
    else:
        call = networks.training(network, images, torch.arange(job.work.batch, device=device) % job.work.classes)
    resident = functools.partial(networks.resident_bytes, network)
    return Contender(call, {}, NETWORK_LIMITS[job.dtype], error, resident)


def _made(network: Network, entrant: Entrant, backend: str | None) -> nn.Module:
    return networks.variant_of(network.network(), entrant.provider, entrant.variant, backend, ALPHA)


def _error(job: Job, network: nn.Module, exact: nn.Module, images: Tensor) -> float:
    """Of the logits in evaluation."""
    with exact_products():
        expected = networks.inference(exact, images.float())()
    with precision(job.dtype):
        return relative_error(networks.inference(network, images)(), expected)
