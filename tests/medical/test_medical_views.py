"""Windows and tables of DICOM: which is taken, what it means, and how another is chosen."""

from __future__ import annotations

import numpy as np
import pytest
from typer.testing import CliRunner

from ddfm_fast.cli.app import app
from ddfm_fast.files.paths import ImageFileError
from ddfm_fast.medical.files import read_volume
from ddfm_fast.medical.window import source_range

pydicom = pytest.importorskip("pydicom", reason="needs ddfm_fast[medical]")

from phantoms import affine, dataset, ellipsoid, save, save_series  # noqa: E402

pytestmark = pytest.mark.extras  # needs ddfm_fast[medical]

BRAIN, BONE = (0.0, 79.0), (-500.0, 1499.0)
"""ranges of the two windows below: c - 1/2 and (w - 1) / 2 to either side, PS3.3 C.11.2.1.2"""
TWO = {
    "WindowCenter": [40, 500], "WindowWidth": [80, 2000],
    "WindowCenterWidthExplanation": ["BRAIN", "BONE"],
}  # fmt: skip


def stored() -> np.ndarray:
    return (np.arange(20 * 24).reshape(20, 24) * 8).astype(np.uint16)


def table(entries: np.ndarray, first: int, bits: int, *, packed: bool = False, text: str = ""):
    item = pydicom.Dataset()
    vr = "SS" if first < 0 else "US"
    item.add_new("LUTDescriptor", vr, [len(entries) % 65536, first, bits])
    if packed:
        item.add_new("LUTData", "OW", entries.astype("u1" if bits == 8 else "<u2").tobytes())
    else:
        item.add_new("LUTData", "US", [int(n) for n in entries])
    item.LUTExplanation = text
    return pydicom.Sequence([item])


@pytest.mark.parametrize(
    "window, expected",
    [(None, BRAIN), (0, BRAIN), ("1", BONE), ("bone", BONE), ("BRAIN", BRAIN)],
)
def test_windows_are_chosen_by_number_or_name(tmp_path, window, expected):
    made = dataset(stored(), RescaleSlope="1", RescaleIntercept="-1024", **TWO)
    found = read_volume(save(made, tmp_path / "a.dcm"), window=window)
    assert found.window == expected
    np.testing.assert_array_equal(found.array[0], stored().astype(float) - 1024)
    assert source_range(found, "auto", "ir") == found.window and found.units == "HU"


def test_a_window_that_is_not_there_is_named(tmp_path):
    path = save(dataset(stored(), **TWO), tmp_path / "a.dcm")
    for wanted in ("lut", "2", "lung"):
        with pytest.raises(ImageFileError, match=r"expected 0 \(BRAIN.*1 \(BONE.*--window"):
            read_volume(path, window=wanted)


@pytest.mark.parametrize("bits, packed", [(8, False), (8, True), (12, False), (16, True)])
@pytest.mark.parametrize("inverted", [False, True])
def test_a_table_maps_the_values_and_its_ends(tmp_path, bits, packed, inverted):
    """By the standard, values below the table get its first entry, values above it its last."""
    entries = np.rint((np.arange(1000) / 999) ** 2 * (2**bits - 1)).astype(int)
    made = dataset(
        stored(), RescaleSlope="2", RescaleIntercept="-1000",
        VOILUTSequence=table(entries, -200, bits, packed=packed),
        PhotometricInterpretation="MONOCHROME1" if inverted else "MONOCHROME2",
    )  # fmt: skip
    found = read_volume(save(made, tmp_path / "a.dcm"))
    expected = entries[(stored().astype(int) * 2 - 1000 + 200).clip(0, 999)]
    expected = 2**bits - 1 - expected if inverted else expected
    np.testing.assert_array_equal(found.array[0], expected)
    assert found.window == (0, 2**bits - 1) and found.units == ""


def test_a_window_comes_before_a_table_unless_that_is_chosen(tmp_path):
    made = dataset(
        stored(), VOILUTSequence=table(np.arange(500) // 2, 100, 8, text="Soft"),
        WindowCenter=1000, WindowWidth=2000,
    )  # fmt: skip
    path = save(made, tmp_path / "a.dcm")
    np.testing.assert_array_equal(read_volume(path).array[0], stored())
    expected = (stored().astype(int) - 100).clip(0, 499) // 2
    for wanted in ("lut", "soft"):
        np.testing.assert_array_equal(read_volume(path, window=wanted).array[0], expected)


def test_a_table_as_pydicom_applies_it(tmp_path):
    from pydicom.pixels import apply_voi

    entries = np.arange(2000)[::-1] * 30
    made = dataset(stored(), VOILUTSequence=table(entries, 50, 16))
    found = read_volume(save(made, tmp_path / "a.dcm"))
    np.testing.assert_array_equal(found.array[0], apply_voi(stored(), made))


def test_a_table_that_contradicts_itself(tmp_path):
    made = dataset(stored(), VOILUTSequence=table(np.arange(100), 0, 8))
    made.VOILUTSequence[0].LUTDescriptor = [4096, 0, 8]
    with pytest.raises(ImageFileError, match="100 entries of 8 bits and says 4096.*--window"):
        read_volume(save(made, tmp_path / "a.dcm"))


def test_the_command_chooses_by_source(tmp_path):
    at = affine((2.0, 2.0, 4.0), (0.0, 0.0, 0.0))
    values = np.rint(ellipsoid((3, 32, 32), at, -1000, 400))
    folder = save_series(tmp_path / "ct", values, at, **TWO)
    other = save_series(tmp_path / "mr", values[:, ::-1], at, WindowCenter=0, WindowWidth=2000)
    arguments = ["volume", str(folder), str(other), "--preset", "instant"]
    pictures = []
    for n, wanted in enumerate(("ir=brain", "ir=bone,vis=0")):
        out = tmp_path / f"{n}.nii"
        found = CliRunner().invoke(app, [*arguments, "-o", str(out), "--window", wanted])
        assert found.exit_code == 0, found.output
        pictures.append(read_volume(out).array)
    assert np.abs(pictures[0] - pictures[1]).mean() > 0.01
    nothing = [*arguments[:1], str(tmp_path / "0.nii"), *arguments[2:], "--window", "ir=0"]
    refused = CliRunner().invoke(app, [*nothing, "-o", str(tmp_path / "x.nii")])
    assert refused.exit_code == 2 and "NIfTI names no windows" in refused.output


def test_lossy_jpeg_of_12_bits_is_read():
    """pydicom's own file; the two values are those of pydicom's tests, by another decoder."""
    pytest.importorskip("libjpeg", reason="needs ddfm_fast[medical]")
    from pydicom.data import get_testdata_file

    path = get_testdata_file("JPGExtended.dcm", download=False)
    if path is None:
        pytest.skip("JPGExtended.dcm is not in the wheel")
    values = read_volume(path).array[0]
    assert values.shape == (1024, 256) and (values[420, 140], values[230, 120]) == (244, 95)
    assert values.max() > 255
