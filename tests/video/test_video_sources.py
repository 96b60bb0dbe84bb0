"""Opening streams: what is one, picture folders and arrays."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from clips import texture

from ddfm_fast.files.writing import write_image
from ddfm_fast.video.frames import Faults, VideoError
from ddfm_fast.video.sources import ArraySource, PictureSource, open_source


def test_what_is_no_video(tmp_path):
    text = tmp_path / "notes.mp4"
    text.write_text("no video at all" * 100)
    empty = tmp_path / "empty.mp4"
    empty.touch()
    pytest.importorskip("av")
    for path, words in (
        (text, "cannot be opened as video"),
        (empty, "is empty"),
        (tmp_path / "none.mp4", "no such file"),
        (tmp_path, "has no pictures"),
    ):
        with pytest.raises(VideoError, match=words):
            open_source(path, "ir")
    with pytest.raises(TypeError, match="ir is a float"):
        open_source(3.5, "ir")
    with pytest.raises(ValueError, match="on_error is 'ignore'"):
        Faults("ignore")
    with pytest.raises(ValueError, match="rate is 0"):
        open_source(tmp_path, "ir", rate=0)


def test_folder_in_the_order_of_its_numbers_with_gaps(tmp_path):
    for n in (2, 10, 9, 12):
        write_image(tmp_path / f"frame{n}.png", np.full((16, 16), n, np.uint8))
    source = open_source(tmp_path, "ir", rate=10)
    read = list(source.frames())
    assert [int(f.image[0, 0]) for f in read] == [2, 9, 10, 12]
    assert [float(f.time) for f in read] == [0, 0.7, 0.8, 1.0]
    assert source.size == (16, 16) and source.length == 4
    assert [f.number for f in source.frames(Fraction(8, 10))] == [8, 10]


def test_names_without_numbers_go_by_order(tmp_path):
    paths = [write_image(tmp_path / f"{n}.png", texture(16, 16, 1)) for n in "abc"]
    assert [f.number for f in PictureSource(paths, "ir", Fraction(25)).frames()] == [0, 1, 2]


@pytest.mark.parametrize("policy", ["skip", "repeat", "stop"])
def test_broken_picture(tmp_path, policy):
    for n in range(4):
        write_image(tmp_path / f"{n}.png", np.full((16, 16), n, np.uint8))
    (tmp_path / "2.png").write_bytes(b"broken")
    source = open_source(tmp_path, "ir", faults=Faults(policy))
    values = [int(f.image[0, 0]) for f in source.frames()]
    assert values == {"skip": [0, 1, 3], "repeat": [0, 1, 1, 3], "stop": [0, 1]}[policy]
    assert [b.number for b in source.faults.frames] == [2]


def test_arrays_of_any_iterable():
    source = open_source((texture(16, 16, n) for n in range(3)), "ir", rate=5)
    assert isinstance(source, ArraySource) and source.length is None
    assert [float(f.time) for f in source.frames()] == [0, 0.2, 0.4]
