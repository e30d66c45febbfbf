# Every target works on a fresh machine with python3 (and its venv module), g++ and make.
VENV := .venv
PYTHON := $(VENV)/bin/python
PIP := $(VENV)/bin/pip --disable-pip-version-check
OLDEST := .venv-triton-3.6
INTERPRETED := TRITON_INTERPRET=1 OMP_WAIT_POLICY=passive PYTHONPATH=$(CURDIR)
ARCHITECTURES := sm_80 sm_90 sm_100
CUDA_ARCHITECTURES := 8.0;9.0a;10.0
SEED := $(shell date +%s)
PROFILE := fuzz
FUZZ = FUZZ_EXAMPLES=$(EXAMPLES) OMP_WAIT_POLICY=passive $(PYTHON) -m pytest --hypothesis-profile=$(PROFILE) --hypothesis-seed=$(SEED) $(FUZZ_ARGS)
ACCEPTED := $(if $(ACCEPT),--accept)
SOURCES := setup.py pyproject.toml $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu csrc/*/*.cuh)

.PHONY: demo paper-smoke test test-triton test-cuda fuzz fuzz-slice fuzz-seed fuzz-native fuzz-triton fuzz-cuda sanitize-cuda test-oldest-triton kernels cuda-kernels example behaviour guard lint dist bench readme gpu abi-check clean

demo: $(VENV)/built  ## trains and attacks plain and compact networks on digits, prints a table, draws a picture
	OMP_WAIT_POLICY=passive $(VENV)/bin/ccn demo  # busy waiting costs dearly where cores are shared

paper-smoke: $(VENV)/built  ## every table and figure of the paper, small: minutes on two cores
	OMP_WAIT_POLICY=passive $(VENV)/bin/ccn table all --scale smoke
	OMP_WAIT_POLICY=passive $(VENV)/bin/ccn figure all --scale smoke

test: $(VENV)/built test-triton test-cuda  ## the test suite
	OMP_WAIT_POLICY=passive $(PYTHON) -m pytest

test-triton: $(VENV)/built  ## the Triton kernels in Triton's interpreter: no GPU needed
	$(INTERPRETED) $(PYTHON) -m pytest tests/triton_backend

test-cuda: $(VENV)/built  ## the CUDA C++ kernels, compiled for and run on a CPU: no GPU and no nvcc needed
	CCN_EMULATED=1 OMP_WAIT_POLICY=passive $(PYTHON) -m pytest

fuzz: fuzz-native fuzz-triton fuzz-cuda  ## random calls by every backend, and random mistakes; SEED=123, EXAMPLES=3000 a backend, FUZZ_ARGS (after a crash: -s --hypothesis-verbosity=verbose)

fuzz-slice: PROFILE = slice
fuzz-slice: fuzz  ## as many of them as take five minutes (make -j2)

fuzz-seed:
	@echo "make fuzz SEED=$(SEED)"

fuzz-native: $(VENV)/built fuzz-seed
	$(FUZZ) tests/fuzz

fuzz-triton: $(VENV)/built fuzz-seed
	TRITON_INTERPRET=1 $(FUZZ) tests/fuzz/test_calls.py

fuzz-cuda: $(VENV)/built fuzz-seed
	CCN_EMULATED=1 $(FUZZ) tests/fuzz

sanitize-cuda: $(VENV)/built  ## the same, every one over small shapes, under AddressSanitizer
	CCN_EMULATED=1 OMP_WAIT_POLICY=passive LD_PRELOAD=$$($(CXX) -print-file-name=libasan.so) \
	  ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0 $(PYTHON) benchmarks/sanitizer_sweep.py --backends cuda

test-oldest-triton: $(OLDEST)/deps $(ARCHITECTURES:%=oldest-kernels-%)  ## the same, and the offline compilation, under the oldest Triton that is supported
	$(INTERPRETED) $(OLDEST)/bin/python -m pytest tests/triton_backend
	$(OLDEST)/bin/python -m pytest tests/test_persistent.py

oldest-kernels-%: $(OLDEST)/deps
	$(OLDEST)/bin/python -m ccn_kernels kernels --check --arch $*

kernels: $(ARCHITECTURES:%=kernels-%)  ## every kernel that may be chosen, compiled for GPUs that need not be there: no spills, nothing worse (make -j2)

kernels-%: $(VENV)/built
	$(VENV)/bin/ccn kernels --check --arch $* --against tests/guard/kernels-$*.json $(ACCEPTED)

cuda-kernels: $(VENV)/built  ## csrc/cuda, compiled for GPUs that need not be there: no spills, loops no longer than on record (needs nvcc)
	CCN_BUILD=cuda TORCH_CUDA_ARCH_LIST="$(CUDA_ARCHITECTURES)" PATH="$(CURDIR)/$(VENV)/bin:$$PATH" \
	  $(PYTHON) setup.py -q build_ext --build-lib build/cuda --build-temp build/cuda.objects
	$(PYTHON) tests/guard/cuda_kernels.py build/cuda/ccn_kernels/libccn_native.so $(ACCEPTED)

example: build/examples/compact_conv  ## the LibTorch example: the library called from C++, without Python
	$< ccn_kernels/libccn_native.so

build/examples/compact_conv: csrc/examples/compact_conv.cpp $(VENV)/built
	mkdir -p $(@D)
	torch=$$($(PYTHON) -c 'import os, torch; print(os.path.dirname(torch.__file__))') && \
	$(CXX) -std=c++20 -O2 -isystem $$torch/include $< -o $@ \
	  -L$$torch/lib -Wl,-rpath,$$torch/lib -Wl,--no-as-needed -ltorch -ltorch_cpu -lc10

behaviour: $(VENV)/built  ## docs/behaviour.md, from the tests of tests/citizen
	OMP_WAIT_POLICY=passive $(PYTHON) tests/citizen/behaviour.py

guard: $(VENV)/built  ## instructions that the CPU kernels take on small layers, against those on record (needs valgrind)
	$(PYTHON) tests/guard/instructions.py $(ACCEPTED)

lint: $(VENV)/built
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(VENV)/built  ## this device's record in benchmarks/results: every peer, pass and format; see BENCH_ARGS=--help
	$(VENV)/bin/ccn bench --formats channels_last,contiguous --passes forward,training,backward --providers \
	  conv,conv_nobias,two_branch,two_branch_compiled,two_branch_max_autotune,ccn $(BENCH_ARGS)

readme: $(VENV)/built  ## the README's table of speed and its pictures, from benchmarks/results/
	$(PYTHON) benchmarks/readme.py

gpu:  ## tests and times on an NVIDIA GPU, by the python3 of an environment that has torch and triton; see GPU_ARGS=--help
	python3 benchmarks/gpu.py $(GPU_ARGS)

dist: $(VENV)/built  ## sdist and wheel, each installed and tried in an environment of its own
	./tests/packaging/check_dist.sh

abi-check: $(VENV)/built  ## the library built here, loaded by another PyTorch (a download of several GB)
	./tests/packaging/check_abi.sh

$(VENV)/deps: constraints.txt pyproject.toml
	python3 -m venv $(VENV)
	$(PIP) install -q -c constraints.txt torch numpy setuptools wheel ninja pybind11
	touch $@

$(OLDEST)/deps: constraints.txt constraints-triton-3.6.txt
	python3 -m venv $(OLDEST)
	grep -v -e '^numpy==' -e '^triton==' constraints.txt | cat - constraints-triton-3.6.txt > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/pip --disable-pip-version-check install -q -c $(OLDEST)/constraints.txt torch numpy triton pytest
	touch $@

$(VENV)/built: $(VENV)/deps $(SOURCES)
	$(PIP) install -q --no-build-isolation -c constraints.txt -e ".[triton,bench,robustness,dev]"
	touch $@

clean:
	rm -rf build dist *.egg-info ccn_kernels/*.so ccn_kernels/_build_info.json $(VENV)/built
