"""The address, the token, signals and the server."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..files.paths import ImageFileError, is_file
from ..files.texts import decoded
from ..images.doubts import warn
from .limits import Limits
from .logs import Lines, Log, told_apart

if TYPE_CHECKING:
    from ..api import Fuser
    from .engine import Engine

MISSING = "pip install 'ddfm_fast[serve]'"
_BACKLOG = 2048
_LEAST_TOKEN = 16


def check_address(host: str, token_file: Path | None, insecure: bool) -> None:
    """Raise ValueError for an address that others can reach if nothing keeps them out."""
    if is_loopback(host) or token_file is not None or insecure:
        return
    raise ValueError(
        f"--host is {host}, which other machines reach; give --token-file FILE with a secret that "
        "requests must carry, or --insecure to let everyone in"
    )


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_token(path: Path | None) -> str | None:
    """Read the secret of a file, without the white space around it.

    Raises:
        ImageFileError: The file is missing, or its secret is too short or has odd characters.
    """
    if path is None:
        return None
    if not is_file(path):
        raise ImageFileError(f"--token-file is {path}, which is not a file; write a secret to it")
    try:
        token = decoded(path.read_bytes()).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ImageFileError(f"--token-file is {path}, which cannot be read ({error})") from None
    if len(token) < _LEAST_TOKEN or not (token.isascii() and token.isprintable()) or " " in token:
        raise ImageFileError(
            f"--token-file is {path}; expected one word of {_LEAST_TOKEN} or more characters, as "
            "`openssl rand -hex 32` prints"
        )
    if os.name == "posix" and path.stat().st_mode & 0o077:
        warn(f"--token-file {path}: other users of this machine may read it; chmod 600")
    return token


class Tls(NamedTuple):
    """The files of a certificate and its key."""

    cert: Path
    key: Path


def read_tls(cert: Path | None, key: Path | None) -> Tls | None:
    """Check a certificate and its key; return None if neither is given.

    Raises:
        ValueError: Only one of them is given.
        ImageFileError: They cannot be read, or do not belong together.
    """
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        given, other = ("cert", "key") if key is None else ("key", "cert")
        raise ValueError(f"--tls-{given} needs --tls-{other}: a certificate and its key, in PEM")
    for name, path in (("cert", cert), ("key", key)):
        if not is_file(path):
            raise ImageFileError(f"--tls-{name} is {path}, which is not a file; give a PEM file")

    def no_password() -> str:
        raise ImageFileError(
            f"--tls-key is {key}, which has a password; give a key without one, which only the "
            "service's user may read"
        )

    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key, no_password)
    except (OSError, ValueError) as error:
        if isinstance(error, ImageFileError):
            raise
        reason = getattr(error, "reason", None) or error
        raise ImageFileError(
            f"--tls-cert {cert} and --tls-key {key} cannot be used ({reason}); expected a "
            "certificate (with those between it and the root) and the key it was made with, in PEM"
        ) from None
    if os.name == "posix" and key.stat().st_mode & 0o077:
        warn(f"--tls-key {key}: other users of this machine may read it; chmod 600")
    return Tls(cert, key)


def bind(host: str, port: int) -> socket.socket:
    """Take the address, before anything is loaded; port 0 means a free one.

    Raises:
        ValueError: The address or port is not available.
    """
    try:
        (family, *_, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        taken = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ValueError(
            f"--host is {host!r}, which is not an address of this machine ({error})"
        ) from None
    try:
        if os.name == "posix":  # elsewhere it would share the port with another program
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
        taken.listen(_BACKLOG)
    except OSError as error:
        taken.close()
        raise ValueError(
            f"--port is {port}, which cannot be opened at {host} ({error.strerror}); choose another"
        ) from None
    return taken


def check_installed() -> None:
    """Raise ImportError, naming the extra, if a library of the service is missing."""
    try:
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ImportError(f"the service needs {error.name}: {MISSING}") from None


class Elsewhere(Protocol):
    """Fuses in other processes."""

    def engine(self, fuser: Fuser, limits: Limits, log: Log) -> Engine:
        """Start them; return what passes them requests."""


def serve(
    make: Callable[[], Fuser],
    address: socket.socket,
    *,
    limits: Limits | None = None,
    token: str | None = None,
    tls: Tls | None = None,
    log: Log | None = None,
    there: AbstractContextManager[Elsewhere | None] | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C, which let requests finish that are being worked on.

    Args:
        make: Makes the fuser.
        address: From :func:`bind`; closed at the end.
        limits: Limits of requests.
        token: What requests must carry.
        tls: From :func:`read_tls`; None for HTTP without it.
        log: Where log lines go; stderr by default.
        there: Fuses in other processes, and is entered for the time of the service; None for this
            process.

    Raises:
        ImportError: The extra ``serve`` is missing.
        ValueError: Other processes are not available.
    """
    check_installed()
    from .app import Service, make_app
    from .engine import Here
    from .fusers import Fusers

    limits, log = limits or Limits(), log or Log()
    with contextlib.closing(address), told_apart(log), there or contextlib.nullcontext() as other:
        fuser = make()
        engine = Here(Fusers(fuser), limits) if other is None else other.engine(fuser, limits, log)
        service = Service(engine, limits, token, log)
        host, port = address.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        with repeated_signals_ignored(), _server_log(log):
            server = _server(make_app(service), service, limits, tls)
            scheme = "http" if tls is None else "https"
            log("listening", url=f"{scheme}://{shown}:{port}", pid=os.getpid(), token=bool(token))
            asyncio.run(server.serve(sockets=[address]))
        log("stopped")


def _server(app: Any, service: Any, limits: Limits, tls: Tls | None) -> Any:
    import uvicorn

    from .protocol import protocol

    class Server(uvicorn.Server):
        """Reports that it will stop before it stops."""

        def handle_exit(self, sig: int, frame: Any) -> None:
            service.stopping = True
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        app,
        http=protocol(limits.timeout),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=max(1024, 4 * limits.max_queue),
        timeout_graceful_shutdown=int(limits.timeout) + 1,
        ssl_certfile=None if tls is None else str(tls.cert),
        ssl_keyfile=None if tls is None else str(tls.key),
    )
    return Server(config)


@contextlib.contextmanager
def repeated_signals_ignored() -> Iterator[None]:
    """Ignore, inside, the signals that the server repeats once it has stopped."""
    before = {one: signal.signal(one, lambda *_: None) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


@contextlib.contextmanager
def _server_log(log: Log) -> Iterator[None]:
    logger, handler = logging.getLogger("uvicorn"), Lines(log)
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]
