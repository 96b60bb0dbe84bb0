"""``ddfm-fast volume``, and what is printed if the extra is missing."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from typer.testing import CliRunner

from ddfm_fast.cli.app import app
from ddfm_fast.cli.volume import by_source

HIDE = """
import sys
class Missing:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("pydicom", "nibabel", "scipy", "pylibjpeg", "monai"):
            raise ImportError(f"No module named {name!r}")
sys.meta_path.insert(0, Missing())
"""


def call(*arguments) -> object:
    return CliRunner().invoke(app, ["volume", *map(str, arguments)])


def test_everything_imports_without_the_extra(tmp_path):
    for name in ("a.nii", "b.dcm"):
        (tmp_path / name).write_bytes(b"x" * 400)
    code = (
        HIDE
        + f"""
import ddfm_fast.medical as m
import ddfm_fast.integrations.monai as i
from ddfm_fast.medical import fuse_volumes, read_volume, write_volume, Volume
import ddfm_fast.cli.app
for name in ("a.nii", "b.dcm", "."):
    try:
        read_volume({str(tmp_path)!r} + "/" + name)
    except ImportError as error:
        print(error)
try:
    i.FuseDDFMd(("a", "b"))
except ImportError as error:
    print(error)
"""
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stderr
    assert all("pip install 'ddfm_fast[medical]'" in line for line in lines[:3])
    assert "needs nibabel" in lines[0] and "needs pydicom" in lines[1] and "monai" in lines[3]


def test_the_package_stays_light():
    code = "import sys, ddfm_fast.medical, ddfm_fast.cli.volume; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    loaded = {"torch", "numpy", "cv2", "pydicom", "nibabel", "scipy"}
    assert not loaded & set(eval(done.stdout)), done.stderr


def test_texts_by_source():
    assert by_source("hot", "--colormap") == "hot" and by_source(None, "--series") is None
    assert by_source("ir=T1, axial,vis=1.2.3", "--series") == {"ir": "T1, axial", "vis": "1.2.3"}
    assert by_source("vis=2", "--frame") == {"vis": "2"}
    for text in ("ir=1,ir=2", "ir="):
        with pytest.raises(ValueError, match="--frame is 'ir="):
            by_source(text, "--frame")


class TestWithTheExtra:
    """On two NIfTI files of one phantom."""

    @pytest.fixture
    def files(self, tmp_path):
        nib = pytest.importorskip("nibabel", reason="needs ddfm_fast[medical]")
        pytest.importorskip("scipy", reason="needs ddfm_fast[medical]")
        from phantoms import affine, ellipsoid

        grids = {
            "a.nii.gz": ((12, 30, 34), affine((2.5, 2.5, 4.0), (-36.0, -40.0, -22.0))),
            "b.nii": ((20, 44, 40), affine((2.0, 2.0, 3.0), (-34.0, -46.0, -26.0))),
        }
        for name, (shape, at) in grids.items():
            values = ellipsoid(shape, at, 0, 800)
            nib.save(nib.Nifti1Image(values.transpose(2, 1, 0), at), tmp_path / name)
        return [tmp_path / name for name in grids]

    def test_fuses(self, files, tmp_path):
        import nibabel as nib

        out = tmp_path / "f.nii.gz"
        done = call(
            *files, "-o", out, "--preset", "instant", "--ir-range", "0,800", "--slices", "2:10:2"
        )
        assert done.exit_code == 0, done.output
        assert "4 slices of 34x30" in done.stdout and "not for diagnosis" in done.stdout
        assert "warning: vis: the file names no window" in done.stderr
        image, source = nib.load(out), nib.load(files[0])
        assert image.shape == (34, 30, 4)
        np.testing.assert_allclose(image.affine @ [3, 4, 1, 1], source.affine @ [3, 4, 4, 1])

    def test_json_grid_plane_and_colors(self, files, tmp_path):
        arguments = ["--grid", "vis", "--plane", "coronal", "--colormap", "vis=hot", "--json"]
        out = tmp_path / "f.nii"
        done = call(*files, "-o", out, "--preset", "instant", *arguments)
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        assert (found["slices"], found["height"], found["width"]) == (44, 20, 40)
        assert found["grid"] == "vis" and found["images"] == "functional" and found["ok"]
        assert set(found["ranges"]) == {"ir", "vis"} and found["output"] == str(out)

    @pytest.mark.parametrize(
        "arguments, words",
        [
            (["--slices", "a"], "slices is 'a'; expected START:STOP:STEP"),
            (["--frame", "x"], "--frame is 'x'"),
            (["--frame", "3"], "frame is 3; expected 0 to 0"),
            (["--series", "ir=1"], "is a file, so series '1'"),
            (["--ir-range", "5"], "--ir-range is '5'"),
            (["--preset", "official-script"], "crops slices"),
            (["--colormap", "warm"], "colormap is 'warm'"),
        ],
    )
    def test_refuses(self, files, tmp_path, arguments, words):
        done = call(*files, "-o", tmp_path / "f.nii", "--preset", "instant", *arguments)
        assert done.exit_code == 2 and words in done.stderr, done.output
        assert done.stderr.splitlines()[-1].startswith("error: ")
        assert not (tmp_path / "f.nii").exists()

    def test_refuses_an_output_that_is_an_input(self, files):
        done = call(*files, "-o", files[0])
        assert done.exit_code == 2 and "is the input" in done.stderr
