"""``prior train``: on a few pictures that the test makes, resumed, judged against the package's."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ddfm_fast.cli.app import app
from ddfm_fast.priors.load import load_prior
from ddfm_fast.priors.training import own
from ddfm_fast.priors.training.diffusion import alphas_cumprod, denoised_psnr
from ddfm_fast.priors.training.own import train_own
from ddfm_fast.priors.training.photos import read_photo
from ddfm_fast.priors.training.run import state_path


@pytest.fixture(scope="module")
def stripes(tmp_path_factory):
    """Pictures of one kind: bars of one period and contrast, in 16 bits of a camera's counts."""
    folder = tmp_path_factory.mktemp("stripes")
    rng = np.random.default_rng(0)
    for i in range(6):
        rows, columns = np.mgrid[:96, :112]
        angle = rng.uniform(0, np.pi)
        wave = np.sin((rows * np.sin(angle) + columns * np.cos(angle)) * 1.3) > 0
        cv2.imwrite(str(folder / f"{i}.png"), (7000 + 600 * wave).astype(np.uint16))
    return folder


def command(*arguments):
    return CliRunner().invoke(app, ["prior", "train", *map(str, arguments), "--device", "cpu"])


def test_deep_pictures_fill_the_range(stripes):
    photo = read_photo(stripes / "0.png")
    assert photo.dtype == np.uint8 and photo.shape == (96, 112, 3)
    assert sorted(np.unique(photo)) == [0, 255]


def test_psnr_is_that_of_the_picture():
    """At one level, against the definition: 20 log10(peak / rms), peak 2."""
    t = int((127.5 * (1 / alphas_cumprod() - 1).sqrt() - 10).abs().argmin())
    sigma = float((1 / alphas_cumprod()[t] - 1).sqrt())
    eps_error = 0.09
    wanted = 20 * np.log10(2 / (sigma * np.sqrt(eps_error)))
    assert denoised_psnr([(t, eps_error), (999, 5.0)], alphas_cumprod()) == pytest.approx(wanted)


def test_gray_prior_of_own_pictures_is_better(stripes, tmp_path):
    out = tmp_path / "stripes.safetensors"
    result = command(stripes, "-o", out, "--gray", "--updates", 40)
    assert result.exit_code == 0, result.output
    assert "done: " in result.stdout and "1 held-out picture" in result.stdout
    prior = load_prior(out)
    assert prior.channels == 1 and prior.fingerprint != load_prior("embedded-gray").fingerprint
    sheet = cv2.imread(str(tmp_path / "stripes.samples.png"))
    assert sheet.shape == (2 * 128, 7 * 128, 3) and sheet.std() > 20
    entries = [
        json.loads(line) for line in (tmp_path / "stripes.log.jsonl").read_text().splitlines()
    ]
    assert entries[-1]["step"] == 40 and entries[-1]["psnr"] > 15
    # the verdict, computed here: one noise, one picture
    settings = own.Settings(**torch.load(state_path(out))["settings"])
    photos = sorted(stripes.iterdir())
    outcome = own.judged(out, "embedded-gray", photos, settings, progress=False)
    tile = torch.from_numpy(read_photo(stripes / outcome.held_out[0])[..., 0].astype(np.float32))
    x0 = (tile / 127.5 - 1)[None, None]
    t = int((127.5 * prior.noise_levels - 30).abs().argmin())
    sigma = float(prior.noise_levels[t])
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(t))
    x_t = (x0 + sigma * noise) / np.sqrt(1 + sigma**2)
    eps = prior.eps(x_t.float(), prior.conditioning(torch.tensor([t]))[0])
    found = x0 + sigma * (noise - eps)
    wanted = 10 * np.log10(4 / float((found - x0).square().mean()))
    assert outcome.psnr[2] == pytest.approx(wanted, abs=0.01)
    assert outcome.gain == pytest.approx(np.mean(np.subtract(outcome.psnr, outcome.embedded_psnr)))


def test_not_better_is_said_and_kept(stripes, tmp_path):
    out = tmp_path / "a.safetensors"
    result = command(stripes, "-o", out, "--updates", 1, "--start", "none", "--json")
    assert result.exit_code == 1 and out.is_file()
    found = json.loads(result.stdout)
    assert not found["better"] and found["gain"] < 0 and found["updates"] == 1
    result = command(stripes, "-o", out)  # again: only the judging is left
    assert result.exit_code == 1 and "not better than embedded" in result.stderr


def test_resumes_with_what_it_was_begun_with(stripes, tmp_path, monkeypatch):
    out, whole = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    train_own(stripes, whole, updates=4, device="cpu", progress=False)
    real, done = own.train, own.Run.train_step

    def killed(self):
        if self.step == 2:
            self.save(out, {})
            raise KeyboardInterrupt
        return done(self)

    monkeypatch.setattr(own.Run, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train_own(stripes, out, updates=4, device="cpu", progress=False)
    monkeypatch.setattr(own.Run, "train_step", done)
    assert real is own.train
    outcome = train_own(stripes, out, minutes=1000, device="cpu", progress=False)
    assert outcome.updates == 4
    assert load_prior(out).fingerprint == load_prior(whole).fingerprint
    with pytest.raises(ValueError, match="of other channels; give the folder and --gray"):
        train_own(stripes, out, gray=True, device="cpu")
    (stripes / "new.png").write_bytes((stripes / "0.png").read_bytes())
    try:
        with pytest.raises(ValueError, match="is of other pictures"):
            train_own(stripes, out, device="cpu")
    finally:
        (stripes / "new.png").unlink()
    state_path(out).write_bytes(b"damaged")
    with pytest.raises(ValueError, match="is not the state of a training"):
        train_own(stripes, out, device="cpu")


def test_minutes_become_updates(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(own.time, "monotonic", lambda: now[0])

    class Timed:
        def train_step(self):
            now[0] += 10

    assert own._affordable(Timed(), 30) == 162  # nine tenths of 1,800 s, 10 s each


def test_bad_input(stripes, tmp_path):
    out = tmp_path / "a.safetensors"
    for change, words in (
        ({"minutes": 0}, "--minutes is 0"),
        ({"minutes": float("nan")}, "--minutes is nan"),
        ({"out": tmp_path / "a.pt"}, "must end in .safetensors"),
        ({"folder": tmp_path / "nowhere"}, "is not a folder"),
        ({"start": "nowhere.pt", "updates": 1}, "nowhere.pt"),
    ):
        with pytest.raises(ValueError, match=words):
            train_own(**{"folder": stripes, "out": out, "device": "cpu", **change})
    out.write_bytes(b"mine")
    with pytest.raises(ValueError, match="exists, without the state"):
        train_own(stripes, out, device="cpu")
    assert out.read_bytes() == b"mine"
    small = tmp_path / "small"
    small.mkdir()
    for i in range(2):
        cv2.imwrite(str(small / f"{i}.png"), np.zeros((20, 20), np.uint8))
    with pytest.raises(ValueError, match="'0.png' is 20 pixels .* at least 32"):
        train_own(small, tmp_path / "b.safetensors", device="cpu")


def test_the_folder_is_named_as_the_command_has_it(tmp_path):
    with pytest.raises(ValueError, match="FOLDER '.*absent' is not a folder"):
        train_own(tmp_path / "absent", tmp_path / "a.safetensors")
