"""A real service: what it gives is what the library gives."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import warnings

import numpy as np
import pytest
from PIL import Image
from serving import colored, form, npy, opened, picture, png, serving, write

import ddfm_fast
from ddfm_fast.client.calls import ServiceError
from ddfm_fast.client.calls import fuse as ask
from ddfm_fast.datasets.jobs import fuse_files
from ddfm_fast.options import FuserOptions, ReadingOptions

for name in ("starlette", "uvicorn", "python_multipart", "prometheus_client"):
    pytest.importorskip(name, reason="needs the extra serve")
pytestmark = pytest.mark.extras


@pytest.fixture(scope="module")
def server():
    with serving("--max-pixels", "40000", "--max-bytes", "2000000") as found:
        yield found


def test_bytes_of_the_command(server, tmp_path):
    """PNG and TIFF of 8 and 16 bits, color and gray: as ``ddfm-fast fuse`` writes them."""
    pairs = {
        "color": (png(picture(1)), png(colored(2))),
        "deep": (png(picture(3, dtype=np.uint16)), png(picture(4, dtype=np.uint16))),
        "mixed": (png(picture(5)), png(picture(6, dtype=np.uint16))),
    }
    fuser = ddfm_fast.Fuser(denoise="off")
    for name, (ir, vis) in pairs.items():
        files = write(tmp_path / f"{name}.ir", ir), write(tmp_path / f"{name}.vis", vis)
        for form_, suffix in (("png", "png"), ("tiff", "tif")):
            out = tmp_path / f"{name}.{suffix}"
            (report,) = fuse_files(*files, out, fuser)
            assert report["ok"]
            status, headers, body = server.fuse(ir, vis, format=form_, denoise="off")
            assert (status, headers["content-type"]) == (200, f"image/{form_}")
            assert body == out.read_bytes(), (name, form_)
    assert opened(body).dtype == np.uint16


def test_metadata_of_the_visible_file_are_kept_as_the_command_keeps_them(server, tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    data = io.BytesIO()
    Image.fromarray(picture(2)).save(data, "JPEG", exif=exif, dpi=(300, 300))
    ir, vis = png(picture(1)), data.getvalue()
    files = write(tmp_path / "a.png", ir), write(tmp_path / "b.jpg", vis)
    fuse_files(*files, tmp_path / "o.png", ddfm_fast.Fuser(denoise="off"))
    body = server.fuse(ir, vis, format="png", denoise="off")[2]
    assert body == (tmp_path / "o.png").read_bytes()
    assert Image.open(io.BytesIO(body)).getexif()[0x010F] == "a camera"


def test_arrays_are_what_fuse_gives(server):
    for ir, vis, options in (
        (picture(1), colored(2), {}),
        (picture(1), colored(2), {"color": False, "stretch": "none"}),
        (picture(3, dtype=np.uint16), picture(4, dtype=np.uint16), {"preset": "instant"}),
        (picture(5).astype(np.float32) * 9 + 250, picture(6), {"value_range": {"ir": "data"}}),
        (picture(7), picture(8), {"steps": 3, "seed": 5, "eta": 0.2}),
        (picture(7), np.moveaxis(colored(8), 2, 0), {"layout": "CHW", "color": False}),
    ):
        if "layout" in options:
            ir = ir[None]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = ddfm_fast.fuse(ir, vis, **options)
        found = ask(ir, vis, url=server.url, **options)
        assert found.dtype == expected.dtype and np.array_equal(found, expected), options


def test_json_and_accept(server):
    ir, vis = png(picture(1)), png(colored(2))
    status, _, plain = server.fuse(ir, vis)
    text = {name: base64.b64encode(data).decode() for name, data in (("ir", ir), ("vis", vis))}
    body = json.dumps(text)
    kind = {"Content_Type": "application/json"}
    assert server.request("POST", "/fuse", body, **kind)[2] == plain
    _, headers, found = server.request("POST", "/fuse", body, Accept="application/json", **kind)
    answer = json.loads(found)
    assert base64.b64decode(answer["image"]) == plain and answer["format"] == "png"
    assert (answer["shape"], answer["dtype"]) == ([48, 64, 3], "uint8")
    assert set(answer["report"]) >= {"ir", "vis", "steps"} and headers["x-request-id"]
    _, headers, jpeg = server.fuse(ir, vis, accept="text/html;q=0, image/jpeg, image/png;q=0.5")
    assert jpeg[:2] == b"\xff\xd8" and headers["content-type"] == "image/jpeg"
    _, _, array = server.fuse(ir, vis, accept="application/x-npy")
    assert np.array_equal(np.load(io.BytesIO(array)), opened(plain))
    assert "text/html" in server.refused(406, ir, vis, accept="text/html")


def test_a_client_of_files(server, tmp_path):
    ir, vis = write(tmp_path / "ir.png", png(picture(1))), png(colored(2))
    assert ask(ir, vis, url=server.url) == server.fuse(png(picture(1)), vis)[2]
    with pytest.raises(ValueError, match="'stepps' is not an option; did you mean 'steps'"):
        ask(ir, vis, url=server.url, stepps=3)
    with pytest.raises(ServiceError, match="no answer from http://127.0.0.1:9 .*ddfm-fast serve"):
        ask(ir, vis, url="http://127.0.0.1:9")
    with pytest.raises(ValueError, match="url is 'ftp://x'"):
        ask(ir, vis, url="ftp://x")


def test_sentences_come_with_the_picture(server):
    """Two sources are the same picture, of which the client that sent them is warned."""
    ir = png(picture(1))
    _, headers, _ = server.fuse(ir, ir)
    (sentence,) = json.loads(headers["x-ddfm-warnings"])
    with pytest.warns(ddfm_fast.DDFMWarning) as caught:
        ddfm_fast.fuse(picture(1), picture(1))
    assert sentence == str(caught[0].message)
    assert "x-ddfm-warnings" not in server.fuse(ir, png(colored(2)))[1]


def test_refused_as_the_library_does(server):
    ir, vis = png(picture(1)), png(colored(2))
    for field, text in (("preset", "none"), ("steps", "0"), ("eta", "-1"), ("seed", "x"),
                        ("color", "blue"), ("stretch", "wide"), ("denoise", "[1]")):  # fmt: skip
        value = json.loads(text) if text in ("0", "-1", "[1]") else text
        with pytest.raises((ValueError, TypeError)) as error:
            ddfm_fast.fuse(picture(1), colored(2), **{field: value})
        assert server.refused(400, ir, vis, **{field: text}) == str(error.value)
    assert "ir is 40x40" in server.refused(400, png(picture(1, 40, 40)), vis)
    assert server.refused(400, ir, vis[:300]).startswith("vis: cannot be decoded")
    assert server.refused(400, b"", vis).startswith("ir: the file is empty")
    assert server.refused(400, b"no picture", vis).startswith("ir: not a PNG")
    assert "it is chosen when the service starts" in server.refused(400, ir, vis, prior="/etc/x")
    assert "format is 'gif'" in server.refused(400, ir, vis, format="gif")
    assert "layout is 'HWC'" in server.refused(400, ir, vis, layout="HWC")
    deep = png(picture(1, dtype=np.uint16))
    assert "would lose the 16 bits" in server.refused(400, deep, vis, format="jpeg")
    floats = npy(picture(1).astype(np.float32) / 255)
    assert "ask for npy" in server.refused(400, floats, floats, format="png")


def test_every_option_is_taken_or_refused_by_name(server):
    """None is ignored: what a request may not choose is reported."""
    from ddfm_fast.datasets.output import Output
    from ddfm_fast.serve.bodies import AT_START, ELSEWHERE, OF_FILES, OPTIONS

    known = {*FuserOptions.__annotations__, *ReadingOptions.__annotations__}
    assert {*AT_START, *OPTIONS} == known and not {*AT_START} & {*OPTIONS}
    of_results = {one.name for one in dataclasses.fields(Output)}
    assert {*OF_FILES, *ELSEWHERE} == {"resize", "raw_size", *of_results}
    shown = json.loads(server.request("GET", "/openapi.json")[2])
    schema = shown["paths"]["/fuse"]["post"]["requestBody"]["content"]
    for kind in ("multipart/form-data", "application/json"):
        fields = set(schema[kind]["schema"]["properties"])
        assert fields == {"ir", "vis", "format", *OPTIONS, *OF_FILES}
    page = server.request("GET", "/docs")[2].decode()
    assert all(f"<code>{name}</code>" in page for name in OPTIONS)
    assert "://" not in page, "needs no other host"


def test_bodies_that_are_no_calls(server):
    def refused(body, kind="application/json", status=400):
        found, headers, answer = server.request("POST", "/fuse", body, Content_Type=kind)
        assert found == status, answer
        return json.loads(answer)["error"]

    ir = base64.b64encode(png(picture(1))).decode()
    assert refused(b"{").startswith("the body is not JSON")
    assert refused(b"[" * 100000).startswith("the body is not JSON")
    assert refused(b"[1]") == "the body holds a JSON list; expected an object"
    assert refused(json.dumps({"ir": ir})).startswith("vis is missing")
    assert refused(json.dumps({"ir": 5, "vis": ir})).startswith("ir is a JSON int")
    assert refused(json.dumps({"ir": "%", "vis": ir})).startswith("ir is not base64")
    assert refused(json.dumps({"ir": ir, "vis": ir, "prset": 1})).endswith("mean 'preset'?")
    for value in ({"a": 1}, [[]], 1e999, "\ud800", "x" * 5000):
        assert refused(json.dumps({"ir": ir, "vis": ir, "preset": value}))
    body, kind = form({"ir": png(picture(1))}, vis="words")
    assert refused(body, kind).startswith("vis is text")
    assert refused(body.replace(b'"vis"', b'"ir"'), kind) == "'ir' is given twice; give it once"
    assert refused(body[:200], kind)
    assert "cannot be read" in refused(body, "multipart/form-data")
    assert "Content-Type is 'text/plain'" in refused(b"x", "text/plain", 415)
    for shape in ("(60000, 60000)", "(2, 2, 2, 2)", "(0, 5)", "(-5, 5)", "x" * 5000):
        head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
        bad = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + b"\0" * 64
        assert server.refused(400, bad, bad).startswith("ir: ")
    objects = io.BytesIO()
    np.save(objects, np.array([[{}]]), allow_pickle=True)
    assert server.refused(400, objects.getvalue(), npy(picture(1))).startswith("ir: NPY of object")


def test_other_paths(server):
    assert json.loads(server.request("GET", "/health")[2]) == {"ok": True}
    assert json.loads(server.request("GET", "/ready")[2]) == {"ready": True, "queue": 0}
    status, headers, body = server.request("GET", "/fuse", X_Request_Id="mine-7")
    assert (status, headers["x-request-id"], headers["allow"]) == (405, "mine-7", "POST")
    assert json.loads(body) == {"error": "/fuse does not take GET; expected POST",
                                "request": "mine-7"}  # fmt: skip
    status, headers, body = server.request("GET", "/x", X_Request_Id="a b\"{'")
    assert status == 404 and "expected one of /fuse" in json.loads(body)["error"]
    assert len(headers["x-request-id"]) == 16


def test_counters_and_log(server):
    before = counters(server)
    ir, vis = png(picture(31)), png(picture(32))
    _, headers, _ = server.fuse(ir, vis, preset="official", steps="3", denoise="off")
    server.refused(400, ir, vis, preset="none")
    after = counters(server)

    def grown(name):
        return after.get(name, 0) - before.get(name, 0)

    assert grown("ddfm_prior_evaluations_total") == 3
    assert grown('ddfm_requests_total{route="/fuse",status="200"}') == 1
    assert grown('ddfm_errors_total{status="400"}') == 1
    assert grown('ddfm_request_seconds_count{route="/fuse"}') == 2
    assert grown("ddfm_batch_size_count") == 1 and after["ddfm_queue"] == 0
    line = server.wait("request", id=headers["x-request-id"])
    assert (line["status"], line["size"], line["batch"]) == (200, [48, 64], 1)
    assert line["bytes"] > len(ir) + len(vis) and line["seconds"] > 0
    assert all(line.startswith('{"time": "') for line in server.lines)
    assert max(map(len, server.lines)) < 2000, "no picture"


def counters(server) -> dict[str, float]:
    _, headers, body = server.request("GET", "/metrics")
    assert headers["content-type"].startswith("text/plain")
    lines = [line for line in body.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}
