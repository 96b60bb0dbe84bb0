"""What is written: a derived series with its place and its sources, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ddfm_fast import DDFMWarning, Fuser
from ddfm_fast.files.paths import ImageFileError
from ddfm_fast.medical.files import fuse_files, read_volume, write_volume

pydicom = pytest.importorskip("pydicom", reason="needs ddfm_fast[medical]")
nib = pytest.importorskip("nibabel", reason="needs ddfm_fast[medical]")

from phantoms import affine, ellipsoid, save_series  # noqa: E402

pytestmark = pytest.mark.extras  # needs ddfm_fast[medical]

AT = affine((-2.0, -2.5, 5.0), (44.0, 40.0, -22.0))
OTHER = affine((-2.0, -2.5, 2.5), (44.0, 40.0, -22.0))
SHAPE = (9, 36, 40)
SOURCE_ITEM = "121322"


@pytest.fixture(scope="module")
def instant() -> Fuser:
    return Fuser(preset="instant", device="cpu")


@pytest.fixture
def inputs(tmp_path) -> tuple[Path, Path]:
    """Two series of one patient, 9 slices of 5 mm and 17 of 2.5 mm, in one frame of reference."""
    more = {"WindowCenter": 200, "WindowWidth": 1000, "StudyDate": "20200131"}
    ir = save_series(
        tmp_path / "a", ellipsoid(SHAPE, AT, -200, 500), AT, SeriesInstanceUID="1.2.5", **more
    )
    vis = save_series(
        tmp_path / "b", ellipsoid((17, 36, 40), OTHER, -100, 600), OTHER,
        SeriesInstanceUID="1.2.6", **more,
    )  # fmt: skip
    return ir, vis


def written(folder: Path) -> list:
    return [pydicom.dcmread(path) for path in sorted(folder.iterdir())]


def test_a_series_is_derived_and_says_so(inputs, instant, tmp_path):
    fused = fuse_files(*inputs, tmp_path / "out", instant)
    slices = written(tmp_path / "out")
    assert len(slices) == 9 and [s.InstanceNumber for s in slices] == list(range(1, 10))
    old = {s.SOPInstanceUID for folder in inputs for s in written(folder)}
    uids = {s.SOPInstanceUID for s in slices}
    assert len(uids) == 9 and not uids & old
    assert {s.file_meta.MediaStorageSOPInstanceUID for s in slices} == uids
    one = slices[4]
    assert one.SeriesInstanceUID not in ("1.2.5", "1.2.6") and len(one.SeriesInstanceUID) <= 64
    assert list(one.ImageType) == ["DERIVED", "SECONDARY"]
    assert one.SOPClassUID.name == "Secondary Capture Image Storage"
    assert "not for diagnosis" in one.DerivationDescription
    assert one.ImageComments == "derived, not for diagnosis"
    kept = ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID", "StudyDate")
    source = written(inputs[0])[0]
    assert all(one[name].value == source[name].value for name in kept)
    assert "WindowCenter" in one and one.Modality == "OT"
    found = read_volume(tmp_path / "out")
    np.testing.assert_allclose(found.affine, AT, atol=1e-6)
    np.testing.assert_array_equal(found.array, fused.volume.array)


def test_every_slice_names_its_sources(inputs, instant, tmp_path):
    """A slice at 5 mm is at one slice of its own series, and at one of every other of 2.5 mm."""
    fuse_files(*inputs, tmp_path / "out", instant)
    at = {
        (name, round(float(s.ImagePositionPatient[2]), 3)): s.SOPInstanceUID
        for name, folder in zip("ab", inputs, strict=True)
        for s in written(folder)
    }
    for s in written(tmp_path / "out"):
        z = round(float(s.ImagePositionPatient[2]), 3)
        items = s.SourceImageSequence
        assert [i.ReferencedSOPInstanceUID for i in items] == [at["a", z], at["b", z]]
        assert items[0].PurposeOfReferenceCodeSequence[0].CodeValue == SOURCE_ITEM


def test_between_slices_both_are_sources(inputs, instant, tmp_path):
    fuse_files(*inputs, tmp_path / "out", instant, grid="vis", slices=slice(1, 4))
    counts = [len(s.SourceImageSequence) for s in written(tmp_path / "out")]
    assert counts == [3, 2, 3], "at 2.5 and 7.5 mm two of 5 mm; at 5 mm one"


def test_another_plane_keeps_the_place(inputs, instant, tmp_path):
    fused = fuse_files(*inputs, tmp_path / "out", instant, grid="vis", plane="sagittal")
    slices = written(tmp_path / "out")
    assert len(slices) == 40
    np.testing.assert_allclose(slices[3].ImageOrientationPatient, [0, 1, 0, 0, 0, -1], atol=1e-9)
    assert slices[0].PixelSpacing == [2.5, 2.5] and slices[0].SpacingBetweenSlices == 2
    for n in (0, 17):
        place = fused.volume.affine @ [0, 0, n, 1]
        lps = [-place[0], -place[1], place[2]]
        np.testing.assert_allclose(slices[n].ImagePositionPatient, lps, atol=1e-6)
    assert len(slices[20].SourceImageSequence) == 9 + 17, "all of them cross it"


def test_color_and_a_single_file(inputs, instant, tmp_path):
    out = tmp_path / "one.dcm"
    fused = fuse_files(*inputs, out, instant, colormap="hot", slices=slice(4, 5))
    one = pydicom.dcmread(out)
    assert one.PhotometricInterpretation == "RGB" and one.BitsAllocated == 8
    np.testing.assert_array_equal(one.pixel_array, fused.volume.array[0])
    with pytest.raises(ImageFileError, match="holds one slice and the result has 9"):
        fuse_files(*inputs, tmp_path / "more.dcm", instant)


def test_two_patients_are_not_named(tmp_path, instant):
    values = ellipsoid(SHAPE, AT, -200, 500)
    a = save_series(tmp_path / "a", values, AT, WindowCenter=1, WindowWidth=900)
    b = save_series(tmp_path / "b", values * 0.5, AT, PatientID="P2", PatientName="Two",
                    WindowCenter=1, WindowWidth=900)  # fmt: skip
    with pytest.warns(DDFMWarning, match="names none of them"):
        fuse_files(a, b, tmp_path / "out", instant)
    one = written(tmp_path / "out")[0]
    assert (one.PatientID, str(one.PatientName)) == ("", "")
    assert one.StudyInstanceUID not in ("1.2.3",) and len(one.SourceImageSequence) == 2


def test_nifti_of_dicom_and_dicom_of_nifti(inputs, instant, tmp_path):
    out = tmp_path / "f.nii.gz"
    fused = fuse_files(*inputs, out, instant)
    image = nib.load(out)
    np.testing.assert_allclose(image.affine, fused.volume.affine, atol=1e-5)
    fuse_files(out, inputs[1], tmp_path / "back", instant)
    one = written(tmp_path / "back")[0]
    assert one.PatientID == "P1" and one.FrameOfReferenceUID != "1.2.9"
    np.testing.assert_allclose(read_volume(tmp_path / "back").spacing, (5, 2.5, 2))
    fuse_files(out, out, tmp_path / "plain", instant)
    one = written(tmp_path / "plain")[0]
    assert one.PatientID == "" and "SourceImageSequence" not in one


def test_a_sheared_grid_is_for_nifti(inputs, instant, tmp_path):
    image = nib.load(fuse_out(inputs, instant, tmp_path / "f.nii"))
    at = image.affine.copy()
    at[:3, 0] += 0.3 * at[:3, 1]
    nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32), at), tmp_path / "s.nii")
    with pytest.raises(ValueError, match="not at right angles.*NIfTI"):
        fuse_files(tmp_path / "s.nii", inputs[1], tmp_path / "out", instant)
    assert not (tmp_path / "out").exists()


def fuse_out(inputs, fuser, out: Path) -> Path:
    fuse_files(*inputs, out, fuser)
    return out


def test_inputs_are_never_written_over(inputs, instant, tmp_path):
    volume = fuse_out(inputs, instant, tmp_path / "f.nii.gz")
    before = volume.read_bytes()
    link = tmp_path / "link.nii.gz"
    os.link(volume, link)
    for out in (volume, link, inputs[0], inputs[0] / "new", inputs[1] / "a.nii"):
        with pytest.raises(ImageFileError, match="is the input .*, or lies in it"):
            fuse_files(volume if out in (volume, link) else inputs[0], inputs[1], out, instant)
    assert volume.read_bytes() == before and len(list(inputs[0].iterdir())) == 9


def test_folders_with_something_in_them_stay(inputs, instant, tmp_path):
    (tmp_path / "out").mkdir()
    fuse_files(*inputs, tmp_path / "out", instant)
    assert len(list((tmp_path / "out").iterdir())) == 9, "an empty one is taken"
    with pytest.raises(ImageFileError, match="the folder is not empty"):
        fuse_files(*inputs, tmp_path / "out", instant)
    for name in ("f.png", "f.nrrd", "f.tar.gz"):
        with pytest.raises(ImageFileError, match="volumes are written as"):
            fuse_files(*inputs, tmp_path / name, instant)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ImageFileError, match="exists and is not a folder"):
        fuse_files(*inputs, tmp_path / "file", instant)


def test_a_series_is_written_whole_or_not(inputs, instant, tmp_path, monkeypatch):
    from ddfm_fast.medical import derived

    fused = fuse_files(*inputs, tmp_path / "f.nii", instant)
    encoded, done = derived._encoded, []

    def fails(dataset):
        done.append(dataset)
        if len(done) == 5:
            raise OSError(28, "No space left on device")
        return encoded(dataset)

    monkeypatch.setattr(derived, "_encoded", fails)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ImageFileError, match="out: cannot be written .No space"):
        write_volume(tmp_path / "out", fused)
    assert sorted(tmp_path.iterdir()) == before
