"""The site of ``make docs``: pages at their places, links that lead somewhere, no third party."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = pytest.mark.extras
pytest.importorskip("mkdocstrings", reason='needs pip install "ddfm_fast[docs]"')

import docsite  # noqa: E402


@pytest.fixture
def pages(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(docsite, "WORK", tmp_path)
    monkeypatch.setattr(docsite, "PAGES", tmp_path / "pages")
    monkeypatch.setattr(docsite, "SITE", tmp_path / "site")
    return tmp_path / "pages"


def test_links_follow_their_pages(pages, tmp_path, monkeypatch):
    root = tmp_path / "root"
    (root / "ddfm_fast" / "video").mkdir(parents=True)
    (root / "kernels").mkdir()
    (root / "docs").mkdir()
    (root / "kernels" / "step.py").write_text('"""A step.\n\nMore."""\n')
    (root / "docs" / "b.md").write_text("[self](#here)\n")
    (root / "a.md").write_text(
        "[b](docs/b.md#here) [v](ddfm_fast/video) [k](kernels) [s](kernels/step.py)\n"
        "[w](https://example.org/x)\n```\n[not](a-link)\n```\n"
    )
    monkeypatch.setattr(docsite, "ROOT", root)
    docsite.Stage().add(Path("a.md"))
    assert (pages / "a.md").read_text() == (
        "[b](docs/b.md#here) [v](api/video.md) [k](kernels/folder.md) [s](kernels/step.py.md)\n"
        "[w](https://example.org/x)\n```\n[not](a-link)\n```\n"
    )
    assert (pages / "docs" / "b.md").read_text() == "[self](#here)\n"
    assert (pages / "kernels" / "folder.md").read_text() == "# kernels/\n\n- `step.py`: A step.\n"
    assert '"""A step.' in (pages / "kernels" / "step.py.md").read_text()

    (root / "a.md").write_text("[gone](docs/gone.md)\n")
    with pytest.raises(FileNotFoundError, match="a.md: no docs/gone.md"):
        docsite.Stage().add(Path("a.md"))


def test_the_site_is_built_whole_and_loads_nothing_from_elsewhere(pages):
    """MkDocs is strict: a broken link, anchor or name of the API ends it."""
    docsite.main()
    site = pages.parent / "site"
    found = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    topics = {f"ddfm_fast/docs/{p.stem}.html" for p in (ROOT / "ddfm_fast" / "docs").glob("*.md")}
    assert {"index.html", "reference/options.html", "api/metrics.html", *topics} <= found
    for path in site.rglob("*.html"):
        if not path.relative_to(site).as_posix().startswith("bench/results/cpu-"):
            loaded = r'<(?:script|img|iframe)[^>]* src="?https?:|<link[^>]* href="?https?:'
            assert not re.search(loaded, path.read_text(encoding="utf-8")), path
    fuser = (site / "api" / "ddfm_fast.html").read_text(encoding="utf-8")
    assert not re.search(r"<p>[^<]*\bOPTIONS\b", fuser)  # the list stands in its place
    assert fuser.count("Remove noise from the sources first") >= 2
