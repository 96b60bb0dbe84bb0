"""HTTPS with a certificate made here; what is printed if one cannot be used."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl

import pytest
from serving import picture, png, serving
from test_serve_refused import error_of

from ddfm_fast.client.calls import ServiceError
from ddfm_fast.client.calls import fuse as ask
from ddfm_fast.images.doubts import DDFMWarning
from ddfm_fast.serve.run import read_tls

for name in ("starlette", "uvicorn", "python_multipart", "prometheus_client", "cryptography"):
    pytest.importorskip(name, reason="needs the extras serve and storage-test")
pytestmark = pytest.mark.extras

TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """cert.pem for 127.0.0.1, its key, another key, and the key under a password."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives import serialization as pem
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("tls")
    key, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ddfm-fast test")])
    now = datetime.datetime.now(datetime.timezone.utc)
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    cert = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(here, critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(cert.public_bytes(pem.Encoding.PEM))
    kinds = (
        ("key", key, pem.NoEncryption()), ("other", other, pem.NoEncryption()),
        ("locked", key, pem.BestAvailableEncryption(b"secret")),
    )  # fmt: skip
    for stem, one, lock in kinds:
        data = one.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, lock)
        (folder / f"{stem}.pem").write_bytes(data)
        (folder / f"{stem}.pem").chmod(0o600)
    (folder / "token").write_text(TOKEN)
    (folder / "token").chmod(0o600)
    return folder


@pytest.fixture(scope="module")
def server(made):
    files = {"tls-cert": "cert.pem", "tls-key": "key.pem", "token-file": "token"}
    options = [word for name, file in files.items() for word in (f"--{name}", str(made / file))]
    with serving("--preset", "instant", *options) as found:
        yield found


def test_a_client_that_knows_the_certificate(server, made):
    pair = png(picture(1)), png(picture(2))
    assert server.url.startswith("https://127.0.0.1:")
    found = ask(*pair, url=server.url, token=TOKEN, cafile=made / "cert.pem")
    assert found.startswith(b"\x89PNG")
    with pytest.raises(ServiceError, match=r"certificate of https://.* is not trusted .*cafile="):
        ask(*pair, url=server.url, token=TOKEN)
    with pytest.raises(ServiceError, match="the token is wrong"):
        ask(*pair, url=server.url, token="x" * 16, cafile=made / "cert.pem")


def test_who_speaks_no_tls_hurts_nobody(server, made):
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as link:
        link.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert not link.recv(100).startswith(b"HTTP/1.1 200")
    context = ssl.create_default_context(cafile=made / "cert.pem")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as link,
    ):
        link.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert link.recv(100).startswith(b"HTTP/1.1 200")


def test_the_client_is_told_what_is_wrong(made, tmp_path):
    with pytest.raises(ValueError, match="cafile is .*none, which cannot be used"):
        ask(b"", b"", url="https://127.0.0.1:9", cafile=tmp_path / "none")
    (tmp_path / "text").write_text("no certificate")
    with pytest.raises(ValueError, match="give a PEM file of certificates"):
        ask(b"", b"", url="https://127.0.0.1:9", cafile=tmp_path / "text")
    with pytest.raises(ValueError, match="cafile is .* expected https://"):
        ask(b"", b"", url="http://127.0.0.1:9", cafile=made / "cert.pem")


def test_files_that_cannot_be_used(made, tmp_path):
    cert, key = made / "cert.pem", made / "key.pem"
    assert read_tls(None, None) is None and read_tls(cert, key) == (cert, key)
    assert "--tls-cert needs --tls-key" in error_of("--tls-cert", str(cert))
    assert "--tls-key needs --tls-cert" in error_of("--tls-key", str(key))
    for files, words in (
        ((tmp_path / "none", key), "which is not a file; give a PEM file"),
        ((cert, made / "other.pem"), "cannot be used (KEY_VALUES_MISMATCH)"),
        ((key, key), "cannot be used ("),
        ((cert, made / "locked.pem"), "which has a password; give a key without one"),
    ):
        said = error_of("--tls-cert", str(files[0]), "--tls-key", str(files[1]))
        assert words in said and said.count("\n") == 1, said
    open_key = tmp_path / "key.pem"
    open_key.write_bytes(key.read_bytes())
    open_key.chmod(0o644)
    with pytest.warns(DDFMWarning, match="other users of this machine may read it; chmod 600"):
        read_tls(cert, open_key)
