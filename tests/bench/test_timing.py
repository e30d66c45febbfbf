"""Taking turns, memory, and what is counted."""

import pytest
import torch

from ccn_kernels.bench import floor, timing
from ccn_kernels.bench.clock import HostClock
from ccn_kernels.workloads import Layer

MIB = 1 << 20


def test_calls_take_turns_and_the_first_turns_do_not_count():
    order, clock = [], iter(range(100))
    calls = {name: lambda name=name: order.append(name) for name in "abc"}

    def sample(call):
        call()
        return float(next(clock))

    times = timing.interleaved(calls, 2, sample)
    assert "".join(order) == "abc" * (timing.WARM_UP + 2)
    first = 3 * timing.WARM_UP
    assert {name: found["median"] for name, found in times.items()} == {
        "a": first + 1.5, "b": first + 2.5, "c": first + 3.5
    }  # fmt: skip


def test_percentiles_lie_within_the_samples():
    assert timing.percentiles([float(i) for i in range(11)]) == {"p20": 2.0, "median": 5.0, "p80": 8.0}
    assert timing.percentiles([1.0, 9.0]) == {"p20": pytest.approx(2.6), "median": 5.0, "p80": pytest.approx(7.4)}


def test_peak_memory_is_of_what_lives_at_once():
    clock, kept = HostClock(), torch.empty(MIB, dtype=torch.uint8)

    def one_after_the_other():
        for _ in range(3):
            kept.clone()

    def at_once():
        return [kept.clone() for _ in range(3)]

    assert clock.peak_bytes(one_after_the_other) == MIB
    assert clock.peak_bytes(at_once) == 3 * MIB
    assert clock.peak_bytes(lambda: None) == 0


def test_operations_and_bytes_of_a_known_layer():
    layer = Layer("strided", 2, 3, 8, 6, stride=2)  # 6x6 -> 3x3
    x, w, y = 2 * 3 * 36, 8 * 3 * 9, 2 * 8 * 9
    assert (layer.inputs, layer.weights, layer.outputs) == (x, w, y)
    flop = 2 * 27 * y
    assert floor.of_layer(layer, "forward", 2) == (flop, 2 * (x + w + y))
    assert floor.of_layer(layer, "backward", 4) == (2 * flop, 4 * (3 * x + 2 * w + 5 * y))
    training = floor.of_layer(layer, "training", 2)
    parts = [floor.of_layer(layer, which, 2) for which in ("forward", "backward")]
    assert training[0] == sum(part[0] for part in parts)
    assert training[1] == sum(part[1] for part in parts) + 2 * y  # the quotient, kept


def test_a_group_multiplies_its_own_channels_only():
    whole = Layer("whole", 2, 8, 8, 4)
    assert whole._replace(groups=4).flop * 4 == whole.flop
    assert Layer("linear", 5, 16, 8, kernel=1, padding=0, rank=0).flop == 2 * 5 * 16 * 8


def test_the_floor_is_the_slower_of_arithmetic_and_memory():
    limits = {"bytes_per_s": 1e9, "flop_per_s": {"float32": 1e12}}
    assert floor.microseconds(2_000_000, 1_000, "float32", limits) == pytest.approx(2)
    assert floor.microseconds(1_000_000, 5_000, "float32", limits) == pytest.approx(5)


def test_ceilings_are_found_for_every_dtype():
    found = floor.ceilings(HostClock(), ("float32", "bfloat16"), (1024, 16))
    assert found["bytes_per_s"] > 0
    assert found["flop_per_s"].keys() == {"float32", "bfloat16"}
