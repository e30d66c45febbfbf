"""The verdicts on CUDA kernels, on planted listings; `make cuda-kernels` is what reads real ones."""

import importlib.util
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("cuda_kernels", Path(__file__).parent / "cuda_kernels.py")
guard = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(guard)

TILE = "convolve<TensorCores<Half, 128>, true>"
LOOP = {"HMMA": 64, "LDSM": 16, "LDGSTS": 8, "FFMA": 64, "DFMA": 0, "all": 450}
LISTING = """
arch = sm_90a
		Function : _Z1fv
        /*0000*/                   HFMA2.MMA R2, -RZ, RZ, 0, 0 ;     /* 0x1 */
        /*0010*/                   FFMA R1, R2, R3, R1 ;             /* 0x1 */
        /*0020*/              @!P0 BRA 0x10 ;                        /* 0x1 */
        /*0030*/                   LDGSTS.E.BYPASS.128 [R1], [R2] ;  /* 0x1 */
        /*0040*/                   HMMA.16816.F32 R0, R1, R2, R0 ;   /* 0x1 */
        /*0050*/              @!P1 BRA 0x30 ;                        /* 0x1 */
        /*0060*/              @P2 BRA 0x0 ;                          /* 0x1 */
"""
USAGE = """
arch = sm_90a
 Function _Z1fv:
  REG:42 STACK:16 SHARED:0 LOCAL:8 CONSTANT[0]:560 TEXTURE:0
"""


def faults(loop=LOOP, local_bytes=0, recorded=LOOP, name=TILE):
    kernel = guard.Kernel(name, 200, local_bytes, loop)
    return guard.check([kernel], {name: loop}, {TILE: recorded})


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"local_bytes": 8}, "8 bytes of local memory"),
        ({"loop": {**LOOP, "HMMA": 0}}, "no HMMA"),
        ({"loop": {**LOOP, "LDGSTS": 0}}, "no LDGSTS"),
        ({"loop": {**LOOP, "all": 500}}, "500 instructions in its loop, 450 on record"),
        ({"name": "convolve<MultiplyAdds<float>, true>"}, "not on record"),
    ],
    ids=["spills", "no products", "no wide copies", "a longer loop", "a new kernel"],
)
def test_what_must_not_be_is_named(changes, fault):
    assert any(fault in found for found in faults(**changes))


def test_a_kernel_as_on_record_passes():
    assert faults() == []
    assert faults(loop={**LOOP, "all": 490}) == []


def test_a_kernel_that_is_gone_is_missed():
    assert guard.check([], {}, {TILE: LOOP}) == [f"{TILE}: on record, but not in the library"]


def test_the_loop_is_the_one_that_multiplies():
    ((arch, symbol, lines),) = guard.functions(LISTING)
    assert (arch, symbol, len(lines)) == ("sm_90a", "_Z1fv", 7)
    counts = guard.count(guard.loop_of(lines))
    assert counts == {"HMMA": 1, "LDSM": 0, "LDGSTS": 1, "FFMA": 0, "DFMA": 0, "all": 3}


def test_stack_and_local_memory_are_one_account():
    assert guard.resources(USAGE) == {("sm_90a", "_Z1fv"): (42, 24)}
