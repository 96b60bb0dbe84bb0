"""Pairs that are fused together: each as alone, with its own warnings. Needs no extra."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from serving import colored, picture, png

import ddfm_fast
from ddfm_fast.serve.bodies import Call, from_text
from ddfm_fast.serve.fusers import KEPT, Fusers
from ddfm_fast.serve.limits import Refused
from ddfm_fast.serve.logs import Log, told_apart
from ddfm_fast.serve.pictures import chosen_format, decode, size_of


@pytest.fixture(scope="module")
def fusers() -> Fusers:
    return Fusers(ddfm_fast.Fuser(device="cpu"))


def decoded(ir: np.ndarray, vis: np.ndarray):
    return decode(Call(png(ir), png(vis), {}, {}, {}), 10**6)


def test_each_as_alone(fusers):
    pairs = [(picture(1), colored(2)), (picture(3), picture(3)), (picture(5), colored(6))]
    log = io.StringIO()
    with told_apart(Log(log)):
        together = fusers.fuse({}, {}, [decoded(*pair) for pair in pairs], lambda _: None)
        alone = [fusers.fuse({}, {}, [decoded(*pair)], lambda _: None)[0] for pair in pairs]
    for one, other in zip(together, alone, strict=True):
        assert np.array_equal(one.picture, other.picture) and one.report == other.report
        assert one.warnings == other.warnings
    (sentence,) = together[1].warnings
    assert "are the same picture" in sentence
    assert not together[0].warnings and not together[2].warnings and not log.getvalue()


def test_what_the_options_say_is_said_every_time(fusers):
    """This also holds for a kept fuser; the least recently used one is dropped first."""
    options = {"preset": "balanced", "steps": 3}
    with told_apart(Log(io.StringIO())):
        for _ in range(2):
            (found,) = fusers.fuse(options, {}, [decoded(picture(1), picture(2))], lambda _: None)
            assert any("steps is 3" in sentence for sentence in found.warnings)
        first = fusers.get(options)[0]
        assert fusers.get(dict(reversed(options.items())))[0] is first
        assert first.prior is fusers.own.prior
        for n in range(KEPT):
            fusers.get({"psi": 0.1 + n / 10})
        assert fusers.get(options)[0] is not first
    assert fusers.get({}) == (fusers.own, [])


def test_values_of_a_form():
    for name, text, value in (
        ("steps", "25", 25), ("steps", "10,20,30", "10,20,30"), ("steps", "ddim25", "ddim25"),
        ("stretch", "none", "none"), ("color", "False", False), ("color", "ir", "ir"),
        ("denoise", '{"ir": 12}', {"ir": 12}), ("value_range", "7000,9000", [7000, 9000]),
        ("value_range", "[0, 1]", [0, 1]), ("psi", "0.5", 0.5), ("preset", "fast", "fast"),
        ("format", "true", "true"), ("preset", "[" * 9999, "[" * 9999),
    ):  # fmt: skip
        assert from_text(name, text) == value, (name, text)
    assert np.isnan(from_text("nodata", "nan"))


def test_formats_that_are_accepted():
    for asked, accept, found in (
        (None, "", ("png", False)), (None, "*/*", ("png", False)), ("JPG", "", ("jpeg", False)),
        (None, "image/tiff", ("tiff", False)), ("tif", "image/png", ("tiff", False)),
        (None, "application/json, text/plain, */*", ("png", True)),
        ("npy", "application/json", ("npy", True)),
        (None, "image/png;q=0.1, image/jpeg;q=0.9", ("jpeg", False)),
        (None, "image/png;q=x, image/*;q=0.2", ("png", False)),
    ):  # fmt: skip
        assert chosen_format(asked, accept) == found, (asked, accept)
    for asked, accept, status in (("gif", "", 400), (None, "text/html", 406), (None, "q;q=0", 406)):
        with pytest.raises(Refused) as error:
            chosen_format(asked, accept)
        assert error.value.status == status


def test_sizes_by_the_header():
    assert size_of(png(colored(1, 20, 30)), "ir", 600) == (20, 30)
    with pytest.raises(Refused, match="ir: 30x20 is 600 pixels, more than the limit of 599"):
        size_of(png(colored(1, 20, 30)), "ir", 599)
    assert size_of(b"no picture", "ir", 1) == () == size_of(b"", "ir", 1)
    for shape, pixels in (((20, 30), 600), ((20, 30, 3), 600), ((3, 20, 30), 600),
                          ((5, 20, 30), 3000)):  # fmt: skip
        file = io.BytesIO()
        np.save(file, np.zeros(shape, np.uint8))
        assert size_of(file.getvalue(), "ir", pixels) == shape
        with pytest.raises(Refused):
            size_of(file.getvalue(), "ir", pixels - 1)


def test_log_lines():
    file = io.StringIO()
    Log(file)("request", error="a\nb" * 1000, none=None, odd={1, 2}, status=200)
    (line,) = file.getvalue().splitlines()
    found = json.loads(line)
    assert len(found["error"]) == 500 and found["status"] == 200 and "none" not in found
    file.close()
    Log(file)("nobody reads this")
