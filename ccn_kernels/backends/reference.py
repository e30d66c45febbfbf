"""Plain PyTorch operators: any device, any floating-point dtype, always there."""

NAME = "reference"


def unavailable() -> str | None:
    return None


def unsupported(request) -> str | None:
    return None
