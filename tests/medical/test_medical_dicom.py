"""DICOM as volumes: what pixels mean, where slices lie, errors and warnings."""

from __future__ import annotations

import shutil
import warnings

import numpy as np
import pytest

from ddfm_fast import DDFMWarning
from ddfm_fast.files.paths import ImageFileError
from ddfm_fast.medical.files import read_volume

pydicom = pytest.importorskip("pydicom", reason="needs ddfm_fast[medical]")

from phantoms import affine, dataset, ellipsoid, save, save_series  # noqa: E402

pytestmark = pytest.mark.extras  # needs ddfm_fast[medical]

SHAPE = (9, 20, 24)
AT = affine((-2.0, -3.0, 4.0), (30.0, 20.0, -12.0))


def ramp(dtype=np.uint16) -> np.ndarray:
    return (np.arange(20 * 24).reshape(20, 24) * 3).astype(dtype)


def bundled(name: str):
    """Return a file that pydicom's wheel carries."""
    from pydicom.data import get_testdata_file

    return get_testdata_file(name, download=False) or pytest.skip(f"{name} is not in the wheel")


def test_a_series_in_order(tmp_path):
    values = np.rint(ellipsoid(SHAPE, AT, -1000, 400))
    found = read_volume(save_series(tmp_path, values, AT, WindowCenter=50, WindowWidth=401))
    np.testing.assert_array_equal(found.array, values)
    np.testing.assert_allclose(found.affine, AT, atol=1e-9)
    assert found.units == "HU" and found.modality == "CT" and found.placed
    assert found.window == (-150.5 + 0.0, 249.5)  # c − ½ ± (w − 1)/2, PS3.3 C.11.2.1.2
    assert found.spacing == (4, 3, 2)


def test_an_oblique_series(tmp_path):
    turn = np.array([[0.8, 0, 0.6], [0, 1, 0], [-0.6, 0, 0.8]])
    at = AT.copy()
    at[:3, :3] = turn @ AT[:3, :3]
    values = np.rint(ellipsoid(SHAPE, at, -1000, 400))
    found = read_volume(save_series(tmp_path, values, at))
    np.testing.assert_array_equal(found.array, values)
    np.testing.assert_allclose(found.affine, at, atol=1e-6)


def test_slices_against_their_normal_are_turned_with_the_affine(tmp_path):
    at = affine((-2.0, -3.0, -4.0), (30.0, 20.0, 12.0))
    values = np.rint(ellipsoid(SHAPE, at, -1000, 400))
    found = read_volume(save_series(tmp_path, values, at))
    np.testing.assert_array_equal(found.array, values[::-1])
    np.testing.assert_allclose(found.affine[:3, 3], at[:3, 3] + 8 * at[:3, 2])


def test_missing_slices_are_left_without_data(tmp_path):
    values = np.rint(ellipsoid(SHAPE, AT, -1000, 400))
    folder = save_series(tmp_path, values, AT, skip=(3, 4))
    with pytest.warns(DDFMWarning, match=r"2 slices are missing, at 12, 16 mm from the first"):
        found = read_volume(folder)
    assert found.shape == SHAPE and np.isnan(found.array[3:5]).all()
    np.testing.assert_array_equal(found.array[[2, 5]], values[[2, 5]])
    assert found.origin.instances[3] is None and found.origin.instances[5][1]


def test_uneven_slices_are_interpolated(tmp_path):
    for n, z in enumerate((0.0, 4.0, 8.0, 13.0, 17.0, 21.0)):
        made = dataset(
            np.full((20, 24), round(100 * z), np.uint16), InstanceNumber=n, PixelSpacing=[1, 1],
            ImagePositionPatient=[0, 0, z], ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
        )  # fmt: skip
        save(made, tmp_path / f"{n}.dcm")
    with pytest.warns(DDFMWarning, match=r"4 to 5 mm apart; they are interpolated to every 4 mm"):
        found = read_volume(tmp_path)
    np.testing.assert_allclose(found.array[:, 0, 0], np.arange(6) * 400, rtol=1e-6)


def test_mixed_series_are_named_and_chosen(tmp_path):
    values = np.rint(ellipsoid(SHAPE, AT, -1000, 400))
    for uid, text, number in (("1.2.3.11", "Head soft", 3), ("1.2.3.12", "Head bone", 4)):
        more = {"SeriesInstanceUID": uid, "SeriesDescription": text, "SeriesNumber": number}
        save_series(tmp_path / uid, values + number, AT, **more)
    with pytest.raises(ImageFileError) as error:
        read_volume(tmp_path)
    for word in ("--series", "1.2.3.11 (CT Head soft, 9 files)", "1.2.3.12 (CT Head bone"):
        assert word in str(error.value)
    for wanted in ("1.2.3.12", "12", "bone", "4", "Head bone"):
        np.testing.assert_array_equal(read_volume(tmp_path, series=wanted).array, values + 4)
    with pytest.raises(ImageFileError, match="series 'head', which means several"):
        read_volume(tmp_path, series="head")
    with pytest.raises(ImageFileError, match="series 'spine', which means none"):
        read_volume(tmp_path, series="spine")


def test_places_that_occur_twice_are_frames(tmp_path):
    values = np.rint(ellipsoid(SHAPE, AT, -1000, 400))
    for n in range(2):
        save_series(tmp_path / str(n), values + n, AT, AcquisitionNumber=n)
    with pytest.raises(ImageFileError, match=r"2 volumes \(four dimensions\).*--frame, 0 to 1"):
        read_volume(tmp_path)
    found = [read_volume(tmp_path, frame=n).array[0, 0, 0] for n in range(2)]
    assert sorted(found) == [-1000, -999]
    with pytest.raises(ImageFileError, match="frame is 2; expected 0 to 1"):
        read_volume(tmp_path, frame=2)
    next((tmp_path / "0").glob("*-5.dcm")).unlink()
    with pytest.raises(ImageFileError, match="some places have 2 slices and others 1"):
        read_volume(tmp_path, frame=0)


def test_a_localizer_and_other_sizes_are_refused(tmp_path):
    values = np.rint(ellipsoid(SHAPE, AT, -1000, 400))
    save_series(tmp_path / "a", values, AT)
    save_series(tmp_path / "a" / "b", values[:1], affine((2.0, -3.0, 4.0), (0.0, 0.0, 0.0)))
    with pytest.raises(ImageFileError, match="several directions"):
        read_volume(tmp_path / "a")
    save_series(tmp_path / "c", values, AT)
    save_series(tmp_path / "c" / "d", values[:1, :16], AT)
    with pytest.raises(ImageFileError, match="differ in size"):
        read_volume(tmp_path / "c")


def test_signed_rescaled_and_padded(tmp_path):
    stored = ramp(np.int16) - 700
    stored[0, :5] = -2000
    made = dataset(stored, RescaleSlope="0.5", RescaleIntercept="10", PixelPaddingValue=-2000)
    made["PixelPaddingValue"].VR = "SS"
    found = read_volume(save(made, tmp_path / "a.dcm"))
    assert np.isnan(found.array[0, 0, :5]).all() and not found.placed
    expected = (ramp().astype(float) - 700) * 0.5 + 10
    np.testing.assert_allclose(found.array[0].ravel()[5:], expected.ravel()[5:])


def test_monochrome1_is_inverted_with_its_window(tmp_path):
    made = dataset(
        ramp(), PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11, Modality="CR",
        WindowCenter=1000, WindowWidth=200, VOILUTFunction="LINEAR_EXACT",
    )  # fmt: skip
    found = read_volume(save(made, tmp_path / "a.dcm"))
    np.testing.assert_array_equal(found.array[0], 4095 - ramp().astype(float))
    assert found.window == (4095 - 1100, 4095 - 900)


def test_multi_frame_with_a_place_for_each(tmp_path):
    def group(**sequences):
        made = pydicom.Dataset()
        for name, attributes in sequences.items():
            item = pydicom.Dataset()
            for word, value in attributes.items():
                setattr(item, word, value)
            setattr(made, name, pydicom.Sequence([item]))
        return made

    frames = np.stack([ramp() + n for n in range(4)])
    order = [2, 0, 3, 1]
    made = dataset(frames[order], Modality="MR")
    made.SharedFunctionalGroupsSequence = pydicom.Sequence([group(
        PlaneOrientationSequence={"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
        PixelMeasuresSequence={"PixelSpacing": [1.5, 1.25], "SliceThickness": 9},
    )])  # fmt: skip
    made.PerFrameFunctionalGroupsSequence = pydicom.Sequence([
        group(
            PlanePositionSequence={"ImagePositionPatient": [1, 2, 5.0 * n]},
            PixelValueTransformationSequence={"RescaleSlope": 2, "RescaleIntercept": n},
        )
        for n in order
    ])  # fmt: skip
    found = read_volume(save(made, tmp_path / "a.dcm"))
    np.testing.assert_allclose(found.array, 2 * frames.astype(float) + np.arange(4)[:, None, None])
    np.testing.assert_allclose(found.affine, affine((-1.25, -1.5, 5.0), (-1.0, -2.0, 0.0)))


def test_palette_and_rgb(tmp_path):
    index = (np.arange(400).reshape(20, 20) % 4).astype(np.uint8)
    red, green, blue = ([0, 100, 200, 255], [0, 0, 50, 255], [255, 1, 2, 3])
    made = dataset(index, PhotometricInterpretation="PALETTE COLOR")
    for name, values in (("Red", red), ("Green", green), ("Blue", blue)):
        setattr(made, f"{name}PaletteColorLookupTableDescriptor", [4, 0, 16])
        table = (np.array(values, np.uint16) * 257).tobytes()
        setattr(made, f"{name}PaletteColorLookupTableData", table)
    found = read_volume(save(made, tmp_path / "a.dcm"))
    expected = np.stack([red, green, blue], -1)[index] / 255
    np.testing.assert_allclose(found.array[0], expected, atol=1e-6)
    rgb = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    found = read_volume(save(dataset(rgb), tmp_path / "b.dcm"))
    np.testing.assert_allclose(found.array[0], rgb / 255, atol=1e-6)
    assert found.window is None and found.colored


def test_windows_that_differ_are_joined_and_one_without_is_none(tmp_path):
    values = np.rint(ellipsoid(SHAPE, AT, -1000, 400))
    folder = save_series(tmp_path, values, AT, WindowCenter=[100, 40], WindowWidth=[201, 80])
    file = next(folder.glob("*-3.dcm"))
    made = pydicom.dcmread(file)
    made.WindowCenter, made.WindowWidth = 300, 101
    save(made, file)
    assert read_volume(folder).window == (-0.5, 349.5)
    del made["WindowCenter"]
    save(made, file)
    assert read_volume(folder).window is None


# pydicom's own files


def test_bundled_values():
    """They agree with pydicom's pixels and attributes, by the formulas of PS3.3."""
    raw = pydicom.dcmread(bundled("CT_small.dcm"))
    found = read_volume(bundled("CT_small.dcm"))
    np.testing.assert_array_equal(found.array[0], raw.pixel_array + float(raw.RescaleIntercept))
    x, y, z = raw.ImagePositionPatient
    np.testing.assert_allclose(found.affine[:3, 3], [-x, -y, z])
    assert found.units == "HU" and found.spacing[1:] == pytest.approx((0.661468, 0.661468))


@pytest.mark.parametrize(
    "name",
    ["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm",
     "MR_small_bigendian.dcm", "MR_small_implicit.dcm"],
)  # fmt: skip
def test_bundled_compressed_files_are_the_plain_one(name):
    for library in ("openjpeg", "libjpeg"):
        pytest.importorskip(library)
    plain, found = read_volume(bundled("MR_small.dcm")), read_volume(bundled(name))
    np.testing.assert_array_equal(found.array, plain.array)
    assert found.window == plain.window == (-200, 1399)


def test_bundled_color():
    pytest.importorskip("libjpeg")
    ybr = read_volume(bundled("examples_ybr_color.dcm"))
    assert ybr.shape == (30, 240, 320) and ybr.colored
    one = read_volume(bundled("examples_ybr_color.dcm"), frame=7)
    np.testing.assert_array_equal(one.array[0], ybr.array[7])
    plain = read_volume(bundled("SC_rgb_rle.dcm")).array  # the same bars, without loss
    jpeg = read_volume(bundled("SC_rgb_jpeg_dcmtk.dcm")).array
    assert np.abs(plain - jpeg).mean() < 0.02, "a few gray levels: YBR read as RGB is .3"
    assert read_volume(bundled("examples_palette.dcm")).colored


def test_bundled_dose():
    found = read_volume(bundled("rtdose.dcm"))
    raw = pydicom.dcmread(bundled("rtdose.dcm"))
    np.testing.assert_allclose(found.array, raw.pixel_array * float(raw.DoseGridScaling), rtol=1e-6)
    offsets = np.diff([float(v) for v in raw.GridFrameOffsetVector])
    assert found.shape == (15, 10, 10) and found.spacing[0] == pytest.approx(abs(offsets[0]))


@pytest.mark.parametrize(
    "name, words",
    [
        ("rtplan.dcm", "has no pixels"),
        ("MR_truncated.dcm", "less than expected"),
        ("meta_missing_tsyntax.dcm", "transfer syntax"),
        ("no_meta.dcm", "neither DICOM, by its first bytes, .* rewrite it"),
        ("badVR.dcm", "cannot be decoded"),
        ("README.txt", "convert it to NIfTI"),
    ],
)
def test_bundled_files_that_are_refused(name, words):
    with warnings.catch_warnings(), pytest.raises(ImageFileError, match=words) as error:
        warnings.simplefilter("ignore")
        read_volume(bundled(name))
    assert name in str(error.value)


def test_names_that_lead_nowhere(tmp_path):
    with pytest.raises(ImageFileError, match="no such file or folder"):
        read_volume(tmp_path / "none")
    (tmp_path / "a.txt").write_text("no image")
    with pytest.raises(ImageFileError, match="holds no DICOM images"):
        read_volume(tmp_path)
    shutil.copy(bundled("CT_small.dcm"), tmp_path / "a.dcm")
    assert read_volume(tmp_path).shape == (1, 128, 128), "other files are left out"
    with pytest.raises(ImageFileError, match="is a file, so series"):
        read_volume(tmp_path / "a.dcm", series="1")


def test_damaged_files_are_refused_by_name(tmp_path):
    """Whatever bytes are wrong: a volume, or an error that names the file."""
    rng = np.random.default_rng(0)
    names = ("MR_small.dcm", "SC_rgb_rle_2frame.dcm", "rtdose.dcm", "MR_small_RLE.dcm")
    for n in range(200):
        whole = np.fromfile(bundled(names[n % len(names)]), np.uint8)
        head = min(len(whole), (400, 1500, len(whole))[n % 3])
        whole[rng.integers(0, head, 1 + n % 7)] = rng.integers(0, 256, 1 + n % 7)
        path = tmp_path / f"{n}.dcm"
        path.write_bytes(whole[: rng.integers(1, len(whole)) if n % 5 == 0 else None].tobytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                read_volume(path)
            except (ImageFileError, ImportError) as error:
                assert path.name in str(error)
