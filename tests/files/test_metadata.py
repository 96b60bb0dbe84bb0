"""What files say besides their pixels: read, corrected, written, and read again by Pillow."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from image_bytes import png, random_array
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from ddfm_fast import DDFMWarning, __version__
from ddfm_fast.files.directories import SHORT, Page, Reader, numbers, pack, text
from ddfm_fast.files.metadata import Geo, Metadata, read_metadata
from ddfm_fast.files.srgb import profile
from ddfm_fast.files.writing import SidePage, write_image

SUFFIXES = (".png", ".jpg", ".tif")
GEO = {
    33550: (0.5, 0.25, 0.0),
    33922: (0.0, 0.0, 0.0, 440720.0, 3751320.0, 0.0),
    34735: (1, 1, 0, 1, 1024, 0, 1, 1),
    34736: (6378137.0, 298.25),
    34737: "UTM zone 11|",
}
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="6" c:Alt="12.5"/></x:xmpmeta>'


def exif_of(orientation: int = 6, note: bytes = b"\1\2\3", *, gps: bool = True) -> Image.Exif:
    exif = Image.Exif()
    exif[271], exif[272], exif[274], exif[305] = "Maker", "Model X", orientation, "camera 1.0"
    exif[306], exif[33432] = "2026:11:29 09:00:00", "© someone"
    inside = exif.get_ifd(34665)
    inside[33434], inside[36867] = 0.004, "2026:11:29 08:59:59"
    inside[40961], inside[40962], inside[40963], inside[37500] = 65535, 4000, 3000, note
    if gps:
        north, east = (48.0, 8.0, 14.5), (11.0, 34.0, 31.25)
        exif.get_ifd(34853).update({1: "N", 2: north, 3: "E", 4: east})
    return exif


def pixels(*shape: int, dtype: str = "uint8") -> np.ndarray:
    return random_array(shape or (12, 20, 3), dtype)


def adobe_like() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def source(path: Path, **changed) -> Path:
    """Write a file by Pillow with all kinds of metadata."""
    said = {"exif": exif_of(), "dpi": (300, 150), "icc_profile": adobe_like()} | changed
    if path.suffix != ".png":  # Pillow writes XMP into PNG by pnginfo alone
        said["xmp"] = XMP
    if path.suffix == ".tif":  # and EXIF into TIFF by tags alone
        exif, tags = said.pop("exif"), ImageFileDirectory_v2()
        for tag in (*exif, 34665, 34853):
            tags[tag] = dict(exif.get_ifd(tag)) if tag in (34665, 34853) else exif[tag]
        tags[700] = said.pop("xmp")
        said["tiffinfo"] = tags
    Image.fromarray(pixels()).save(path, **said)
    return path


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


@pytest.fixture
def said():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


# From every kind to every kind


@pytest.mark.parametrize("to", SUFFIXES)
@pytest.mark.parametrize("of", SUFFIXES)
def test_a_result_says_what_its_source_says(tmp_path, said, of, to):
    found = read_metadata(source(tmp_path / f"in{of}"))
    picture = pixels(12, 20, 3)
    write_image(tmp_path / f"plain{to}", picture)
    write_image(tmp_path / f"out{to}", picture, metadata=found)
    result = opened(tmp_path / f"out{to}")
    np.testing.assert_array_equal(np.asarray(result), np.asarray(opened(tmp_path / f"plain{to}")))
    exif = result.getexif()
    assert (exif[271], exif[272], exif[274]) == ("Maker", "Model X", 1)
    assert exif[305] == f"ddfm_fast {__version__}"
    inside, gps = exif.get_ifd(34665), exif.get_ifd(34853)
    assert inside[36867] == "2026:11:29 08:59:59" and float(inside[33434]) == 0.004
    assert (inside[40961], inside[40962], inside[40963]) == (1, 20, 12)
    assert [float(v) for v in gps[2]] == [48.0, 8.0, 14.5] and gps[3] == "E"
    # the source was turned on its side
    wanted = (150, 300)
    assert np.allclose(result.info["dpi"], wanted, atol=0.02)
    assert result.info["icc_profile"] == profile(gray=False)
    if of != ".png":
        assert b'tiff:Orientation="1" c:Alt="12.5"' in result.info["xmp"]
    assert not [w for w in said if w.category is DDFMWarning]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("compression", [None, "none", "lzw", "deflate", "zstd"])
def test_tiff_tags_leave_the_pixels(tmp_path, dtype, compression):
    found = read_metadata(source(tmp_path / "in.jpg"))
    for shape in ((33, 41), (33, 41, 3)):
        picture = (np.random.default_rng(1).random(shape) * 250).astype(dtype)
        write_image(tmp_path / "o.tif", picture, metadata=found, compression=compression)
        if compression != "zstd":
            back = cv2.imread(str(tmp_path / "o.tif"), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(back[..., ::-1] if back.ndim == 3 else back, picture)
        if dtype == "uint8" or len(shape) == 2:  # what Pillow reads without loss
            np.testing.assert_array_equal(np.asarray(opened(tmp_path / "o.tif")), picture)


@pytest.mark.parametrize(
    "dtype",
    [
        "bool",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint32",
        "uint64",
        "float16",
        "float32",
        "float64",
    ],
)
def test_pages_keep_values_of_any_dtype(tmp_path, dtype):
    tifffile = pytest.importorskip("tifffile")
    values = np.arange(30).reshape(5, 6) * 4 % 120
    values = (values - (0 if dtype[0] in "ub" else 60)).astype(dtype)
    fused = pixels(5, 6)
    write_image(tmp_path / "o.tif", fused, pages={"infrared": SidePage(values)}, compression="none")
    with tifffile.TiffFile(tmp_path / "o.tif") as file:
        np.testing.assert_array_equal(file.pages[0].asarray(), fused)
        np.testing.assert_array_equal(file.pages[1].asarray(), values)
    with pytest.raises(ValueError, match=r"o\.png: \.png holds one picture, not 2; write \.tif"):
        write_image(tmp_path / "o.png", fused, pages={"infrared": SidePage(values)})


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_tifffile_agrees(tmp_path, dtype):
    tifffile = pytest.importorskip("tifffile")
    picture = (np.random.default_rng(1).random((33, 41, 3)) * 250).astype(dtype)
    found = read_metadata(source(tmp_path / "in.jpg"))
    thermal = np.linspace(-20, 60, 33 * 41).reshape(33, 41)
    write_image(
        tmp_path / "o.tif", picture, metadata=found, compression="none",
        pages={"infrared": SidePage(thermal)},
    )  # fmt: skip
    with tifffile.TiffFile(tmp_path / "o.tif") as file:
        first, second = file.pages
        np.testing.assert_array_equal(first.asarray(), picture)
        np.testing.assert_array_equal(second.asarray(), thermal)
        assert [page.tags["PageName"].value for page in file.pages] == ["fused", "infrared"]
        assert first.tags["ExifTag"].value["DateTimeOriginal"] == "2026:11:29 08:59:59"
        assert first.tags["GPSTag"].value["GPSLatitudeRef"] == "N"


def test_nothing_is_added_unless_asked_for(tmp_path):
    for suffix in (*SUFFIXES, ".bmp"):
        write_image(tmp_path / f"o{suffix}", pixels())
        data = (tmp_path / f"o{suffix}").read_bytes()
        assert b"ddfm" not in data and b"Exif" not in data and b"eXIf" not in data
    write_image(tmp_path / "m.bmp", picture := pixels(), metadata=Metadata())
    np.testing.assert_array_equal(np.asarray(opened(tmp_path / "m.bmp")), picture)


def test_the_program_is_named_even_where_sources_say_nothing(tmp_path):
    for suffix in SUFFIXES:
        write_image(tmp_path / f"o{suffix}", pixels(), metadata=Metadata())
        image = opened(tmp_path / f"o{suffix}")
        named = image.info.get("Software") or image.getexif().get(305)
        assert named == f"ddfm_fast {__version__}"
        assert "icc_profile" not in image.info and "xmp" not in image.info
        assert 274 not in image.getexif()


# The place on the earth


def geotiff(path: Path, orientation: int = 1, nodata: str | None = "-9999", **more) -> Path:
    tags = ImageFileDirectory_v2()
    for tag, value in GEO.items():
        tags[tag] = value
        tags.tagtype[tag] = {34735: 3, 34737: 2}.get(tag, 12)
    if nodata is not None:
        tags[42113] = nodata
    if orientation != 1:
        tags[274] = orientation
    Image.fromarray(pixels()).save(path, tiffinfo=tags, **more)
    return path


@pytest.mark.parametrize("big", [False, True])
def test_geo_tags_go_into_tiff(tmp_path, big):
    path = geotiff(tmp_path / "in.tif", big_tiff=big)
    write_image(tmp_path / "o.tif", pixels(), metadata=read_metadata(path))
    tags = opened(tmp_path / "o.tif").tag_v2
    assert all(tags[tag] == value for tag, value in GEO.items())
    assert tags.tagtype[34735] == 3 and tags.tagtype[33550] == 12 and tags[42113] == "-9999"
    write_image(tmp_path / "o.jpg", pixels(), metadata=read_metadata(path))
    assert not set(GEO) & set(opened(tmp_path / "o.jpg").getexif())


def test_a_place_in_other_pixels():
    data = {33550: (0.5, 0.25, 0.0), 33922: (10.0, 4.0, 0.0, 7.0, 8.0, 0.0), 34735: (1, 1, 0, 0)}
    data[34264] = tuple(range(16))
    tags = ImageFileDirectory_v2()
    for tag, value in data.items():
        tags[tag] = value
        tags.tagtype[tag] = 3 if tag == 34735 else 12
    file = io.BytesIO()
    Image.fromarray(pixels(12, 20)).save(file, "TIFF", tiffinfo=tags)
    reader = Reader(file)
    directory, _ = reader.directory(reader.first, tuple(data))
    geo = Geo(directory, (12, 20))
    assert geo.for_size(12, 20) == directory
    found = geo.for_size(24, 10)  # twice as high, half as wide
    assert found[33550].numbers == [1.0, 0.125, 0.0]
    assert found[33922].numbers == [5.0, 8.0, 0.0, 7.0, 8.0, 0.0]
    matrix = np.array(found[34264].numbers).reshape(4, 4)
    before = np.arange(16.0).reshape(4, 4)
    # the same point of the earth: (column, row) of the one is (column / 2, 2 row) of the other
    for column, row in ((0, 0), (8, 6), (20, 12)):
        point = matrix @ [column / 2, row * 2, 0, 1]
        np.testing.assert_allclose(point, before @ [column, row, 0, 1])
    part = geo.cut(3, 5, (9, 15))
    assert part.size == (9, 15) and part.tags[33922].numbers == [5.0, 1.0, 0.0, 7.0, 8.0, 0.0]
    matrix = np.array(part.tags[34264].numbers).reshape(4, 4)
    for column, row in ((5, 3), (8, 6)):
        point = matrix @ [column - 5, row - 3, 0, 1]
        np.testing.assert_allclose(point, before @ [column, row, 0, 1])


def test_the_place_of_a_picture_that_is_turned_is_left_out(tmp_path):
    path = geotiff(tmp_path / "in.tif", orientation=6)
    with pytest.warns(DDFMWarning, match=r"in\.tif: its metadata gives .*--no-metadata"):
        found = read_metadata(path)
    assert found.geo is None


# Details of formats


def test_gray_results_get_a_gray_profile(tmp_path):
    found = read_metadata(source(tmp_path / "in.jpg"))
    for suffix in SUFFIXES:
        write_image(tmp_path / f"o{suffix}", picture := pixels(16, 16), metadata=found)
        image = opened(tmp_path / f"o{suffix}")
        own = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        assert own.profile.xcolor_space.strip() == "GRAY" and image.mode == "L"
        back = ImageCms.profileToProfile(image, own, ImageCms.createProfile("sRGB"), 1, "RGB")
        shown = np.asarray(image).astype(int)
        assert np.abs(np.asarray(back).astype(int) - shown[..., None]).max() <= 1
        if suffix != ".jpg":
            np.testing.assert_array_equal(shown, picture)


def test_our_profile_is_srgb():
    own = ImageCms.ImageCmsProfile(io.BytesIO(profile(gray=False)))
    picture = Image.fromarray(pixels(64, 64, 3))
    back = ImageCms.profileToProfile(picture, own, ImageCms.createProfile("sRGB"), 1)
    assert np.abs(np.asarray(back).astype(int) - np.asarray(picture)).max() <= 1


def test_text_that_png_has_behind_its_pixels(tmp_path):
    """ExifTool writes it there; the text may be compressed."""
    data = png(pixels(8, 8, 3))
    body = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP)
    chunks = [(b"eXIf", exif_of().tobytes()[6:]), (b"iTXt", body)]
    late = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    (tmp_path / "in.png").write_bytes(data[:-12] + late + data[-12:])
    found = read_metadata(tmp_path / "in.png")
    assert found.image[272].text == "Model X" and found.gps and b'"1"' in found.xmp


def test_the_resolution_of_exif_and_in_centimeters(tmp_path):
    exif = exif_of(orientation=1)
    exif[282], exif[283], exif[296] = 100.0, 200.0, 3
    Image.fromarray(pixels()).save(tmp_path / "in.jpg", exif=exif)
    assert np.allclose(read_metadata(tmp_path / "in.jpg").dpi, (254, 508))
    Image.fromarray(pixels()).save(tmp_path / "none.jpg")
    assert read_metadata(tmp_path / "none.jpg") == Metadata()


def test_what_only_one_source_says(tmp_path):
    Image.fromarray(pixels()).save(tmp_path / "vis.png", dpi=(96, 96))
    first, second = read_metadata(tmp_path / "vis.png"), read_metadata(source(tmp_path / "ir.jpg"))
    both = first.or_else(second)
    assert np.allclose(both.dpi, 96, atol=0.02) and both.gps == second.gps and both.has_profile
    assert both.image == second.image
    named = read_metadata(source(tmp_path / "named.jpg", exif=exif_of(gps=False)))
    assert not named.gps
    assert named.or_else(second).gps == second.gps


def test_descriptions_of_how_pixels_lie_are_not_kept(tmp_path):
    for n, (given, kept) in enumerate(
        [("ImageJ=1.53\nimages=2", False), ('{"shape": [2, 3]}', False), ("a street", True)]
    ):
        Image.fromarray(pixels()).save(tmp_path / f"{n}.tif", description=given)
        assert (270 in read_metadata(tmp_path / f"{n}.tif").image) == kept


def test_xmp_that_tells_of_other_pictures_is_not_kept(tmp_path):
    Image.fromarray(pixels()).save(tmp_path / "in.jpg", xmp=b'<x hdrgm:Version="1.0"/>')
    assert read_metadata(tmp_path / "in.jpg").xmp == b""


# Too long, damaged, unknown


def test_exif_too_long_for_jpeg_loses_the_makers_note_first(tmp_path, said):
    path = tmp_path / "in.png"
    Image.fromarray(pixels()).save(path, exif=exif_of(note=bytes(70000)))
    found = read_metadata(path)
    assert len(found.exif[37500].data) == 70000
    write_image(tmp_path / "o.jpg", pixels(), metadata=found)
    inside = opened(tmp_path / "o.jpg").getexif().get_ifd(34665)
    assert 37500 not in inside and inside[36867] == "2026:11:29 08:59:59"
    assert not [w for w in said if w.category is DDFMWarning]
    long = Metadata(image={270: text("a" * 70000)}, xmp=b"x" * 70000)
    with pytest.warns(DDFMWarning) as told:
        write_image(tmp_path / "o.jpg", pixels(), metadata=long)
    assert [str(w.message)[:4] for w in told] == ["EXIF", "XMP "]
    assert opened(tmp_path / "o.jpg").size == (20, 12)


@pytest.mark.parametrize("of", SUFFIXES)
def test_damage_is_one_warning_and_never_an_error(tmp_path, of):
    data = source(tmp_path / f"in{of}").read_bytes()
    random = np.random.default_rng(7)
    for n in range(60):
        broken = bytearray(data[: random.integers(8, len(data))] if n % 3 == 0 else data)
        # the TIFF's directory may lie at its end
        for place in random.integers(8, len(broken), 6):
            broken[place] = random.integers(256)
        (tmp_path / f"x{of}").write_bytes(broken)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = read_metadata(tmp_path / f"x{of}")
            ours = [w for w in caught if w.category is DDFMWarning]
            assert len(ours) <= 1 or "turned" in str(ours[1].message)
            for suffix in SUFFIXES:
                write_image(tmp_path / f"o{suffix}", pixels(8, 8), metadata=found)
                assert opened(tmp_path / f"o{suffix}").size == (8, 8)


def test_damage_says_what_to_do(tmp_path):
    block = bytearray(exif_of().tobytes())
    place = block.index(struct.pack(">HH", 34665, 4))
    block[place + 8 : place + 12] = struct.pack(">I", 1 << 30)
    Image.fromarray(pixels()).save(tmp_path / "in.png", exif=bytes(block))
    with pytest.warns(DDFMWarning, match=r"in\.png: its metadata is partly damaged.*--no-meta"):
        found = read_metadata(tmp_path / "in.png")
    assert found.image[271].text == "Maker" and found.exif == {} and found.gps
    (tmp_path / "empty.tif").write_bytes(b"II*\0")
    with pytest.warns(DDFMWarning, match=r"empty\.tif: its metadata cannot be read"):
        assert read_metadata(tmp_path / "empty.tif") == Metadata()


def test_unknown_kinds_say_nothing(tmp_path, said):
    np.save(tmp_path / "x.npy", pixels())
    assert read_metadata(tmp_path / "x.npy") == Metadata() and not said


def test_a_directory_that_claims_gigabytes(tmp_path):
    huge = b"II*\0" + struct.pack("<IHHHII", 8, 1, 271, 2, 1 << 31, 8) + bytes(4)
    (tmp_path / "x.tif").write_bytes(huge)
    with pytest.warns(DDFMWarning, match="damaged"):
        assert read_metadata(tmp_path / "x.tif") == Metadata()


def test_directories_survive_a_round_trip():
    rng = np.random.default_rng(3)
    tags = {int(n): numbers(SHORT, rng.integers(0, 9, n % 7 + 1).tolist()) for n in range(300, 340)}
    data = pack([Page(tags, [b"abc", b"d"], {34665: tags}), Page({7: text("x")})])
    reader = Reader(io.BytesIO(data))
    first, second = reader.directories()
    assert {n: tag for n, tag in first.items() if n in tags} == tags and second[7].text == "x"
    assert [reader.at(int(n), 1) for n in first[273].numbers] == [b"a", b"d"]
    assert reader.directory(int(first[34665].numbers[0]))[0] == tags
