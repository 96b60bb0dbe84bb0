"""The environment variables: one table, one module that reads them, no entry that nothing reads."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

from ddfm_fast.runtime import environment

HOME = ROOT / "ddfm_fast" / "runtime" / "environment.py"
OTHERS = [
    path
    for folder in ("ddfm_fast", "kernels")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path != HOME
]


def reads(tree: ast.Module) -> list[ast.expr]:
    """Return what is looked up in ``os.environ`` or by ``os.getenv``, under any name of these."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("environ"):
            found.append(node.slice)
        if isinstance(node, ast.Call) and node.args:
            name = ast.unparse(node.func)
            if name.endswith("getenv") or "environ." in name:
                found.append(node.args[0])
    return found


def test_no_other_module_reads_a_variable():
    foreign = [
        f"{path.relative_to(ROOT)}:{key.lineno}: {ast.unparse(key)}"
        for path in OTHERS
        for key in reads(ast.parse(path.read_text(encoding="utf-8")))
        if not isinstance(key, ast.Constant) or str(key.value).startswith(environment.PREFIX)
    ]
    assert not foreign, "\n".join(foreign)


def test_each_variable_is_read_somewhere():
    constants = {
        node.value
        for path in OTHERS
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
    }
    assert set(environment.VARIABLES) <= constants
    named = {c for c in constants if isinstance(c, str) and c.startswith(environment.PREFIX)}
    alone = {name for name in named if name.replace("_", "").isalnum()}
    assert alone <= set(environment.VARIABLES)


def test_it_imports_the_standard_library_only():
    tree = ast.parse(HOME.read_text(encoding="utf-8"))
    roots = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in (
            [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
        )
    }
    assert roots <= sys.stdlib_module_names
    code = "import sys, ddfm_fast.runtime.environment; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in (*environment.VARIABLES, *environment.unknown()):
        monkeypatch.delenv(name, raising=False)


def test_values_and_defaults(monkeypatch):
    assert environment.get("DDFM_FAST_BACKEND") == "auto" and environment.set_values() == {}
    monkeypatch.setenv("DDFM_FAST_BACKEND", "")
    assert environment.get("DDFM_FAST_BACKEND") == "auto" and environment.set_values() == {}
    monkeypatch.setenv("DDFM_FAST_BACKEND", "torch")
    assert environment.get("DDFM_FAST_BACKEND") == "torch"
    assert environment.set_values() == {"DDFM_FAST_BACKEND": "torch"}
    with pytest.raises(KeyError):
        environment.get("DDFM_FAST_BACKENDS")


@pytest.mark.parametrize("value, on", [(None, False), ("", False), ("0", False), ("1", True)])
def test_switches(monkeypatch, value, on):
    if value is not None:
        monkeypatch.setenv("DDFM_FAST_NVTX", value)
        monkeypatch.setenv("DDFM_FAST_CPU_KERNELS", value)
    assert environment.is_on("DDFM_FAST_NVTX") is on
    assert environment.is_on("DDFM_FAST_CPU_KERNELS") is (value != "0")


def test_unknown_variables(monkeypatch):
    assert environment.unknown() == []
    monkeypatch.setenv("DDFM_FAST_BACKENDS", "torch")
    assert environment.unknown() == ["DDFM_FAST_BACKENDS"]
