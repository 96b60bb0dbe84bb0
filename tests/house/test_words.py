"""American spelling in identifiers and text alike."""

import re

import pytest
from conftest import ROOT

BRITISH = (
    "artefact analyse behaviour catalogue centre colour favour grey honour initialis judgement "
    "labelled labelling levelled licence modelled modelling neighbour normalis optimis recognis "
    "travelled"
)
ALLOWED = re.compile(r"blue grey")
"""a color of the site's theme"""
PLACES = "ddfm_fast", "kernels", "bench", "tests", ".github"
NAMES = "*.py", "*.cpp", "*.h", "*.md", "*.html", "*.yml", "*.ipynb", "*.sh"
WORDS = re.compile("|".join(BRITISH.split()), re.IGNORECASE)
LISTS = {
    f"tests/{file}.py"
    for file in ("house/test_words", "house/test_docs", "cli/test_help_references")
}
"""files that list such words"""


@pytest.mark.parametrize("place", [*PLACES, "."])
def test_spelling(place):
    look = (ROOT / place).glob if place == "." else (ROOT / place).rglob
    found = []
    for path in (path for name in (*NAMES, *["Makefile"] * (place == ".")) for path in look(name)):
        where = path.relative_to(ROOT).as_posix()
        if where in LISTS or "results/" in where or "/." in f"/{where}".replace("/.github", ""):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if word := WORDS.search(ALLOWED.sub("", line)):
                found.append(f"{where}:{number}: {word[0]}")
    assert not found, "\n".join(found)
