"""Training on a handful of synthetic photographs: it learns, resumes, exports and explains."""

from __future__ import annotations

import json
import math
import shutil

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from ddfm_fast.priors.checkpoint import describe
from ddfm_fast.priors.load import load_prior
from ddfm_fast.priors.training.architectures import ARCHITECTURES, architecture
from ddfm_fast.priors.training.diffusion import WEIGHTINGS, T, alphas_cumprod, diffuse, loss_weights
from ddfm_fast.priors.training.log import draw_curve
from ddfm_fast.priors.training.photos import (
    Patches,
    augment,
    black_ground,
    enlarge,
    find_photos,
    split_photos,
)
from ddfm_fast.priors.training.run import Run, Settings, state_path, train
from ddfm_fast.priors.training.train import app

SETTINGS = Settings(
    steps=6, batch=4, patch=16, lr=1e-3, seed=3, holdout=1, weighting="p2", wide_every=2
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(4):
        coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (96, 72), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"photo{i}.png"), image)
    (folder / "notes.txt").write_text("not a photograph")
    return folder


def small_config():
    return architecture("embedded", channel_mult=(1, 1), pixel_unshuffle=2)


def run_command(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def make_run(photos, **changes):
    settings = Settings(**{**vars(SETTINGS), **changes})
    return Run(small_config(), settings, find_photos(photos))


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "float32"},
        {"precision": "bfloat16"},
        pytest.param(
            {"precision": "bfloat16", "compiled": True, "wide_every": 0},
            marks=[
                pytest.mark.thorough,
                pytest.mark.skipif(not shutil.which("g++"), reason="Inductor needs a compiler"),
            ],
        ),
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_resumed_run_equals_an_uninterrupted_one(photos, tmp_path, changes):
    whole, first, second = (make_run(photos, **changes) for _ in range(3))
    train(whole, tmp_path / "whole.safetensors", log_every=2, progress=False)
    train(first, tmp_path / "cut.safetensors", log_every=2, stop_at=3, progress=False)
    train(second, tmp_path / "cut.safetensors", log_every=2, resume=True, progress=False)
    assert second.step == 6
    for name in ("model", "ema"):
        expected = getattr(whole, name).state_dict()
        for key, value in getattr(second, name).state_dict().items():
            assert torch.equal(value, expected[key]), key
    logs = [
        [(line["step"], line["heldout"]) for line in map(json.loads, path.read_text().splitlines())]
        for path in (tmp_path / "whole.log.jsonl", tmp_path / "cut.log.jsonl")
    ]
    assert logs[0] == logs[1] and [step for step, _ in logs[0]] == [2, 4, 6]


def test_curve_is_drawn_at_the_end(photos, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "a.safetensors"
    train(make_run(photos), out, log_every=2, progress=False)
    picture = cv2.imread(str(tmp_path / "a.curve.png"))
    assert picture.std() > 5
    log = tmp_path / "a.log.jsonl"
    log.write_text("")
    assert not draw_curve(log, tmp_path / "b.png") and not (tmp_path / "b.png").exists()


def test_log_lines_past_the_checkpoint_are_written_again(photos, tmp_path):
    out = tmp_path / "a.safetensors"
    train(make_run(photos), out, log_every=1, stop_at=3, progress=False)
    state = state_path(out).read_bytes()
    train(make_run(photos), out, log_every=1, stop_at=5, resume=True, progress=False)
    state_path(out).write_bytes(state)  # as if killed after logging and before saving
    train(make_run(photos), out, log_every=1, resume=True, progress=False)
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "a.log.jsonl").read_text().splitlines()
    ]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_training_lowers_the_heldout_loss(photos):
    run = make_run(photos, steps=150, lr=3e-3)
    before = run.heldout_loss(20)["all"]
    assert 0.2 < before < 1  # a fresh network answers eps = skip x_t
    while not run.finished():
        run.train_step()
    assert run.heldout_loss(20)["all"] < 0.7 * before


def test_export_is_the_averaged_network(photos, tmp_path):
    run = make_run(photos)
    out = tmp_path / "a.safetensors"
    train(run, out, progress=False)
    for key, value in load_file(out).items():
        assert torch.equal(value, run.ema.state_dict()[key].half()), key
    assert any(
        not torch.equal(a, b)
        for a, b in zip(run.ema.parameters(), run.model.parameters(), strict=True)
    )
    prior = load_prior(out)
    x = torch.randn(1, 3, 16, 16)
    step = prior.conditioning(torch.tensor([10]))[0]
    torch.testing.assert_close(
        prior.eps(x, step), run.ema(x, torch.tensor([10])), rtol=0, atol=2e-3
    )
    training = describe(out)["training"]
    assert training["steps_done"] == 6 and training["seed"] == 3
    assert training["heldout_photos"] == ["photo2.png"] and len(training["data_sha256"]) == 64


def test_resume_refuses_another_run(photos, tmp_path):
    out = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match="there is no .*a.state.pt"):
        train(make_run(photos), out, resume=True, progress=False)
    train(make_run(photos), out, stop_at=1, progress=False)
    with pytest.raises(ValueError, match="trained with settings"):
        train(make_run(photos, lr=2e-3), out, resume=True, progress=False)


def test_learning_rate_depends_on_the_step_alone(photos):
    run = make_run(photos, steps=10000)
    rates = []
    for run.step, run.seconds in ((0, 0.0), (499, 9e9), (5000, 1.0), (10000, 2.0)):
        rates.append(run.learning_rate())
    assert rates[0] == pytest.approx(1e-3 / 500)
    assert rates[1:] == pytest.approx([1e-3, 0.5e-3, 0], rel=0.01, abs=1e-12)
    assert run.finished()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_wide_patches_and_stratified_timesteps(photos, precision):
    run = make_run(photos, batch=8, precision=precision)
    x0, t, noise = run.draw()
    assert x0.shape == noise.shape == (8, 3, 16, 16)
    assert (t // (T // 8)).tolist() == list(range(8))
    assert math.isfinite(run.train_step())
    x0, t, noise = run.draw()
    assert x0.shape == noise.shape == (2, 3, 32, 32) and len(t) == 2
    assert math.isfinite(run.train_step())


def test_bfloat16_trains_like_float32(photos):
    """With the same draws, the loss falls alike; the exported weights are float32 throughout."""
    losses = {}
    for precision in ("float32", "bfloat16"):
        run = make_run(photos, steps=30, lr=3e-3, precision=precision)
        losses[precision] = [run.train_step() for _ in range(30)]
        assert all(p.dtype == torch.float32 for p in run.ema.parameters())
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.1)
    assert losses["bfloat16"][-1] != losses["float32"][-1]


def test_loss_weights_have_mean_1_and_the_published_shape():
    alpha_bar = alphas_cumprod()
    snr = (alpha_bar / (1 - alpha_bar)).tolist()
    for name in WEIGHTINGS:
        weights = loss_weights(name)
        assert weights.shape == (T,) and weights.mean().item() == pytest.approx(1, rel=1e-5)
        assert (weights.diff() >= -1e-6).all()  # none favors low noise over high
    assert loss_weights("eps").unique().tolist() == [1]
    weights = loss_weights("min-snr").tolist()
    assert weights[900] / weights[100] == pytest.approx(snr[100] / 5, rel=1e-4)
    weights = loss_weights("p2").tolist()
    assert weights[900] / weights[100] == pytest.approx(
        ((1 + snr[100]) / (1 + snr[900])) ** 0.5, rel=1e-4
    )
    mild = loss_weights("p2-mild").tolist()
    assert mild[900] / mild[100] == pytest.approx((weights[900] / weights[100]) ** 0.5, rel=1e-4)
    with pytest.raises(ValueError, match="--weighting is 'snr'; expected one of eps"):
        loss_weights("snr")


def test_architectures_keep_their_budgets():
    from ddfm_fast.priors.cost import engine_cost, parameter_count

    budgets = {"embedded": (6e6, 160e3), "embedded-large": (48e6, 2e6)}
    for name, (most_bytes, most_flops) in budgets.items():
        config = ARCHITECTURES[name]
        cost = engine_cost(config, 1, 256, 256, torch.float32, fused=False)
        assert 2 * parameter_count(config) < most_bytes
        assert cost.flops / 256**2 <= most_flops
        assert config.out_channels == 3 and config.multiple <= 32


def test_divergence_stops_the_run(photos):
    run = make_run(photos)
    with torch.no_grad():
        run.model.out[2].bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="nan at step 0"):
        run.train_step()


def test_alphas_cumprod_ends():
    alphas = alphas_cumprod()
    assert alphas[0].item() == pytest.approx(1 - 1e-4, abs=1e-15)
    assert alphas[-1].item() == pytest.approx(
        math.exp(sum(math.log1p(-b) for b in np.linspace(1e-4, 0.02, 1000))), rel=1e-10
    )


def test_diffuse_keeps_unit_variance():
    x0, noise = torch.randn(2, 3, 64, 64), torch.randn(2, 3, 64, 64)
    x = diffuse(x0, noise, alphas_cumprod()[torch.tensor([0, 400])])
    assert x.var().item() == pytest.approx(1, abs=0.05)
    assert (x[0] - x0[0]).abs().max() < 0.06


def test_patches_are_in_range_and_repeat_with_the_seed(photos):
    patches = Patches(find_photos(photos), 16)
    first, again = (patches.batch(8, np.random.default_rng(5)) for _ in range(2))
    assert first.shape == (8, 3, 16, 16) and first.dtype == torch.float32
    assert first.min() >= -1 and first.max() <= 1 and first.std() > 0.1
    assert torch.equal(first, again)
    assert not torch.equal(first, patches.batch(8, np.random.default_rng(6)))


def test_patches_of_a_wider_side_come_from_levels_that_hold_them(photos):
    patches = Patches(find_photos(photos), 16)
    rng = np.random.default_rng(0)
    assert {patches.crop(rng, 64).shape for _ in range(40)} == {(64, 64, 3)}


def test_augmentation_makes_gray_and_black_grounded_ones_among_others():
    tile = np.random.default_rng(0).random((16, 16, 3), dtype=np.float32) * 0.8 + 0.1
    rng = np.random.default_rng(1)
    tiles = [augment(tile, rng) for _ in range(600)]
    gray = [bool(np.ptp(t, axis=2).max() < 1e-6) for t in tiles]
    black = [bool((t == 0).all(axis=2).mean() > 0.05) for t in tiles]
    assert 0.4 < np.mean(gray) < 0.6
    assert 0 < np.mean(black) < 0.12
    assert all(t.min() >= 0 and t.max() <= 1 and t.dtype == np.float32 for t in tiles)


def test_enlarged_tiles_are_softer():
    rng = np.random.default_rng(0)
    tile = rng.random((32, 32, 3), dtype=np.float32)
    soft = enlarge(tile, 2.5, rng)
    assert soft.shape == tile.shape and 0 <= soft.min() <= soft.max() <= 1
    assert np.abs(np.diff(soft, axis=0)).mean() < 0.6 * np.abs(np.diff(tile, axis=0)).mean()


def test_black_ground_is_a_mask_with_an_edge():
    masks = [black_ground(64, np.random.default_rng(seed)) for seed in range(20)]
    assert all(m.shape == (64, 64) and m.min() >= 0 and m.max() <= 1 for m in masks)
    assert 0.2 < np.mean(masks) < 0.95
    assert any(0 < (m == 0).mean() < 0.9 for m in masks)


def test_holdout_is_spread_and_never_everything(photos):
    names = find_photos(photos)
    train_set, held = split_photos(names, 2)
    assert [p.name for p in held] == ["photo1.png", "photo3.png"]
    assert sorted(train_set + held) == names
    assert len(split_photos(names, 10)[0]) == 1


def test_command_line_trains(photos, tmp_path):
    out = tmp_path / "a.safetensors"
    options = ["--steps", 3, "--batch", 2, "--patch", 16, "--no-compile"]
    network = ["--channel-mult", "1,1", "--unshuffle", 2]
    result = run_command("--out", out, "--data", photos, *options, *network)
    assert result.exit_code == 0, result.output
    assert load_prior(out).multiple == 4
    training = describe(out)["training"]
    assert training["weighting"] == "p2-mild" and training["precision"] == "bfloat16"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--data", "absent"], "--data 'absent' is not a folder"),
        (["--patch", "20"], "--patch is 20; expected a multiple of 16"),
        (["--patch", "0"], "--patch is 0"),
        (["--batch", "0"], "--batch is 0; expected 1 or more"),
        (["--lr", "0"], "--lr is 0.0; expected a number above 0"),
        (["--ema", "1"], "--ema is 1.0; expected at least 0 and below 1"),
        (["--device", "tpu"], "--device is 'tpu'; expected cpu"),
        (["--attention", "3"], "attention_resolutions holds [3]"),
        (["--channel-mult", "one"], "--channel-mult is 'one'"),
        (["--channels", "20"], "multiples of 32"),
        (["--weighting", "snr"], "--weighting is 'snr'; expected one of eps, p2-mild, p2, min-snr"),
        (["--precision", "float16"], "--precision is 'float16'; expected one of float32, bfloat16"),
        (["--arch", "large"], "--arch is 'large'; expected one of embedded, gray, embedded-large"),
        (["--log-every", "0"], "--log-every is 0; expected 1 or more"),
        (["--patch", "512"], "smaller than patches of 512"),
    ],
)
def test_command_line_errors(photos, tmp_path, extra, message):
    result = run_command("--out", tmp_path / "a.safetensors", "--data", photos, *extra)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and message in line
    assert not list(tmp_path.iterdir())


def test_command_line_refuses_other_suffixes_and_no_data(tmp_path):
    result = run_command("--out", tmp_path / "a.pt", "--data", "x")
    assert result.exit_code == 2 and "must end in .safetensors" in result.stderr
    result = run_command("--out", tmp_path / "a.safetensors")
    assert result.exit_code == 2 and "--data is missing" in result.stderr


def test_command_line_has_help_and_names_what_is_missing():
    result = run_command("--help")
    assert result.exit_code == 0 and "--no-residual-resampling" in result.stdout
    assert "train --data photos --out prior.safetensors --resume\n" in result.stdout
    result = run_command("--data", "x")
    assert result.exit_code == 2 and "Missing option '--out'" in result.stderr
