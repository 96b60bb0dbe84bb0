"""Requests that are meant to cost more than they may, and those without the token."""

from __future__ import annotations

import json
import socket
import struct
import zlib

import pytest
from serving import npy, picture, png, serving, start
from test_serve_load import answer, counter, head

from ddfm_fast.client.calls import ServiceError
from ddfm_fast.client.calls import fuse as ask

for name in ("starlette", "uvicorn", "python_multipart", "prometheus_client"):
    pytest.importorskip(name, reason="needs the extra serve")
pytestmark = pytest.mark.extras

LIMIT = 300_000


@pytest.fixture(scope="module")
def server():
    with serving("--max-bytes", str(LIMIT), "--max-pixels", "40000") as found:
        yield found


def bomb(width: int, height: int) -> bytes:
    """Make a PNG of that size in its header, and a few rows of zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        code = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + code

    top = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(100 * (width + 1)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", top) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_picture_bombs(server):
    """They are refused by the header: nothing of 3.6e9 pixels is ever held."""
    fine = png(picture(1))
    server.fuse(fine, fine)
    before = counter(server, "process_resident_memory_bytes")
    for _ in range(3):
        for pair in ((bomb(60000, 60000), fine), (fine, bomb(60000, 60000))):
            sentence = server.refused(413, *pair)
            name = ("ir", "vis")[pair[0] is fine]
            assert sentence.startswith(f"{name}: 60000x60000 is 3600000000 pixels, more than the")
    assert counter(server, "process_resident_memory_bytes") - before < 100e6
    assert "201x200 is 40200 pixels" in server.refused(413, bomb(201, 200), fine)
    wide = npy(picture(1, 210, 210))
    assert "210x210 is 44100 pixels" in server.refused(413, wide, wide)
    assert server.fuse(fine, png(picture(2)))[0] == 200


def connected(server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=60)


def test_bodies_above_the_limit(server):
    """They are refused by the claimed length, before a byte is sent, and by what arrives."""
    with connected(server) as link:
        link.sendall(head(LIMIT + 1, more="Expect: 100-continue\r\n"))
        status, headers, body = answer(link)
        assert (status, headers["connection"]) == (413, "close")
        assert json.loads(body)["error"].startswith(f"the request is longer than {LIMIT} bytes")
    with connected(server) as link:
        link.sendall(head(10).replace(b"Content-Length: 10", b"Transfer-Encoding: chunked"))
        chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        for _ in range(6):
            link.sendall(chunk)
        assert answer(link)[0] == 413
    status, _, _ = server.request("POST", "/fuse", b"x" * (LIMIT + 5), Content_Type="text/x")
    assert status == 413
    with pytest.raises(ValueError, match="the request is longer than"):
        ask(picture(1, 600, 600), picture(2, 600, 600), url=server.url)


def test_odd_http(server):
    lengths = [head(10).replace(b": 10", text) for text in (b": -1", b": 1e3")]
    for bad in (b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"A" * 70000, *lengths):
        with connected(server) as link:
            link.sendall(bad)
            assert link.recv(65536)[:13] in (b"HTTP/1.1 400 ", b"HTTP/1.1 431 ")
    fine = png(picture(1))
    for name in ("__proto__", "ir\0", "ü", "a" * 500, "prior"):
        assert server.refused(400, fine, fine, **{name: "1"})
    assert server.fuse(fine, png(picture(2)))[0] == 200


def test_a_token(tmp_path):
    secret = tmp_path / "token"
    secret.write_text("correct-horse-battery\n")
    secret.chmod(0o600)
    with serving("--host", "0.0.0.0", "--token-file", str(secret)) as server:
        pair = picture(1), picture(2)
        url = f"http://127.0.0.1:{server.port}"
        assert ask(*pair, url=url, token="correct-horse-battery").shape == (48, 64)
        wrong = [(None, "missing"), ("wrong", "wrong"), ("correct-horse-batter\xfc", "wrong")]
        for given, what in wrong:
            with pytest.raises(ServiceError, match=f"the token is {what}; send the") as error:
                ask(*pair, url=url, token=given)
            assert error.value.status == 401
        for path, status in (("/health", 200), ("/ready", 200), ("/docs", 200), ("/metrics", 401)):
            found, headers, _ = server.request("GET", path)
            assert found == status
        assert headers["www-authenticate"] == "Bearer"
        basic = {"Authorization": "Basic correct-horse-battery"}
        assert server.request("GET", "/metrics", **basic)[0] == 401
        mine = {"Authorization": "Bearer correct-horse-battery"}
        assert server.request("GET", "/metrics", **mine)[0] == 200
        assert "battery" not in "".join(server.lines)
        assert not server.log("warning")


def test_a_prior_that_is_none(tmp_path):
    bad = tmp_path / "prior.pt"
    bad.write_bytes(b"no prior")
    process = start("--prior", str(bad))
    assert process.wait(120) == 2
    error = process.stderr.read()
    process.stderr.close()
    assert error.startswith("error: ") and str(bad) in error and "Traceback" not in error
