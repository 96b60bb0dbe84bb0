"""What type checkers say of a user's file: mypy, and pyright in its strict mode where it is."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from ddfm_fast import Fuser, fuse
from ddfm_fast.options import FuserOptions, ReadingOptions

pytestmark = pytest.mark.slow

SAMPLE = """
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

import ddfm_fast
from ddfm_fast import metrics
from ddfm_fast.datasets.pairs import find_pairs
from ddfm_fast.integrations.torch import FuseModule
from ddfm_fast.metrics.evaluation import MethodPictures, evaluate
from ddfm_fast.metrics.tables import render

if TYPE_CHECKING:
    from typing_extensions import Unpack, reveal_type


def arrays(a: NDArray[np.uint8], b: np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]) -> None:
    reveal_type(ddfm_fast.fuse(a, b, preset="instant"))  # array
    reveal_type(ddfm_fast.fuse([a, a], (b, b)))  # arrays
    reveal_type(ddfm_fast.Fuser()(a, b, seed=1))  # array
    reveal_type(ddfm_fast.Fuser().stream(zip([a], [b])))  # frames


def deep(a: NDArray[np.uint16], b: NDArray[np.float32], c: NDArray[np.uint8]) -> None:
    reveal_type(ddfm_fast.fuse(a, a))  # uint16
    reveal_type(ddfm_fast.fuse(b, b, value_range=(0, 1)))  # float32
    reveal_type(ddfm_fast.Fuser()([c], [c])[0])  # uint8
    reveal_type(next(ddfm_fast.Fuser().stream(zip([a], [a]))))  # uint16
    reveal_type(ddfm_fast.fuse(a, c))  # either


def others(a: NDArray[np.int16]) -> None:
    reveal_type(ddfm_fast.fuse(a, a))  # some
    reveal_type(ddfm_fast.fuse([a], [a]))  # somes


def pictures(a: Image.Image, b: PngImagePlugin.PngImageFile) -> None:
    reveal_type(ddfm_fast.fuse(a, b))  # picture
    reveal_type(ddfm_fast.fuse([a], [b]))  # pictures
    reveal_type(ddfm_fast.Fuser()([b], [a], color=False))  # pictures


def tensors(a: torch.Tensor, b: torch.nn.Parameter) -> None:
    reveal_type(ddfm_fast.fuse(a, b))  # tensor
    reveal_type(ddfm_fast.fuse([a], [b], value_range=(0, 1)))  # tensors
    reveal_type(ddfm_fast.Fuser().with_options(steps=3)(a, b))  # tensor


def module(a: torch.Tensor) -> None:
    network = FuseModule(preset="instant").to("cpu").eval()
    reveal_type(network(a, a))  # tensor


def scores(a: NDArray[np.uint8], folder: Path) -> None:
    reveal_type(metrics.compute(a, a, a)["VIF"])  # tensor
    found = evaluate(find_pairs(folder), [MethodPictures("mean")])
    reveal_type(found.methods[0].mean("VIF"))  # float
    reveal_type(found.methods[0].values["VIF"])  # float64
    reveal_type(render(found, "latex"))  # str
    for task in found.tasks:
        reveal_type(task.rows["ours"]["mAP"])  # float


async def awaited(a: torch.Tensor, b: NDArray[np.uint8]) -> None:
    reveal_type(await ddfm_fast.Fuser().afuse(b, b))  # uint8
    reveal_type(await ddfm_fast.Fuser().afuse(a, a))  # tensor
    reveal_type(await ddfm_fast.Fuser().afuse([b], [b], color=False))  # arrays


def mixed(a: torch.Tensor, b: Image.Image, anything: Any) -> None:
    reveal_type(ddfm_fast.fuse(a, b))  # Any
    reveal_type(ddfm_fast.fuse(anything, anything))  # Any


def wrapper(a: torch.Tensor, **options: Unpack[ddfm_fast.FuserOptions]) -> torch.Tensor:
    found: list[ddfm_fast.FusionReport] = []

    def each(info: ddfm_fast.StepInfo) -> None:
        print(info.step)

    return ddfm_fast.fuse(a, a, callback=each, report=found, **options)
"""
WRONG = """
import numpy as np

import ddfm_fast

a = np.zeros((32, 32), np.uint8)
ddfm_fast.fuse("a.png", "b.png")  # wrong
ddfm_fast.fuse(a, [a])  # wrong
ddfm_fast.fuse(a, a, step=3)  # wrong
ddfm_fast.Fuser(seed="no")  # wrong
ddfm_fast.Fuser()(a, a, steps=3)  # wrong
"""


def array_of(*dtypes: str) -> str:
    """Return a pattern of how pyright or mypy prints an array of one of these dtypes."""
    return rf"(numpy\.)?ndarray\[.*dtype\[(numpy\.)?({'|'.join(dtypes)})\]\]"


def bits(kind: str, count: int) -> str:
    return rf"{kind}\[(numpy\._typing\._nbit_base\.)?_{count}Bit\]"


BYTES = array_of("uint8", bits("unsignedinteger", 8))
KINDS = {
    "array": BYTES,
    "arrays": rf"(builtins\.)?list\[{BYTES}\]",
    "frames": rf"(collections\.abc\.|typing\.)?Iterator\[{BYTES}\]",
    "uint8": BYTES,
    "uint16": array_of("uint16", bits("unsignedinteger", 16)),
    "float32": array_of("float32", bits("floating", 32)),
    "float64": array_of("float64", bits("floating", 64)),
    "either": array_of(r"unsignedinteger\[[^|]*\]( \| [^|]*)+"),
    "some": r"(numpy\.)?ndarray\[.*Any\]\]",
    "somes": r"(builtins\.)?list\[(numpy\.)?ndarray\[.*Any\]\]\]",
    "float": r"(builtins\.)?float",
    "str": r"(builtins\.)?str",
    "picture": r"(PIL\.Image\.)?Image",
    "pictures": r"(builtins\.)?list\[(PIL\.Image\.)?Image\]",
    "tensor": r"(torch\.)?(_tensor\.)?Tensor",
    "tensors": r"(builtins\.)?list\[(torch\.)?(_tensor\.)?Tensor\]",
    "Any": r"Any|list\[Any\]|Unknown",
}


def marked(text: str, pattern: str) -> dict[int, str]:
    """Return what the comments that match a pattern say, by line number from 1."""
    lines = enumerate(text.splitlines(), 1)
    return {n: found[1] for n, line in lines if (found := re.search(rf"# ({pattern})$", line))}


def check_revealed(revealed: dict[int, str]) -> None:
    expected = marked(SAMPLE, r"\w+")
    assert revealed.keys() == expected.keys()
    for line, kind in expected.items():
        assert re.fullmatch(KINDS[kind], revealed[line]), (SAMPLE.splitlines()[line - 1], revealed)


def write(folder: Path) -> None:
    (folder / "sample.py").write_text(SAMPLE, encoding="utf-8")
    (folder / "wrong.py").write_text(WRONG, encoding="utf-8")


def test_mypy(tmp_path):
    pytest.importorskip("mypy")
    write(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--cache-dir",
         str(ROOT / ".mypy_cache" / "sample"), "--no-error-summary", "sample.py", "wrong.py"],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "MYPYPATH": str(ROOT)},
    )  # fmt: skip
    rows = re.findall(r"^(\w+)\.py:(\d+): (error|note): (.*)$", done.stdout, re.MULTILINE)
    assert rows, done.stdout + done.stderr
    errors = {(file, int(line)) for file, line, kind, _ in rows if kind == "error"}
    assert errors == {("wrong", n) for n in marked(WRONG, "wrong")}, done.stdout
    check_revealed(
        {
            int(line): found[1]
            for file, line, _, text in rows
            if file == "sample" and (found := re.match(r'Revealed type is "(.*)"', text))
        }
    )


def test_pyright_in_its_strict_mode(tmp_path):
    if importlib.util.find_spec("pyright") is None:
        pytest.skip("needs pyright")
    write(tmp_path)
    settings = {"typeCheckingMode": "strict", "extraPaths": [str(ROOT)]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    found = json.loads(done.stdout)["generalDiagnostics"]
    rows = [
        (Path(d["file"]).stem, d["range"]["start"]["line"] + 1, d["severity"], d["message"])
        for d in found
    ]
    errors = {(file, line) for file, line, kind, _ in rows if kind == "error"}
    assert errors == {("wrong", n) for n in marked(WRONG, "wrong")}, rows
    check_revealed(
        {
            line: re.sub(r'^Type of ".*" is "(.*)"$', r"\1", text)
            for file, line, kind, text in rows
            if file == "sample" and kind == "information"
        }
    )


def keywords(function, *typed_dicts) -> set[str]:
    """Return the keywords of a function whose ``**`` has those of the dictionaries."""
    own = {
        p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY
    }
    return own.union(*(d.__annotations__ for d in typed_dicts))


def declared(name: str) -> set[str]:
    """Return the keywords that the overloads know, read from the source."""
    import ast

    tree = ast.parse((ROOT / "ddfm_fast/runtime/typed.py").read_text(encoding="utf-8"))
    classes = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    known = {"FuserOptions": set(FuserOptions.__annotations__)}
    known["ReadingOptions"] = set(ReadingOptions.__annotations__)

    def of(one: str) -> set[str]:
        if one in known or one not in classes:
            return known.get(one, set())
        bases = [b.id for b in classes[one].bases if isinstance(b, ast.Name)]
        own = {n.target.id for n in classes[one].body if isinstance(n, ast.AnnAssign)}
        return own.union(*map(of, bases))

    return of(name)


def test_the_overloads_know_every_keyword():
    """An option that is added to a call is added to ``ddfm_fast.runtime.typed`` too."""
    assert declared("FuseOptions") == keywords(fuse, FuserOptions)
    assert declared("CallOptions") == keywords(Fuser.__call__, ReadingOptions)
    assert declared("StreamOptions") == keywords(Fuser.stream, ReadingOptions)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32", "float64"])
def test_results_have_the_dtype_that_checkers_are_told(dtype):
    top = 1 if dtype.startswith("float") else np.iinfo(dtype).max
    a = np.linspace(0, top, 48 * 64).reshape(48, 64).astype(dtype)
    assert fuse(a, a.T.reshape(48, 64), preset="instant").dtype == np.dtype(dtype)
