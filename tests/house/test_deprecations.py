"""The rule of CONTRIBUTING for removed names: before 1.0 the changelog lists them, later they warn.

`interface.txt` has the public names. A new one is added there; one that goes leaves it at the next
release. No name is deprecated now, so there is no code for it: a module's ``__getattr__`` with
``warnings.warn(..., DeprecationWarning, stacklevel=2)`` is all that the first one needs.
"""

from __future__ import annotations

import ast
import re
import warnings
from importlib import import_module

import pytest
from conftest import ROOT

import ddfm_fast

RECORD = ROOT / "tests" / "house" / "interface.txt"


def public() -> set[str]:
    """Return what is in ``__all__`` of the package and its subpackages, as ``module.name``."""
    found = {f"ddfm_fast.{name}" for name in ddfm_fast.__all__}
    for face in sorted((ROOT / "ddfm_fast").glob("*/__init__.py")):
        module = f"ddfm_fast.{face.parent.name}"
        if "\n__all__" in face.read_text(encoding="utf-8") and face.parent.name != "cli":
            found |= {f"{module}.{name}" for name in import_module(module).__all__}
    return found


def changed_or_removed() -> str:
    """Return the changelog's text under Changed and Removed, of all versions."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    return "".join(re.findall(r"^### (?:Changed|Removed)$(.*?)(?=^##|\Z)", text, re.M | re.S))


def gone_silently(name: str, version: str, changelog: str) -> bool:
    """Return whether a removed name breaks the rule: it neither warns nor is in the changelog."""
    module, _, attribute = name.rpartition(".")
    if version.startswith("0."):
        return re.search(rf"`[^`\n]*\b{re.escape(attribute)}\b[^`\n]*`", changelog) is None
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            getattr(import_module(module), attribute)
        except (ImportError, AttributeError):
            return True
    return not any(issubclass(w.category, DeprecationWarning) for w in seen)


def nameless(source: str) -> list[int]:
    """Return the lines of calls with a DeprecationWarning that lack ``use NAME`` or a level."""
    calls = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call)]
    found = []
    for call in calls:
        parts = [*call.args, *(k.value for k in call.keywords)]
        if any(isinstance(p, ast.Name) and p.id == "DeprecationWarning" for p in parts):
            text = ast.unparse(call)
            if re.search(r"\buse `?[A-Za-z_.]+", text) is None or "stacklevel" not in text:
                found.append(call.lineno)
    return found


def test_no_public_name_goes_without_a_word():
    recorded, found = set(RECORD.read_text(encoding="utf-8").split()), public()
    assert not found - recorded, f"add to {RECORD.name}: {sorted(found - recorded)}"
    text = changed_or_removed()
    silent = [n for n in recorded - found if gone_silently(n, ddfm_fast.__version__, text)]
    assert not silent, f"write under Changed or Removed what to use in place of {sorted(silent)}"


def test_every_deprecation_names_its_successor():
    rooms = ("ddfm_fast", "kernels", "bench")
    found = {
        str(path.relative_to(ROOT)): lines
        for room in rooms
        for path in (ROOT / room).rglob("*.py")
        if "DeprecationWarning" in (text := path.read_text(encoding="utf-8"))
        and (lines := nameless(text))
    }
    assert not found


@pytest.mark.parametrize(
    "version, changelog, silent",
    [
        ("0.4.0", "- `metrics.old(x)` is `metrics.new`", False),
        ("0.4.0", "- old is gone", True),
        ("1.2.0", "- `metrics.old(x)` is `metrics.new`", True),
    ],
)
def test_what_goes_silently_is_seen(version, changelog, silent):
    assert gone_silently("ddfm_fast.metrics.old", version, changelog) is silent


def test_a_name_that_works_and_warns_may_go(monkeypatch):
    def old(name: str):
        warnings.warn(f"{name} is deprecated; use compute", DeprecationWarning, stacklevel=2)

    monkeypatch.setattr("ddfm_fast.metrics.__getattr__", old)
    assert not gone_silently("ddfm_fast.metrics.old", "1.2.0", "")


def test_a_deprecation_without_successor_is_seen():
    good = 'warnings.warn("a is deprecated; use b", DeprecationWarning, stacklevel=2)'
    bad = 'warnings.warn("a is deprecated", category=DeprecationWarning, stacklevel=2)'
    blind = 'warnings.warn("a is deprecated; use b", DeprecationWarning)'
    assert nameless("\n".join((good, bad, blind))) == [2, 3]
