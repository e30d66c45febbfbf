"""What a call costs the host: the GPU's work is small and nobody waits for it."""

from __future__ import annotations

import cProfile
import functools
import io
import pstats
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ccn_kernels.backends import triton as backend
from ccn_kernels.bench import providers
from ccn_kernels.bench.case import Case
from ccn_kernels.bench.direct import Direct
from ccn_kernels.bench.providers import Entrant
from ccn_kernels.bench.timing import interleaved
from ccn_kernels.functional import compact_conv2d
from ccn_kernels.workloads import Layer

from .passes import Recorder
from .run import Row, Rows, Run

LAYER = Layer("64-64@16", 64, 64, 64, 16)
TINY = Layer("8-8@4", 1, 8, 8, 4)
CALLS = 50  # in a row; the GPU's queue holds about a thousand launches


def rows(run: Run) -> Rows:
    return {
        "forward, no grad": functools.partial(row, run, False, False),
        "forward, grad": functools.partial(row, run, True, False),
        "forward and backward": functools.partial(row, run, True, True),
        "ours, layer by layer": functools.partial(inside, run),
        "ours, profile": functools.partial(profile, run),
    }


def case_of(run: Run) -> Case:
    return Case(TINY if run.dry_run else LAYER, run.dtype, "channels_last", run.device)


def row(run: Run, grad: bool, backward: bool) -> Row:
    contenders = calls(case_of(run))
    with torch.set_grad_enabled(grad):
        return timed(run, {name: with_backward(*call) if backward else call[0] for name, call in contenders.items()})


def calls(case: Case) -> dict[str, tuple[Callable[..., Tensor], list[Tensor]]]:
    """The functions and the layers, with what they differentiate."""
    plain: Any = case.plain()
    ours: Any = providers.module(Entrant("ccn"), case)
    x = case.x.detach().requires_grad_()
    operands = [x, ours.weight, ours.bias, ours.alpha]
    return {
        "conv, F.conv2d": (lambda: F.conv2d(x, plain.weight, plain.bias, padding=1), [x, plain.weight, plain.bias]),
        "conv, nn.Conv2d": (lambda: plain(x), [x, plain.weight, plain.bias]),
        "ours, compact_conv2d": (lambda: compact_conv2d(*operands, padding=1), operands),
        "ours, CompactConv2d": (lambda: ours(x), operands),
    }


def with_backward(call: Callable[..., Tensor], leaves: list[Tensor]) -> Callable[[], Any]:
    incoming = torch.randn_like(call().detach())
    return lambda: torch.autograd.grad(call(), leaves, incoming)


def inside(run: Run) -> Row:
    """One forward call from the outside in: what each layer of ours adds."""
    case, direct, recorder = case_of(run), Direct(case_of(run)), Recorder()
    direct.forward(recorder)
    layer, nothing = providers.module(Entrant("ccn"), case), torch.ones(1, device=run.device)
    operands, spec = (case.x, direct.weight, direct.bias, direct.alpha), direct.problem().spec

    def operator() -> None:
        torch.ops.ccn.compact_conv(*operands, *spec, False, "triton")

    with torch.no_grad():
        return timed(run, {
            "conv, nn.Conv2d": functools.partial(case.plain(), case.x),
            "ours, CompactConv2d": functools.partial(layer, case.x),
            "ours, operator": operator,
            "ours, backend": lambda: backend.forward(*operands, spec, False),
            "ours, pass, not replayed": direct.forward,
            "ours, problem alone": direct.problem,
            "ours, launches alone": lambda: [launch.run() for launch in recorder.launches],
            "one ATen kernel": lambda: nothing.add_(1),
        })  # fmt: skip


def timed(run: Run, contenders: dict[str, Callable[[], Any]]) -> Row:
    count = 2 if run.dry_run else CALLS

    def sample(call: Callable[[], Any]) -> float:
        """Microseconds a call, from an empty queue to the last call's return."""
        run.clock.synchronize()
        started = time.perf_counter()
        for _ in range(count):
            call()
        elapsed = time.perf_counter() - started
        run.clock.synchronize()
        return 1e6 * elapsed / count

    times = interleaved(contenders, run.rounds, sample)
    entries = {name: {"called": {key: round(value, 2) for key, value in t.items()}} for name, t in times.items()}
    return {"kind": "host", "providers": entries}


def profile(run: Run) -> Row:
    """Where the time goes, by function. The profiler itself makes all of it slower."""
    case = case_of(run)
    layer, profiler = providers.module(Entrant("ccn"), case), cProfile.Profile()
    with torch.no_grad():
        layer(case.x)
        run.clock.synchronize()
        profiler.enable()
        for _ in range(2 if run.dry_run else CALLS):
            layer(case.x)
        profiler.disable()
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).strip_dirs().sort_stats("tottime").print_stats(25)
    return {"kind": "profile", "text": text.getvalue().splitlines()}
