"""The peer from NVIDIA: nvidia-cudnn-frontend's runtime-fused graph of the product, the division, alpha and bias."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .case import ALPHA, DELTA, Case, Named


def fused_graph(case: Case, which: str) -> Callable[[], Named]:
    """y = (x * w) . (1 / divisor) . alpha + b as one cuDNN graph; plain PyTorch makes the reciprocal divisors first.

    Raises:
        RuntimeError: the pass is not the forward one, or the wheel, a GPU or cuDNN's support is missing.
    """
    if case.device != "cuda":
        raise RuntimeError("cuDNN needs a CUDA GPU")
    if which != "forward":
        raise RuntimeError("cuDNN's fused graphs are measured in the forward pass alone")
    if case.layer.rank < 2:
        raise RuntimeError("cuDNN's convolution graphs need two or three spatial axes")
    if case.layer.groups > 1:
        raise RuntimeError("one reciprocal for each of several groups does not broadcast in a cuDNN graph")
    try:
        import cudnn
    except ImportError as error:
        raise RuntimeError(f"{error}: this needs `pip install nvidia-cudnn-frontend`") from error
    return _run(cudnn, case)


def _run(cudnn, case: Case) -> Callable[[], Named]:
    rank, spec = case.layer.rank, case.layer.spec
    plain, broadcast = case.plain(), (1,) * rank
    weight, bias = (parameter.detach() for parameter in plain.parameters())
    tensors = {
        "x": case.x, "w": weight, "reciprocal": reciprocal(case), "bias": bias.view(1, -1, *broadcast),
        "alpha": torch.full((1, 1, *broadcast), ALPHA, device=case.device, dtype=case.dtype),
    }  # fmt: skip
    handle = cudnn.create_handle()
    cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream().cuda_stream)
    graph = cudnn.pygraph(
        io_data_type=_data_type(cudnn, case.dtype), intermediate_data_type=cudnn.data_type.FLOAT,
        compute_data_type=cudnn.data_type.FLOAT, handle=handle,
    )  # fmt: skip
    inputs = {name: graph.tensor_like(tensor) for name, tensor in tensors.items()}
    product = graph.conv_fprop(
        image=inputs["x"], weight=inputs["w"], padding=list(spec.padding), stride=list(spec.stride),
        dilation=list(spec.dilation),
    )  # fmt: skip
    quotient = graph.mul(a=product, b=inputs["reciprocal"])
    result = graph.add(a=graph.mul(a=quotient, b=inputs["alpha"]), b=inputs["bias"])
    result.set_output(True).set_data_type(_data_type(cudnn, case.dtype))
    graph.build([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    workspace = torch.empty(graph.get_workspace_size(), dtype=torch.uint8, device=case.device)
    like = case.x.new_empty(case.layer.batch, case.layer.out_channels, *(case.layer.out_size,) * rank)
    output = like.contiguous(memory_format=case.memory_format)

    @torch.no_grad()
    def run() -> Named:
        tensors["reciprocal"] = reciprocal(case)
        pack = {inputs[name]: tensor for name, tensor in tensors.items()}
        graph.execute({**pack, result: output}, workspace, handle=handle)
        return {"output": output}

    return run


def reciprocal(case: Case) -> Tensor:
    """1 / (norm + delta) of every patch, [N, 1, *out], by the two-branch module's second branch."""
    pool, layer = {2: F.avg_pool2d, 3: F.avg_pool3d}[case.layer.rank], case.layer
    squares = case.x.square().sum(1, keepdim=True)
    return (pool(squares, layer.kernel, layer.stride, layer.padding, divisor_override=1).sqrt() + DELTA).reciprocal()


def _data_type(cudnn, dtype: torch.dtype):
    types = {torch.float32: "FLOAT", torch.float16: "HALF", torch.bfloat16: "BFLOAT16"}
    return getattr(cudnn.data_type, types[dtype])
