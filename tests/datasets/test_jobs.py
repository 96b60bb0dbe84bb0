"""Pairs of files fused into files, as Python users call it."""

from __future__ import annotations

import numpy as np
import pytest
from batches import add_pair, make_fuser

from ddfm_fast.datasets.jobs import fuse_files
from ddfm_fast.files.reading import read_image


@pytest.fixture
def data(tmp_path):
    for n, name in enumerate(("a", "b")):
        add_pair(tmp_path, name, seed=n)
    return tmp_path


def test_two_files(data):
    fuser, out = make_fuser(), data / "deep" / "a.tif"
    (report,) = fuse_files(data / "ir" / "a.png", str(data / "vi" / "a.png"), out, fuser)
    assert report["ok"] and report["output"] == str(out) and report["panel"] is None
    expected = fuser(read_image(data / "ir" / "a.png"), read_image(data / "vi" / "a.png"))
    np.testing.assert_array_equal(read_image(out), expected)


def test_two_folders_with_panels(data):
    folders = data / "ir", data / "vi", data / "out"
    reports = fuse_files(*folders, make_fuser(), format="bmp", panel=True)
    assert [report["ok"] for report in reports] == [True, True]
    assert {p.name for p in (data / "out").iterdir()} == {
        "a.bmp", "a.panel.png", "b.bmp", "b.panel.png",
    }  # fmt: skip
    again = fuse_files(*folders, make_fuser(), format="bmp", skip_existing=True)
    assert all(report["skipped"] for report in again)


def test_a_pair_that_fails_does_not_stop_the_others(data):
    (data / "vi" / "a.png").write_bytes(b"junk")
    folders, told = (data / "ir", data / "vi", data / "out"), []
    first, second = fuse_files(*folders, make_fuser())
    assert not first["ok"] and "a.png" in first["error"] and second["ok"]
    fuse_files(*folders, make_fuser(), on_error=lambda job, error: told.append((job.ir, error)))
    assert [(path.name, str(error)) for path, error in told] == [("a.png", first["error"])]
    with pytest.raises(ValueError, match="no such file|does not exist"):
        fuse_files(data / "none", data / "vi", data / "out", make_fuser())


def test_a_folder_given_twice_is_refused_with_the_command_that_is_meant(data):
    with pytest.raises(ValueError, match="the same folder.*ddfm-fast batch .*ir -o"):
        fuse_files(data / "ir", data / "vi" / ".." / "ir", data / "out", make_fuser())
    assert not (data / "out").exists()
