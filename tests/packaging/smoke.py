"""Tries an installed ccn_kernels: `python smoke.py BACKEND`, where BACKEND must be the one that is chosen by itself."""

import sys

import torch

import ccn_kernels
from ccn_kernels import backends

expected = sys.argv[1]
chosen = backends.select(None, "cpu", torch.float32, 2)
assert chosen == expected, f"chose {chosen}, expected {expected}: {backends.explain()}"

torch.manual_seed(0)
layer = ccn_kernels.CompactConv2d(6, 8, 3, padding=1, groups=2)
image = torch.randn(2, 6, 9, 9, requires_grad=True)
with torch.no_grad():
    image[0, :, :4] = 0
results = {}
for backend in (expected, "reference"):
    layer.backend = backend
    output = layer(image)
    results[backend] = [output, *torch.autograd.grad(output.square().sum(), [image, *layer.parameters()])]
for ours, reference in zip(*(results[backend] for backend in (expected, "reference")), strict=True):
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)

if expected == "reference":
    reason = backends.explain()["cpu"]
    assert reason is not None, "a backend that was not built is called available"
    assert "no-build-isolation" in reason, reason
print(f"{ccn_kernels.__version__} under PyTorch {torch.__version__}: {ccn_kernels.available_backends()} work")
