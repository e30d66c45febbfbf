"""What one run of the harness measures: the options of `ccn bench`, checked, and as JSON for the measuring process."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .. import backends
from ..workloads import SUITES, Layer, of_suite
from . import growth, networks
from .networks import Network

_EVERYWHERE = (
    "conv", "conv_nobias", "two_branch", "two_branch_compiled", "two_branch_max_autotune", "cudnn_epilogue",
    "cudnn_frontend", "ccn",
)  # fmt: skip
PROVIDERS = {"cpu": _EVERYWHERE, "cuda": (*_EVERYWHERE, "ccn_cuda", "ccn_triton")}
DEFAULT_PROVIDERS = {"cpu": ("conv", "conv_nobias", "two_branch", "ccn"),
                     "cuda": ("conv", "conv_nobias", "two_branch", "cudnn_epilogue", "ccn")}  # fmt: skip
PASSES = ("forward", "backward", "training")
DTYPES = {"float32": torch.float32, "tf32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FORMATS = {"channels_last": "channels_last", "contiguous": "contiguous_format"}  # as torch calls them
DEFAULT_DTYPE = {"cpu": "float32", "cuda": "bfloat16"}
DEFAULT_ROUNDS = {"cpu": 31, "cuda": 100}
FASTEST = "fastest"  # among the backends: the one that is chosen where none is named


@dataclass(frozen=True)
class Settings:
    """Empty tuples stand for the device's defaults; raises ValueError naming the option that is wrong."""

    out: Path
    device: str = field(default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu")
    suites: tuple[str, ...] = ("kernel-notes",)
    workloads: str = ""
    providers: tuple[str, ...] = ()
    backends: tuple[str, ...] = (FASTEST,)
    passes: tuple[str, ...] = ("forward", "training")
    dtypes: tuple[str, ...] = ()
    formats: tuple[str, ...] = ("channels_last",)
    rounds: int = 0
    batch: int | None = None
    batch_scale: float = 1.0
    budget: float = float("inf")
    again: bool = False
    threads: int = field(default_factory=torch.get_num_threads)
    commit: str | None = None

    def __post_init__(self) -> None:
        if self.device not in DEFAULT_DTYPE:
            raise ValueError(f"--device must be cpu or cuda, got {self.device!r}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda: PyTorch sees no CUDA GPU here")
        for name, default in (
            ("providers", DEFAULT_PROVIDERS[self.device]),
            ("dtypes", (DEFAULT_DTYPE[self.device],)),
            ("rounds", DEFAULT_ROUNDS[self.device]),
        ):
            object.__setattr__(self, name, getattr(self, name) or default)
        known = {"suites": suite_names(self.device), "providers": PROVIDERS[self.device],
                 "backends": (FASTEST, *backends.NAMES), "passes": PASSES, "dtypes": tuple(DTYPES),
                 "formats": tuple(FORMATS)}  # fmt: skip
        for name, values in known.items():
            _check_names(name, getattr(self, name), values)
        if self.device == "cpu" and "tf32" in self.dtypes:
            raise ValueError("--dtypes tf32: a CPU has none")
        for name, least in (("rounds", 2), ("batch", 1), ("threads", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name} must be at least {least}, got {value}")
        if self.batch_scale <= 0:
            raise ValueError(f"--batch-scale must be positive, got {self.batch_scale}")
        try:
            re.compile(self.workloads)
        except re.error as error:
            raise ValueError(f"--workloads must be a regular expression, got {self.workloads!r}: {error}") from error

    def to_json(self) -> str:
        return json.dumps({**dataclasses.asdict(self), "out": str(self.out)})

    @classmethod
    def from_json(cls, text: str) -> Settings:
        values: dict[str, Any] = json.loads(text)
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **lists, "out": Path(values["out"])})


def _check_names(option: str, values: tuple[str, ...], known: tuple[str, ...]) -> None:
    unknown = [value for value in values if value not in known]
    if unknown:
        raise ValueError(f"--{option}: there is no {', '.join(unknown)}; there are {', '.join(known)}")


def suite_names(device: str) -> tuple[str, ...]:
    return tuple(suites(device))


def suites(device: str) -> dict[str, tuple[Layer | Network, ...]]:
    """All suites, by name, with batches that suit the device. Suites that live elsewhere are added here."""
    layers: dict[str, tuple[Layer | Network, ...]] = {name: of_suite(name, device) for name in SUITES}
    return {**layers, **growth.suites(device), "networks": networks.NETWORKS[device], "tiny-networks": networks.TINY}
