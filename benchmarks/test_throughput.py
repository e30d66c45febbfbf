"""The CPU shapes under pytest-benchmark: `pytest benchmarks --benchmark-group-by=group --benchmark-columns=median`.

Speeds are shown, never asserted. For ratios that can be quoted use cpu_ratios.py, which interleaves its contenders.
"""

import providers
import pytest
import torch
from shapes import CPU

MODES = {"forward": providers.forward, "training": providers.training_step}


@pytest.mark.parametrize("provider", providers.PROVIDERS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", CPU, ids=lambda shape: shape.name)
def test_throughput(benchmark, shape, mode, provider):
    providers.check(shape)
    layer = providers.make(provider, shape, torch.channels_last)
    call = MODES[mode](layer, shape.input(torch.channels_last))
    benchmark.group = f"{shape.name} {mode}"
    benchmark.pedantic(call, rounds=10, warmup_rounds=2)
