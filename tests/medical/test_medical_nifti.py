"""NIfTI as volumes and back: axes, slopes, dimensions, and the bytes that are written."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from ddfm_fast.files.paths import ImageFileError
from ddfm_fast.medical.files import read_volume
from ddfm_fast.medical.nifti import nifti_bytes
from ddfm_fast.medical.volume import Volume

nib = pytest.importorskip("nibabel", reason="needs ddfm_fast[medical]")

from phantoms import affine, center_of, ellipsoid  # noqa: E402

pytestmark = pytest.mark.extras  # needs ddfm_fast[medical]

AT = affine((2.0, 3.0, 4.0), (-30.0, -40.0, -20.0))
SHAPE = (12, 26, 30)


def bundled(name: str) -> Path:
    """Return a file that nibabel's wheel carries."""
    path = Path(nib.__file__).parent / "tests" / "data" / name
    return path if path.is_file() else pytest.skip(f"{name} is not in the wheel")


def test_axes_become_canonical(tmp_path):
    """The same phantom stored along other axes and directions gives the same volume."""
    values = ellipsoid(SHAPE, AT)
    plain = nib.Nifti1Image(values.transpose(2, 1, 0), AT)
    for n, code in enumerate(("LPS", "SAR", "PIR", "ASL")):
        turned = nib.orientations.ornt_transform(
            nib.orientations.io_orientation(AT), nib.orientations.axcodes2ornt(code)
        )
        path = tmp_path / f"{n}.nii"
        nib.save(plain.as_reoriented(turned), path)
        found = read_volume(path)
        np.testing.assert_array_equal(found.array, values)
        np.testing.assert_allclose(found.affine, AT, atol=1e-5)


def test_slopes_units_and_windows(tmp_path):
    stored = np.arange(20 * 21 * 2, dtype=np.int16).reshape(20, 21, 2)
    image = nib.Nifti1Image(stored, AT)
    image.header.set_slope_inter(0.25, -7)
    image.header.set_xyzt_units("meter")
    image.header["cal_min"], image.header["cal_max"] = -5, 100
    raw = bytearray(image.to_bytes())
    at = image.header.template_dtype.fields["scl_slope"][1]
    raw[at : at + 8] = np.array([0.25, -7], np.float32).tobytes()
    (tmp_path / "a.nii").write_bytes(raw)
    found = read_volume(tmp_path / "a.nii")
    np.testing.assert_allclose(found.array, stored.transpose(2, 1, 0) * 0.25 - 7)
    assert found.window == (-5, 100) and found.spacing == pytest.approx((4000, 3000, 2000))


def test_what_is_not_finite_is_no_data(tmp_path):
    values = ellipsoid(SHAPE, AT)
    values[0, 0, :3] = np.nan, np.inf, -np.inf
    nib.save(nib.Nifti1Image(values.transpose(2, 1, 0), AT), tmp_path / "a.nii.gz")
    found = read_volume(tmp_path / "a.nii.gz").array
    assert np.isnan(found).sum() == 3 and np.isnan(found[0, 0, :3]).all()


def test_four_dimensions_need_a_frame():
    path = bundled("functional.nii")
    with pytest.raises(ImageFileError, match=r"20 volumes .*--frame, 0 to 19"):
        read_volume(path)
    found = read_volume(path, frame=5)
    canonical = nib.as_closest_canonical(nib.load(path))
    np.testing.assert_allclose(found.array, canonical.get_fdata()[..., 5].transpose(2, 1, 0))
    np.testing.assert_allclose(found.affine, canonical.affine)
    with pytest.raises(ImageFileError, match="frame is 20"):
        read_volume(path, frame=20)


@pytest.mark.parametrize("name", ["anatomical.nii", "standard.nii.gz", "reoriented_anat_moved.nii"])
def test_bundled_values(name):
    canonical = nib.as_closest_canonical(nib.load(bundled(name)))
    found = read_volume(bundled(name))
    expected = canonical.get_fdata().transpose(2, 1, 0)
    np.testing.assert_allclose(found.array, expected, rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(found.affine, canonical.affine)


def test_damaged_and_other_files_are_refused(tmp_path):
    (tmp_path / "a.nii").write_bytes(b"no image" * 100)
    with pytest.raises(ImageFileError, match="a.nii: cannot be read as NIfTI"):
        read_volume(tmp_path / "a.nii")
    whole = bundled("anatomical.nii").read_bytes()
    (tmp_path / "b.nii").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageFileError, match="b.nii: cannot be read"):
        read_volume(tmp_path / "b.nii")
    complex_one = nib.Nifti1Image(np.zeros((20, 20, 2), np.complex64), AT)
    nib.save(complex_one, tmp_path / "c.nii")
    with pytest.raises(ImageFileError, match="holds complex64"):
        read_volume(tmp_path / "c.nii")


def test_written_gray_and_color_are_read_by_nibabel(tmp_path):
    rng = np.random.default_rng(0)
    gray = Volume(rng.integers(0, 65536, SHAPE, dtype=np.uint16), AT)
    whole = nifti_bytes(gray, True, "derived, not for diagnosis")
    assert whole == nifti_bytes(gray, True, "derived, not for diagnosis"), "no time in it"
    (tmp_path / "a.nii").write_bytes(gzip.decompress(whole))
    image = nib.load(tmp_path / "a.nii")
    np.testing.assert_allclose(image.get_fdata().transpose(2, 1, 0), gray.array / 65535, atol=1e-7)
    np.testing.assert_allclose(image.affine, AT)
    np.testing.assert_allclose(image.get_qform(), AT)
    assert image.header.get_xyzt_units()[0] == "mm" and int(image.header["sform_code"]) == 1
    assert b"not for diagnosis" in bytes(image.header["descrip"])
    color = Volume(rng.integers(0, 256, (*SHAPE, 3), dtype=np.uint8), AT)
    (tmp_path / "b.nii").write_bytes(nifti_bytes(color, False, ""))
    stored = np.asarray(nib.load(tmp_path / "b.nii").dataobj)
    for n, name in enumerate("RGB"):
        np.testing.assert_array_equal(stored[name].transpose(2, 1, 0), color.array[..., n])
    np.testing.assert_allclose(read_volume(tmp_path / "b.nii").array, color.array / 255, atol=1e-6)


def test_place_is_kept_through_reading(tmp_path):
    """Stored from the left, the ellipsoid stays where it is."""
    at = affine((-2.0, 3.0, 4.0), (30.0, -40.0, -20.0))
    nib.save(nib.Nifti1Image(ellipsoid(SHAPE, at).transpose(2, 1, 0), at), tmp_path / "a.nii")
    found = read_volume(tmp_path / "a.nii")
    before = center_of(ellipsoid(SHAPE, at), at)
    np.testing.assert_allclose(center_of(found.array, found.affine), before, atol=0.01)


def test_a_frame_of_one_source_and_what_is_no_volume(tmp_path):
    path = tmp_path / "one.nii"
    nib.save(nib.Nifti1Image(np.zeros((20, 20, 3), np.float32), np.eye(4)), path)
    with pytest.raises(ImageFileError, match="frame is 1; .* holds one volume: .*--frame vis="):
        read_volume(path, frame=1)
    with pytest.raises(ImageFileError, match="Cifti2Image of surfaces, expected voxels"):
        read_volume(bundled("row_major.dconn.nii"))
    with pytest.raises(ImageFileError, match="convert it to NIfTI"):
        read_volume(bundled("test.mgz"))
