"""The place of the fused Triton kernels, which this version does not have yet."""

NAME = "triton"


def unavailable() -> str | None:
    return "this version of ccn_kernels has no Triton kernels"


def unsupported(request) -> str | None:
    return None
