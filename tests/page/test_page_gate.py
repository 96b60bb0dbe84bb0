"""Who gets in, tested on the gate alone, without a server."""

from __future__ import annotations

import asyncio
import base64

import pytest
from typer.testing import CliRunner

from ddfm_fast.cli.app import app as command
from ddfm_fast.page.gate import POLICY, Gate

SECRET = "a-word-of-sixteen-or-more"


async def page(scope, receive, send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
    await send({"type": "http.response.body", "body": b"page"})


def asked(password: str | None, method: str = "GET", kind: str = "http", **headers: str):
    """Return the status, headers and body of an answer."""
    sent = []

    async def send(message) -> None:
        sent.append(message)

    given = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {"type": kind, "method": method, "headers": given}
    asyncio.run(Gate(page, password)(scope, None, send))
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"].decode()


def basic(secret: str) -> str:
    return "Basic " + base64.b64encode(f"me:{secret}".encode()).decode()


def test_the_password():
    assert asked(None)[0] == 200
    status, headers, body = asked(SECRET)
    assert status == 401 and headers[b"www-authenticate"].startswith(b"Basic ")
    assert "--token-file" in body
    for given in (basic("else"), basic(""), "Basic ?", "Basic", f"Bearer {SECRET}", "Basic w6Q="):
        assert asked(SECRET, authorization=given)[0] == 401, given
    assert asked(SECRET, authorization=basic(SECRET))[0] == 200


def test_other_sites_send_nothing():
    here = {"host": "127.0.0.1:7860"}
    assert asked(None, "POST", **here, origin="http://127.0.0.1:7860")[0] == 200
    assert asked(None, "POST", **here)[0] == 200
    assert asked(None, "POST", **here, origin="https://evil.example")[0] == 403
    assert asked(None, "POST", **here, origin="null")[0] == 403
    assert asked(None, "GET", **here, origin="https://evil.example")[0] == 200


def test_browsers_load_nothing_from_elsewhere():
    headers = asked(None)[1]
    assert headers[b"content-security-policy"].decode() == POLICY and headers[b"a"] == b"b"
    for part in POLICY.split("; "):
        assert "*" not in part and "http" not in part, part
    assert POLICY.startswith("default-src 'self'")


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.1", "::"])
def test_other_addresses_need_a_password_or_a_word(host):
    result = CliRunner().invoke(command, ["app", "--host", host])
    assert result.exit_code == 2
    assert "--token-file" in result.output and "--insecure" in result.output
