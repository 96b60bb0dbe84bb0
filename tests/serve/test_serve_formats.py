"""Which kinds of pictures strangers may have decoded, and the options of results."""

from __future__ import annotations

import io
import json
import struct

import numpy as np
import pytest
from PIL import Image
from serving import colored, npy, picture, png, serving, write
from test_serve_refused import error_of

import ddfm_fast
from ddfm_fast.client.calls import fuse as ask
from ddfm_fast.datasets.jobs import fuse_files
from ddfm_fast.datasets.output import Output
from ddfm_fast.serve.bodies import Call
from ddfm_fast.serve.formats import KINDS, check_kind, kind_of, parse_formats, pillow_formats
from ddfm_fast.serve.limits import FORMATS, Limits, Refused
from ddfm_fast.serve.pictures import decode, size_of


def saved(kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(1)).save(file, kind, **options)
    return file.getvalue()


def tiff_with(*tags: tuple[int, int]) -> bytes:
    """Make the head of a TIFF with tags of one 32-bit integer each."""
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def box(brand: bytes) -> bytes:
    return struct.pack(">I", 24) + b"ftyp" + brand + bytes(4) + brand + bytes(40)


def zipped() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=picture(1))
    return file.getvalue()


SIZE = ((256, 64), (257, 48))
FILES = {
    "png": saved("PNG"), "jpeg": saved("JPEG"), "npy": npy(picture(1)), "bmp": saved("BMP"),
    "tiff": saved("TIFF", compression="tiff_lzw"), "webp": saved("WEBP"), "npz": zipped(),
    "avif": box(b"avif"), "heic": box(b"heic"), "jxl": b"\xff\x0a" + bytes(60),
    "exr": b"\x76\x2f\x31\x01" + bytes(60), "mat": b"MATLAB 5.0 MAT-file" + bytes(128),
    "raw": tiff_with(*SIZE, (262, 32803)), "rare-tiff": tiff_with(*SIZE, (259, 50002)),
}  # fmt: skip


def test_every_kind_is_known_by_its_bytes():
    assert {kind: kind_of(data) for kind, data in FILES.items()} == {kind: kind for kind in KINDS}
    assert kind_of(tiff_with(*SIZE, (50706, 1))) == "raw"  # a DNG says that it is one
    assert kind_of(b"") == kind_of(b"GIF89a") == kind_of(b"%!PS-Adobe") == ""
    assert pillow_formats(b"%!PS-Adobe") == pillow_formats(FILES["heic"]) == ()


def test_what_is_not_allowed_is_refused_with_the_fix():
    for kind, data in FILES.items():
        if kind in FORMATS:
            check_kind(data, "ir", FORMATS)
            continue
        with pytest.raises(Refused) as error:
            check_kind(data, "vis", FORMATS)
        assert error.value.status == 415
        assert str(error.value).startswith(f"vis: is {kind.upper()}, and this service takes PNG, J")
        assert f"--formats png,jpeg,tiff,npy,{kind}" in str(error.value)
        check_kind(data, "vis", (*FORMATS, kind))
    with pytest.raises(Refused, match="ir: not a PNG, JPEG, TIFF, NPY file") as error:
        check_kind(b"GIF89a", "ir", KINDS[:4])
    assert error.value.status == 400


def test_names_of_formats():
    assert parse_formats("PNG, jpg,tif,png") == ("png", "jpeg", "tiff")
    assert parse_formats("all") == KINDS and Limits().formats == parse_formats("png,jpeg,tiff,npy")
    assert "--formats has 'gif'; expected some of png" in error_of("--formats", "gif")
    assert "--formats is empty" in error_of("--formats", ",")


def test_no_other_decoder_of_pillow_sees_a_header():
    """A PostScript file of some size, which Pillow knows by itself."""
    data = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 900 800\n%%EndComments\n" + bytes(99)
    assert Image.open(io.BytesIO(data)).size == (900, 800)
    assert size_of(data, "ir", 100) == ()


def test_arrays_have_no_options_of_files():
    data = npy(picture(1))
    for changed in ({"resize": "vis"}, {"output": Output(keep_thermal=True)},
                    {"output": Output(out_range="ir")}):  # fmt: skip
        with pytest.raises(ValueError, match="is for image files, and arrays"):
            decode(Call(data, data, {}, {}, {}, **changed), 10**6)


@pytest.fixture(scope="module")
def server():
    for name in ("starlette", "uvicorn", "python_multipart", "prometheus_client"):
        pytest.importorskip(name, reason="needs the extra serve")
    with serving("--preset", "instant", "--formats", "png,jpeg,tiff,npy") as found:
        yield found


@pytest.mark.extras
def test_options_of_results_give_the_bytes_of_the_command(server, tmp_path):
    deep = png(picture(3, dtype=np.uint16) // 9 + 7000)
    small = png(colored(2, 24, 32))
    fuser = ddfm_fast.Fuser(preset="instant", align="off")
    for n, (pair, suffix, fields, how) in enumerate((
        ((png(picture(1)), png(colored(2))), "jpeg", {"quality": 60, "chroma": "420"}, {}),
        ((png(picture(1)), png(picture(2))), "tiff", {"compression": "deflate"}, {}),
        ((png(picture(1)), png(picture(2))), "png", {"metadata": False, "compression": 9}, {}),
        ((deep, png(picture(2))), "tiff", {"out_range": "ir", "keep_thermal": True}, {}),
        ((deep, png(picture(2))), "tiff", {"out_range": [0, 1]}, {"out_range": (0, 1)}),
        ((png(picture(1)), small), "png", {}, {"resize": "vis"}),
    )):  # fmt: skip
        ir, vis = (write(tmp_path / f"{n}.{k}", data) for k, data in enumerate(pair))
        out = tmp_path / f"{n}.{suffix}"
        resize = how.pop("resize", None)
        (report,) = fuse_files(
            ir, vis, out, fuser, output=Output(**{**fields, **how}), resize=resize
        )
        assert report["ok"], report
        more = {} if resize is None else {"resize": resize}
        found = ask(*pair, url=server.url, format=suffix, align="off", **fields, **more)
        assert found == out.read_bytes(), fields


@pytest.mark.extras
def test_options_that_are_refused(server):
    pair = png(picture(1)), png(picture(2))
    for fields, words in (
        ({"quality": "400"}, "quality"), ({"chroma": "999"}, "chroma"),
        ({"resize": "both"}, "resize is 'both'; expected ir or vis"),
        ({"keep_thermal": "true"}, "keep_thermal: .png holds one picture"),
        ({"out_range": "0,1"}, "out_range: values from 0 to 1 are float32"),
        ({"out_range": "ir", "format": "npy"}, "out_range is not for NPY"),
        ({"metadata": "maybe"}, "metadata: got 'maybe'"),
        ({"panel": "true"}, "'panel' is not an option of a request; `ddfm-fast fuse --panel`"),
        ({"raw_size": "64x48"}, "send bare numbers as NPY"),
    ):  # fmt: skip
        assert words in server.refused(400, *pair, **fields), fields


@pytest.mark.extras
def test_no_file_of_the_server_is_named(server, tmp_path):
    """It is neither read nor revealed: a calibration is chosen when the service starts."""
    pair = png(picture(1)), png(picture(2))
    file = tmp_path / "cameras.json"
    said = [server.refused(400, *pair, align=str(file))]
    file.write_text("{}")
    said.append(server.refused(400, *pair, align=str(file)))
    assert said[0] == said[1] and "expected one of check, off, shift" in said[0]
    assert server.fuse(*pair, align="off")[0] == 200


@pytest.mark.extras
def test_a_service_takes_what_it_was_told(server):
    fine = png(picture(1))
    for kind in ("bmp", "webp", "npz", "raw", "rare-tiff"):
        assert f"vis: is {kind.upper()}" in server.refused(415, fine, FILES[kind])
    document = json.loads(server.request("GET", "/openapi.json")[2])
    body = document["paths"]["/fuse"]["post"]["requestBody"]["content"]["multipart/form-data"]
    fields = body["schema"]["properties"]
    assert fields["ir"]["description"] == "One of PNG, JPEG, TIFF, NPY, by content."
    assert {"resize", "quality", "out_range", "keep_thermal", "metadata"} <= set(fields)
    with serving("--preset", "instant", "--formats", "bmp,png") as other:
        assert other.fuse(fine, FILES["bmp"])[0] == 200
        assert "ir: is JPEG, and this service takes PNG, BMP" in other.refused(
            415, FILES["jpeg"], fine
        )
