"""Compiling launches for a GPU that is not there, and reading off what the compiler made of them."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability

from ...workloads import LAYERS, Layer
from . import config, limits
from .backward_pass import Backward
from .forward_pass import Forward
from .launch import Launch, Problem
from .tiles import UNTRIED_TILES, Device, Tile

ARCHITECTURES = {f"sm_{capability}": capability for capability in (75, 80, 86, 89, 90, 100, 120)}
PROCESSORS = 132  # of the GPU that is not there: an H200's
DTYPES = ("bfloat16", "tf32")
_SHOWN = ("BOX", "TILE", "BLOCK", "BLOCK_O", "BLOCK_C", "BLOCK_K", "SQUARES", "PRECISION")


class Report(NamedTuple):
    """What became of one kernel: registers a thread, bytes spilled a thread, and instructions by kind."""

    registers: int
    spills: int
    shared_bytes: int
    wgmma: int
    mma: int
    bulk_copies: int
    serialized: bool  # whether the assembler runs the asynchronous products one by one
    races: bool  # whether a loop fills registers from shared memory while products are under way


def report(arch: str, dtypes: Sequence[str] = DTYPES) -> Iterator[dict[str, Any]]:
    """A row for every kernel that the chosen tiles compile to: kernel, config, and Report's fields.

    Chosen are those of `workloads.LAYERS` on a GPU that no table knows, and those of every table's layers. With them
    come persistent tiles that have not been tried on a GPU yet.

    Raises:
        ValueError: the architecture is not among ``ARCHITECTURES``.
    """
    if arch not in ARCHITECTURES:
        raise ValueError(f"arch must be one of {', '.join(ARCHITECTURES)}, got {arch!r}")
    capability = ARCHITECTURES[arch]
    seen = set()
    for device, layers in _chosen(capability):
        for layer in layers:
            for dtype in dtypes:
                for launch in [*launches_of(layer, dtype, device), *_untried(layer, dtype, device)]:
                    identity = identity_of(launch, dtype)
                    if identity not in seen:
                        seen.add(identity)
                        row = {"kernel": launch.kernel.__name__, "config": f"{dtype} {config_of(launch)}"}
                        yield {**row, **compile_launch(launch, capability)._asdict()}


def _chosen(capability: int) -> Iterator[tuple[Device, Sequence[Layer]]]:
    yield Device("", capability, PROCESSORS), LAYERS
    for path in config.CONFIGS.glob("*.json"):
        content = json.loads(path.read_text())
        if content["capability"] == capability:
            device = Device(content["device"], capability, content["processors"])
            layers = {json.dumps(entry["layer"]): Layer(**entry["layer"]) for entry in content["entries"]}
            yield device, [*LAYERS, *layers.values()]


def _untried(layer: Layer, dtype: str, device: Device) -> Iterator[Launch]:
    """What the forward pass would launch by those of them that can run."""
    for tile in UNTRIED_TILES:
        problem, (bias, alpha), launches = _recorded(layer, dtype, device, {"forward": tile})
        if limits.can_run(tile, problem.request("forward"), device) is None:
            Forward(problem, bias, alpha, True).run()
            yield launches[-1]


def faults(row: dict[str, Any], arch: str) -> list[str]:
    """What is wrong with a row: nothing, for a kernel that may be chosen."""
    found = []
    if row["spills"]:
        found.append(f"spills {row['spills']} bytes")
    if row["serialized"]:
        found.append("its asynchronous products run one by one")
    if row["races"]:
        found.append("fills registers while asynchronous products are under way, which may still read them")
    if row["shared_bytes"] > limits.SHARED_LIMITS.get(ARCHITECTURES[arch], limits.LEAST_SHARED):
        found.append(f"needs {row['shared_bytes']} bytes of shared memory")
    if arch == "sm_90" and row["kernel"].endswith(("_descriptor", "_persistent")) and not row["wgmma"]:
        found.append("has no wgmma")
    return found


def launches_of(layer: Layer, dtype: str, device: Device) -> list[Launch]:
    """The launches of one training step of a layer, as on that GPU; their tensors have no content."""
    problem, (bias, alpha), launches = _recorded(layer, dtype, device)
    y, quotient, norm = Forward(problem, bias, alpha, True).run()
    Backward(problem, torch.empty_like(y), bias, alpha, None, quotient, norm, [True] * 4).run()
    return launches


def _recorded(
    layer: Layer, dtype: str, device: Device, tiles: dict[str, Tile] | None = None
) -> tuple[Problem, tuple[Tensor, Tensor], list[Launch]]:
    """A problem, its bias and alpha, and the list in which its launches will be found."""
    tensor_type = torch.float32 if dtype in ("tf32", "float32") else getattr(torch, dtype)
    x, w, bias, alpha = layer.operands(tensor_type, "meta")
    launches: list[Launch] = []
    problem = Problem(x, w, layer.spec, device, launches.append, tiles)
    problem.precision = "tf32" if dtype == "tf32" else "ieee"
    return problem, (bias, alpha), launches


def config_of(launch: Launch) -> str:
    """The constants that tell configurations of a kernel apart."""
    shown = [f"{name}={launch.arguments[name]}" for name in _SHOWN if name in launch.arguments]
    return " ".join([*shown, f"warps={launch.warps}", f"stages={launch.stages}"]).replace(", ", ",")


def identity_of(launch: Launch, dtype: str) -> tuple:
    """Equal for launches that compile to the same code: constants, and what the compiler specialises numbers on."""
    fixed = {parameter.name for parameter in launch.kernel.params if parameter.do_not_specialize}
    seen: list[tuple] = []
    for name, value in launch.arguments.items():
        if name.isupper() or value is None:
            seen.append((name, str(value)))
        elif name not in fixed:
            numbers = value if isinstance(value, tuple) else (value,)
            seen.extend((name, number == 1, number % 16 == 0) for number in numbers if isinstance(number, int))
    return dtype, launch.kernel.__name__, tuple(seen), launch.warps, launch.stages


class _Driver:
    """As much of a driver as the compiler's front end asks for; the device's number is its capability."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        return self._capability

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def target(capability: int) -> Iterator[None]:
    """Within, launches compile for that capability. Not for use beside running kernels."""
    drivers = triton.runtime.driver
    before = drivers._active  # None, where nothing has asked for a GPU yet
    drivers.set_active(_Driver(capability))
    try:
        yield
    finally:
        drivers.set_active(before)


def compile_launch(launch: Launch, capability: int) -> Report:
    """Compiles one launch, whose tensors may be on the meta device."""
    with target(capability):
        kernel = launch.kernel.warmup(**launch.arguments, grid=launch.grid, **launch.options)
    return _read(kernel, capability)


def _read(kernel: Any, capability: int) -> Report:
    text = kernel.asm["ptx"]

    def count(pattern: str) -> int:
        return len(re.findall(pattern, text))

    registers, spills, serialized = _resources(text, capability)
    return Report(
        registers,
        spills,
        kernel.metadata.shared,
        serialized=serialized,
        races=_races(kernel.asm["ttgir"]),
        wgmma=count(r"wgmma\.mma_async"),
        mma=count(r"(?<!wg)mma\.sync|tcgen05\.mma"),
        bulk_copies=count(r"cp\.async\.bulk\.tensor"),
    )


_LOOPS = re.compile(r"^( *)(?:%\S+ = )?scf\.for .*?^\1\}", re.DOTALL | re.MULTILINE)


def _races(ttgir: str) -> bool:
    """Whether a loop with products that nobody waits for loads from shared memory as well.

    Triton 3.6 neither keeps enough boxes there, if products read them too, nor the registers of a left operand.
    """
    return any(_loads_early(found.group()) for found in _LOOPS.finditer(ttgir))


def _loads_early(loop: str) -> bool:
    pending = False
    for line in 2 * loop.splitlines():  # twice: what one round leaves under way, the next one finds
        if "warp_group_dot_wait" in line:
            pending = pending and "pendings = 0 " not in line
        elif "warp_group_dot" in line:
            pending = pending or "isAsync = true" in line
        elif "ttg.local_load" in line and pending:
            return True
    return False


def _resources(ptx: str, capability: int) -> tuple[int, int, bool]:
    """Registers, bytes of spill stores and loads, a thread, and serialized products, as the assembler reports them."""
    command = [get_ptxas(capability).path, "-v", f"--gpu-name={sm_arch_from_capability(capability)}", "-", "-o"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as scratch:
        done = subprocess.run([*command, scratch.name], input=ptx, capture_output=True, text=True, check=True)
    spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    registers = re.search(r"Used (\d+) registers", done.stderr)
    if spilled is None or registers is None:
        raise RuntimeError(f"the assembler printed no resource usage: {done.stderr!r}")
    return int(registers[1]), int(spilled[1]) + int(spilled[2]), "are serialized" in done.stderr
