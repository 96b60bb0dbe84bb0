"""Files that were damaged: pictures, lists of pairs, videos."""

from __future__ import annotations

import hashlib
import io
import json
import warnings

import cv2
import numpy as np
import pytest
from campaign import SECONDS, Campaign, damaged, pick
from clips import pan, quick_fuser, write_clip
from PIL import Image

from ddfm_fast.datasets.pairs import find_pairs
from ddfm_fast.files.reading import read_image
from ddfm_fast.video import fuse_video

GRAY = (np.random.default_rng(0).random((40, 48)) * 255).astype(np.uint8)


def _encoded() -> dict[str, bytes]:
    rgb = np.stack([GRAY, GRAY[::-1], GRAY[:, ::-1]], -1)
    found = {}
    for suffix, image in ((".png", rgb), (".jpg", rgb), (".bmp", rgb), (".tif", GRAY)):
        found[suffix] = cv2.imencode(suffix, image)[1].tobytes()
    written = io.BytesIO()
    Image.fromarray(GRAY.astype(np.uint16) * 257).save(written, "PNG")
    return {**found, ".PNG": written.getvalue()}


def test_pictures(tmp_path):
    files = _encoded()

    def attempt(rng: np.random.Generator) -> str:
        suffix = pick(rng, *files)
        path = tmp_path / f"picture{suffix}"
        path.write_bytes(damaged(files[suffix], rng))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image = read_image(path, max_pixels=1 << 22)
        except ValueError as error:
            assert "picture" in str(error)
            return "refused"
        assert image.dtype in (np.uint8, np.uint16) and image.ndim in (2, 3)
        return "taken"

    Campaign("pictures", attempt).run(SECONDS / 2).check(least=100)


def test_lists_of_pairs(tmp_path):
    for name in ("a", "b"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), GRAY)
    rows = [{"ir": "a.png", "vis": "b.png", "name": "one"}]
    files = {
        "p.json": json.dumps(rows).encode(),
        "p.csv": b"ir,vis,name\na.png,b.png,one\n",
        "p.jsonl": json.dumps(rows[0]).encode(),
    }

    def attempt(rng: np.random.Generator) -> str:
        name = pick(rng, *files)
        path = tmp_path / name
        path.write_bytes(damaged(files[name], rng))
        try:
            find_pairs(tmp_path, manifest=path)
        except ValueError:
            return "refused"
        return "taken"

    Campaign("lists of pairs", attempt).run(SECONDS / 4).check(least=100)


def test_videos(tmp_path):
    pytest.importorskip("av")
    fuser = quick_fuser(preset="instant")
    clips = {}
    for suffix in (".mp4", ".mkv", ".ts"):
        clip = write_clip(tmp_path / f"vis{suffix}", pan(12, 2, channels=3))
        clips[suffix] = clip.read_bytes()
    infrared = write_clip(tmp_path / "ir.mp4", pan(12, 1))
    untouched = hashlib.sha256(infrared.read_bytes()).digest()

    def attempt(rng: np.random.Generator) -> str:
        suffix = pick(rng, *clips)
        path, out = tmp_path / f"damaged{suffix}", tmp_path / "out.mkv"
        data = damaged(clips[suffix], rng)
        path.write_bytes(data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                report = fuse_video(
                    infrared, path, out, fuser=fuser, preset="realtime", resize="ir"
                )
            word = "whole" if report.ok else "in part"
            assert report.frames > 0 and out.exists()
        except ValueError as error:
            assert "damaged" in str(error) or "frame" in str(error) or "size" in str(error), error
            word = "refused"
        assert path.read_bytes() == data and not list(tmp_path.glob("out.part*"))
        assert hashlib.sha256(infrared.read_bytes()).digest() == untouched
        return word

    Campaign("videos", attempt).run().check(least=10)
