"""Folders that fail and hesitate at random: an item fails, is named, and nothing else is lost."""

from __future__ import annotations

import hashlib
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from batches import add_pair, make_fuser, names, pictures
from campaign import SECONDS, Campaign, pick
from clips import pan, quick_fuser, read_clip, write_clip
from failing import FailingFolder

from ddfm_fast.datasets.batch import STAGING, run_batch
from ddfm_fast.datasets.pairs import find_pairs
from ddfm_fast.files.reading import read_image
from ddfm_fast.files.writing import write_image
from ddfm_fast.video import fuse_video

PAIRS, FRAMES = 6, 10
RATES = (0.003, 0.01, 0.03, 0.1)


def hashes(folder: Path) -> dict[Path, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def failing(rng: np.random.Generator, folder: Path) -> FailingFolder:
    slow = pick(rng, 0.0, 0.0, 0.05)
    return FailingFolder(folder, int(rng.integers(1 << 30)), pick(rng, *RATES), slow)


def test_batches_in_failing_folders(tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    for n in range(PAIRS):
        add_pair(data, f"test/{n}", seed=n)
    fuser, untouched = make_fuser(), hashes(data)
    everything = {item.name for item in find_pairs(data)}

    def attempt(rng: np.random.Generator) -> str:
        if rng.random() < 0.6:
            shutil.rmtree(out, ignore_errors=True)
        done, word = set(), "refused"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with failing(rng, tmp_path).failing() as faults:
                try:
                    items = find_pairs(data, check_sizes=bool(rng.random() < 0.3))
                    report = run_batch(items, out, fuser, redo=bool(rng.random() < 0.5))
                except ValueError as error:
                    assert str(tmp_path) in str(error), f"{error}; {faults.failed}"
                else:
                    word = "whole" if report.ok else "in part"
            if word != "refused":  # results are read from the history when they are looked at
                done = names(report, "done")
                for result in report.results:
                    failed = result.status == "failed"
                    assert not failed or str(tmp_path) in result.error, result
            before = pictures(out)
            assert done <= set(before), "what was called done is not there"
            assert all(read_image(out / f"{name}.png").ndim == 3 for name in before)
            left = [p for p in out.rglob("*.tmp") if STAGING not in p.parts]
            assert left == [], (left, faults.failed)
            again = run_batch(find_pairs(data), out, fuser)
        assert again.ok and done <= names(again, "skipped"), "what was done was done again"
        assert set(pictures(out)) == everything and not (out / STAGING).exists()
        assert hashes(data) == untouched, "an input was changed"
        return word

    Campaign("batches in failing folders", attempt).run(SECONDS / 2).check(least=4)


def test_videos_in_failing_folders(tmp_path):
    pytest.importorskip("av")
    data, out = tmp_path / "data", tmp_path / "out"
    for name, channels in (("ir", 1), ("vis", 3)):
        frames = pan(FRAMES, channels, channels=channels)
        write_clip(data.with_name(f"{name}.mp4"), frames)
        for n, image in enumerate(frames):
            write_image(data / name / f"{n}.png", image)
    clips = tuple(tmp_path / f"{name}.mp4" for name in ("ir", "vis"))
    fuser = quick_fuser(preset="instant")
    untouched = {**hashes(data), **{clip: clip.read_bytes() for clip in clips}}

    def attempt(rng: np.random.Generator) -> str:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        sources = pick(rng, clips, (data / "ir", data / "vis"))
        target = out / pick(rng, "o.mp4", "o.mkv", "o")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with failing(rng, tmp_path).failing() as faults:
                try:
                    report = fuse_video(*sources, target, fuser=fuser, preset="realtime")
                    word, text = ("whole" if report.ok else "in part"), ""
                except ValueError as error:
                    word, text = "refused", str(error)
                    assert str(tmp_path) in text, f"{error}; {faults.failed}"
            _check(target, word, text)
            again = fuse_video(*sources, target, fuser=fuser, preset="realtime")
        assert again.ok and again.frames == FRAMES
        assert [p.name for p in out.rglob(".*")] == [], faults.failed
        found = {**hashes(data), **{clip: clip.read_bytes() for clip in clips}}
        assert found == untouched, "an input was changed"
        return word

    Campaign("videos in failing folders", attempt).run(SECONDS / 4).check(least=2)


def _check(target: Path, word: str, text: str) -> None:
    """Check that the output is whole or absent, and that a part that stays is named and plays."""
    if target.suffix == "":
        for path in target.glob("*.png"):
            read_image(path)
    else:
        assert target.exists() == (word != "refused")
        assert word != "whole" or len(read_clip(target)[0]) == FRAMES
    for part in target.parent.glob("*.part-*"):
        assert str(part) in text and read_clip(part)[0], part
