"""``--preview``: frames over HTTP, or in a window."""

from __future__ import annotations

import re
import threading
import urllib.error
import urllib.request

import cv2
import numpy as np
import pytest
from clips import endless
from fusing import run

from ddfm_fast import DDFMWarning
from ddfm_fast.video import preview
from ddfm_fast.video.preview import Previewed, Server
from ddfm_fast.video.sinks import PictureSink


@pytest.fixture(autouse=True)
def no_display(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return answer.read()


def test_a_server_shows_the_last_frame(capsys):
    server = Server()
    assert capsys.readouterr().err == f"preview: {server.url}\n"
    assert server.url.startswith("http://127.0.0.1:")
    image = np.zeros((48, 64, 3), np.uint8)
    image[..., 0], image[:24, :, 1] = 200, 90
    server.show(image)
    shown = cv2.imdecode(np.frombuffer(get(server.url + "frame.jpg"), np.uint8), 1)[..., ::-1]
    assert shown.shape == image.shape and np.abs(shown.astype(int) - image).mean() < 4
    assert b"stream.mjpg" in get(server.url)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(server.url + "../etc/passwd")
    server.show(np.full((48, 64), 77, np.uint8))
    shown = cv2.imdecode(np.frombuffer(get(server.url + "frame.jpg"), np.uint8), -1)
    assert abs(int(shown[5, 5]) - 77) <= 2
    server.close()
    with pytest.raises(OSError):
        get(server.url)


def test_frames_are_read_while_a_video_is_fused(tmp_path, monkeypatch):
    made, parts, enough = [], [], threading.Event()

    class Heard(Server):
        def __init__(self):
            super().__init__()
            made.append(self)
            threading.Thread(target=self._read, daemon=True).start()

        def _read(self):
            with urllib.request.urlopen(self.url + "stream.mjpg", timeout=20) as answer:
                assert "boundary=frame" in answer.headers["Content-Type"]
                while len(parts) < 3:
                    assert answer.readline() == b"--frame\r\n"
                    head = answer.readline() + answer.readline()
                    length = int(re.search(rb"Content-Length: (\d+)", head)[1])
                    answer.readline()
                    parts.append(answer.read(length))
                    answer.readline()
            enough.set()

    def until_read():
        for n, image in enumerate(endless(3)):
            if (n and enough.wait(0.02)) or n > 1000:
                return
            yield image

    monkeypatch.setattr(preview, "Server", Heard)
    report = run(endless(1), until_read(), tmp_path / "o", preview=True)
    assert enough.is_set() and report.ok and report.frames == len(list((tmp_path / "o").iterdir()))
    sizes = {cv2.imdecode(np.frombuffer(p, np.uint8), -1).shape for p in parts}
    assert sizes == {(64, 64, 3)} and made[0].closed


def test_a_viewer_that_fails_ends_nothing(tmp_path, monkeypatch):
    sink = Previewed(PictureSink(tmp_path / "o"))
    monkeypatch.setattr(sink.viewer, "show", lambda _: (_ for _ in ()).throw(OSError("gone")))
    with pytest.warns(DDFMWarning, match=r"the preview ended \(gone\); the output continues"):
        sink.write(np.zeros((32, 32), np.uint16), 0, 0)
    sink.write(np.zeros((32, 32), np.uint16), 1, 1)
    sink.finish()
    assert sink.frames == 2 and sink.path == tmp_path / "o"


def test_a_window_where_there_is_a_display(tmp_path, monkeypatch):
    shown, key = [], [255]
    monkeypatch.setenv("DISPLAY", ":0")
    calls = {
        "namedWindow": lambda *_: None,
        "resizeWindow": lambda *_: None,
        "imshow": lambda _, image: shown.append(image),
        "waitKey": lambda _: key[0],
        "getWindowProperty": lambda *_: 1.0,
        "destroyAllWindows": lambda: shown.append("closed"),
    }
    for name, call in calls.items():
        monkeypatch.setattr(cv2, name, call)
    sink = Previewed(PictureSink(tmp_path / "o"))
    deep = np.full((32, 32, 3), (65535, 256, 0), np.uint16)
    sink.write(deep, 0, 0)
    assert shown[0][0, 0].tolist() == [0, 1, 255]
    key[0] = ord("q")
    sink.write(deep, 1, 1)
    sink.write(deep, 2, 2)
    assert len(shown) == 3 and shown[2] == "closed" and sink.frames == 3
    sink.finish()
