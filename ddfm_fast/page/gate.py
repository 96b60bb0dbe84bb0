"""Who is admitted, and what a browser may load: the page itself and nothing from elsewhere."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

Scope = dict[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]

POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "frame-ancestors 'none'",
        "base-uri 'self'",
        "form-action 'self'",
    )
)
_HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
_ASK = (b"www-authenticate", b'Basic realm="ddfm-fast: any name", charset="UTF-8"')


class Gate:
    """An ASGI application in front of the page's."""

    def __init__(self, app: App, password: str | None):
        """``password``: asked for by the browser, with any name; None lets everyone in."""
        self.app, self.password = app, password

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = {name: value for name, value in scope["headers"]}
        if not self._knows(headers.get(b"authorization", b"")):
            await _refuse(send, 401, "the page asks for a password: give any name, and what the "
                          "file of --token-file holds", _ASK)  # fmt: skip
        elif scope["type"] == "websocket" or _foreign(scope, headers):
            await _refuse(send, 403, "another site asked for this; open the page itself")
        else:
            await self.app(scope, receive, _guarded(send))

    def _knows(self, given: bytes) -> bool:
        if self.password is None:
            return True
        kind, _, rest = given.partition(b" ")
        try:
            _, _, secret = base64.b64decode(rest, validate=True).partition(b":")
        except binascii.Error:
            return False
        return kind.lower() == b"basic" and hmac.compare_digest(secret, self.password.encode())


def _foreign(scope: Scope, headers: dict[bytes, bytes]) -> bool:
    """Return whether a page of another site sent the request."""
    origin = headers.get(b"origin")
    if origin is None or scope["method"] in ("GET", "HEAD"):
        return False
    return urlsplit(origin.decode("latin-1")).netloc != headers.get(b"host", b"").decode("latin-1")


def _guarded(send: Any) -> Any:
    async def sent(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *_HEADERS]
        await send(message)

    return sent


async def _refuse(send: Any, status: int, sentence: str, *headers: tuple[bytes, bytes]) -> None:
    kind = (b"content-type", b"text/plain; charset=utf-8")
    start = {"type": "http.response.start", "status": status, "headers": [kind, *headers]}
    await send(start)
    await send({"type": "http.response.body", "body": sentence.encode()})
