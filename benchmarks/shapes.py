"""The named workloads, which live in the package."""

from ccn_kernels.workloads import LAYERS, SUITES, Layer, of_suite

__all__ = ["LAYERS", "SUITES", "Layer", "of_suite"]
