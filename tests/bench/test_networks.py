"""The networks are what their names say, and their gate sees a wrong one."""

import pytest
import torch
from torch import nn

from ccn_kernels import convert
from ccn_kernels.bench import jobs, networks, providers
from ccn_kernels.bench.jobs import Job
from ccn_kernels.bench.providers import Entrant

SMALL = Job("tiny-networks", networks.TINY[0], "forward", "float32", "channels_last")


def test_resnet50_is_the_one_of_the_paper():
    """25,557,032 parameters and 53 convolutions, by its authors."""
    with torch.device("meta"):
        model = networks.resnet50()
    assert sum(parameter.numel() for parameter in model.parameters()) == 25_557_032
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == 53
    images = torch.empty(2, 3, 224, 224, device="meta")
    assert model(images).shape == (2, 1000)
    assert model[:4](images).shape == (2, 64, 56, 56)


def test_compact_networks_fuse_where_a_relu_follows_directly():
    plain = networks.TINY[0].network()
    fused = networks.variant_of(plain, "ccn", None, "reference", 1.5)
    apart = networks.variant_of(plain, "ccn", "relu apart", "reference", 1.5)
    assert [layer.activation for layer in convert.compact_layers(fused)] == ["relu", None]
    assert [layer.activation for layer in convert.compact_layers(apart)] == [None, None]
    assert all(layer.backend == "reference" and layer.alpha == 1.5 for layer in convert.compact_layers(fused))
    assert networks.variant_of(plain, "conv", None, None, 1.5) is plain


def test_their_fuses_field_is_true():
    with torch.device("meta"):
        made = {network.name: network.make() for network in networks.NETWORKS["cpu"]}
    for network in networks.NETWORKS["cpu"]:
        compact = convert.to_compact(made[network.name], fuse_relu=True)
        assert any(layer.activation for layer in convert.compact_layers(compact)) == network.fuses


def test_a_training_step_trains_and_its_memory_is_counted():
    network, images = networks.TINY[0].network(), networks.TINY[0].images()
    size = sum(4 * parameter.numel() for parameter in network.parameters())
    assert networks.resident_bytes(network) == size
    step = networks.training(network, images, torch.arange(2))
    losses = [step() for _ in range(20)]
    assert losses[-1] < losses[0]
    assert networks.resident_bytes(network) == 3 * size  # gradients and momenta


def test_the_gate_knows_a_network_that_computes_something_else(monkeypatch):
    made = jobs.contender(SMALL, Entrant("ccn", None, "reference"), "cpu")
    assert 0 <= made.error <= 1e-6
    right = networks.variant_of

    def wrong(plain, provider, variant, backend, alpha):
        return right(plain, provider, variant, backend, alpha if backend == "reference" else 1.0)

    monkeypatch.setattr(networks, "variant_of", wrong)
    off = jobs.contender(SMALL, Entrant("ccn", None, None), "cpu")
    assert off.error > off.limit


def test_who_takes_part_in_networks(settings):
    names = providers.VARIANTS.keys() | {"conv_nobias", "cudnn_epilogue"}
    chosen = settings(providers=tuple(sorted(names)), backends=("reference",))
    vgg, resnet = (Job("networks", network, "forward", "float32", "contiguous") for network in networks.NETWORKS["cpu"])
    ours = Entrant("ccn", None, "reference")
    assert jobs.entrants(vgg, chosen) == [Entrant("conv"), ours, ours._replace(variant="relu apart")]
    assert jobs.entrants(resnet, chosen) == [Entrant("conv"), ours]
    assert jobs.cost(vgg) is None


def test_networks_have_no_backward_pass_of_their_own(settings):
    chosen = settings(suites=("tiny-networks",), workloads="", passes=("backward", "training"))
    assert [job.which for job in jobs.jobs(chosen)] == ["training"]
    with pytest.raises(ValueError, match="none; there are small"):
        jobs.jobs(settings(suites=("tiny-networks",), workloads="vgg"))
