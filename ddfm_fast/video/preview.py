"""Show fused frames as they come: in a window, or at a local address for a browser."""

from __future__ import annotations

import os
import sys
import threading
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..images.doubts import warn
from .sinks import Sink

_PAGE = (
    b"<!doctype html><title>ddfm_fast</title><style>body{margin:0;background:#111}"
    b"img{width:100vw;height:100vh;object-fit:contain}</style><img src=stream.mjpg>"
)
_EDGE = b"frame"
_NAME = "ddfm_fast"
_QUALITY = 85
_PATIENCE = 1.0
"""seconds after which a reader of the stream gets the last frame again, which shows whether it is
still there"""


class Previewed(Sink):
    """A sink whose frames are also shown. A viewer that fails does not end the run."""

    def __init__(self, sink: Sink):
        self.sink = sink
        self.viewer: Any = _window() or Server()

    @property
    def path(self) -> Any:  # type: ignore[override]
        """Where the result is, or will be."""
        return self.sink.path

    @property
    def frames(self) -> int:  # type: ignore[override]
        """Frames written."""
        return self.sink.frames

    @property
    def lost(self) -> str | None:  # type: ignore[override]
        """Why nothing is left."""
        return self.sink.lost

    def write(self, image: np.ndarray, time: Fraction, number: int, packets: tuple = ()) -> None:
        """Show and write a frame."""
        if self.viewer is not None:
            try:
                self.viewer.show(_eight_bits(image))
            except (OSError, cv2.error) as error:
                warn(f"the preview ended ({error}); the output continues")
                self._close()
        self.sink.write(image, time, number, packets)

    def finish(self) -> None:
        """Complete the output."""
        self._close()
        self.sink.finish()

    def abandon(self) -> Path | str | None:
        """Stop after an error."""
        self._close()
        return self.sink.abandon()

    def _close(self) -> None:
        viewer, self.viewer = self.viewer, None
        if viewer is not None:
            viewer.close()


class Server:
    """A page with the last frame, only at 127.0.0.1: ``/``, ``/stream.mjpg`` and ``/frame.jpg``.

    Frames are encoded only if someone is watching. The address is printed on stderr.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._image: np.ndarray | None = None
        self._number, self._encoded = 0, (0, b"")
        self.closed = False
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        server.daemon_threads = True
        self._server = server
        self.url = f"http://127.0.0.1:{server.server_address[1]}/"
        threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
        print(f"preview: {self.url}", file=sys.stderr, flush=True)

    def show(self, image: np.ndarray) -> None:
        """Take the next frame, uint8."""
        with self._changed:
            self._image, self._number = image, self._number + 1
            self._changed.notify_all()

    def jpeg(self, after: int = 0, patience: float = _PATIENCE) -> tuple[int, bytes]:
        """Return (number, JPEG) of a frame after the given one; of the last if none comes."""
        with self._changed:
            self._changed.wait_for(lambda: self._number > after or self.closed, patience)
            if self._image is not None and self._encoded[0] != self._number:
                options = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
                found = cv2.imencode(".jpg", _bgr(self._image), options)[1].tobytes()
                self._encoded = self._number, found
            return self._encoded

    def close(self) -> None:
        """End the server and its connections."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()


def _handler(frames: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802 (the name that http.server calls)
            path = self.path.partition("?")[0]
            if path == "/":
                self._send("text/html", _PAGE)
            elif path == "/frame.jpg":
                data = frames.jpeg(patience=10)[1]
                self._send("image/jpeg", data) if data else self.send_error(503, "no frame yet")
            elif path == "/stream.mjpg":
                self._stream()
            else:
                self.send_error(404)

        def _send(self, kind: str, data: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(data)

        def _stream(self) -> None:
            self.send_response(200)
            kind = f"multipart/x-mixed-replace; boundary={_EDGE.decode()}"
            self.send_header("Content-Type", kind)
            self.end_headers()
            number = 0
            try:
                while not frames.closed:
                    number, data = frames.jpeg(number)
                    if data:
                        head = b"--%b\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
                        self.wfile.write(head % (_EDGE, len(data)) + data + b"\r\n")
            except OSError:  # it was closed
                return

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    return Handler


class _Window:
    """OpenCV's window; its button, q or Escape closes it."""

    def __init__(self) -> None:
        cv2.namedWindow(_NAME, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
        self._open, self._sized = True, False

    def show(self, image: np.ndarray) -> None:
        if not self._open:
            return
        if not self._sized:
            cv2.resizeWindow(_NAME, image.shape[1], image.shape[0])
            self._sized = True
        cv2.imshow(_NAME, _bgr(image))
        ends = (ord("q"), 27)
        shut = cv2.waitKey(1) & 0xFF in ends
        if shut or cv2.getWindowProperty(_NAME, cv2.WND_PROP_VISIBLE) < 1:
            self.close()

    def close(self) -> None:
        if self._open:
            self._open = False
            cv2.destroyAllWindows()


def _window() -> _Window | None:
    """Return a window; None without a display, or with an OpenCV without windows (headless)."""
    if sys.platform == "linux" and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        return None
    try:
        return _Window()
    except cv2.error:
        return None


def _eight_bits(image: np.ndarray) -> np.ndarray:
    return (image >> 8).astype(np.uint8) if image.dtype == np.uint16 else image


def _bgr(image: np.ndarray) -> np.ndarray:
    color = image.ndim == 3 and image.shape[2] == 3
    return np.ascontiguousarray(image[..., ::-1]) if color else image
