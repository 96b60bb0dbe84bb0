"""Every measured number of README and topics has a record, or states that it has none."""

from __future__ import annotations

from dataclasses import replace

import claims
import pytest
from conftest import ROOT

from ddfm_fast.bench.results import Candidate, Measurement

PAGES = ["README", *sorted(p.stem for p in (ROOT / "ddfm_fast" / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES)
def test_every_number_is_a_claim(page):
    text = claims.prose(page)
    listed = [c.words for c in claims.STATED if c.page == page]
    listed += [words for name, words in claims.GIVEN if name == page]
    spans = []
    for words in listed:
        found = claims.span(text, words)
        assert found, f"{page} does not say {words!r}; mend tests/tools/claims.py"
        spans.append(found)
    for number in claims.NUMBER.finditer(text):
        around = text[max(0, number.start() - 40) : number.end() + 40]
        assert any(start <= number.start() and number.end() <= end for start, end in spans), (
            f"{page}: {around!r} has no record; name it in tests/tools/claims.py"
        )


def test_records_exist_and_the_table_is_the_generated_one():
    """Run ``python tests/tools/claims.py --write`` to write the table."""
    for claim in claims.STATED:
        assert not claim.record or (claims.FOLDER / claim.record).is_file(), claim
    text = claims.PAGE.read_text(encoding="utf-8")
    assert claims.updated(text) == text
    with pytest.raises(ValueError, match="put them back"):
        claims.updated("no marks")


def test_words_that_span():
    assert claims.span("a 1 ms b 2 s c", "1 ms … 2 s") == (2, 12)
    assert claims.span("a 1 ms b", "1 ms") == (2, 6)
    assert claims.span("a 2 s b 1 ms", "1 ms … 2 s") is None
    assert claims.NUMBER.findall("3 ms, 640x480 in 4 to 8 s, 5 stems") == ["3 ms", "4 to 8 s"]


def measured(*ours: float) -> Measurement:
    pair = {"reference": Candidate([8.0] * 5), "ddfm_fast": Candidate(list(ours))}
    return Measurement("step", "all", "8x8", baseline="reference", candidates=pair)


def test_claimed_beside_measured():
    claimed = measured(2.0, 2.0, 2.0, 2.0, 2.0)
    line = claims.compare(claimed, measured(2.0, 2.0, 2.0, 2.0, 2.0), "ddfm_fast")
    assert line == (
        "step: all, 8x8: claimed 4.00 (4.00 to 4.00), measured 4.00 (4.00 to 4.00): agree"
    )
    slow = claims.compare(claimed, measured(4.0, 4.0, 4.0, 4.0, 4.0), "ddfm_fast")
    assert slow.endswith("measured 2.00 (2.00 to 2.00): differ")
    busy = claims.compare(claimed, measured(1.0, 1.0, 2.0, 8.0, 8.0), "ddfm_fast")
    assert busy.endswith("(1.00 to 8.00): too wide to say, other programs run")
    red = claims.compare(claimed, replace(claimed, failed="ValueError: no"), "ddfm_fast")
    assert red == "step: all, 8x8: claimed 4.00, not measured: ValueError: no"
