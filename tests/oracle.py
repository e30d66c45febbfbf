"""The fp64 oracle: compact convolution by explicit unfolding of patches. It shares no code with the package.

Patches are gathered by index arithmetic, multiplied with einsum, and differentiated by plain autograd, so that neither
PyTorch's convolutions nor the package's formulas can hide an error. Rank 0 (a weight of two axes) is a linear layer.
"""

import torch


def axes(value, rank):
    return (value,) * rank if isinstance(value, int) else tuple(value)


def padding_amounts(padding, kernel, dilation):
    """(before, after) of every axis; "same" puts an odd total's larger half behind."""
    if padding == "valid":
        return [(0, 0)] * len(kernel)
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(amount, amount) for amount in axes(padding, len(kernel))]


def sources(size, kernel, stride, dilation, before, after, mode):
    """The coordinate that each tap of each output reads, [out, kernel]; ``size`` where that is a zero of padding."""
    out = (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
    at = torch.arange(out)[:, None] * stride + torch.arange(kernel)[None] * dilation - before
    if mode == "circular":
        return at % size
    if mode == "replicate":
        return at.clamp(0, size - 1)
    if mode == "reflect":
        return size - 1 - (size - 1 - at.abs()).abs()
    return torch.where((at < 0) | (at >= size), size, at)


def unfold(x, kernel, *, stride=1, padding=0, dilation=1, groups=1, padding_mode="zeros"):
    """Patches [N, groups, C / groups * taps, pixels], and the output's spatial extents."""
    rank = len(kernel)
    stride, dilation = axes(stride, rank), axes(dilation, rank)
    extents = []
    for axis, (before, after) in enumerate(padding_amounts(padding, kernel, dilation)):
        dim = 2 + 2 * axis  # every axis done already has become two: output and tap
        at = sources(x.shape[dim], kernel[axis], stride[axis], dilation[axis], before, after, padding_mode)
        zero = x.new_zeros([1 if i == dim else n for i, n in enumerate(x.shape)])
        x = torch.cat([x, zero], dim).index_select(dim, at.flatten()).unflatten(dim, at.shape)
        extents.append(at.shape[0])
    taps, pixels = range(3, 3 + 2 * rank, 2), range(2, 2 + 2 * rank, 2)
    x = x.permute(0, 1, *taps, *pixels).flatten(1, 1 + rank)
    x = x.flatten(2) if rank else x.unsqueeze(2)
    return x.unflatten(1, (groups, x.shape[1] // groups)), extents


def patch_norms(x, kernel, **geometry):
    """Norms [N, groups, *out] of all patches."""
    patches, extents = unfold(x.double(), kernel, **geometry)
    return norms(patches).reshape(*patches.shape[:2], *extents)


def norms(patches):
    """[N, groups, 1, pixels]; the gradient at an all-zero patch is 0."""
    squares = patches.square().sum(2, keepdim=True)
    empty = squares == 0
    return torch.where(empty, 0.0, torch.where(empty, 1.0, squares).sqrt())


def quotients(u, r, delta):
    """u / (r + delta), 0 at an all-zero patch; with delta = 0 so is its gradient."""
    if delta > 0:
        return u / (r + delta)
    return torch.where(r == 0, 0.0, u / torch.where(r == 0, 1.0, r))


def compact_conv(x, weight, bias=None, alpha=1.0, *, delta=0.01, relu=False, **geometry):
    """Equation 4 in fp64: input [N, C, *spatial], weight [O, C / groups, *kernel], output [N, O, *out].

    ``geometry``: stride, padding, dilation, groups, padding_mode.
    """
    patches, extents = unfold(x.double(), weight.shape[2:], **geometry)
    kernels = weight.double().unflatten(0, (patches.shape[1], -1)).flatten(2)  # [groups, O / groups, taps]
    u = torch.einsum("gok,ngkp->ngop", kernels, patches)
    y = alpha * quotients(u, norms(patches), delta)
    y = y.flatten(1, 2).reshape(x.shape[0], weight.shape[0], *extents)
    if bias is not None:
        y = y + bias.double().reshape(-1, *[1] * len(extents))
    return y.relu() if relu else y


def gradients(x, weight, bias, alpha, grad, **settings):
    """Output and gradients, all fp64, by name: output, input, weight, alpha, and bias where there is one."""
    operands = {"input": x, "weight": weight, "alpha": alpha, "bias": bias}
    leaves = {name: t.detach().double().requires_grad_() for name, t in operands.items() if t is not None}
    y = compact_conv(leaves["input"], leaves["weight"], leaves.get("bias"), leaves["alpha"], **settings)
    parts = torch.autograd.grad(y, list(leaves.values()), grad.double(), materialize_grads=True)
    return {"output": y.detach(), **dict(zip(leaves, parts, strict=True))}


def magnitudes(x, weight, bias, alpha, grad, power, *, delta=0.01, relu=False, **geometry):
    """For every element of output and gradients, the ``power`` norm of the terms that sum to it.

    With power 1 it bounds what rounding in the accumulator can do; with power 2 it is the noise, in units of eps, that
    rounding each operand once to the dtype explains. Same names as :func:`gradients`.
    """

    def p(tensor):
        return tensor.detach().double().abs().pow(power)

    leaf = x.detach().double().requires_grad_()
    unfolded, extents = unfold(leaf, weight.shape[2:], **geometry)
    batch, groups, _, pixels = unfolded.shape
    r = norms(unfolded.detach())
    patches, kernels = p(unfolded), p(weight).unflatten(0, (groups, -1)).flatten(2)
    scale = p(quotients(torch.ones_like(r), r, delta))  # 1 / d
    g = p(grad).reshape(batch, groups, weight.shape[0] // groups, pixels)
    products = torch.einsum("gok,ngkp->ngop", kernels, patches) * scale
    offset = 0.0 if bias is None else p(bias).reshape(1, groups, -1, 1)
    output = p(alpha) * products + offset
    e = g * scale
    # under the fused ReLU a backend may take y - b for alpha u / d: the bias then is one more term that can cancel
    moment = (g * (output + (offset if relu else 0.0))).sum(2, keepdim=True)
    q = torch.where(r == 0, 0.0, moment * scale / p(torch.where(r == 0, 1.0, r)))
    terms = p(alpha) * torch.einsum("gok,ngop->ngkp", kernels, e) + patches * q
    results = {
        "output": output.reshape(batch, weight.shape[0], *extents),
        "input": torch.autograd.grad(unfolded, leaf, terms)[0],
        "weight": p(alpha) * torch.einsum("ngop,ngkp->gok", e, patches).reshape(weight.shape),
        "alpha": (g * products).sum(),
    }
    if bias is not None:
        results["bias"] = g.sum((0, 3)).flatten()
    return {name: value.pow(1 / power) for name, value in results.items()}
