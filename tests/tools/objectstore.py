"""An S3 server of the tests' own, one that fails when told to, and a line that goes dead."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator


class Failing:
    """A WSGI application that fails, waits and refuses as it is told to.

    Attributes:
        word, left: The next ``left`` requests whose path has ``word`` are answered with 503.
        failed: How many requests were answered so.
        pause: Seconds that a request for an object waits.
        refused: A method that nobody has the right to.
        log: Method and path of all other requests, in the order of the answers.
    """

    def __init__(self, application):
        self.application = application
        self.word, self.left, self.failed = "", 0, 0
        self.pause, self.refused = 0.0, ""
        self.log: list[tuple[str, str]] = []

    def __call__(self, environ, start_response):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if self.left > 0 and self.word in path:
            self.left -= 1
            self.failed += 1
            start_response("503 Service Unavailable", [("Content-Length", "0")])
            return [b""]
        if method == self.refused:
            text = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
            head = [("Content-Type", "application/xml"), ("Content-Length", str(len(text)))]
            start_response("403 Forbidden", head)
            return [text]
        if method == "GET" and path.strip("/").count("/"):
            time.sleep(self.pause)
        answer = self.application(environ, start_response)
        self.log.append((method, path))
        return answer

    def puts(self, suffix: str = ".png") -> Counter[str]:
        """Count the complete puts of each object with such a name."""
        return Counter(
            path for method, path in self.log if method == "PUT" and path.endswith(suffix)
        )


@contextlib.contextmanager
def s3_server() -> Iterator[tuple[Failing, int]]:
    """Start a server on a free port of this machine; yield what fails and the port."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    failing = Failing(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, failing, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}/moto-api/reset"  # of servers before, too
    urllib.request.urlopen(urllib.request.Request(address, method="POST"), timeout=30).close()
    failing.log.clear()
    try:
        yield failing, server.server_port
    finally:
        server.shutdown()
        thread.join()


def s3_environment(port: int) -> dict[str, str]:
    """Return the variables that lead this process and those that it starts to the server."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "user",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def make_bucket(name: str) -> None:
    """Make a bucket on the environment's server, not on one of an earlier test."""
    import fsspec

    system = fsspec.filesystem("s3", skip_instance_cache=True)
    type(system).clear_instance_cache()
    system.mkdir(name)


@contextlib.contextmanager
def bucket_in_environment(port: int) -> Iterator[str]:
    """Put the server of a port into this process's environment; yield the URL of a bucket "box"."""
    import pytest

    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_environment(port).items():
            patch.setenv(name, value)
        make_bucket("box")
        yield "s3://box"


class DeadLine:
    """Passes bytes on to a port, and stops after ``most`` of one upload, keeping the line open."""

    def __init__(self, port: int, most: int):
        self.target, self.most = port, most
        self.is_dead = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
                threading.Thread(target=self._up, args=(client, server), daemon=True).start()
                threading.Thread(target=self._down, args=(server, client), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        passed = 0
        with contextlib.suppress(OSError), client, server:
            while data := client.recv(8192):
                if passed + len(data) > self.most:
                    self.is_dead.set()
                    continue
                passed += len(data)
                server.sendall(data)

    def _down(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(8192):
                client.sendall(data)

    def close(self) -> None:
        self.listener.close()
