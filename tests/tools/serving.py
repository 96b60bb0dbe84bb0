"""A service in a process of its own, and requests to it."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from conftest import ROOT
from PIL import Image

BOUNDARY = "b0undary"


class Server:
    """The process, its address, and the lines of its log."""

    def __init__(self, process: subprocess.Popen):
        self.process, self.lines = process, []
        self.came = threading.Condition()
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()
        self.url = self.wait("listening", 300)["url"]
        self.wait("ready")
        self.port = urlsplit(self.url).port

    def _read(self) -> None:
        for line in self.process.stderr:
            with self.came:
                self.lines.append(line)
                self.came.notify_all()
        with self.came:
            self.lines.append("")
            self.came.notify_all()

    def log(self, event: str, **fields: Any) -> list[dict]:
        """Return the lines of an event with these fields."""
        found = [json.loads(line) for line in self.lines if line.startswith("{")]
        wanted = {"event": event, **fields}.items()
        return [one for one in found if all(one.get(k) == v for k, v in wanted)]

    def wait(self, event: str, seconds: float = 120.0, **fields: Any) -> dict:
        end = time.monotonic() + seconds
        with self.came:
            while not (found := self.log(event, **fields)):
                left = end - time.monotonic()
                assert left > 0 and self.lines[-1:] != [""], (event, fields, self.lines)
                self.came.wait(min(left, 0.5))
        return found[0]

    def stop(self, one: int = signal.SIGTERM) -> int:
        self.process.send_signal(one)
        return self.process.wait(60)

    def request(
        self, method: str, path: str, body: Any = None, timeout: float = 120.0, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Return the status, the headers in lower case, and the body of an answer."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(link):
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            link.request(method, path, body, names)
            answer = link.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, found, answer.read()

    def fuse(self, ir: bytes, vis: bytes, accept: str = "*/*", **fields: str):
        body, kind = form({"ir": ir, "vis": vis}, **fields)
        return self.request("POST", "/fuse", body, Content_Type=kind, Accept=accept)

    def refused(self, status: int, *given: Any, **fields: Any) -> str:
        """Check for a refusal with that status, and return its sentence."""
        found, _, body = self.fuse(*given, **fields)
        assert found == status, (found, body[:500])
        return json.loads(body)["error"]


@contextlib.contextmanager
def serving(*options: str, **environment: str) -> Iterator[Server]:
    """Yield a server on a free port of this machine; it is killed at the end, if it still lives."""
    process = start(*options, **environment)
    try:
        yield Server(process)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def start(*options: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "ddfm_fast", "serve", "--port", "0", *options],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def form(files: dict[str, bytes], **fields: str) -> tuple[bytes, str]:
    """Make a multipart form by hand, not by the client, which is tested too."""
    parts = []
    for name, data in files.items():
        head = f'form-data; name="{name}"; filename="{name}.bin"'
        parts.append(f"--{BOUNDARY}\r\nContent-Disposition: {head}\r\n\r\n".encode() + data)
    for name, text in fields.items():
        head = f'form-data; name="{name}"'
        parts.append(f"--{BOUNDARY}\r\nContent-Disposition: {head}\r\n\r\n{text}".encode())
    body = b"\r\n".join(parts) + f"\r\n--{BOUNDARY}--\r\n".encode()
    return body, f"multipart/form-data; boundary={BOUNDARY}"


def picture(seed: int, height: int = 48, width: int = 64, dtype: Any = np.uint8) -> np.ndarray:
    """Draw noise on a ramp, over all of the range."""
    most = np.iinfo(dtype).max
    ramp = np.linspace(0, 0.7, height * width).reshape(height, width)
    noise = np.random.default_rng(seed).random((height, width))
    return np.rint((ramp + 0.3 * noise) * most).astype(dtype)


def colored(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    return np.stack([picture(seed + n, height, width) for n in range(3)], -1)


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def opened(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)))


def write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)
