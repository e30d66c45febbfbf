"""Random valid calls: every backend against the fp64 oracle, by the project's criterion."""

import problems
import pytest
import strategies
import torch
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

EVERY = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# Dtypes, and numbers in all patches together. Triton's interpreter is slow, and multiplies bf16 wrongly.
LIMITS = {"triton": ([torch.float32, torch.float16], 500), "cuda": (EVERY, 10_000)}


@given(data=st.data())
def test_a_random_call_is_as_accurate_as_pytorch(backend, data):
    case = data.draw(strategies.cases(*LIMITS.get(backend, (EVERY, 200_000))))
    problem = case.problem()
    results = problem.run(backend)
    problems.assert_accurate(problem, results)
    if backend in ("reference", "cpu") and problem.has_plain_layout:  # the others' device is none that PyTorch has here
        problems.assert_laid_out_alike(problem.led(results["output"]), problem.plain())
