"""The place of the CUDA C++ kernels, which this version does not have yet."""

NAME = "cuda"


def unavailable() -> str | None:
    return "this version of ccn_kernels has no CUDA C++ kernels"


def unsupported(request) -> str | None:
    return None
