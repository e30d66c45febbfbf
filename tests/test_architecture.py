"""The house rules: imports run one way, and heavy or optional packages stay where they belong."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ccn_kernels

PACKAGE = Path(ccn_kernels.__file__).parent
OPTIONAL = {"eagerpy", "foolbox", "matplotlib", "scipy", "sklearn", "tabulate", "tqdm", "triton"}

TRITON_KERNELS = {f"backends.triton.{name}" for name in ("fprop", "dgrad", "wgrad", "epilogue")}
TRITON_CHOICE = {f"backends.triton.{name}" for name in ("config", "heuristics", "limits", "tiles")}
TRITON_LAUNCHES = TRITON_CHOICE | {f"backends.triton.{name}" for name in ("convolution", "geometry", "launch")}
TRITON_PASSES_ALONE = {"backends.triton.forward_pass", "backends.triton.backward_pass"}
TRITON_PASSES = TRITON_PASSES_ALONE | TRITON_CHOICE | {"backends.triton.launch", "workloads"}

# What each module may import from the package.
ALLOWED = {
    "version": set(),
    "files": set(),
    "factories": set(),
    "options": set(),
    "precision": set(),
    "spec": set(),
    "known": {"spec"},
    "arguments": {"spec"},
    "reference": {"arguments", "spec"},
    "backends.extension": {"spec"},
    "backends.reference": set(),
    "backends.cpu": {"backends.extension"},
    "backends.cuda": {"backends.extension", "spec"},
    "backends.triton.geometry": {"spec"},
    "backends.triton.tiles": {"backends.triton.geometry"},
    "backends.triton.limits": {"backends.triton.geometry", "backends.triton.tiles"},
    "backends.triton.heuristics": {"backends.triton.geometry", "backends.triton.limits", "backends.triton.tiles"},
    "backends.triton.config": TRITON_CHOICE,
    "backends.triton.indexing": set(),
    "backends.triton.fprop": {"backends.triton.indexing"},
    "backends.triton.persistent": set(),
    "backends.triton.dgrad": {"backends.triton.fprop", "backends.triton.indexing"},
    "backends.triton.wgrad": {
        "backends.triton.epilogue",
        "backends.triton.dgrad",
        "backends.triton.fprop",
        "backends.triton.indexing",
    },
    "backends.triton.epilogue": {"backends.triton.dgrad", "backends.triton.fprop", "backends.triton.indexing"},
    "backends.triton.launch": TRITON_CHOICE | {"backends.triton.geometry", "spec"},
    "backends.triton.convolution": {"backends.triton.launch", "spec"},
    "backends.triton.forward_pass": TRITON_KERNELS | TRITON_LAUNCHES | {"backends.triton.persistent"},
    "backends.triton.backward_pass": TRITON_KERNELS | TRITON_LAUNCHES,
    "backends.triton.native": {"backends.triton.launch", "_C"},
    "backends.triton.replay": TRITON_PASSES_ALONE
    | {"backends.triton.launch", "backends.triton.native", "backends.triton.tiles", "known", "spec"},
    "workloads": {"spec"},
    "backends.triton.offline": TRITON_PASSES,
    "backends.triton.recorded": {"files"},
    "backends.triton.tune": TRITON_PASSES | {"files"},
    "backends.triton": {"spec", "backends.triton.launch", "backends.triton.replay", "backends.triton.tiles"}
    | TRITON_PASSES_ALONE,
    "backends": {"spec", "backends.cpu", "backends.cuda", "backends.reference", "backends.triton"},
    "ops": {"backends", "known", "reference", "spec"},
    "autograd": {"known", "ops", "reference", "spec"},
    "losses": {"reference"},
    "functional": {"autograd", "backends", "known", "reference", "arguments", "losses"},
    "plain": {"arguments"},
    "layers": {"functional", "reference", "arguments", "backends", "plain", "spec"},
    "scales": {"layers"},
    "convert": {"layers", "plain", "scales"},
    "models": {"layers"},
    "env_report": {"backends", "backends.extension", "version", "_C"},
    "cli": {
        "backends",
        "backends.triton",
        "bench.command",
        "env_report",
        "options",
        "robustness",
        "robustness.command",
        "robustness.demo",
        "robustness.report_command",
        "robustness.study_command",
        "version",
        "workloads",
    },
    "__main__": {"cli"},
    "__init__": {"backends", "convert", "functional", "layers", "models", "reference", "version"},
}
EXTRAS = ("bench", "robustness")
ORDER = ["layers", "functional", "autograd", "ops", "backends", "spec"]
FILES = sorted(path for path in PACKAGE.rglob("*.py"))


def module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path, everywhere=True):
    """Dotted names that a file imports, those from the package relative to it; at module level only, if so asked."""
    tree = ast.parse(path.read_text())
    nodes = list(ast.walk(tree)) if everywhere else list(at_module_level(tree))
    package = path.relative_to(PACKAGE).parent.parts
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            found |= resolved([part for part in base if part], [alias.name for alias in node.names])
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return {name.removeprefix("ccn_kernels.") for name in found}


def resolved(base, names):
    """`from . import a` names modules; `from .a import b` a module and what it holds."""
    prefix = PACKAGE.joinpath(*base)
    modules = {".".join([*base, name]) for name in names if is_module(prefix / name)}
    return modules or {".".join(base)}


def is_module(path):
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists() or path.name == "_C"


def at_module_level(node):
    """Statements that run on import: not those inside functions, nor those for type checkers alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from at_module_level(child)


def path_of(name):
    if name == "__init__":
        return PACKAGE / "__init__.py"
    base = PACKAGE.joinpath(*name.split("."))
    return base / "__init__.py" if (base / "__init__.py").exists() else base.with_suffix(".py")


def of_the_package(names):
    return {name for name in names if is_module(PACKAGE.joinpath(*name.split(".")))}


@pytest.mark.parametrize("name", ALLOWED)
def test_modules_import_only_what_they_may(name):
    found = of_the_package(imports(path_of(name)))
    assert found <= ALLOWED[name]


def test_every_module_has_its_place():
    inner = {module_name(path) or "__init__" for path in FILES}
    inner = {name for name in inner if not name.startswith(EXTRAS)}
    assert inner == set(ALLOWED)


def test_imports_run_one_way():
    """layers -> functional -> autograd -> ops -> backends -> spec: each may know those after it, never one before."""
    for place, name in enumerate(ORDER):
        files = PACKAGE.joinpath(name).rglob("*.py") if (PACKAGE / name).is_dir() else [path_of(name)]
        for path in files:
            known = {found.split(".")[0] for found in of_the_package(imports(path))}
            assert not known & set(ORDER[:place]), path.name
            assert not known & {"convert", "models", "cli", *EXTRAS}, path.name


def test_the_chain_is_not_broken():
    """A module that bypassed the next one would make the order above an empty rule."""
    for upper, lower in (
        ("layers", "functional"),
        ("functional", "autograd"),
        ("autograd", "ops"),
        ("ops", "backends"),
    ):
        assert lower in imports(path_of(upper))


def test_what_proves_knows_nothing_of_what_attacks():
    """Bounds are of layers alone, each module of them of those before it; only the report sees both."""
    order = [
        f"robustness.bounds.{name}" for name in ("regions", "rows", "compact", "elementwise", "weighted", "slopes")
    ]
    for place, name in enumerate([*order, "robustness.bounds.walk"]):
        allowed = {*order[:place], "layers", "models", "robustness.precision"}
        assert of_the_package(imports(path_of(name))) <= allowed, name
    found = of_the_package(imports(path_of("robustness.certified")))
    assert found <= {"robustness.bounds.walk", "robustness.bounds.regions", "robustness.bounds.slopes"}


@pytest.mark.parametrize("name", ["spec", "arguments", "reference"])
def test_the_foundations_import_torch_and_the_standard_library_alone(name):
    outside = {found.split(".")[0] for found in imports(path_of(name))} - of_the_package(imports(path_of(name)))
    assert outside <= {"torch", *sys.stdlib_module_names}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_optional_packages_are_imported_where_they_belong(path):
    name = module_name(path)
    if name.startswith(EXTRAS):
        allowed = OPTIONAL - {"triton"}
    elif name.startswith("backends.triton"):
        allowed = {"triton"} if name != "backends.triton" else set()  # the package itself must import without it
    else:
        allowed = set()
    heavy = {found.split(".")[0] for found in imports(path, everywhere=False)} & OPTIONAL
    assert heavy <= allowed


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_nothing_outside_imports_an_extra_at_module_level(path):
    name = module_name(path)
    found = {target.split(".")[0] for target in imports(path, everywhere=False)}
    assert name.startswith(EXTRAS) or not found & set(EXTRAS)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_only_ops_and_the_loader_know_how_operators_are_registered(path):
    text = path.read_text()
    assert ("torch.library" in text) == (module_name(path) == "ops")
    assert ("torch.ops.load_library" in text) == (module_name(path) == "backends.extension")


def test_importing_the_package_is_light():
    script = (
        "import sys, ccn_kernels, ccn_kernels.layers, ccn_kernels.convert, ccn_kernels.models\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))\n"
        "print(*(f'ccn_kernels.{name}' in sys.modules for name in ('bench', 'robustness', '_C')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded, others = done.stdout.splitlines()
    assert not set(loaded.split()) & OPTIONAL - {"tqdm"}  # torch brings that one in itself
    assert others == "False False False"


def test_no_two_test_files_have_one_name():
    """Pytest imports them by name alone, and some are collected only where there are kernels for them."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)
