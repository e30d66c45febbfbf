"""The index arithmetic that kernels and CPU loops share."""

import runpy
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_windows_and_divisions_are_what_their_definitions_say(tmp_path):
    compiler = runpy.run_path(str(ROOT / "setup.py"))["compiler"]()
    program = tmp_path / "arithmetic"
    source = ROOT / "tests" / "emulator" / "arithmetic.cpp"
    subprocess.run([compiler, "-std=c++20", "-O2", f"-I{ROOT / 'csrc'}", source, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.stdout == "0 wrong\n"
