"""Imports run one way, and what is optional or heavy is imported where it is used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ccn_kernels

PACKAGE = Path(ccn_kernels.__file__).parent
# what each module may import from the package, besides what those modules import themselves
LAYERS = {
    "version": set(),
    "spec": set(),
    "arguments": {"spec"},
    "reference": {"arguments", "spec"},
    "losses": {"reference"},
    "backends": {"spec"},
    "ops": {"backends", "spec"},
    "autograd": {"ops", "reference", "spec"},
    "functional": {"arguments", "autograd", "backends", "losses", "reference"},
    "layers": {"arguments", "backends", "functional", "reference", "spec"},
    "convert": {"layers"},
    "models": {"layers"},
    "env_report": {"_C", "backends", "version"},
    "cli": {"env_report", "robustness", "version"},
}
OPTIONAL = {"foolbox", "matplotlib", "sklearn", "tqdm", "tabulate", "numpy", "triton"}


def imports(path, module_level=False):
    """(package module or "", top-level name) of every import; relative ones are of the package."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if module_level else ast.walk(tree)
    depth = len(path.relative_to(PACKAGE).parts)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (("", alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield "", node.module.split(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.level == depth:  # relative to the package's root
            names = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
            yield from ((name, "") for name in names)


@pytest.mark.parametrize("module", LAYERS)
def test_imports_run_one_way(module):
    files = [PACKAGE / f"{module}.py"] if module != "backends" else sorted((PACKAGE / module).rglob("*.py"))
    found = {name for file in files for name, _ in imports(file) if name} - {module}
    assert found <= LAYERS[module]


def test_every_module_has_its_place():
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert modules | {"backends"} == set(LAYERS)


def test_nothing_outside_robustness_imports_what_is_optional():
    for path in PACKAGE.rglob("*.py"):
        if "robustness" not in path.parts:
            assert not {name for _, name in imports(path, module_level=True)} & OPTIONAL, path
            if path.name != "cli.py":
                assert "robustness" not in {name for name, _ in imports(path)}, path


def test_importing_the_package_imports_nothing_optional_and_loads_no_library():
    code = (
        "import sys, torch; before = set(sys.modules); import ccn_kernels; "
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before})); "
        "print(torch.ops.loaded_libraries)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    new, libraries = printed.strip().split("\n")
    assert "ccn_kernels" in new.split()
    assert not set(new.split()) & (OPTIONAL - {"numpy", "tqdm"})  # torch may bring these in itself
    assert "ccn_native" not in libraries
