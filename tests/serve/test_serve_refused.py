"""What is printed if a service cannot start: a sentence, exit code 2. Needs no extra."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
from conftest import ROOT
from typer.testing import CliRunner

from ddfm_fast.cli.app import app
from ddfm_fast.images.doubts import DDFMWarning
from ddfm_fast.serve.limits import Limits, retry_after
from ddfm_fast.serve.run import bind, check_address, is_loopback, read_token


def error_of(*options: str) -> str:
    done = CliRunner().invoke(app, ["serve", *options])
    assert done.exit_code == 2, done.output
    return done.stderr


def test_addresses():
    assert "give --token-file FILE" in error_of("--host", "0.0.0.0")
    assert "--host is example.org, which other machines reach" in error_of("--host", "example.org")
    for host, here in (("127.0.0.1", 1), ("127.9.9.9", 1), ("::1", 1), ("localhost", 1),
                       ("0.0.0.0", 0), ("::", 0), ("192.168.1.4", 0), ("", 0)):  # fmt: skip
        assert is_loopback(host) == bool(here)
    check_address("0.0.0.0", None, insecure=True)
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"--port is {port}, .*choose another"):
            bind("127.0.0.1", port)
    with pytest.raises(ValueError, match="--host is '256.1.1.1', which is not an address"):
        bind("256.1.1.1", 0)
    assert bind("127.0.0.1", 0).family == socket.AF_INET


@pytest.mark.parametrize("text", [b"", b"short", b"two words are here now", b"\xff" * 40])
def test_tokens(text, tmp_path):
    path = tmp_path / "token"
    assert "which is not a file" in error_of("--token-file", str(path))
    path.write_bytes(text)
    assert f"--token-file is {path}" in error_of("--token-file", str(path))
    path.write_bytes(b"0123456789abcdef \n")
    path.chmod(0o600)
    assert read_token(path) == "0123456789abcdef" and read_token(None) is None
    path.chmod(0o644)
    if os.name == "posix":
        with pytest.warns(DDFMWarning, match="other users of this machine may read it; chmod 600"):
            read_token(path)


def test_without_the_extra():
    code = (
        "import sys; sys.modules['uvicorn'] = None\n"
        "sys.argv = ['ddfm-fast', 'serve']\n"
        "from ddfm_fast.cli.app import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the service needs ")
    assert "pip install 'ddfm_fast[serve]'" in done.stderr


def test_the_client_loads_nothing():
    """Neither PyTorch nor NumPy, which only arrays need."""
    code = (
        "import sys; from ddfm_fast.client import fuse\n"
        "print([name for name in ('torch', 'numpy', 'PIL', 'starlette') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[]\n", done.stderr


def test_limits_are_those_of_the_command():
    help_ = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).stdout
    for number in (Limits().max_bytes, Limits().max_pixels, Limits().max_queue):
        assert str(number) in help_
    assert [retry_after(s) for s in (0.0, 1.2, 1e9)] == ["1", "2", "60"]
