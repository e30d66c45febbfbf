"""Compact convolution (Ranjan et al., 2018): convolutions of norm-one patches, as fast as plain ones."""

from . import convert, functional, models, reference
from .backends import available_backends
from .layers import CompactConv1d, CompactConv2d, CompactConv3d, CompactLinear
from .version import __version__

__all__ = [
    "CompactConv1d",
    "CompactConv2d",
    "CompactConv3d",
    "CompactLinear",
    "__version__",
    "available_backends",
    "convert",
    "env_report",
    "functional",
    "models",
    "reference",
]


def __getattr__(name: str):
    if name == "env_report":  # late, so that `python -m ccn_kernels.env_report` runs a module not yet imported
        from importlib import import_module

        return import_module(".env_report", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
