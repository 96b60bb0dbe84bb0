"""Many clients at once, slow ones, those that leave, and a service that is full or ends."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from serving import colored, form, npy, opened, picture, png, serving, start

import ddfm_fast
from ddfm_fast.client.calls import ServiceError
from ddfm_fast.client.calls import fuse as ask

for name in ("starlette", "uvicorn", "python_multipart", "prometheus_client"):
    pytest.importorskip(name, reason="needs the extra serve")
pytestmark = pytest.mark.extras

LONG = {"preset": "official", "steps": "1000"}
"""more than a minute, at the size of `large`"""


def large() -> tuple[bytes, bytes]:
    return png(picture(1, 192, 256)), png(picture(2, 192, 256))


def counter(server, name: str) -> float:
    lines = server.request("GET", "/metrics")[2].decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def post(port: int, files: tuple[bytes, bytes], **fields: str) -> socket.socket:
    """Send a whole request and do not wait."""
    body, kind = form(dict(zip(("ir", "vis"), files, strict=True)), **fields)
    link = socket.create_connection(("127.0.0.1", port), timeout=60)
    link.sendall(head(len(body), kind) + body)
    return link


def head(length: int, kind: str = "application/json", more: str = "") -> bytes:
    return (
        f"POST /fuse HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {length}\r\n{more}\r\n"
    ).encode()


def answer(link: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body, read to the end of the connection or of the body."""
    data = b""
    while chunk := link.recv(65536):
        data += chunk
        top, _, body = data.partition(b"\r\n\r\n")
        lines = top.decode("latin-1").split("\r\n")
        headers = {n.lower(): v for n, _, v in (line.partition(": ") for line in lines[1:])}
        if len(body) >= int(headers.get("content-length", 1 << 40)):
            return int(lines[0].split()[1]), headers, body
    raise AssertionError(f"no whole answer: {data[:300]!r}")


def test_two_hundred_clients():
    """Each gets its own picture; every tenth sends something bad, which harms no other."""
    pairs = [(picture(n), colored(n + 50)) for n in range(8)]
    pairs += [(picture(n, 40, 56), picture(n + 50, 40, 56)) for n in range(8)]
    fuser = ddfm_fast.Fuser(device="cpu")
    expected = [fuser(*pair) for pair in pairs]
    sent = [(png(ir), png(vis)) for ir, vis in pairs]
    floats = [picture(n).astype(np.float32) / 255 for n in (1, 2)]
    array = fuser(*floats)
    holed = floats[0].copy()
    holed[3, 3] = np.nan
    barrier = threading.Barrier(200)

    def client(n: int) -> bool:
        barrier.wait()
        if n % 10 == 3:
            return "vis: cannot be decoded" in server.refused(400, sent[0][0], sent[0][1][:900])
        if n % 10 == 4:  # the same size and options as those of 5: fused together with them
            return "NaN" in server.refused(400, npy(holed), npy(floats[1]), format="npy")
        if n % 10 == 5:
            return np.array_equal(ask(*floats, url=server.url), array)
        status, _, body = server.fuse(*sent[n % 16])
        return status == 200 and np.array_equal(opened(body), expected[n % 16])

    with (
        serving("--device", "cpu", "--max-batch", "8", "--wait", "20") as server,
        ThreadPoolExecutor(200) as pool,
    ):
        right = list(pool.map(client, range(200)))
        assert all(right), [n for n, one in enumerate(right) if not one]
        assert counter(server, "ddfm_batch_size_count") < 150, "fused together"
        assert counter(server, "ddfm_queue") == 0
        assert not server.log("server"), server.log("server")


def test_full_queue():
    """Requests are refused before decoding, with a time; the client asks again by itself."""
    with serving("--max-queue", "2", "--max-batch", "1") as server, ThreadPoolExecutor(8) as pool:
        links = [post(server.port, large(), **LONG) for _ in range(2)]
        wait_for(lambda: counter(server, "ddfm_queue") == 2)
        status, headers, body = server.fuse(png(picture(1)), b"never decoded")
        assert status == 429 and 1 <= int(headers["retry-after"]) <= 60
        assert json.loads(body)["error"] == "2 requests are already waiting; try again later"
        with pytest.raises(ServiceError, match="already waiting"):
            ask(picture(1), picture(2), url=server.url, timeout=0.4)
        waits = pool.submit(ask, picture(1), picture(2), url=server.url)
        server.wait("request", status=429, bytes=None)
        for link in links:
            link.close()
        assert np.array_equal(waits.result(60), ddfm_fast.fuse(picture(1), picture(2)))


def wait_for(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_who_leaves_is_forgotten():
    """Work of minutes is stopped within a step, and what waited behind it is done."""
    with serving("--max-batch", "1") as server:
        post(server.port, large(), **LONG).close()
        server.wait("request", status=499)
        link = post(server.port, large(), **LONG)
        wait_for(lambda: counter(server, "ddfm_queue") == 1)
        behind = post(server.port, (png(picture(1)), png(picture(2))))
        time.sleep(0.3)
        link.close()
        assert answer(behind)[0] == 200
        behind.close()
        wait_for(lambda: len(server.log("request", status=499)) == 2)
        assert counter(server, "ddfm_prior_evaluations_total") < 1000, "neither was finished"


def test_too_slow():
    """A slow fusion, a slow body and a slow header each end alone."""
    with serving("--timeout", "2") as server:
        silent = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        silent.sendall(b"POST /fuse HT")
        slow = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        slow.sendall(head(1000) + b"{")
        link, started = post(server.port, large(), **LONG), time.monotonic()
        status, headers, body = answer(link)
        assert status == 504 and "no result after 2 seconds" in json.loads(body)["error"]
        assert time.monotonic() - started < 20
        status, headers, body = answer(slow)
        assert (status, headers["connection"]) == (408, "close")
        assert server.fuse(png(picture(1)), png(picture(2)))[0] == 200
        assert silent.recv(100) == b"", "closed"
        for one in (silent, slow, link):
            one.close()


def test_who_does_not_read():
    """An answer larger than the buffers of both ends does not stay in memory."""
    ir, vis = (
        np.random.default_rng(n).random((700, 700, c), np.float32) for n, c in ((1, 1), (2, 3))
    )
    body, kind = form({"ir": npy(ir[..., 0]), "vis": npy(vis)}, preset="instant", format="npy")
    with serving("--timeout", "6") as server:
        with socket.socket() as link:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            link.settimeout(60)
            link.connect(("127.0.0.1", server.port))
            link.sendall(head(len(body), kind) + body)
            line = server.wait("request", path="/fuse")
            assert (line["status"], line["dtype"]) == (200, "float32"), line
            time.sleep(7)
            with pytest.raises((AssertionError, ConnectionError)):
                answer(link)
        assert server.stop() == 0


def test_graceful_stop():
    """SIGTERM: what runs is finished, what comes is not let in, and the exit code is 0."""
    with serving() as server:
        link = post(server.port, large(), preset="official", steps="10")
        idle = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        wait_for(lambda: counter(server, "ddfm_queue") == 1)
        server.process.send_signal(signal.SIGTERM)
        status, _, body = answer(link)
        assert status == 200 and opened(body).shape == (192, 256)
        link.close()
        assert server.process.wait(60) == 0
        assert server.wait("stopped")
        idle.close()
        with pytest.raises(ServiceError, match="no answer"):
            ask(picture(1), picture(2), url=server.url)


def test_kill_and_start_again():
    with serving() as server:
        link = post(server.port, large(), **LONG)
        wait_for(lambda: counter(server, "ddfm_queue") == 1)
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
        with pytest.raises((AssertionError, ConnectionError)):
            answer(link)
        link.close()
        with contextlib.ExitStack() as stack:
            again = stack.enter_context(serving("--port", str(server.port)))
            assert again.port == server.port
            taken = start("--port", str(server.port))
            assert taken.wait(60) == 2
            error = taken.stderr.read()
            taken.stderr.close()
            assert f"--port is {server.port}, which cannot be opened at 127.0.0.1" in error
            assert "Traceback" not in error
            assert ask(picture(1), picture(2), url=again.url).shape == (48, 64)
            assert again.stop(signal.SIGINT) == 0, "Ctrl-C is as graceful"
