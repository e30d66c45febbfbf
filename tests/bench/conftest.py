"""Tiny jobs in this process, with rates that need no measuring."""

import pytest
import torch

from ccn_kernels.bench import work
from ccn_kernels.bench.clock import HostClock
from ccn_kernels.bench.record import Record
from ccn_kernels.bench.settings import Settings
from ccn_kernels.bench.watch import Watch

LIMITS = {"bytes_per_s": 1e10, "flop_per_s": {"float32": 1e11, "bfloat16": 1e11}}


@pytest.fixture(autouse=True)
def isolated():
    """Replaces the fixture that poisons memory: its deterministic mode makes oneDNN's convolutions take ages."""
    torch.manual_seed(0)


@pytest.fixture
def settings(tmp_path):
    """Of one tiny layer's forward pass by the plain layer and ours; more by keywords."""

    def make(**options):
        few = {"suites": ("tiny",), "workloads": "16-16", "providers": ("conv", "ccn"), "passes": ("forward",)}
        return Settings(tmp_path / "record.json", "cpu", **{**few, "rounds": 2, "threads": 1, **options})

    return make


@pytest.fixture
def worked(monkeypatch):
    """Does the work of settings in this process, as the measuring one would; gives the record as its file has it."""
    monkeypatch.setattr(work, "add_ceilings", lambda record, *args: record.environment.update(ceilings=LIMITS))

    def run(settings):
        watch = Watch(work.word_of(settings))
        try:
            work.work(settings, work.opened(settings), HostClock(), watch)
        finally:
            watch.clear()
        return Record.load(settings.out)

    return run
