"""The examples in the docstrings of the public names, and the page that ``help`` shows."""

from __future__ import annotations

import asyncio
import doctest
import importlib
import pydoc
import subprocess
import sys
import warnings

import pytest
from conftest import ROOT

import ddfm_fast

ON_THE_PAGE = {"PRESETS", "__version__", "clear_cache"}
"""values, which have no docstring of their own, and functions that take nothing"""


def examples(name: str, value: object) -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(recurse=False)
    return [test for test in finder.find(value, name, module=False, globs={}) if test.examples]


def page() -> doctest.DocTest:
    (found,) = examples("ddfm_fast", ddfm_fast)
    return found


def run(test: doctest.DocTest, globs: dict) -> None:
    test.globs = globs
    report: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", ddfm_fast.DDFMWarning)
        doctest.DocTestRunner().run(test, out=report.append, clear_globs=False)
    assert not report, "".join(report)


@pytest.fixture(scope="module")
def sources() -> dict:
    """The names that the page's example defines."""
    globs: dict = {}
    run(page(), globs)
    return globs


def test_the_page_runs_and_names_everything(sources):
    assert sources["fused"].shape == (48, 64, 3)
    for name in ddfm_fast.__all__:
        assert name in (ddfm_fast.__doc__ or ""), name


@pytest.mark.parametrize("name", sorted({*ddfm_fast.__all__} - ON_THE_PAGE))
def test_every_name_has_an_example_that_runs(name, sources):
    value = getattr(ddfm_fast, name)
    (test,) = examples(name, value)
    assert any(name in example.source for example in test.examples), "it uses the name"
    assert not any(doctest.SKIP in example.options for example in test.examples)
    home = vars(sys.modules[value.__module__])
    run(test, {**home, **sources})


def test_the_others_have_theirs_on_the_page():
    code = "".join(example.source for example in page().examples)
    assert all(f"ddfm_fast.{name}" in code for name in ON_THE_PAGE)


def test_the_awaited_call(sources):
    (test,) = examples("afuse", ddfm_fast.Fuser.afuse)
    run(test, {"asyncio": asyncio, "Fuser": ddfm_fast.Fuser, **sources})


@pytest.mark.parametrize("name", ["torch", "albumentations"])
def test_the_examples_of_integrations(name, sources):
    module = importlib.import_module(f"ddfm_fast.integrations.{name}")
    (test,) = examples(name, module)
    run(test, dict(sources))


def test_all_is_the_whole_interface():
    shown = {name for name in dir(ddfm_fast) if not name.startswith("__")}
    assert shown == {*ddfm_fast.__all__} - {"__version__"}
    space: dict = {}
    exec("from ddfm_fast import *", space)
    assert {*ddfm_fast.__all__} <= space.keys()


@pytest.mark.slow
def test_help_reads_like_a_page():
    code = "import ddfm_fast, pydoc; print(pydoc.plain(pydoc.render_doc(ddfm_fast)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    text = done.stdout
    first = pydoc.plain(ddfm_fast.__doc__.splitlines()[0])
    assert first.split(" with ")[0] in text[:200]
    for name in {*ddfm_fast.__all__} - {"__version__"}:
        assert name in text
    for inner in ("ModuleSpec", "_FolderFinder", "quiet_openmp", "OWN_PROCESS", "paused"):
        assert inner not in text, f"{inner} is none of a reader's business"
