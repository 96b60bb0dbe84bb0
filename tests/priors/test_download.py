"""Downloads from a server of the test, which breaks off, changes its file or lies."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from networks import SMALL, random_unet
from typer.testing import CliRunner

from ddfm_fast.cli.app import app
from ddfm_fast.priors import download as module
from ddfm_fast.priors.catalog import CATALOG, known
from ddfm_fast.priors.download import download
from ddfm_fast.priors.load import load_prior

ROW = known("adm-256")


class Server:
    """Answers with ``content``; the next of ``breaks`` says after how many bytes it hangs up."""

    def __init__(self, content: bytes):
        self.content, self.tag, self.breaks = content, '"one"', []
        self.ranges: list[str | None] = []
        self.headers: dict[str, str] = {}
        self.status = 0

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range")
        self.ranges.append(asked)
        if self.status:
            request.send_error(self.status)
            return
        start, body = 0, self.content
        if asked and request.headers.get("If-Range") == self.tag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                request.send_response(416)
                request.send_header("Content-Range", f"bytes */{len(body)}")
                request.end_headers()
                return
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        request.send_header("Content-Length", str(len(body) - start))
        request.send_header("ETag", self.tag)
        for name, value in self.headers.items():
            request.send_header(name, value)
        request.end_headers()
        most = self.breaks.pop(0) if self.breaks else len(body)
        request.wfile.write(body[start : start + most])


@contextmanager
def listening(answer):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            answer(self)

        def do_HEAD(self):
            answer(self)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "a.pt"
    torch.save(random_unet({**SMALL, "middle_attention": False}).state_dict(), path)
    return path.read_bytes()


@pytest.fixture
def server(weights):
    server = Server(weights)
    with listening(server.answer) as url:
        server.url = url + "/256x256_diffusion_uncond.pt"
        yield server


def test_whole_file(server, weights, tmp_path):
    server.headers["Content-MD5"] = base64.b64encode(hashlib.md5(weights).digest()).decode()
    seen = []
    found = download(
        ROW, tmp_path, url=server.url, progress=lambda have, total: seen.append((have, total))
    )
    assert found.path == tmp_path / "256x256_diffusion_uncond.pt" and found.fresh
    assert found.path.read_bytes() == weights
    assert found.sha256 == {found.path.name: hashlib.sha256(weights).hexdigest()}
    assert found.checked == "length, the server's MD5"
    assert seen[-1] == (len(weights), len(weights))
    assert [p.name for p in tmp_path.iterdir()] == [found.path.name]
    again = download(ROW, tmp_path, url=server.url)
    assert not again.fresh and again.sha256 == found.sha256 and len(server.ranges) == 1
    assert load_prior(found.path).multiple == 2


def test_resumes_within_a_call(server, weights, tmp_path):
    server.breaks = [1000, 500, len(weights) // 2]
    found = download(ROW, tmp_path, url=server.url)
    assert found.path.read_bytes() == weights
    assert server.ranges == [
        None,
        "bytes=1000-",
        "bytes=1500-",
        f"bytes={1500 + len(weights) // 2}-",
    ]


def test_resumes_in_a_later_call(server, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TRIES", 2)
    server.breaks = [1000] + [0] * 2
    with pytest.raises(ConnectionError, match="broke off after 1,000 bytes .* resumes"):
        download(ROW, tmp_path, url=server.url)
    assert not (tmp_path / "256x256_diffusion_uncond.pt").exists()
    server.ranges.clear()
    assert download(ROW, tmp_path, url=server.url).path.read_bytes() == weights
    assert server.ranges == ["bytes=1000-"]


def test_a_file_that_changed_meanwhile_is_fetched_from_its_start(server, weights, tmp_path):
    before, server.content = weights, weights[:2000] + b"x" * 3000
    server.breaks = [1000]

    def answer_then_change(request):
        server.answer(request)
        server.content, server.tag = before, '"two"'

    with listening(answer_then_change) as url:
        found = download(ROW, tmp_path, url=f"{url}/256x256_diffusion_uncond.pt")
    assert found.path.read_bytes() == weights
    assert server.ranges == [None, "bytes=1000-"]


def test_all_was_here_but_its_name(server, weights, tmp_path):
    """A process that was killed between the last byte and the renaming."""
    (tmp_path / "partial.256x256_diffusion_uncond.pt").write_bytes(weights)
    note = {"url": server.url, "tag": server.tag, "md5": ""}
    (tmp_path / "partial.256x256_diffusion_uncond.pt.json").write_text(json.dumps(note))
    assert download(ROW, tmp_path, url=server.url).path.read_bytes() == weights
    assert server.ranges == [f"bytes={len(weights)}-"]


def test_hashes_are_checked(server, weights, tmp_path):
    right = hashlib.sha256(weights).hexdigest()
    with pytest.raises(ValueError, match=f"sha256 {right}, expected 0000"):
        download(ROW, tmp_path, url=server.url, sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="expected 64 hexadecimal"):
        download(ROW, tmp_path, url=server.url, sha256="abc")
    assert download(ROW, tmp_path, url=server.url, sha256=right.upper()).checked.endswith("sha256")
    with pytest.raises(ValueError, match="expected 1111.*remove"):
        download(replace(ROW, sha256="1" * 64), tmp_path, url=server.url)
    server.headers["Content-MD5"] = base64.b64encode(bytes(16)).decode()
    with pytest.raises(ValueError, match="the MD5 of the download is not the server's"):
        download(ROW, tmp_path / "other", url=server.url)
    assert list((tmp_path / "other").iterdir()) == []


def test_a_page_is_no_checkpoint(server, tmp_path):
    server.content = b"<!DOCTYPE html><html>log in first</html>"
    with pytest.raises(ValueError, match="is no checkpoint"):
        download(ROW, tmp_path, url=server.url)
    assert list(tmp_path.iterdir()) == []


def test_answers_that_are_errors(server, tmp_path):
    server.status = 404
    with pytest.raises(ConnectionError, match="answered 404.*--url"):
        download(ROW, tmp_path, url=server.url)
    assert len(server.ranges) == 1


def test_offline(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TRIES", 1)
    with pytest.raises(ConnectionError, match="cannot be reached.*offline, .*another machine"):
        download(ROW, tmp_path, url="http://127.0.0.1:1/a.pt")


def test_what_has_no_address_and_bad_addresses(tmp_path):
    with pytest.raises(ValueError, match="RePaint"):
        download(known("places256"), tmp_path)
    with pytest.raises(ValueError, match="expected an address"):
        download(ROW, tmp_path, url="file:///etc/passwd")
    with pytest.raises(ValueError, match="no 'nothing', expected one of adm-256"):
        known("nothing")
    with pytest.raises(ValueError, match="folder of files"):
        download(known("ddpm-church-256"), tmp_path, sha256="0" * 64)


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("DDFM_FAST_CACHE", str(tmp_path))
    assert module.cache_folder() == tmp_path / "priors"
    monkeypatch.delenv("DDFM_FAST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert module.cache_folder() == tmp_path / "x" / "ddfm_fast" / "priors"


def test_commands(server, weights, tmp_path, monkeypatch):
    monkeypatch.setenv("DDFM_FAST_CACHE", str(tmp_path))
    result = CliRunner().invoke(app, ["prior", "download", "adm-256", "--url", server.url])
    assert result.exit_code == 0, result.output
    assert str(tmp_path / "priors") in result.stdout
    assert hashlib.sha256(weights).hexdigest() in result.stdout
    result = CliRunner().invoke(app, ["prior", "list"])
    assert all(name in result.stdout for name in CATALOG)
    rows = json.loads(CliRunner().invoke(app, ["prior", "list", "--json"]).stdout)
    assert [row["name"] for row in rows] == list(CATALOG)
    assert all(bool(row["where"]) != bool(row["by_hand"]) for row in rows)


class Hub:
    """What the Hub's library requests, for one folder."""

    def __init__(self, files: dict[str, bytes]):
        self.files, self.breaks, self.ranges = files, [], []
        self.lie = False

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        if "/tree/" in path:
            self.send(request, 200, json.dumps([self.entry(name) for name in self.files]).encode())
            return
        if path.startswith("/api/models/"):
            siblings = [self.sibling(name) for name in self.files]
            told = {"id": "google/ddpm-church-256", "sha": "a" * 40, "siblings": siblings}
            self.send(request, 200, json.dumps({**told, "tags": []}).encode())
            return
        content = self.files.get(path.partition("/resolve/")[2].partition("/")[2])
        if content is None:
            self.send(request, 404, b"")
            return
        tag = hashlib.sha256(content).hexdigest()
        start = int((request.headers.get("Range") or "bytes=0-").split("=")[1].split("-")[0])
        if request.command == "GET" and path.endswith(".safetensors"):
            self.ranges.append(start)
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": "a" * 40}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.send(request, 206 if start else 200, content[start:], headers)

    def sibling(self, name):
        row = {"rfilename": name, "size": len(self.files[name]), "blobId": "b" * 40}
        if name.endswith(".safetensors"):
            digest = hashlib.sha256(self.files[name] + b"x" * self.lie).hexdigest()
            row["lfs"] = {"sha256": digest, "size": row["size"], "pointerSize": 130}
        return row

    def entry(self, name):
        content = self.files[name]
        row = {"type": "file", "path": name, "size": len(content), "oid": "b" * 40}
        if name.endswith(".safetensors"):
            digest = hashlib.sha256(content).hexdigest()
            row["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
        return row

    def send(self, request, status, body, headers=()):
        request.send_response(status)
        for name, value in dict(headers).items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command == "GET":
            large = len(body) > 5000
            request.wfile.write(body[: self.breaks.pop(0)] if large and self.breaks else body)


def ask_hub(url, home, *options):
    """Run in a separate process: the Hub's library reads its address when it is imported."""
    return subprocess.run(
        [sys.executable, "-m", "ddfm_fast", "prior", "download", "ddpm-church-256", *options],
        env={**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_folder_of_the_hub(tmp_path):
    pytest.importorskip("huggingface_hub")
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.UNet2DModel(
        sample_size=32, block_out_channels=(32, 32), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    model.save_pretrained(tmp_path / "made")
    diffusers.DDPMScheduler().save_pretrained(tmp_path / "made")
    files = {p.name: p.read_bytes() for p in (tmp_path / "made").iterdir()}
    hub = Hub({**files, "README.md": b"a card", "diffusion_pytorch_model.bin": b"left out"})
    with listening(hub.answer) as url:
        hub.breaks = [3000]
        done = ask_hub(url, tmp_path / "home", "--json")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert len(hub.ranges) == 2  # it broke off, and was requested again; blocks are 10 MB there
        name = "diffusion_pytorch_model.safetensors"
        assert found["sha256"] == {name: hashlib.sha256(files[name]).hexdigest()}
        assert found["checked"] == "the Hub's sha256"
        assert found["path"].startswith(str(tmp_path / "home"))
        hub.lie = True
        done = ask_hub(url, tmp_path / "other")
        assert done.returncode == 2 and "expected" in done.stderr
    prior = load_prior(found["path"])
    assert prior.num_train_timesteps == 1000 and prior.multiple == 2
    offline = ask_hub("http://127.0.0.1:1", tmp_path / "home")
    assert offline.returncode == 0 and "(was here)" in offline.stdout
    offline = ask_hub("http://127.0.0.1:1", tmp_path / "empty")
    assert offline.returncode == 2 and "offline, copy the folder" in offline.stderr
