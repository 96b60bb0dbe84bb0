"""Training on a handful of synthetic photographs: it learns, resumes, exports and explains."""

from __future__ import annotations

import json
import math

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ddfm_fast.priors import load_prior
from ddfm_fast.priors.checkpoint import describe
from ddfm_fast.priors.train import (
    Patches,
    Run,
    Settings,
    alphas_cumprod,
    augment,
    build_parser,
    config_from_options,
    diffuse,
    find_photos,
    main,
    split_photos,
    state_path,
    train,
)

SETTINGS = Settings(steps=6, minutes=0, batch=2, patch=16, lr=1e-3, seed=3, holdout=1)


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
    return config_from_options(
        build_parser().parse_args(
            ["--out", "a.safetensors", "--channel-mult", "1,1", "--unshuffle", "2"]
        )
    )


def make_run(photos, **changes):
    settings = Settings(**{**vars(SETTINGS), **changes})
    return Run(small_config(), settings, find_photos(photos))


def test_resumed_run_equals_an_uninterrupted_one(photos, tmp_path):
    whole, first, second = (make_run(photos) for _ in range(3))
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
    run = make_run(photos, steps=40, lr=3e-3)
    before = run.heldout_loss(20)["all"]
    assert before == pytest.approx(1, abs=0.1)  # a fresh network predicts zero
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


def test_minutes_end_the_run_and_the_learning_rate(photos):
    run = make_run(photos, steps=1000, minutes=1)
    run.step = 100
    assert run.learning_rate() == pytest.approx(1e-3 * (1 + math.cos(math.pi / 10)) / 2)
    run.seconds = 30
    assert run.learning_rate() == pytest.approx(0.5e-3)
    assert not run.finished()
    run.seconds = 60
    assert run.finished() and run.learning_rate() == pytest.approx(0, abs=1e-12)


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


def test_augmentation_makes_grey_ones_among_others():
    tile = np.random.default_rng(0).random((16, 16, 3), dtype=np.float32)
    rng = np.random.default_rng(1)
    grey = [bool(np.ptp(augment(tile, rng), axis=2).max() < 1e-6) for _ in range(400)]
    assert 0.35 < np.mean(grey) < 0.55


def test_holdout_is_spread_and_never_everything(photos):
    names = find_photos(photos)
    train_set, held = split_photos(names, 2)
    assert [p.name for p in held] == ["photo1.png", "photo3.png"]
    assert sorted(train_set + held) == names
    assert len(split_photos(names, 10)[0]) == 1


def test_command_line_trains_and_draws(photos, tmp_path, capsys):
    out, grid = tmp_path / "a.safetensors", tmp_path / "grid.png"
    arguments = [
        "--out",
        str(out),
        "--data",
        str(photos),
        "--steps",
        "3",
        "--batch",
        "2",
        "--patch",
        "16",
        "--channel-mult",
        "1,1",
    ]
    assert main(arguments) == 0
    assert load_prior(out).multiple == 4
    pytest.importorskip("skimage")
    assert main(["--out", str(out), "--grid", str(grid)]) == 0
    assert cv2.imread(str(grid)).shape == (20 + 4 * 96, 11 * 96, 3)
    assert "t = 800" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--data", "absent"], "--data 'absent' is not a folder"),
        (["--patch", "20"], "--patch 20, expected a multiple of 16"),
        (["--patch", "0"], "--patch 0"),
        (["--batch", "0"], "--batch 0, expected 1 or more"),
        (["--lr", "0"], "--lr must be above 0"),
        (["--channel-mult", "one"], "--channel-mult 'one'"),
        (["--channels", "20"], "multiples of 32"),
        (["--patch", "512"], "smaller than --patch 512"),
    ],
)
def test_command_line_errors(photos, tmp_path, capsys, extra, message):
    arguments = ["--out", str(tmp_path / "a.safetensors"), "--data", str(photos), *extra]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_command_line_refuses_other_suffixes_and_no_data(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "a.pt"), "--data", "x"]) == 2
    assert "must end in .safetensors" in capsys.readouterr().err
    assert main(["--out", str(tmp_path / "a.safetensors")]) == 2
    assert "--data is missing" in capsys.readouterr().err
