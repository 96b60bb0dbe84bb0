"""The structure, read from the imports: no circles, one direction, and bounded sizes."""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

PLACES = {"ddfm_fast": "ddfm_fast", "kernels": "ddfm_fast.kernels", "bench": "ddfm_fast.bench"}
GROUND_FLOOR = 12
LINES, FUNCTION, KERNEL, NAIVE = 500, 60, 110, 80


def module_name(path: Path) -> str:
    first, *rest = path.relative_to(ROOT).with_suffix("").parts
    parts = [PLACES[first], *rest]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def trees() -> dict[str, tuple[Path, ast.Module]]:
    """Module → its file and syntax, of the package, the kernels and the benchmarks."""
    paths = [path for place in PLACES for path in sorted((ROOT / place).rglob("*.py"))]
    return {module_name(p): (p, ast.parse(p.read_text(encoding="utf-8"))) for p in paths}


@cache
def imported(module: str) -> set[tuple[str, str]]:
    """(module, name) of every import of ours, lazy and for type checkers ones too."""
    path, tree = trees()[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
            source = f"{base}.{node.module}" if node.module else base
            source = source if node.level else node.module or ""
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                found.add((inner, "") if inner in trees() else (source, alias.name))
    return {(source, name) for source, name in found if source.partition(".")[0] == "ddfm_fast"}


@cache
def edges() -> dict[str, set[str]]:
    """Module → the modules of ours that it imports, and those that its face names."""
    graph = {}
    for module in trees():
        graph[module] = {source for source, _ in imported(module)} - {module}
    return graph


def test_no_import_circle():
    try:
        list(TopologicalSorter(edges()).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_nobody_inside_imports_through_a_face():
    """A name is imported from its home: ``priors.prior``, not ``priors``, which loads the rest."""
    faces = {m for m, (path, _) in trees().items() if path.name == "__init__.py"}
    found = [
        f"{module}: from {source} import {name}"
        for module, (path, _) in trees().items()
        for source, name in imported(module)
        if source in faces
        and name
        and module.startswith("ddfm_fast")
        and not module.startswith("ddfm_fast.bench")
        and (source, name) not in ALLOWED_FACES
        and path.name != "__main__.py"
    ]
    assert not found, "\n".join(found)


ALLOWED_FACES = {
    ("ddfm_fast", "__version__"),  # defined there
    ("ddfm_fast.kernels", "LocalStep"),  # that face says what to install where Triton is missing
    ("ddfm_fast.kernels", "TritonStep"),
    ("ddfm_fast.kernels", "available"),
    ("ddfm_fast.kernels", "choose_planes"),
    ("ddfm_fast.kernels", "module_status"),
    ("ddfm_fast.kernels", "Obstacle"),
    ("ddfm_fast.kernels", "obstacle"),
}


def room(module: str) -> str:
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize(
    "who, whom, but",
    [
        (r"ddfm_fast\.\w+", r"ddfm_fast\.kernels.*", ()),  # the ground floor, and faces
        (r"ddfm_fast\.priors.*", r"ddfm_fast\.(cli|api|bench|video|datasets|metrics).*", ()),
        (r"ddfm_fast\.images.*", r"ddfm_fast\.(?!images|faces).*", ()),
        (r"ddfm_fast\.kernels.*", r"ddfm_fast\.(api|priors|sampler|graphs|method|cli|bench).*", ()),
        (r"ddfm_fast\.(?!cli|__main__).*", r"ddfm_fast\.cli.*", ()),
        (r"ddfm_fast\.(?!bench).*", r"ddfm_fast\.bench.*", ("ddfm_fast.cli.bench",)),
        (r"ddfm_fast\.naive", r".*", ()),
        (r"ddfm_fast\.sampler", r"ddfm_fast\.(api|graphs|method|images|video).*", ()),
    ],
)
def test_direction(who, whom, but):
    found = [
        f"{module} imports {target}"
        for module, targets in edges().items()
        if re.fullmatch(who, module) and module not in but
        for target in targets
        if re.fullmatch(whom, target)
    ]
    assert not found, "\n".join(found)


def test_ground_floor():
    modules = [p.stem for p in (ROOT / "ddfm_fast").glob("*.py") if not p.stem.startswith("__")]
    assert len(modules) <= GROUND_FLOOR, sorted(modules)


def test_no_private_name_of_another_module():
    """Neither imported, nor reached for on a module; attributes: on ``self`` and its like only."""
    found = []
    for module, (path, tree) in trees().items():
        for source, name in imported(module):
            last = name or source.rpartition(".")[2]
            if last.startswith("_") and not last.startswith("__"):
                found.append(f"{path.relative_to(ROOT)}: {source} {name}")
        defined = {
            node.attr if isinstance(node, ast.Attribute) else node.name
            for node in ast.walk(tree)
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            or (isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store))
        }
        defined |= {
            node.target.id
            for node in ast.walk(tree)
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Load):
                continue
            private = node.attr.startswith("_") and not node.attr.startswith("__")
            if private and node.attr not in defined and node.attr not in FOREIGN:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.attr}")
    assert not found, "\n".join(found)


FOREIGN = {
    "_asdict", "_replace", "_fields",  # named tuples'
    "_version", "_schema", "_cdata", "_at_fork_reinit",
    "_is_mkldnn_bf16_supported", "_is_mkldnn_fp16_supported",  # PyTorch's
    "_convolution", "_convolution_pointwise", "_convolution_pointwise_",
    "_reorder_convolution_weight", "_foreach_lerp_", "_exit",
}  # fmt: skip


def functions():
    for path, tree in trees().values():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                jitted = any("jit" in ast.unparse(d) for d in node.decorator_list)
                yield path, node, KERNEL if jitted else FUNCTION


def length(path: Path, function: ast.FunctionDef) -> int:
    """Lines of a function; a command's signature, the list of its options, does not count."""
    first = function.body[0].lineno if path.parent.name == "cli" else function.lineno
    return function.end_lineno - first + 1


def test_sizes():
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: "
        f"{length(path, node)} lines, at most {most}"
        for path, node, most in functions()
        if length(path, node) > most
    ]
    sources = [p for place in (*PLACES, "tests") for p in (ROOT / place).rglob("*")]
    for path in sources:
        if path.suffix in (".py", ".cpp", ".h", ".sh") and "__pycache__" not in path.parts:
            lines = len(path.read_text(encoding="utf-8").splitlines())
            if lines > (NAIVE if path.name == "naive.py" else LINES):
                found.append(f"{path.relative_to(ROOT)}: {lines} lines")
    assert not found, "\n".join(found)


def test_the_benchmarks_keep_to_their_size():
    lines = sum(
        len(p.read_text(encoding="utf-8").splitlines()) for p in (ROOT / "bench").rglob("*.py")
    )
    # a GPU's quarter of an hour, its kit, other engines and how cost grows (scale) among them
    assert lines <= 6900, lines


def test_no_two_test_files_have_one_name():
    """pytest imports files by their names, and refuses the second one."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
