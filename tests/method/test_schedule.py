"""Schedules against the authors' tables, and the sampler rows against their definitions."""

import numpy as np
import pytest
from conftest import shared
from hypothesis import given
from hypothesis import strategies as st

from ddfm_fast.config import FuseConfig
from ddfm_fast.schedule import make_betas, make_schedule, respace, spread, step_rows

SPECS = [8, 10, 25, 50, 100, 250, 1000, "ddim50", "10,20,30"]


@pytest.mark.parametrize("steps", SPECS)
def test_matches_the_authors_tables(steps):
    golden = np.load(shared("golden/schedule.npz"))
    schedule = make_schedule(steps)
    assert np.array_equal(schedule.timesteps, golden[f"{steps}/timestep_map"])
    for name in ("betas", "alphas_cumprod"):
        np.testing.assert_allclose(
            getattr(schedule, name), golden[f"{steps}/{name}"], rtol=1e-12, atol=0
        )


def test_linear_betas_run_from_1e_4_to_0_02():
    betas = make_betas("linear", 1000)
    assert betas[0] == pytest.approx(1e-4, rel=1e-14)
    assert betas[-1] == pytest.approx(0.02, rel=1e-14)
    assert betas.dtype == np.float64


def test_cosine_betas_give_the_cosine_noise_level():
    betas = make_betas("cosine", 1000)
    level = np.cumprod(1 - betas)
    t = (np.arange(1000) + 1) / 1000
    wanted = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(level[:990], wanted[:990], rtol=1e-10)
    assert betas.max() == 0.999


@given(count=st.integers(1, 1000))
def test_even_respacing_keeps_the_ends_and_the_count(count):
    kept = respace(1000, count)
    assert len(kept) == count
    assert len(set(kept.tolist())) == count
    assert kept[0] == 0
    assert count == 1 or kept[-1] == 999


@given(st.lists(st.integers(1, 60), min_size=1, max_size=5))
def test_sections_get_their_own_counts(counts):
    kept = respace(1000, ",".join(map(str, counts)))
    assert len(kept) == sum(counts)
    assert (np.diff(kept) > 0).all()


def test_respacing_keeps_the_noise_levels():
    full = np.cumprod(1 - make_betas())
    schedule = make_schedule(37)
    np.testing.assert_allclose(schedule.alphas_cumprod, full[schedule.timesteps], rtol=1e-12)


@pytest.mark.parametrize(
    ("steps", "error", "match"),
    [
        (0, ValueError, "steps is 0"),
        (-3, ValueError, "positive"),
        (1001, ValueError, "at most 1000"),
        ("ddim37", ValueError, "no integer stride"),
        ("ddim", ValueError, "positive int"),
        ("10,x", ValueError, "positive int"),
        ("", ValueError, "positive int"),
        (2.5, TypeError, "float"),
        (True, TypeError, "bool"),
        (None, TypeError, "NoneType"),
        ("900,900", ValueError, "section of 500"),
    ],
)
def test_impossible_steps_are_refused(steps, error, match):
    with pytest.raises(error, match=match):
        make_schedule(steps)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="linear, cosine"):
        make_betas("quadratic")
    with pytest.raises(ValueError, match="ddim, ddpm"):
        step_rows(make_schedule(5), "euler")
    with pytest.raises(ValueError, match="num_train_timesteps"):
        make_betas("linear", 0)


@pytest.mark.parametrize("ddim_eta", [0.0, 0.3, 1.0])
def test_ddim_rows_equal_the_published_update(ddim_eta):
    schedule = make_schedule(20)
    rng = np.random.default_rng(0)
    x, x0 = rng.normal(size=(2, 50))
    for row, s in zip(
        step_rows(schedule, "ddim", ddim_eta), reversed(range(len(schedule))), strict=True
    ):
        alpha = schedule.alphas_cumprod[s]
        previous = schedule.alphas_cumprod[s - 1] if s else 1.0
        sigma = ddim_eta * np.sqrt((1 - previous) / (1 - alpha)) * np.sqrt(1 - alpha / previous)
        eps = (np.sqrt(1 / alpha) * x - x0) / np.sqrt(1 / alpha - 1)
        wanted = np.sqrt(previous) * x0 + np.sqrt(1 - previous - sigma**2) * eps
        np.testing.assert_allclose(row.a * x + row.b * x0, wanted, atol=1e-12)
        assert row.sigma == pytest.approx(sigma, abs=1e-14)
        np.testing.assert_allclose(row.recip * x - row.recipm1 * eps, x0, atol=1e-10)
        assert row.timestep == schedule.timesteps[s]


def test_ddpm_rows_are_the_gaussian_posterior():
    """q(x_{t-1} | x_t, x_0) is the product of q(x_t | x_{t-1}) and q(x_{t-1} | x_0)."""
    schedule = make_schedule(15)
    rows = step_rows(schedule, "ddpm")
    for row, s in zip(rows, reversed(range(len(schedule))), strict=True):
        if s == 0:
            assert (row.sigma, row.a) == (0.0, 0.0)
            assert row.b == pytest.approx(1.0)
            continue
        beta, previous = schedule.betas[s], schedule.alphas_cumprod[s - 1]
        precision = (1 - beta) / beta + 1 / (1 - previous)
        assert row.sigma**2 == pytest.approx(1 / precision, rel=1e-10)
        assert row.a == pytest.approx(np.sqrt(1 - beta) / beta / precision, rel=1e-10)
        assert row.b == pytest.approx(np.sqrt(previous) / (1 - previous) / precision, rel=1e-10)
        assert row.log_var_min == pytest.approx(2 * np.log(row.sigma), rel=1e-10)
        assert row.log_var_max == pytest.approx(np.log(beta), rel=1e-12)
    assert rows[-1].log_var_min == rows[-2].log_var_min


def test_one_step_has_finite_rows():
    for sampler in ("ddim", "ddpm"):
        (row,) = step_rows(make_schedule(1), sampler)
        assert np.isfinite([row.a, row.sigma, row.log_var_min, row.log_var_max]).all()
        assert row.b == pytest.approx(1.0)


@given(start=st.integers(1, 999), steps=st.integers(1, 10), power=st.floats(0.5, 3))
def test_spread_runs_from_zero_to_start(start, steps, power):
    try:
        kept = spread(start, steps, power)
    except ValueError as error:
        assert "more than fit" in str(error)
        return
    assert len(kept) == steps
    assert kept[-1] == start
    assert steps == 1 or kept[0] == 0
    assert (np.diff(kept) > 0).all()


def test_start_keeps_the_noise_levels_of_its_timesteps():
    full = np.cumprod(1 - make_betas())
    schedule = make_schedule(5, start=200, spacing=2.0)
    assert schedule.timesteps.tolist() == [0, 12, 50, 112, 200]
    np.testing.assert_allclose(schedule.alphas_cumprod, full[schedule.timesteps], rtol=1e-12)


def test_bad_starts_are_refused():
    with pytest.raises(ValueError, match="start is 1000; expected a timestep from 1 to 999"):
        make_schedule(5, start=1000)
    with pytest.raises(ValueError, match="more than fit below start=3"):
        make_schedule(5, start=3)
    with pytest.raises(ValueError, match="steps is 'x'; expected a whole number of steps.*20"):
        FuseConfig(steps="x", start=20)
