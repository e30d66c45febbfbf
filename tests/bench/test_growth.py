"""Growth: which points are measured, and which of them are called cliffs."""

import pytest
import torch

from ccn_kernels.bench import growth, settings, tell


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_axes_run_from_end_to_end(device):
    suites = growth.suites(device)
    ends = {"batch": (1, 512), "image": (8, 224), "channels": (1, 1024), "kernel": (1, 11)}
    for axis, (first, last) in ends.items():
        layers = suites[f"growth-{axis}"]
        rows = [{"suite": f"growth-{axis}", "workload": layer.name, "batch": layer.batch} for layer in layers]
        sizes = [growth.size(row) for row in rows]
        assert (sizes[0], sizes[-1]) == (first, last)
        assert sizes == sorted(set(sizes))


def test_a_cpu_is_given_points_that_it_can_run():
    for layers in growth.suites("cpu").values():
        for layer in layers:
            x, w, *_ = layer.operands(torch.float32, "meta")
            assert 2 * x.numel() * w.shape[0] * layer.kernel**2 < 50e9  # half a second at 100 GFLOP/s
            assert x.numel() * 4 < 1 << 30


def rows(axis, costs, provider="conv", **others):
    """Times in µs by size, with floors that grow as the size does."""
    names = {"batch": "64-64@32", "image": "64-64@{}", "channels": "{0}-{0}@16", "kernel": "64-64@32 {0}x{0}"}
    return [
        {"suite": f"growth-{axis}", "workload": names[axis].format(at), "batch": at if axis == "batch" else 8,
         "provider": provider, "variant": None, "pass": "forward", "timing": "eager", "dtype": "float32",
         "memory_format": "channels_last", "median_us": cost, "floor_us": float(at), **others}
        for at, cost in costs.items()
    ]  # fmt: skip


SMOOTH = {at: 10.0 * at**0.8 for at in (1, 2, 4, 8, 16, 32)}


@pytest.mark.parametrize("axis", growth.VALUES)
def test_a_smooth_curve_has_no_cliff(axis):
    measured = rows(axis, SMOOTH) + rows(axis, {at: 3 * cost for at, cost in SMOOTH.items()}, "ccn")
    assert growth.cliffs(measured) == []
    assert growth.report(measured) == "no point lies above 1.5 times its neighbours' trend"


@pytest.mark.parametrize("axis", growth.VALUES)
def test_a_planted_cliff_is_found_with_its_excess(axis):
    measured = rows(axis, SMOOTH) + rows(axis, SMOOTH | {8: 2 * SMOOTH[8]}, "ccn")
    cost, ratio = growth.cliffs(measured)
    for cliff, kind in ((cost, "cost"), (ratio, "ratio")):
        assert (cliff["kind"], cliff["provider"], cliff["size"], cliff["suite"]) == (kind, "ccn", 8, f"growth-{axis}")
        assert cliff["excess"] == pytest.approx(2)
    assert cost["beside"] == pytest.approx(1)
    assert f"{axis} 8, forward" in growth.report(measured)
    assert "ccn costs 2.00 times its neighbours' trend; plain convolution 1.00 times\n" in growth.report(measured)


def test_a_cliff_that_plain_convolution_has_too_is_said_to_be_so():
    steep = SMOOTH | {8: 2 * SMOOTH[8]}
    found = growth.cliffs(rows("image", steep) + rows("image", steep, "ccn"))
    assert [(cliff["provider"], cliff["kind"]) for cliff in found] == [("conv", "cost"), ("ccn", "cost")]
    assert "plain convolution 2.00 times as well" in growth._line(found[1])


def test_only_points_with_neighbours_on_both_sides_are_judged_and_gaps_are_bridged():
    ends = SMOOTH | {1: 9 * SMOOTH[1], 32: 9 * SMOOTH[32]}
    assert growth.cliffs(rows("batch", ends)) == []
    gap = SMOOTH | {4: None}
    assert growth.cliffs(rows("batch", gap)) == []
    assert [cliff["size"] for cliff in growth.cliffs(rows("batch", gap | {8: 2 * SMOOTH[8]}))] == [8]


def test_settings_are_not_mixed_and_variants_do_not_count():
    slow = {at: 5 * cost for at, cost in SMOOTH.items()}
    mixed = rows("batch", SMOOTH) + rows("batch", slow, **{"pass": "training"})
    mixed += rows("batch", {8: 9 * SMOOTH[8]}, variant="again") + rows("batch", {8: 1e9}, suite="vgg11")
    assert growth.cliffs(mixed) == []


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_harness_knows_the_suites(device):
    assert set(growth.suites(device)) <= set(settings.suites(device))


def test_cliffs_are_told_below_the_ratios():
    assert tell.cliffs(rows("batch", SMOOTH)).startswith("no point lies above")
    assert tell.cliffs([{"suite": "vgg11"}]) == ""
