"""KERNEL-NOTES' layers under pytest-benchmark, through the harness's own providers and gate: `pytest benchmarks`.

Speeds are shown, never asserted; that the results are right is. For ratios that can be quoted use `ccn bench`, whose
contenders take turns, in a process with steady memory and threads.
"""

import functools

import pytest
import torch

from ccn_kernels.bench.case import Case, precision
from ccn_kernels.bench.measure import judge
from ccn_kernels.bench.providers import Entrant, contender
from ccn_kernels.workloads import of_suite

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = "bfloat16" if DEVICE == "cuda" else "float32"
ENTRANTS = (Entrant("conv"), Entrant("two_branch", "pool"), Entrant("ccn"))

case_of = functools.lru_cache(maxsize=1)(Case)


@pytest.mark.parametrize("entrant", ENTRANTS, ids=lambda entrant: entrant.provider)
@pytest.mark.parametrize("which", ["forward", "training"])
@pytest.mark.parametrize("layer", of_suite("kernel-notes", DEVICE), ids=lambda layer: layer.name)
def test_throughput(benchmark, layer, which, entrant):
    with precision(DTYPE):
        made = contender(entrant, case_of(layer, DTYPE, "channels_last", DEVICE), which)
        judge(made, made.call(), {})

        def call():
            made.call()
            if DEVICE == "cuda":
                torch.cuda.synchronize()

        benchmark.group = f"{layer.name} {which}"
        benchmark.pedantic(call, rounds=10, warmup_rounds=2)
