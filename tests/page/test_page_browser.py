"""The page as its user meets it: a real server, a real Chromium."""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from typer.testing import CliRunner

from ddfm_fast.cli.app import app

for name, extra in (("gradio", "app"), ("playwright.sync_api", "app-test")):
    pytest.importorskip(name, reason=f"needs the extra {extra}")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.extras,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium"),
]

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
SOON, LATE = 20_000, 60_000
"""milliseconds: for what is shown at once, and for a fusion on a busy machine"""


class Served:
    """The process, its address, and what it wrote."""

    def __init__(self, folder: Path, *options: str):
        command = [sys.executable, "-m", "ddfm_fast", "app", "--port", "0", *options]
        self.folder, self.lines = folder, []
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)},
        )  # fmt: skip
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.search(r"http://\S+:\d+", line):
                self.url = found[0]
                break
        else:
            raise AssertionError(self.lines)
        self.thread = threading.Thread(target=lambda: self.lines.extend(self.process.stdout))
        self.thread.start()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        self.thread.join(10)
        return code

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.thread.join(10)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    found = Served(tmp_path_factory.mktemp("served"), "--max-pixels", "200000")
    yield found
    found.close()


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, served):
    """Opens the page in a window of a size; at the end nothing may have been asked elsewhere."""
    contexts, asked, broken = [], [], []

    def open_page(size: dict[str, int]):
        context = chromium.new_context(viewport=size, accept_downloads=True)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda m: broken.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: broken.append(str(error)))
        page.goto(served.url)
        page.wait_for_selector("#fuse", timeout=LATE)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert asked
    assert all(url.startswith((served.url, "data:", "blob:")) for url in asked), asked
    assert not broken, broken


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, Path]:
    """Infrared of 16 bits in TIFF, and visible in color."""
    folder = tmp_path_factory.mktemp("pair")
    y, x = np.mgrid[:120, :160]
    deep = 20_000 + 15_000 * np.sin(x / 17) * np.cos(y / 13)
    deep[40:70, 60:80] = 60_000
    color = (110 + 90 * np.sin(x / 9)[..., None] * [1, 0.7, 0.4]).round()
    Image.fromarray(deep.astype(np.uint16)).save(folder / "night.tif")
    Image.fromarray(color.astype(np.uint8)).save(folder / "day.png")
    return folder / "night.tif", folder / "day.png"


def upload(page, part: str, path: Path) -> None:
    page.set_input_files(f"#{part} input[type=file]", str(path))
    page.wait_for_selector(f"#{part} .file-preview", timeout=SOON)


def downloaded(page, button: str) -> bytes:
    with page.expect_download(timeout=SOON) as found:
        page.click(button)
    return Path(found.value.path()).read_bytes()


def command(line: str, files: list[Path], out: Path) -> bytes:
    """Run the command that the page shows, and return the bytes that it writes."""
    places = {one.name: str(one) for one in files}
    program, *arguments = shlex.split(line)
    arguments[arguments.index("-o") + 1] = str(out)
    assert program == "ddfm-fast"
    result = CliRunner().invoke(app, [places.get(one, one) for one in arguments])
    assert result.exit_code == 0, result.output
    return out.read_bytes()


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_a_pair_is_uploaded_fused_and_downloaded(opened, pair, form, tmp_path):
    page = opened(DESKTOP)
    upload(page, "ir-picture", pair[0])
    upload(page, "vis-picture", pair[1])
    page.wait_for_selector("#seen .sentences", timeout=SOON)
    assert "Infrared: 160 × 120 pixels, gray, 16 bits" in page.inner_text("#seen")
    page.get_by_label(form, exact=True).first.check()
    page.click("#fuse")
    page.wait_for_selector("#download", timeout=LATE)
    assert "160 × 120 pixels of 16 bits" in page.inner_text("#report")
    data = downloaded(page, "#download")
    line = page.inner_text("#report code")
    assert data == command(line, [*pair], tmp_path / f"out.{'tif' if form == 'TIFF' else 'png'}")
    opened_again = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert opened_again.shape == (120, 160, 3)


def test_the_line_between_source_and_result(opened):
    page = opened(DESKTOP)
    page.click("#sentinel2")
    page.wait_for_selector("#seen .sentences", timeout=SOON)
    page.click("#fuse")
    page.wait_for_selector("#slider img", timeout=LATE)
    page.wait_for_function(
        "[...document.querySelectorAll('#slider img')].filter(i => i.naturalWidth == 300)"
        ".length >= 2", timeout=SOON,
    )  # fmt: skip
    page.wait_for_function("document.querySelectorAll('.parts img').length == 3", timeout=SOON)

    def shown() -> np.ndarray:
        picture = page.locator("#slider").screenshot()
        return np.asarray(Image.open(io.BytesIO(picture)).convert("L")).astype(float)

    box = page.locator("#slider").bounding_box()
    handle = page.locator("#slider .outer, #slider [role=slider]").first
    before = shown()
    at = handle.bounding_box()
    page.mouse.move(at["x"] + at["width"] / 2, at["y"] + at["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.9 * box["width"], at["y"] + at["height"] / 2, steps=5)
    page.mouse.up()
    after = shown()
    changed = np.abs(after - before).mean(0) > 1
    width = len(changed)
    assert changed[int(0.55 * width) : int(0.85 * width)].mean() > 0.9  # the source is there now
    assert changed[: int(0.45 * width)].mean() < 0.1
    sources = [page.get_attribute("#slider img", "src")]
    page.get_by_label("Infrared", exact=True).check()
    page.wait_for_function(
        "src => document.querySelector('#slider img').getAttribute('src') != src",
        arg=sources[0], timeout=SOON,
    )  # fmt: skip
    page.get_by_text("Metrics", exact=True).click()
    page.wait_for_selector("#scores .scores", timeout=SOON)
    assert re.search(r"VIF\s+0\.\d{3}", page.inner_text("#scores"))


def test_another_place_is_enlarged(opened):
    page = opened(DESKTOP)
    page.click("#dune")
    page.wait_for_selector("#seen .sentences", timeout=SOON)
    page.click("#fuse")
    page.wait_for_function("document.querySelectorAll('.parts img').length == 3", timeout=LATE)
    first = page.get_attribute(".parts img", "src")
    across = page.locator("#across input[type=range]")
    across.focus()
    across.press("ArrowLeft")
    across.dispatch_event("pointerup")
    page.wait_for_function(
        "src => document.querySelector('.parts img').getAttribute('src') != src",
        arg=first, timeout=SOON,
    )  # fmt: skip


def test_a_bad_file_has_a_sentence(opened, served, pair, tmp_path):
    bad = tmp_path / "broken & cut.png"
    bad.write_bytes(pair[1].read_bytes()[:300])
    page = opened(DESKTOP)
    page.click("#fuse")
    page.wait_for_selector("#report .error", timeout=LATE)
    text = "no infrared and no visible picture is chosen; choose both."
    assert page.inner_text("#report") == text
    upload(page, "ir-picture", bad)
    upload(page, "vis-picture", pair[1])
    page.wait_for_selector("#seen .error", timeout=SOON)
    page.click("#fuse")
    page.wait_for_function(
        "document.querySelector('#report').innerText.includes('png')", timeout=LATE
    )
    said = page.inner_text("#report .error")
    assert re.match(r"broken [&_ ]*cut\.png: ", said), said
    assert str(served.folder) not in page.inner_text("body")
    assert "Traceback" not in page.content() and not page.is_visible("#download")
    large = tmp_path / "large.png"
    Image.new("L", (600, 400)).save(large)
    page.click("#ir-picture button[aria-label='Clear'], #ir-picture button[aria-label='Remove']")
    upload(page, "ir-picture", large)
    page.wait_for_function(
        "document.querySelector('#seen').innerText.includes('200000')", timeout=SOON
    )


def test_a_folder_as_zip(opened, pair, tmp_path):
    archive = tmp_path / "pairs.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for name in ("one", "two"):
            out.write(pair[0], f"set/ir/{name}.tif")
            out.write(pair[1], f"set/vis/{name}.png")
    page = opened(DESKTOP)
    page.get_by_role("tab", name="Folder").click()
    upload(page, "archive", archive)
    page.click("#fuse-folder")
    page.wait_for_selector("#download-folder", timeout=LATE)
    assert "2 of 2 pairs are fused" in page.inner_text("#folder-report")
    with zipfile.ZipFile(io.BytesIO(downloaded(page, "#download-folder"))) as found:
        assert found.namelist() == ["one.png", "two.png"]
        data = found.read("two.png")
    line = "ddfm-fast fuse night.tif day.png -o out.png"
    assert data == command(line, [*pair], tmp_path / "out.png")


def test_a_video(opened, tmp_path):
    av = pytest.importorskip("av", reason="needs the extra video")
    paths = []
    for name in ("t.mp4", "v.mp4"):
        paths.append(tmp_path / name)
        with av.open(str(paths[-1]), "w") as out:
            stream = out.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
            for n in range(6):
                image = np.full((64, 96, 3), 20 * n, np.uint8)
                image[10:30, 8 * n : 8 * n + 20] = 220
                out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            out.mux(stream.encode())
    page = opened(DESKTOP)
    page.get_by_role("tab", name="Video").click()
    upload(page, "ir-video", paths[0])
    upload(page, "vis-video", paths[1])
    page.click("#fuse-video")
    page.wait_for_selector("#download-video", timeout=LATE)
    data = downloaded(page, "#download-video")
    with av.open(io.BytesIO(data)) as found:
        assert sum(1 for _ in found.decode(video=0)) == 6
    page.wait_for_function("document.querySelector('video').videoWidth == 96", timeout=SOON)


def test_a_phone(opened):
    """Nothing is wider than the window, and what is touched is large enough."""
    page = opened(PHONE)
    page.click("#brain")
    page.wait_for_selector("#seen .sentences", timeout=SOON)
    page.click("#fuse")
    page.wait_for_function("document.querySelectorAll('.parts img').length == 3", timeout=LATE)
    for tab in ("Pictures", "Video", "Folder"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], tab
    page.get_by_role("tab", name="Pictures").click()
    for what in ("#fuse", "#download", "#slider", "#before"):
        box = page.locator(what).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"], what
        assert box["height"] >= 32, what
    tops = {round(box["y"]) for box in map(box_of, page.locator(".parts img").all())}
    assert len(tops) == 1  # the three parts stay side by side


def box_of(one) -> dict[str, float]:
    return one.bounding_box()


def test_steps_are_shown_as_they_are_done(opened, pair):
    page = opened(DESKTOP)
    upload(page, "ir-picture", pair[0])
    upload(page, "vis-picture", pair[1])
    page.get_by_label("Preset", exact=True).first.click()
    page.get_by_role("option", name="official", exact=True).click()
    page.get_by_text("More", exact=True).first.click()
    page.get_by_label("Steps").first.fill("60")
    page.evaluate(_WATCH)
    page.click("#fuse")
    page.wait_for_selector("#download", timeout=LATE)
    seen = [int(number) for number in page.evaluate("window.seenSteps")]
    assert len(set(seen)) >= 2 and seen == sorted(seen), seen
    assert "fused by 60 steps" in page.inner_text("#report")
    assert "--preset=official --steps=60" in page.inner_text("#report code")


_WATCH = """() => {
  window.seenSteps = [];
  new MutationObserver(() => {
    const found = /step (\\d+) of 60/.exec(document.querySelector("#report").innerText);
    if (found) window.seenSteps.push(found[1]);
  }).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""
"""keeps the numbers of the steps that were shown, however short"""


def test_a_password_and_what_stays_behind(chromium, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("correct-horse-battery")
    secret.chmod(0o600)
    (folder := tmp_path / "tmp").mkdir()
    served = Served(folder, "--token-file", str(secret))
    try:
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(served.url, timeout=60)
        assert refused.value.code == 401
        who = {"username": "me", "password": "correct-horse-battery"}
        context = chromium.new_context(http_credentials=who)
        page = context.new_page()
        page.goto(served.url)
        page.wait_for_selector("#fuse", timeout=LATE)
        page.click("#dune")
        page.wait_for_selector("#seen .sentences", timeout=SOON)
        page.click("#fuse")
        page.wait_for_selector("#download", timeout=LATE)
        assert downloaded(page, "#download")[:4] == b"\x89PNG"
        context.close()
        assert [one.name[:14] for one in folder.iterdir() if one.is_dir()] == ["ddfm-fast-app-"]
        assert served.stop() == 0
        assert not [one for one in folder.iterdir() if one.name.startswith("ddfm-fast-app-")]
        assert not [line for line in served.lines if "Traceback" in line], served.lines
    finally:
        served.close()
