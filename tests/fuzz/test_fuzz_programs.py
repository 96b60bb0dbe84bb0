"""Programs that are killed at random, or whose disk is full at random.

Nothing that has a name of its own is half-written, nothing is lost or done again, no input is
touched, and an error is a sentence that names the file.
"""

from __future__ import annotations

import hashlib
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
from campaign import SECONDS, Campaign, pick
from clips import pan, read_clip, write_clip
from forks import Done, Program

from ddfm_fast.files.reading import read_image

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="fork, POSIX signals and limits")

PAIRS, FRAMES, SIDE = 16, 24, 48
QUICK = ["--preset", "realtime", "--image-preset", "instant"]
"""options of a video that costs little"""
SCORED = ["--baselines", "--limit", "1", "-q"]
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
HEADER = 2000
"""bytes of a video that holds no frame yet"""


class Inputs(NamedTuple):
    """Folders of pictures and clips of both sources, which nothing may change."""

    root: Path
    pictures: tuple[Path, Path]
    clips: tuple[Path, Path]
    hashes: dict[Path, str]

    def check(self) -> None:
        """Check that all inputs are what they were."""
        assert self.hashes == _hashes(self.root), "an input was changed"


def _hashes(folder: Path) -> dict[Path, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Inputs:
    pytest.importorskip("av")
    root = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(0)
    for name in ("ir", "vis"):
        (root / name).mkdir()
        for n in range(PAIRS):
            picture = (rng.random((SIDE, SIDE)) * 255).astype(np.uint8)
            cv2.imwrite(str(root / name / f"{n:02d}.png"), picture)
    clips = (
        write_clip(root / "ir.mp4", pan(FRAMES, 1)),
        write_clip(root / "vis.mp4", pan(FRAMES, 2, channels=3)),
    )
    return Inputs(root, (root / "ir", root / "vis"), clips, _hashes(root))


@pytest.fixture(scope="module")
def program(tmp_path_factory, inputs) -> Iterator[Program]:
    folder = tmp_path_factory.mktemp("warm")
    with Program(
        folder,
        ["batch", *inputs.pictures, "-o", folder / "out", "--preset", "instant", "-q"],
        ["evaluate", *inputs.pictures, *SCORED, "--report", folder / "page.html"],
        ["video", *inputs.clips, "-o", folder / "o.mp4", *QUICK, "-q"],
        ["prior", "info", _prior()],
    ) as running:
        yield running


def _prior() -> Path:
    from ddfm_fast.priors.load import ASSETS

    return min(ASSETS.values(), key=lambda path: path.stat().st_size)


def decent(done: Done) -> None:
    """Check a run's manners: a valid exit code, and sentences on stderr."""
    assert done.code in (0, 1, 2, 130, -signal.SIGKILL, -signal.SIGTERM), done
    for line in done.stderr.splitlines():
        known = ("error: ", "warning: ", "interrupted", "bad frame ", "stopped: ")
        assert line.startswith(known), done.stderr


def pictures(folder: Path) -> dict[str, int]:
    """Return the names of the pictures, each of which must be whole, and when they were written."""
    found = {}
    for file in folder.glob("*.png"):
        assert min(read_image(file).shape[:2]) >= SIDE, file
        found[file.name] = file.stat().st_mtime_ns
    return found


def plays(path: Path) -> int:
    """Count the frames of a video."""
    return len(read_clip(path)[0])


def plays_to_the_cut(path: Path) -> int:
    """Count the frames of what a kill left: its last packet may be half written, and no other."""
    av = pytest.importorskip("av")
    frames = 0
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        for packet in packets:
            try:
                frames += len(packet.decode())
            except av.error.InvalidDataError:
                assert packet is packets[-1], f"{path}: a packet before the last does not decode"
        return frames + len(packets[0].stream.decode(None)) if packets else 0


def temporaries(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.suffix == ".tmp" or "staging" in p.name]


# Kills


def test_killed_batches(program, inputs, tmp_path):
    out = tmp_path / "out"
    line = ["batch", *inputs.pictures, "-o", out, "--preset", "instant", "-q"]
    typical = program.run(*line).seconds

    def attempt(rng: np.random.Generator) -> str:
        for file in out.glob("*.png"):
            if rng.random() < 0.7:
                file.unlink()
        before = pictures(out)
        done = program.run(*line, kill_after=rng.uniform(0, typical), by=pick(rng, *SIGNALS))
        decent(done)
        after = pictures(out)
        assert before.items() <= after.items(), "what was done was done again"
        if done.code == 0:
            assert len(after) == PAIRS
        return "killed" if done.code else "done before"

    campaign = Campaign("killed batches", attempt).run(SECONDS * 3 / 4)
    done = program.run(*line)
    assert done.code == 0 and len(pictures(out)) == PAIRS and temporaries(out) == []
    inputs.check()
    campaign.check(least=4)


def test_killed_videos(program, inputs, tmp_path):
    def line(out: Path, rng: np.random.Generator) -> list:
        sources = pick(rng, inputs.clips, inputs.pictures)
        return ["video", *sources, "-o", out, *QUICK, "-q"]

    typical = program.run(*line(tmp_path / "first.mp4", np.random.default_rng(0))).seconds

    def attempt(rng: np.random.Generator) -> str:
        out = tmp_path / pick(rng, "o.mp4", "o.mkv", "o.ts", "o.mov", "o")
        if rng.random() < 0.5:
            out.unlink() if out.is_file() else shutil.rmtree(out, ignore_errors=True)
        before = out.read_bytes() if out.is_file() else None
        by, command = pick(rng, *SIGNALS), line(out, rng)
        done = program.run(*command, kill_after=rng.uniform(0, 1.2 * typical), by=by)
        decent(done)
        if out.suffix == "":
            pictures(out)
        elif before is None or not out.exists() or out.read_bytes() != before:
            assert before is None or out.exists(), "an older output is gone"
            if out.exists():
                assert plays(out) in (FRAMES, PAIRS) or done.code == 130, done
        _check_parts(program, rng, out, command)
        return "killed" if done.code else "done before"

    campaign = Campaign("killed videos", attempt).run(SECONDS * 3 / 4)
    inputs.check()
    campaign.check(least=4)


def _check_parts(program: Program, rng: np.random.Generator, out: Path, command: list) -> None:
    """Check that parts play or are empty, and that the next run names them and succeeds."""
    parts = list(out.parent.glob(f"{out.stem}.part-*"))
    for part in parts:
        if part.stat().st_size > HEADER:
            assert plays_to_the_cut(part) > 0, part
    if rng.random() < 0.3:
        kept = [part for part in parts if part.stat().st_size]
        done = program.run(*command)
        decent(done)
        assert done.code == 0 and all(str(part) in done.stderr for part in kept), done
        assert sorted(kept) == sorted(out.parent.glob(f"{out.stem}.part-*"))
        assert not list(out.parent.glob(f".{out.name}.lock"))
    for part in parts:
        part.unlink(missing_ok=True)


# Full disks


def test_full_disks(program, inputs, tmp_path):
    lines = {
        "batch": (["batch", *inputs.pictures, "--preset", "instant", "-q", "-o"], ""),
        "fuse": (["fuse", *inputs.pictures, "--preset", "instant", "--panel", "-q", "-o"], ""),
        "video": (["video", *inputs.clips, *QUICK, "-q", "-o"], ".mp4"),
        "matroska": (["video", *inputs.clips, *QUICK, "-q", "--codec", "ffv1", "-o"], ".mkv"),
        "frames": (["video", *inputs.pictures, *QUICK, "-q", "-o"], ""),
        "convert": (["prior", "convert", _prior()], ".safetensors"),
        "table": (["evaluate", *inputs.pictures, *SCORED, "--out"], ".csv"),
        "page": (["evaluate", *inputs.pictures, *SCORED, "--report"], ".html"),
    }

    def attempt(rng: np.random.Generator) -> str:
        name = pick(rng, *lines)
        line, suffix = lines[name]
        folder = tmp_path / name
        out = folder / f"out{suffix}"
        if rng.random() < 0.3:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        if name in ("batch", "fuse", "frames") and rng.random() < 0.7:
            for file in out.glob("*.png"):
                file.unlink()
        if suffix and not out.exists():
            out.write_bytes(b"an older file of that name")
        before = out.read_bytes() if suffix else b""
        limit = int(np.exp(rng.uniform(0, np.log(400_000))))
        done = program.run(*line, out, limit=limit)
        decent(done)
        assert temporaries(folder) == [], temporaries(folder)
        _check_output(out, before, done)
        if done.code:
            assert "error: " in done.stderr and str(folder) in done.stderr, done
        parts = list(folder.glob("*.part-*"))
        assert all(str(part) in done.stderr for part in parts), done
        for part in parts:
            part.unlink()
        return f"{name} {'done' if done.code == 0 else 'refused'}"

    campaign = Campaign("full disks", attempt).run(SECONDS / 2)
    inputs.check()
    campaign.check(least=4)


def _check_output(out: Path, before: bytes, done: Done) -> None:
    """Check that the output is whole, or what it was."""
    if out.suffix == "":
        found = pictures(out)
        assert done.code or len([name for name in found if "panel" not in name]) == PAIRS, done
    elif done.code:
        assert out.read_bytes() == before, f"{out} was changed: {done}"
    else:
        assert out.read_bytes() != b"an older file of that name"
        if out.suffix in (".mp4", ".mkv"):
            assert plays(out) == FRAMES
