"""Cameras, and live streams that break off and come back."""

from __future__ import annotations

import socket
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from clips import pan, texture, write_clip

from ddfm_fast import DDFMWarning
from ddfm_fast.video import cameras
from ddfm_fast.video.cameras import camera, open_camera
from ddfm_fast.video.frames import Intake, VideoError
from ddfm_fast.video.sources import open_source

av = pytest.importorskip("av")


class Dropping:
    """A server that sends a clip to whoever connects, then drops the connection."""

    def __init__(self, data: bytes, times: int, away: float = 0.0):
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"tcp://127.0.0.1:{self._socket.getsockname()[1]}"
        self._data, self._times, self._away = data, times, away
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        address = self._socket.getsockname()
        for n in range(self._times):
            connection, _ = self._socket.accept()
            self._socket.close()  # nobody answers while it is away
            connection.sendall(self._data)
            connection.shutdown(socket.SHUT_WR)
            connection.close()
            if n + 1 < self._times:
                time.sleep(self._away)
                self._socket = socket.create_server(address)


@pytest.fixture
def clip(tmp_path) -> bytes:
    path = write_clip(tmp_path / "c.ts", pan(10, 1), codec="mpeg2video")
    return path.read_bytes()


def read(url, seconds):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", DDFMWarning)
        source = open_source(url, "ir", intake=Intake(reconnect=seconds))
        frames = list(source.frames())
        source.close()
    return frames, [str(w.message) for w in said], source


def test_a_dropped_connection_is_made_again(clip):
    server = Dropping(clip, times=3, away=0.6)
    frames, said, source = read(server.url, 2.0)
    assert source.live and len(frames) == 30
    times = [float(f.time) for f in frames]
    assert times == sorted(set(times)) and times[9] == pytest.approx(9 / 25, abs=1e-3)
    # while it was away time passed: 0.6 s at least
    assert 0.5 < times[10] - times[9] < 2.5 and 0.5 < times[20] - times[19] < 2.5
    assert times[19] - times[10] == pytest.approx(9 / 25, abs=1e-2)
    assert len(said) == 3 and all("trying again for 2 s" in text for text in said)
    assert "was not back within 2 s" in source.ended_early


def test_without_it_the_first_end_is_the_end(clip):
    server = Dropping(clip, times=1)
    frames, said, source = read(server.url, 0.0)
    assert len(frames) == 10 and said == [] and source.ended_early is None


def test_closing_ends_the_waiting(clip):
    server = Dropping(clip, times=1)
    with pytest.warns(DDFMWarning, match="broke off"):
        source = open_source(server.url, "ir", intake=Intake(reconnect=600.0))
        threading.Timer(0.7, source.close).start()
        begun = time.monotonic()
        assert len(list(source.frames())) == 10
    assert time.monotonic() - begun < 20


# Cameras


def test_what_is_a_camera(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.chdir(tmp_path)
    assert camera("0") == "/dev/video0" and camera("12") == "/dev/video12"
    assert camera("/dev/video3") == camera(Path("/dev/video3")) == "/dev/video3"
    assert camera("0.mp4") is None and camera("rtsp://0") is None and camera("٣") is None
    Path("0").write_bytes(b"x")
    assert camera("0") is None


@pytest.mark.parametrize("spec", ["77", 77, "/dev/video77"])
def test_a_camera_that_is_not_there(spec, monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(VideoError, match=r"ir is the camera /dev/video77: no such device \(there"):
        open_source(spec, "ir")


def test_a_thermal_camera_gives_its_16_bits(tmp_path, monkeypatch):
    """PyAV stands in for the driver: a 16-bit clip if Y16 is requested, 8 bits elsewhere."""
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(cameras.os.path, "exists", lambda _: True)
    counts = (7000 + texture(32, 48, 1).astype(np.uint16) * 8).astype(np.uint16)
    deep = write_clip(tmp_path / "d.mkv", [counts] * 2, codec="ffv1", pix_fmt="gray16le")
    plain = write_clip(tmp_path / "p.mkv", pan(2, 1), codec="ffv1", pix_fmt="gray")
    asked = []
    whole = av.open

    def device(file, *args, format=None, options=None, **more):
        if format != "v4l2":
            return whole(file, *args, options=options, **more)
        asked.append((file, dict(options)))
        if options and file == "/dev/video1":
            raise av.error.ArgumentError(22, "Invalid argument")
        return whole(str(deep if options else plain))

    monkeypatch.setattr(av, "open", device)
    source = open_source("0", "ir")
    np.testing.assert_array_equal(next(source.frames()).image, counts)
    source.close()
    source = open_source("1", "ir")
    assert next(source.frames()).image.dtype == np.uint8
    source.close()
    assert asked[0] == ("/dev/video0", {"input_format": "gray16le"})
    assert [options for _, options in asked[1:]] == [{"input_format": "gray16le"}, {}]
    monkeypatch.setattr(av, "open", lambda *_, **__: (_ for _ in ()).throw(OSError(16, "busy")))
    with pytest.raises(VideoError, match=r"cannot be opened \(busy\); check that no other program"):
        open_camera(av, "/dev/video0", "vis")
