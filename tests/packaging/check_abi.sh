#!/usr/bin/env bash
# One build, many PyTorch releases: a wheel built beside the development PyTorch, with the CUDA kernels where nvcc is, is
# installed, as it is, beside another release, and tried; then the other release builds it. Downloads several GB, so it is
# not part of CI.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
other=${CCN_OTHER_TORCH:-2.11.0}
venv=.venv-torch-$other
export PIP_DISABLE_PIP_VERSION_CHECK=1

rm -rf dist
build=cpu
if command -v nvcc >/dev/null; then build=cuda; else echo "no nvcc: only the CPU's part is checked"; fi
CCN_BUILD=$build TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-9.0a} \
  .venv/bin/python -m build --wheel --no-isolation --outdir dist >/dev/null
if [ ! -x "$venv/bin/pytest" ]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install -q "torch==$other" "numpy<2.4" pytest ninja pybind11 setuptools wheel
fi
"$venv/bin/pip" install -q --force-reinstall --no-deps dist/*.whl
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cp -r tests "$scratch/tests" # away from the source tree, whose own library would be found first
cd "$scratch"
"$root/$venv/bin/python" tests/packaging/smoke.py cpu
"$root/$venv/bin/python" -m ccn_kernels env | grep -E "cuda component:|compiled with:|cuda:"
"$root/$venv/bin/python" -m pytest -q tests/test_native.py tests/test_functional.py

# Built there, too: each release has headers of its own.
CCN_BUILD=cpu "$root/$venv/bin/pip" install -q --no-build-isolation --force-reinstall --no-deps "$root"
"$root/$venv/bin/python" tests/packaging/smoke.py cpu
