"""Command lines of all kinds."""

from __future__ import annotations

import os
import warnings

import cv2
import numpy as np
from campaign import Campaign, pick
from typer.testing import CliRunner

from ddfm_fast.cli.app import app

GRAY = (np.random.default_rng(0).random((40, 48)) * 255).astype(np.uint8)
WORDS = ("", "x", "-1", "0", "nan", "inf", "1e999", "auto", "off", "ir=3", "ir=,vis", "{}", "[",
         "ä", "\udc80", "n" * 300, "/dev/null", "..", "-", "--help")  # fmt: skip


def test_command_lines(tmp_path):
    for name in ("ir", "vis"):
        (tmp_path / name).mkdir()
        for n in range(2):
            cv2.imwrite(str(tmp_path / name / f"{n}.png"), np.roll(GRAY, n, 0))
    ir, vis, out = (str(tmp_path / name) for name in ("ir", "vis", "out"))
    flags = (
        "--preset", "--denoise", "--images", "--steps", "--stretch", "--seed", "--prior",
        "--prior-config", "--variant", "--sampler", "--psi", "--eta", "--format", "--device",
        "--batch-size", "--dtype", "--backend", "--graph", "--max-pixels", "--color-from",
    )  # fmt: skip

    def attempt(rng: np.random.Generator) -> str:
        command = pick(rng, "fuse", "fuse", "batch", "evaluate", "presets", "prior")
        places = [pick(rng, ir, vis, *WORDS) if rng.random() < 0.2 else p for p in (ir, vis)]
        line = [command, *places] if command != "presets" else [command]
        if command == "prior":
            line = ["prior", pick(rng, "info", "convert"), pick(rng, "embedded", ir, *WORDS)]
        if command in ("fuse", "batch"):
            line += ["-o", pick(rng, out, out, out, *WORDS[:9], ir), "--preset", "instant"]
        for _ in range(int(rng.integers(0, 3))):
            line += [pick(rng, *flags), pick(rng, *WORDS)]
        if rng.random() < 0.2:
            line.append(pick(rng, "--json", "-q", "--gray", "--redo", "--panel"))
        before = os.getcwd()
        os.chdir(tmp_path)  # outputs called "x" go there
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = CliRunner().invoke(app, line)
        finally:
            os.chdir(before)
        assert result.exit_code in (0, 1, 2), (line, result.exit_code)
        error = result.exception
        assert error is None or isinstance(error, SystemExit), (line, repr(error))
        assert "Traceback" not in result.output, line
        return f"exit code {result.exit_code}"

    Campaign("command lines", attempt).run().check(least=30)
