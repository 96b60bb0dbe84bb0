"""The notebook of the documentation is clean, runs, and tells the truth."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re

import pytest
from conftest import ROOT

from ddfm_fast.docs.topics import topics

TOUR = ROOT / "ddfm_fast" / "docs" / "tour.ipynb"
MOST_BYTES = 300_000


def cells(kind: str) -> list[str]:
    found = json.loads(TOUR.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == kind]


def test_the_notebook_is_clean():
    """It has no outputs, which would be from somebody's machine and large."""
    content = json.loads(TOUR.read_text(encoding="utf-8"))
    assert TOUR.stat().st_size < MOST_BYTES and content["nbformat"] == 4
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


def test_its_text_names_what_there_is():
    text = "\n".join(cells("markdown"))
    named = set(re.findall(r"ddfm-fast help ([a-z]+)", text))
    assert named and named <= set(topics())
    assert (ROOT / "ddfm_fast" / "naive.py").is_file() and "ddfm_fast/naive.py" in text
    heads = re.findall(r"^## \d\. (.*)$", text, re.M)
    assert heads == [
        "The sources", "Noise", "Fusing", "What the prior adds", "A prior of your own", "Video",
        "Metrics", "Speed",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run() -> dict:
    """The names after all cells ran one after the other; what they print is in ``printed``."""
    names: dict = {"__name__": "tour"}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for n, source in enumerate(cells("code")):
            exec(compile(source, f"cell {n}", "exec"), names)
    return {**names, "printed": printed.getvalue()}


def test_what_the_text_says_of_noise(run):
    report = run["report"]
    assert report.ir.sigma == pytest.approx(25, abs=5) and report.vis.sigma < 3
    assert report.evaluations == 2


def test_what_the_text_says_of_the_prior(run):
    assert run["same"], "the text: on a clean pair the prior adds nothing"
    distance = run["distance"]
    assert distance["with the prior"] > distance["without the prior"] + 1
    assert distance["with the prior"] > distance["with a prior that blurs"]


def test_what_the_cells_show(run):
    assert len(run["frames"]) == 12 and run["frames"][0].shape == (192, 192, 3)
    assert run["clip"].data[8:12] == b"WEBP"
    assert '<img src="data:image/webp;base64,' in run["clip"]._repr_html_()
    assert all(0 < run["scores"][name]["VIF"].item() < 2 for name in run["pictures"])
    assert run["speed"]["instant"] < run["speed"]["balanced, noisy"]
    assert "evaluations of the prior: 2" in run["printed"]


def test_cells_that_show_a_picture_end_with_it():
    """A notebook shows the value of the last line."""
    last = [ast.parse(source).body[-1] for source in cells("code")]
    shown = [ast.unparse(one) for one in last if isinstance(one, ast.Expr)]
    assert sum(one.startswith("show(") for one in shown) == 4 and "clip" in shown


@pytest.mark.extras
def test_a_notebook_server_runs_it(tmp_path):
    """As Jupyter does: by a kernel, whose outputs are pictures."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(TOUR, as_version=4)
    nbformat.validate(notebook)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    kinds = [kind for out in outputs for kind in out.get("data", ())]
    assert kinds.count("image/png") == 4 and "text/html" in kinds
    assert not [out for out in outputs if out.output_type == "error"]
