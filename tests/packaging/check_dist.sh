#!/usr/bin/env bash
# Builds the sdist and, from it, the wheel; installs each in an environment that holds only the constraints file's
# packages, in every way that users do, and tries what came out.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1

rm -rf dist
CCN_BUILD=cpu .venv/bin/python -m build --no-isolation --outdir dist >"$scratch/build.log" 2>&1 ||
  { tail -n 40 "$scratch/build.log"; exit 1; }
ls -l dist

environment() { # NAME PACKAGES...: a fresh virtual environment
  python3 -m venv "$scratch/$1"
  "$scratch/$1/bin/pip" install -q -c constraints.txt "${@:2}"
}

try() { # NAME BACKEND: the package installed in that environment, away from the source tree
  (cd "$scratch" && "$1/bin/python" -W ignore "$root/tests/packaging/smoke.py" "$2" && "$1/bin/ccn" env >/dev/null)
}

echo "== wheel"
environment wheel torch
"$scratch/wheel/bin/pip" install -q -c constraints.txt dist/*.whl
try wheel cpu

echo "== sdist, compiled where torch is"
environment sdist torch setuptools wheel ninja pybind11
install() { "$scratch/sdist/bin/pip" install -q -c constraints.txt --force-reinstall --no-deps "$@" dist/*.tar.gz; }
install --no-build-isolation
try sdist cpu

echo "== sdist, build isolation: no torch at build time, so pure Python"
install
try sdist reference

echo "== sdist, no C++ compiler"
CXX=/nowhere/c++ install --no-build-isolation
try sdist reference

echo "== what cannot be had fails loudly"
refuse() { # EXPECTED REASON, then a command that must fail with it
  local reason=$1
  shift
  if "$@" >"$scratch/refused.log" 2>&1; then
    echo "was not refused: $*"
    exit 1
  fi
  grep -q "$reason" "$scratch/refused.log" || { tail -n 20 "$scratch/refused.log"; exit 1; }
}
refuse "CCN_BUILD=cpu: the cpu backend cannot be built: torch is not installed" env CCN_BUILD=cpu \
  "$scratch/sdist/bin/pip" install --force-reinstall --no-deps dist/*.tar.gz
refuse "no C++ compiler" env CCN_BUILD=cpu CXX=/nowhere/c++ \
  "$scratch/sdist/bin/pip" install --no-build-isolation --force-reinstall --no-deps dist/*.tar.gz
refuse "CCN_BUILD must be one of" env CCN_BUILD=all \
  "$scratch/sdist/bin/pip" install --no-build-isolation --force-reinstall --no-deps dist/*.tar.gz
refuse "no nvcc" env CCN_BUILD=cuda CUDA_HOME=/nowhere PATH="$(dirname "$(command -v g++)")" \
  "$scratch/sdist/bin/pip" install --no-build-isolation --force-reinstall --no-deps dist/*.tar.gz

if command -v nvcc >/dev/null; then
  echo "== sdist, CUDA kernels compiled where no GPU is"
  export CCN_BUILD=cuda
  refuse "TORCH_CUDA_ARCH_LIST must look like" env TORCH_CUDA_ARCH_LIST=hopper \
    "$scratch/sdist/bin/pip" install --no-build-isolation --force-reinstall --no-deps dist/*.tar.gz
  TORCH_CUDA_ARCH_LIST="8.0;9.0a" MAX_JOBS=2 install --no-build-isolation
  (cd "$scratch" && sdist/bin/ccn env | tee env.txt | grep -A 12 "^ccn_kernels")
  grep -q "CUDA architectures 8.0;9.0a" "$scratch/env.txt"
  try sdist cpu
  .venv/bin/python tests/guard/cuda_kernels.py "$scratch"/sdist/lib/python*/site-packages/ccn_kernels/libccn_native.so
fi
echo "packaging checks passed"
