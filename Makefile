# Every target works on a fresh machine with python3 (and its venv module), g++ and make.
VENV := .venv
PYTHON := $(VENV)/bin/python
PIP := $(VENV)/bin/pip --disable-pip-version-check
SOURCES := setup.py pyproject.toml $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu csrc/*/*.cuh)

.PHONY: demo test lint dist bench abi-check clean

demo: $(VENV)/built  ## trains and attacks plain and compact networks on digits, prints a table, draws a picture
	$(VENV)/bin/ccn demo

test: $(VENV)/built  ## the test suite
	OMP_WAIT_POLICY=passive $(PYTHON) -m pytest  # busy waiting costs dearly where cores are shared

lint: $(VENV)/built
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(VENV)/built  ## the CPU ratios to F.conv2d, as a table and as benchmarks/results/*.json
	$(PYTHON) benchmarks/cpu_ratios.py

dist: $(VENV)/built  ## sdist and wheel, each installed and tried in an environment of its own
	./tests/packaging/check_dist.sh

abi-check: $(VENV)/built  ## the library built here, loaded by another PyTorch (a download of several GB)
	./tests/packaging/check_abi.sh

$(VENV)/deps: constraints.txt pyproject.toml
	python3 -m venv $(VENV)
	$(PIP) install -q -c constraints.txt torch numpy setuptools wheel ninja pybind11
	touch $@

$(VENV)/built: $(VENV)/deps $(SOURCES)
	$(PIP) install -q --no-build-isolation -c constraints.txt -e ".[robustness,dev]"
	touch $@

clean:
	rm -rf build dist *.egg-info ccn_kernels/*.so ccn_kernels/_build_info.json $(VENV)/built
