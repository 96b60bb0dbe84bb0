"""Send a pair to a service and get the fused picture back."""

from __future__ import annotations

import http.client
import io
import json
import os
import secrets
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import numpy as np

URL = "http://127.0.0.1:8000"
_AGAIN = (429, 503)
_HERE = ("127.0.0.1", "localhost", "::1")


class ServiceError(RuntimeError):
    """The service cannot be reached, or gives no picture; ``status`` is None or its HTTP status."""

    def __init__(self, sentence: str, status: int | None = None):
        super().__init__(sentence)
        self.status = status


def fuse(
    ir: Any,
    vis: Any,
    *,
    url: str = URL,
    token: str | None = None,
    format: str | None = None,
    timeout: float = 60.0,
    cafile: str | os.PathLike[str] | None = None,
    **options: Any,
) -> np.ndarray | bytes:
    """Fuse a pair as ``ddfm_fast.fuse`` does, on a service.

    Args:
        ir: A NumPy array, the path of an image file, or its bytes.
        vis: The other source, likewise.
        url: Address of the service, without ``/fuse``.
        token: The content of its ``--token-file``.
        format: Format of the result: png, tiff, jpeg or npy.
        cafile: PEM file of certificates to trust, for an ``https`` service whose certificate no
            authority known to this machine has signed.
        timeout: Seconds in all; requests are repeated while the service is full or loading.
        **options: Options of ``ddfm_fast.fuse`` that have to do with the method and the input.

    Returns:
        The bytes of an image file; an array if ``ir`` or ``vis`` is one and ``format`` is None
        or "npy".

    Raises:
        ValueError: The service refuses the request; the message is the service's.
        ServiceError: It cannot be reached, wants another token, or does not answer in time.

    >>> fused = fuse(infrared, visible, preset="fast")         # doctest: +SKIP
    >>> png = fuse("ir.png", "vis.png", url="http://gpu-box:8000", token=secret)  # doctest: +SKIP
    """
    arrays = not (_is_file(ir) and _is_file(vis))
    form = format or ("npy" if arrays else "png")
    fields = {name: _text(value) for name, value in options.items() if value is not None}
    body, kind = _form({"ir": _bytes(ir), "vis": _bytes(vis)}, {**fields, "format": form})
    headers = {"Content-Type": kind}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    data = _ask(url, body, headers, time.monotonic() + timeout, _trust(url, cafile))
    if not (arrays and form == "npy"):
        return data
    import numpy as np

    return np.load(io.BytesIO(data), allow_pickle=False)


def _is_file(picture: Any) -> bool:
    return isinstance(picture, (str, os.PathLike, bytes, bytearray))


def _bytes(picture: Any) -> bytes:
    if isinstance(picture, (bytes, bytearray)):
        return bytes(picture)
    if isinstance(picture, (str, os.PathLike)):
        return Path(picture).read_bytes()
    import numpy as np

    file = io.BytesIO()
    np.save(file, np.asarray(picture), allow_pickle=False)
    return file.getvalue()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _form(files: dict[str, bytes], fields: dict[str, str]) -> tuple[bytes, str]:
    """Return a multipart form, and its media type."""
    mark = secrets.token_hex(16)
    parts = []
    for name, text in fields.items():
        parts.append(f'--{mark}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode())
        parts.append(text.encode() + b"\r\n")
    for name, data in files.items():
        head = f'--{mark}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}"\r\n'
        parts.append(f"{head}Content-Type: application/octet-stream\r\n\r\n".encode())
        parts.append(data + b"\r\n")
    return b"".join([*parts, f"--{mark}--\r\n".encode()]), f"multipart/form-data; boundary={mark}"


def _trust(url: str, cafile: str | os.PathLike[str] | None) -> ssl.SSLContext | None:
    """Return the certificates that are trusted; None for HTTP without TLS."""
    scheme = urlsplit(url).scheme
    if scheme not in ("http", "https"):
        raise ValueError(f"url is {url!r}; expected such as {URL}")
    if scheme == "http":
        if cafile is not None:
            raise ValueError(f"cafile is {cafile}, and url is {url!r}; expected https://")
        return None
    try:
        return ssl.create_default_context(cafile=cafile)
    except OSError as error:
        reason = getattr(error, "reason", None) or error.strerror or error
        raise ValueError(
            f"cafile is {cafile}, which cannot be used ({reason}); give a PEM file of certificates"
        ) from None


def _ask(
    url: str, body: bytes, headers: dict[str, str], end: float, trust: ssl.SSLContext | None
) -> bytes:
    request = urllib.request.Request(f"{url.rstrip('/')}/fuse", body, headers)
    # no proxy is between a machine and itself
    proxies: dict[str, str] | None = {} if urlsplit(url).hostname in _HERE else None
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler(proxies)]
    if trust is not None:
        handlers.append(urllib.request.HTTPSHandler(context=trust))
    opener = urllib.request.build_opener(*handlers)
    while True:
        left = end - time.monotonic()
        try:
            with opener.open(request, timeout=max(0.001, left)) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            sentence, pause = _refusal(error), _pause(error.headers.get("Retry-After"))
            if error.code not in _AGAIN or time.monotonic() + pause >= end:
                if error.code in (400, 406, 413):
                    raise ValueError(sentence) from None
                raise ServiceError(sentence, error.code) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise ServiceError(
                    f"the certificate of {url} is not trusted ({reason.verify_message}); give "
                    "cafile=, a file with it or with its issuer's"
                ) from error
            raise ServiceError(
                f"no answer from {url} ({reason}); start it with `ddfm-fast serve`, or give url="
            ) from error
        time.sleep(pause)


def _refusal(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read())["error"])
    except (ValueError, KeyError, TypeError, OSError, http.client.HTTPException):
        return f"the service answers {error.code} {error.reason}"


def _pause(text: str | None) -> float:
    """Return seconds to wait, spread by a fraction so that clients do not all return at once."""
    try:
        seconds = float(text or 1)
    except ValueError:
        seconds = 1.0
    return seconds * (0.5 + secrets.randbelow(1000) / 1000)
