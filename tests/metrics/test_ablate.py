"""The ablation: what each row takes away, and that it does take it away."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from analytic import tanh_prior
from typer.testing import CliRunner

from ddfm_fast import PRESETS, FuseConfig, Fuser, load_prior, method
from ddfm_fast.cli.app import app
from ddfm_fast.config import SAMPLER_NAMES, VARIANT_NAMES
from ddfm_fast.datasets.pairs import find_pairs
from ddfm_fast.files.reading import DEFAULT_MAX_PIXELS, read_image
from ddfm_fast.files.writing import write_image
from ddfm_fast.metrics import ablation
from ddfm_fast.priors.checkpoint import save_unet
from ddfm_fast.priors.unet import UNet
from ddfm_fast.priors.unet_config import UNetConfig
from ddfm_fast.rectify import EMState, get_solver, rectify_plane
from ddfm_fast.schedule import make_schedule

CONFIG = FuseConfig(steps=3)
SIZE = 48


def planes(seed: int, low=-0.6, high=0.6) -> torch.Tensor:
    """Draw a luma plane [1, 1, H, W] that no variant clamps."""
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(1, 1, SIZE, SIZE, generator=generator)


@pytest.fixture
def items(tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        for source in ("ir", "vi"):
            picture = rng.integers(20, 230, (SIZE // 8, SIZE // 8), np.uint8).repeat(8, 0)
            picture = picture.repeat(8, 1) + rng.integers(0, 20, (SIZE, SIZE), np.uint8)
            write_image(tmp_path / "set" / source / f"{name}.png", picture)
    return find_pairs(tmp_path / "set")


def run(items, out, rows, prior=tanh_prior, **more):
    settings = {"prior": load_prior(prior), "color": False}
    return ablation.ablate(
        items, out, rows, settings=settings, max_pixels=DEFAULT_MAX_PIXELS, **more
    )


# The rows


def test_rows_change_one_thing_each():
    rows = {row.name: row for row in ablation.ablation_rows(CONFIG, "mine")}
    assert list(rows)[:5] == ["mine", "no-prior", "no-em", "no-tv", "fixed-scales"]
    expected = {f"variant-{v}" for v in VARIANT_NAMES} | {f"sampler-{s}" for s in SAMPLER_NAMES}
    expected -= {f"variant-{CONFIG.variant}", f"sampler-{CONFIG.sampler}"}
    assert set(list(rows)[5:]) == expected
    whole = dataclasses.asdict(CONFIG)
    for name in (*expected, "no-tv", "fixed-scales"):
        row = dataclasses.asdict(rows[name].config)
        (changed,) = (key for key in whole if row[key] != whole[key])
        field = {"no-tv": "eta", "fixed-scales": "update_scales"}.get(name, name.split("-")[0])
        assert changed == field
    made = [rows[n].method for n in ("mine", "no-prior", "no-em", "no-tv")]
    assert made == [method.Diffusion, method.EMAlone, method.PriorAlone, method.Diffusion]
    assert all(row.meaning for row in rows.values())


def test_rows_that_repeat_the_preset_are_left_out():
    names = [row.name for row in ablation.ablation_rows(PRESETS["paper"], "paper")]
    assert {"variant-official", "sampler-ddim"} <= set(names)
    assert not {"variant-paper", "sampler-ddpm"} & set(names)
    fixed = dataclasses.replace(CONFIG, update_scales=False, eta=0.0)
    names = [row.name for row in ablation.ablation_rows(fixed)]
    assert "fixed-scales" not in names and "no-tv" not in names
    without_psi = dataclasses.replace(CONFIG, psi=0.0)
    assert "no-tv" in [row.name for row in ablation.ablation_rows(without_psi)]


def test_choose_rows():
    rows = ablation.ablation_rows(CONFIG, "mine")
    assert ablation.choose_rows(rows, None) == rows
    assert [r.name for r in ablation.choose_rows(rows, ["no-em", "mine"])] == ["mine", "no-em"]
    with pytest.raises(ValueError, match="no-tv"):
        ablation.choose_rows(rows, ["tv"])


@pytest.mark.parametrize("variant", ["official", "paper"])
def test_no_tv_takes_psi_and_k_away(variant):
    rng = np.random.default_rng(1)
    ir, vis = (rng.integers(0, 256, (SIZE, SIZE), np.uint8) for _ in "iv")
    prior = load_prior(tanh_prior)

    def fused(config):
        return Fuser(prior=prior, preset=config)(ir, vis)

    strong = FuseConfig(variant=variant, steps=4, psi=0.05, eta=5.0)
    (row,) = (r for r in ablation.ablation_rows(strong) if r.name == "no-tv")
    without = fused(row.config)
    assert (fused(strong) != without).mean() > 0.1
    np.testing.assert_array_equal(fused(dataclasses.replace(row.config, psi=100.0)), without)


# EM alone


@pytest.mark.parametrize("variant", ["official", "paper", "printed"])
def test_em_alone_is_the_em_iteration_on_the_mean(variant):
    i, v = planes(0), planes(1)
    config = FuseConfig(variant=variant, psi=0.5, eta=0.5)
    found = method.em_alone(i, v, config, 5)[0, 0]
    one = torch.ones(())
    f, state = ((i + v) / 2)[0, 0], EMState(torch.zeros(SIZE, SIZE), one, one)
    solve = get_solver(SIZE, SIZE, torch.float32, torch.device("cpu"))
    for _ in range(5):
        settings = {"variant": variant, "psi": 0.5, "eta": 0.5}
        f = rectify_plane(f, v[0, 0], (i - v)[0, 0], state, solve, **settings)
    torch.testing.assert_close(found, f, atol=2e-5, rtol=0)
    assert (f - ((i + v) / 2)[0, 0]).abs().max() > 0.01


def test_em_alone_asks_no_prior_and_draws_no_noise():
    def prior(x, t):
        raise AssertionError("asked")

    prior.multiple, prior.has_variance = 1, False
    rng = np.random.default_rng(2)
    ir, vis = (rng.integers(0, 256, (SIZE, SIZE), np.uint8) for _ in "iv")
    row = ablation.ablation_rows(CONFIG)[1]
    a, b = (
        ablation.make_fuser(row, prior=load_prior(prior), seed=seed)(ir, vis) for seed in (0, 1)
    )
    np.testing.assert_array_equal(a, b)


# The prior alone


def denoiser(target: torch.Tensor, asked: list):
    """Return the ε of a prior that knows one picture only: it predicts ``target`` from anything."""
    bars = torch.from_numpy(make_schedule(1000).alphas_cumprod)

    def eps(x, t):
        asked.append(int(t[0]))
        bar = bars[t.long()].view(-1, 1, 1, 1)
        return ((x - bar.sqrt() * target) / (1 - bar).sqrt()).float()

    eps.multiple, eps.has_variance = 1, False
    return load_prior(eps)


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_prior_alone_follows_the_prior(sampler):
    i, v = planes(0), planes(1)
    target, asked = planes(2).double().repeat(1, 3, 1, 1), []
    config = FuseConfig(sampler=sampler, steps=6)
    found = method.prior_alone(denoiser(target, asked), i, v, config, seed=0)
    torch.testing.assert_close(found.double(), target[:, :1], atol=1e-4, rtol=0)
    assert asked == [200, 160, 120, 80, 40, 0]


def test_prior_alone_sees_only_the_mean_of_the_sources():
    prior = load_prior(tanh_prior)
    i, v = planes(0), planes(1)
    found = method.prior_alone(prior, i, v, CONFIG, seed=0)
    assert torch.equal(found, method.prior_alone(prior, v, i, CONFIG, seed=0))
    mean = (i + v) / 2
    assert torch.equal(found, method.prior_alone(prior, mean, mean, CONFIG, seed=0))
    assert not torch.equal(found, method.prior_alone(prior, i, i, CONFIG, seed=0))
    assert not torch.equal(found, method.prior_alone(prior, i, v, CONFIG, seed=1))


def test_prior_alone_keeps_to_the_presets_own_start():
    asked = []
    prior = denoiser(torch.zeros(1, 3, SIZE, SIZE).double(), asked)
    config = FuseConfig(start=60, steps=3, spacing=2.0)
    method.prior_alone(prior, planes(0), planes(1), config, seed=0)
    assert asked == [60, 15, 0]
    (row,) = (r for r in ablation.ablation_rows(config) if r.name == "no-em")
    assert "t = 60" in row.meaning


def test_prior_alone_takes_many_or_odd_steps():
    for steps in (1, 1000, "ddim50", "3,2"):
        config = FuseConfig(steps=steps)
        luma = method.prior_alone(load_prior(tanh_prior), planes(0), planes(1), config, seed=0)
        assert torch.isfinite(luma).all()


@pytest.mark.parametrize("preset", list(PRESETS))
def test_parts_fuse_any_size_and_preset(preset):
    rng = np.random.default_rng(3)
    ir, vis = (rng.integers(0, 256, (37, 52, 3), np.uint8) for _ in "iv")
    config = dataclasses.replace(PRESETS[preset], steps=3, start=None)
    prior = load_prior(tanh_prior, {"multiple": 16})
    whole = Fuser(prior=prior, preset=config)(ir, vis)
    for row in ablation.ablation_rows(config)[1:3]:
        fused = ablation.make_fuser(row, prior=prior)(ir, vis)
        assert fused.shape == whole.shape and fused.dtype == np.uint8
        assert np.ptp(fused) > 50


def test_parts_refuse_nan():
    def broken(x, t):
        return torch.full_like(x, torch.nan)

    broken.multiple = 1
    row = ablation.ablation_rows(CONFIG)[2]
    picture = np.zeros((SIZE, SIZE), np.uint8)
    with pytest.raises(ValueError, match="NaN"):
        ablation.make_fuser(row, prior=load_prior(broken))(picture, picture)


# The whole


def test_ablate_fuses_scores_and_resumes(items, tmp_path):
    asked = []

    def prior(x, t):
        asked.append(int(t[0]))
        return tanh_prior(x, t)

    prior.multiple, prior.has_variance = 1, False
    rows = ablation.ablation_rows(CONFIG, "mine")
    out = tmp_path / "out"
    evaluation, methods = run(items, out, rows, prior, baselines=("mean", "max"))
    names = [row.name for row in rows]
    assert [m.name for m in evaluation.methods] == [m.name for m in methods]
    assert [m.name for m in methods] == [*names, "mean", "max"]
    assert evaluation.pairs == ["a", "b"] and not evaluation.failures and not evaluation.remarks
    for row in rows:
        expected = ablation.make_fuser(row, prior=load_prior(prior), color=False)(
            read_image(items[0].ir), read_image(items[0].vis)
        )
        np.testing.assert_array_equal(read_image(out / row.name / "a.png"), expected)
    pictures = {(out / name / "a.png").read_bytes() for name in names}
    assert len(pictures) >= len(names) - 1, "rows differ, but for a TV term that is weak"
    asked.clear()
    again, _ = run(items, out, rows, prior)
    assert not asked
    for one, other in zip(evaluation.methods, again.methods, strict=False):
        np.testing.assert_array_equal(one.values["VIF"], other.values["VIF"])


def test_a_broken_pair_is_left_out_of_all_rows(items, tmp_path):
    items[0].ir.write_bytes(b"no image")
    told = []
    rows = ablation.ablation_rows(CONFIG)[:3]
    evaluation, _ = run(items, tmp_path / "out", rows, on_error=told.append)
    assert evaluation.pairs == ["b"] and list(evaluation.failures) == ["a"]
    assert [result.name for result in told] == ["a"], "told once, not once a row"


def test_a_row_that_fails_is_left_out(items, tmp_path, monkeypatch):
    def prior_alone(*_):
        raise ValueError("cannot do that")

    monkeypatch.setattr(method, "prior_alone", prior_alone)
    rows = ablation.ablation_rows(CONFIG)[:3]
    evaluation, _ = run(items, tmp_path / "out", rows)
    assert [m.name for m in evaluation.methods] == ["preset", "no-prior"]
    assert evaluation.pairs == ["a", "b"]
    (remark,) = evaluation.warnings
    assert "no-em" in remark and "cannot do that" in remark
    with pytest.raises(ValueError, match="cannot do that"):
        run(items, tmp_path / "other", rows[2:])


def test_wrong_scoring_is_refused_before_the_work(items, tmp_path):
    for wrong in ({"convention": "mine"}, {"names": ["NIQE"]}, {"paper": "KAIST"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            run(items, tmp_path / "out", ablation.ablation_rows(CONFIG), **wrong)
    assert not (tmp_path / "out").exists()


# The command


@pytest.fixture(scope="module")
def prior_file(tmp_path_factory) -> str:
    torch.manual_seed(0)
    config = UNetConfig(model_channels=32, num_res_blocks=1, attention_resolutions=())
    config = dataclasses.replace(config, channel_mult=(1,), middle_attention=False)
    return str(save_unet(tmp_path_factory.mktemp("prior") / "tiny.safetensors", UNet(config)))


def command(tmp_path, prior_file, *more):
    arguments = ["ablate", tmp_path / "set", "-o", tmp_path / "out", "--prior", prior_file, *more]
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_the_command(items, tmp_path, prior_file):
    result = command(
        tmp_path, prior_file, "--steps", "2", "--rows", "official,no-em,variant-paper",
        "--baselines", "--report", tmp_path / "r.html", "--paper", "TNO",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for name in ("official", "no-em", "variant-paper"):
        assert (tmp_path / "out" / name / "a.png").is_file()
    found = json.loads((tmp_path / "out" / "ablation.json").read_text(encoding="utf-8"))
    names = ["official", "no-em", "variant-paper", "mean", "max"]
    assert [m["name"] for m in found["methods"]] == names
    for suffix in ("txt", "csv", "md"):
        text = (tmp_path / "out" / f"ablation.{suffix}").read_text(encoding="utf-8")
        assert all(name in text for name in names)
    assert result.stdout.startswith("2 pairs") and "without EM" in result.stdout
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 2 * (2 + 5) and "without EM" in page


def test_the_command_for_scripts(items, tmp_path, prior_file):
    result = command(tmp_path, prior_file, "--steps", "2", "--rows", "no-prior", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["methods"][0]["name"] == "no-prior"
    items[0].vis.write_bytes(b"no image")
    result = command(tmp_path, prior_file, "--steps", "2", "--rows", "no-prior", "--json")
    assert result.exit_code == 1
    assert list(json.loads(result.stdout)["failures"]) == ["a"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--rows", "tv"], "no-tv"),
        (["--preset", "mine"], "official"),
        (["--steps", "0"], "steps"),
        (["--metrics", "mine"], "cddfuse"),
        (["--report", "/proc/no/r.html"], "/proc/no"),
    ],
)
def test_bad_options(items, tmp_path, prior_file, more, words):
    result = command(tmp_path, prior_file, *more)
    assert result.exit_code == 2 and words in result.stderr and "Traceback" not in result.stderr
    assert not list((tmp_path / "out").glob("*")), "nothing was fused"
