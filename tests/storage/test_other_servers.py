"""Servers that are not S3: web servers with and without ranges, Google's and Azure's storage."""

from __future__ import annotations

import contextlib
import http.server
import importlib
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ddfm_fast.cli.app import app
from ddfm_fast.storage import objects
from ddfm_fast.storage.trouble import StorageError

pytestmark = [pytest.mark.extras, pytest.mark.slow]
fsspec = pytest.importorskip("fsspec")
QUICK = ("--preset", "instant", "--align", "off", "-q")
ODD = "a #ü%20.png"
# The key that Azurite's documentation gives to everyone.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class Plain(http.server.SimpleHTTPRequestHandler):
    """Python's own server: no ranges; names with "secret" are refused."""

    def send_head(self):
        if "secret" in self.path:
            self.send_error(403)
            return None
        return super().send_head()

    def log_message(self, *_):
        pass


class Ranges(Plain):
    """A server that gives parts, and answers no HEAD."""

    def do_HEAD(self):
        self.send_error(405)

    def do_GET(self):
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        file = Path(self.translate_path(self.path))
        if wanted is None or not file.is_file():
            super().do_GET()
            return
        data = file.read_bytes()
        first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        self.wfile.write(data[first : last + 1])


@contextlib.contextmanager
def web(folder: Path, kind: type) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(kind, directory=folder))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def google(monkeypatch) -> Iterator[str]:
    """A bucket of an emulator of Google's storage."""
    pytest.importorskip("gcsfs")
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket="box")
    server.start()
    port = server._api._httpd.server_port
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    fresh("gs")
    try:
        yield "gs://box"
    finally:
        server.stop()
        fresh("gs")


@pytest.fixture
def azure(monkeypatch, tmp_path) -> Iterator[str]:
    """A container of Azurite, which is a package of npm."""
    pytest.importorskip("adlfs")
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("azurite-blob is not on the path: npm install -g azurite")
    command = [program, "--blobHost", "127.0.0.1", "--blobPort", "0", "--location", str(tmp_path)]
    command += ["--silent", "--skipApiVersionCheck", "--disableTelemetry"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        lines = (re.search(r"listens on (http://\S+)", line) for line in server.stdout)
        address = next(found[1] for found in lines if found)
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection(address, KEY))
        fresh("az").mkdir("box")
        yield "az://box"
    finally:
        server.kill()
        server.wait()
        fresh("az")


def connection(address: str, key: str) -> str:
    name = "devstoreaccount1"
    return (
        f"DefaultEndpointsProtocol=http;AccountName={name};AccountKey={key};"
        f"BlobEndpoint={address}/{name};"
    )


def fresh(scheme: str):
    """Return a file system that reads the environment once more."""
    kind = fsspec.get_filesystem_class(scheme)
    kind.clear_instance_cache()
    with contextlib.suppress(ValueError):  # Azure's, without its environment
        return kind()


@pytest.fixture
def folder(tmp_path) -> Path:
    generator = np.random.default_rng(7)
    for name in ("0.png", ODD):
        for source, shape in (("ir", (24, 32)), ("vis", (24, 32, 3))):
            file = tmp_path / "data" / source / name
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 255, shape, dtype=np.uint8)).save(file)
    return tmp_path


def run(*arguments, code=0):
    found = CliRunner().invoke(app, [str(one) for one in arguments])
    assert found.exit_code == code, found.output
    return found


@pytest.mark.parametrize("kind", [Plain, Ranges])
def test_web_servers(folder, kind):
    """A pair, a list of URLs that is resumed, and what is not there or not allowed."""
    run("batch", folder / "data", "-o", folder / "local", *QUICK)
    with web(folder / "data", kind) as url:
        pair = (f"{url}/{source}/{quote(ODD)}" for source in ("ir", "vis"))
        run("fuse", *pair, "-o", folder / "one.png", *QUICK)
        assert (folder / "one.png").read_bytes() == (folder / "local" / ODD).read_bytes()
        rows = [
            f"{n},{url}/ir/{quote(f)},{url}/vis/{quote(f)}" for n, f in enumerate(("0.png", ODD))
        ]
        (folder / "list.csv").write_text("\n".join(["name,ir,vis", *rows, ""]))
        command = ("batch", url, "--manifest", folder / "list.csv", "-o", folder / "out", "--json")
        assert json.loads(run(*command, *QUICK).stdout)["done"] == 2
        assert (folder / "out/1.png").read_bytes() == (folder / "local" / ODD).read_bytes()
        again = json.loads(run(*command, *QUICK).stdout)
        assert again["skipped"] == (2 if kind is Plain else again["skipped"])
        for name, words in (("none.png", "no such object"), ("secret.png", "may not be read")):
            said = run(
                "fuse", f"{url}/{name}", f"{url}/vis/0.png", "-o", folder / "x.png", *QUICK, code=2
            ).stderr
            assert words in said and said.count("\n") == 1, said
        assert not (folder / "x.png").exists()
        with pytest.raises(StorageError, match="is read-only"):
            objects.put(f"{url}/a", b"")


@pytest.mark.parametrize("store", ["google", "azure"])
def test_clouds(store, folder, request):
    """Round trip, listing and resume, a large object, odd names, and what is not there."""
    url = request.getfixturevalue(store)
    run("batch", folder / "data", "-o", folder / "local", *QUICK)
    for file in (folder / "data").rglob("*.png"):
        objects.put(f"{url}/data/{file.relative_to(folder / 'data')}", file.read_bytes())
    assert {*objects.listing(f"{url}/data")} == {
        f"{source}/{name}" for source in ("ir", "vis") for name in ("0.png", ODD)
    }
    command = ("batch", f"{url}/data", "-o", f"{url}/out", "--json", *QUICK)
    assert json.loads(run(*command).stdout)["done"] == 2
    assert objects.read(f"{url}/out/{ODD}") == (folder / "local" / ODD).read_bytes()
    assert json.loads(run(*command).stdout)["skipped"] == 2
    objects.put(f"{url}/data/ir/0.png", (folder / f"data/ir/{ODD}").read_bytes())
    assert json.loads(run(*command).stdout)["done"] == 1
    large = folder / "large"
    large.write_bytes(np.random.default_rng(0).bytes(7 << 20))
    objects.put_file(f"{url}/large", large)
    assert objects.read(f"{url}/large") == large.read_bytes()
    other = url.replace("box", "nobody")
    with pytest.raises(StorageError, match="there is no such bucket"):
        objects.put(f"{other}/a", b"1")
    said = run("batch", f"{other}/data", "-o", f"{url}/x", *QUICK, code=2).stderr
    assert "no such object or prefix; check the name of the bucket" in said
    said = run("batch", f"{url}/data", "-o", f"{other}/x", *QUICK, code=2).stderr
    assert "there is no such bucket" in said


def test_credentials_of_azure(azure, monkeypatch):
    """Wrong credentials, and none, are reported as such."""
    address = fresh("az").connection_string.partition("BlobEndpoint=")[2].partition("/devstore")[0]
    objects.put(f"{azure}/a", b"1")
    wrong = connection(address, KEY.replace("Eby8", "AAAA"))
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", wrong)
    fresh("az")
    with pytest.raises(StorageError, match=r"may not be read.*AZURE_STORAGE_CONNECTION_STRING"):
        objects.read(f"{azure}/a")
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING")
    fresh("az")
    with pytest.raises(StorageError, match="there are no credentials"):
        objects.read(f"{azure}/a")


@pytest.mark.parametrize(("module", "url"), [("gcsfs", "gs://box/a"), ("adlfs", "az://box/a")])
def test_a_library_that_is_missing_is_named_with_its_extra(module, url, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(
        importlib.import_module("fsspec.registry")._registry, url[:2], raising=False
    )
    said = run("fuse", url, url, "-o", tmp_path / "new/x.png", *QUICK, code=2).stderr
    assert f"needs {module}" in said and f"ddfm_fast[{url[:2]}]'" in said
