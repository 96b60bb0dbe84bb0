"""The rectification against the authors' tensors and against float64 NumPy transcriptions."""

import numpy as np
import oracles
import pytest
import torch
from conftest import shared
from hypothesis import given, settings
from hypothesis import strategies as st

from ddfm_fast.config import VARIANT_NAMES
from ddfm_fast.noise import normals
from ddfm_fast.rectify import (
    VARIANTS,
    EMState,
    KSolver,
    add_divergence_,
    e_step,
    get_solver,
    get_variant,
    gradient_target,
    rectify_plane,
)
from ddfm_fast.schedule import make_schedule, step_rows
from ddfm_fast.step import NOISES, ReverseStep

CASES = ["default", "strong_tv", "odd"]
SIZES = [(16, 16), (17, 31), (37, 53), (48, 80), (1, 20), (20, 1), (2, 3)]
CPU = torch.device("cpu")


def planes(n, height, width, *, seed=0, dtype=torch.float64):
    """Draw smooth-ish luma planes f, i, v in [-1, 1], [n, height, width]."""
    noise = np.random.default_rng(seed).normal(size=(3, n, height, width))
    return (torch.tanh(torch.tensor(noise)[k]).to(dtype) for k in range(3))


def fresh_state(plane):
    one = torch.ones((), dtype=plane.dtype)
    return EMState(torch.zeros_like(plane), one, one)


def relative(got, wanted):
    """Return the largest deviation over the largest value."""
    got, wanted = np.asarray(got, dtype=np.float64), np.asarray(wanted, dtype=np.float64)
    return abs(got - wanted).max() / abs(wanted).max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_official_em_matches_every_published_tensor(case, dtype):
    golden = np.load(shared("golden/em_onestep.npz"))
    i, v = (torch.tensor(golden[f"{case}/{name}"])[0, 0].to(dtype) for name in "IV")
    psi, eta = float(golden[f"{case}/lamb"]), float(golden[f"{case}/rho"])
    state, solver = fresh_state(v), get_solver(*v.shape, dtype, CPU)
    ratio = eta / (2 * psi + eta)
    for call in range(6):
        f = torch.tensor(golden[f"{case}/{call}/f_in"])[0, 0].to(dtype)
        p, q = e_step(f - v, i - v, state.gamma, state.rho, official=True)
        fused = rectify_plane(f, v, i - v, state, solver, psi=psi, eta=eta)
        a1, a2 = state.k.clone(), state.k.clone()
        a1[:, :-1] -= state.k[:, 1:]
        a2[:-1] -= state.k[1:]
        got = {
            "f_out": fused, "C": 1 / p, "D": 1 / q, "H": state.k,
            "F1": ratio * a1, "F2": ratio * a2, "tau_a": state.gamma, "tau_b": state.rho,
        }  # fmt: skip
        for name, tensor in got.items():
            wanted = golden[f"{case}/{call}/{name}"].reshape(tensor.shape)
            assert relative(tensor, wanted) < 2e-5, (call, name)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("psi, eta", [(0.5, 0.001), (0.5, 0.1), (0.25, 1.0), (0.0, 0.7)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_float64_matches_the_transcribed_equations(variant, psi, eta, size):
    f, i, v = (p[0] for p in planes(1, *size, seed=sum(size)))
    state, solver = fresh_state(v), get_solver(*size, torch.float64, CPU)
    oracle = oracles.official_state(size)
    target = gradient_target(i, v)
    for call in range(6):
        args = (f.numpy(), i.numpy(), v.numpy(), oracle, psi, eta)
        if variant == "official":
            wanted, oracle = oracles.official_em(*args)
        elif variant == "gradient":
            wanted, oracle = oracles.gradient_em(*args)
        else:
            wanted, oracle = oracles.paper_em(*args, printed=variant == "printed")
        fused = rectify_plane(
            f, v, i - v, state, solver, variant=variant, psi=psi, eta=eta, target=target
        )
        assert relative(fused, wanted) < 1e-10, call
        assert relative(state.k, oracle["H"]) < 1e-10, call
        assert relative(state.gamma, oracle["tau_a"]) < 1e-10, call
        assert relative(state.rho, oracle["tau_b"]) < 1e-10, call
        f = torch.tanh(fused + 0.1 * torch.sin(3.0 * (call + f)))


def test_fixed_scales_stay_at_one():
    f, i, v = (p[0] for p in planes(1, 20, 24))
    state, solver = fresh_state(v), get_solver(20, 24, torch.float64, CPU)
    oracle = oracles.official_state((20, 24))
    for _ in range(3):
        fused = rectify_plane(
            f, v, i - v, state, solver, variant="paper", eta=0.1, update_scales=False
        )
        wanted, oracle = oracles.paper_em(
            f.numpy(), i.numpy(), v.numpy(), oracle, 0.5, 0.1, update_scales=False
        )
        assert relative(fused, wanted) < 1e-10
    assert (float(state.gamma), float(state.rho)) == (1.0, 1.0)


def test_e_step_is_the_expected_inverse_of_the_latent_variance():
    """E[1/m] of p(m | d) ∝ N(d; 0, m) · Exp(m; mean γ), integrated numerically (Proposition 1)."""
    gamma, distance = 0.7, 0.31
    m = np.geomspace(1e-6, 60, 400_000)
    density = m**-0.5 * np.exp(-(distance**2) / (2 * m) - m / gamma)
    expected = np.trapezoid(density / m, m) / np.trapezoid(density, m)
    p, _ = e_step(
        torch.zeros(1, 1, dtype=torch.float64),
        torch.full((1, 1), distance, dtype=torch.float64),
        torch.tensor(gamma, dtype=torch.float64),
        torch.tensor(1.0, dtype=torch.float64),
        official=False,
    )
    assert 1 / float(p) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_k_solve_inverts_the_operator(size):
    rhs = torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    k = KSolver(*size, torch.float64, CPU)(rhs)
    back = k.clone()
    for axis in (0, 1):
        back += 2 * k - k.roll(1, axis) - k.roll(-1, axis)
    torch.testing.assert_close(back, rhs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("official", [True, False])
def test_divergence_stencil_equals_the_two_operators(size, official):
    k = torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    wanted = torch.zeros_like(k)
    for axis in (0, 1):
        u = k.roll(-1, axis) - k
        if official:
            u = -u
            last = [slice(None)] * 2
            last[axis] = slice(-1, None)
            u[tuple(last)] = k[tuple(last)]
        wanted += 0.3 * (u.roll(1, axis) - u)
    got = add_divergence_(torch.zeros_like(k), k, 0.3, official)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize("variant", VARIANTS)
def test_luma_writeback_equals_the_color_round_trip(variant):
    rgb = torch.tensor(np.random.default_rng(3).uniform(-1, 1, size=(3, 18, 22)))
    i = torch.zeros(1, 1, 18, 22, dtype=torch.float64)
    rectifier = ReverseStep(i, i, variant=variant)
    official = variant == "official"
    luma = rectifier.luma(rgb)
    np.testing.assert_allclose(
        luma, oracles.replace_luma(rgb.numpy(), None, official=official), atol=1e-12
    )
    moved = rgb + rectifier.variant.writeback * (0.25 - luma)
    wanted = oracles.replace_luma(rgb.numpy(), 0.25, official=official)
    np.testing.assert_allclose(moved, wanted, atol=1e-12)


@pytest.mark.parametrize("case", ["s10", "s25_strong_tv", "s100"])
def test_whole_official_loops_match_the_authors(case):
    golden = np.load(shared("golden/ddim_loop.npz"))
    i, v, x = (torch.tensor(golden[f"{case}/{name}"]) for name in ("I", "V", "x_T"))
    steps = int(golden[f"{case}/steps"])
    psi, eta = float(golden[f"{case}/lamb"]), float(golden[f"{case}/rho"])
    rows = step_rows(make_schedule(steps), "ddim")
    rectifier, checked = ReverseStep(i, v, rows=rows, psi=psi, eta=eta), 0
    for s, row in enumerate(rows):
        rectifier.step_(x, torch.tanh(x * (0.3 + row.timestep / 1500)))
        key = f"{case}/x_after_step_{steps - 1 - s:04d}"
        if key in golden.files:
            checked += 1
            np.testing.assert_allclose(x, golden[key], rtol=0, atol=1e-3)
    assert checked >= 10
    np.testing.assert_allclose(x, golden[f"{case}/x_0"], rtol=0, atol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_float64_loop_matches_the_transcribed_loop(variant):
    _, i, v = planes(1, 18, 26, seed=5)
    x = torch.randn(1, 3, 18, 26, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    schedule = make_schedule(12)
    wanted = oracles.ddim_loop(
        lambda x, t: np.tanh(x * (0.3 + t / 1500)), x[0].numpy(), i[0].numpy(), v[0].numpy(),
        (schedule.timesteps, schedule.alphas_cumprod), variant=variant, psi=0.5, eta=0.1,
    )  # fmt: skip
    rows = step_rows(schedule, "ddim")
    rectifier = ReverseStep(i[:, None], v[:, None], rows=rows, variant=variant, psi=0.5, eta=0.1)
    for row in rows:
        rectifier.step_(x, torch.tanh(x * (0.3 + row.timestep / 1500)))
    np.testing.assert_allclose(x[0], wanted, rtol=0, atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(1, 4),
    height=st.integers(16, 40),
    width=st.integers(16, 40),
    variant=st.sampled_from(VARIANT_NAMES),
    seed=st.integers(0, 2**16),
)
def test_a_batch_gives_each_image_its_own_bytes(n, height, width, variant, seed):
    _, i, v = planes(n, height, width, seed=seed, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    x_t, eps = torch.randn(2, n, 3, height, width, generator=generator)
    rows = step_rows(make_schedule(4), "ddim")

    def run(keep):
        x = x_t[keep].clone()
        rectifier = ReverseStep(i[keep, None], v[keep, None], rows=rows, variant=variant, eta=0.1)
        for _ in rows:
            rectifier.step_(x, eps[keep])
        return x

    together = run(slice(None))
    for k in range(n):
        assert torch.equal(together[k], run(slice(k, k + 1))[0])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_eps_may_come_in_any_memory_format(memory_format):
    _, i, v = planes(2, 20, 28, dtype=torch.float32)
    x, eps = torch.randn(2, 2, 3, 20, 28, generator=torch.Generator().manual_seed(0))
    rows = step_rows(make_schedule(4), "ddim")[1:]
    wanted = ReverseStep(i[:, None], v[:, None], rows=rows).step_(x.clone(), eps)
    got = ReverseStep(i[:, None], v[:, None], rows=rows).step_(
        x.clone(), eps.contiguous(memory_format=memory_format)
    )
    assert torch.equal(got, wanted)


def test_the_previous_prediction_enters_with_its_coefficient():
    _, i, v = planes(1, 16, 16, dtype=torch.float64)
    x, eps = torch.randn(
        2, 1, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    first, second = step_rows(make_schedule(4), "ddim")[:2]
    second = second.__class__(**{**vars(second), "c": 0.25})
    rectifier = ReverseStep(i[:, None], v[:, None], rows=[first, second])
    x = rectifier.step_(x, eps)
    before, previous = x.clone(), rectifier.x0.clone()
    after = rectifier.step_(x, eps)
    wanted = second.a * before + second.b * rectifier.x0 + 0.25 * previous
    torch.testing.assert_close(after, wanted, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("noise", NOISES)
def test_noise_is_added_with_its_own_sigma(noise, dtype):
    """In the second row (the last has no noise), z is that of step 1 and of the image's seed."""
    _, i, v = planes(2, 16, 18, dtype=torch.float32)
    x, eps, w = torch.randn(3, 2, 3, 16, 18, generator=torch.Generator().manual_seed(0))
    out = torch.cat([eps, w.tanh()], 1).to(dtype)
    rows, seeds = step_rows(make_schedule(3), "ddpm"), torch.tensor([5, 2**40])
    plain = ReverseStep(i[:, None], v[:, None], rows=rows)
    noisy = ReverseStep(i[:, None], v[:, None], rows=rows, noise=noise, seeds=seeds)
    plain.step = noisy.step = 1
    got = noisy.step_(x.clone(), out) - plain.step_(x.clone(), out)
    z, row = normals(seeds, 1, 16, 18), rows[1]
    fraction = (out[:, 3:].float() + 1) / 2
    variance = fraction * row.log_var_max + (1 - fraction) * row.log_var_min
    wanted = {"none": 0 * z, "fixed": row.sigma * z, "learned": torch.exp(variance / 2) * z}[noise]
    torch.testing.assert_close(got, wanted, rtol=0, atol=2e-6)
    assert rows[2].sigma == 0
    assert torch.equal(noisy.step_(x.clone(), out), plain.step_(x.clone(), out))


def test_other_images_of_the_same_shape_take_the_place_of_the_first():
    _, i, v = planes(2, 16, 18, dtype=torch.float32)
    rows = step_rows(make_schedule(3), "ddim")
    for variant in VARIANTS:
        used = ReverseStep(i[:1, None], v[:1, None], rows=rows, variant=variant)
        fresh = ReverseStep(i[1:, None], v[1:, None], rows=rows, variant=variant)
        x, eps = torch.randn(2, 1, 3, 16, 18, generator=torch.Generator().manual_seed(0))
        used.step_(x.clone(), eps)
        address = used.y.data_ptr()
        used.load_(i[1:, None], v[1:, None])
        assert torch.equal(used.step_(x.clone(), eps), fresh.step_(x.clone(), eps))
        assert used.y.data_ptr() == address


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("level", [-1.0, 0.0, 1.0])
def test_degenerate_sources_stay_finite(variant, level):
    """i = v = f: every weight of the paper is infinite there; with y - x = -1e-6 the code's is."""
    flat = torch.full((1, 1, 16, 16), level)
    rows = step_rows(make_schedule(60), "ddim")
    rectifier = ReverseStep(flat, flat + torch.tensor(1e-6), rows=rows, variant=variant)
    x = torch.full((1, 3, 16, 16), level)
    for _ in rows:
        x = rectifier.step_(x, torch.zeros_like(x))
        assert torch.isfinite(x).all()
    for state in rectifier.states:
        assert torch.isfinite(state.k).all()
        assert float(state.gamma) > 0
        assert float(state.rho) > 0


def test_zero_weight_is_handled_where_the_authors_code_divides_zero_by_zero():
    """y − x + 1e-6 = 0 exactly: there C is infinite and x = inf/inf; the limit is x = y."""
    y = torch.zeros(1, 1)
    x = torch.full((1, 1), 1e-6)
    one = torch.ones(())
    assert float(y - x + 1e-6) == 0.0
    p, q = e_step(x, y, one, one, official=True)
    assert float(p) == 0.0
    assert float(q) > 0.0
    fused = rectify_plane(
        x, torch.zeros(1, 1), y, fresh_state(y), get_solver(1, 1, torch.float32, CPU)
    )
    assert float(fused) == 0.0


def test_reset_starts_over():
    _, i, v = planes(1, 16, 20, dtype=torch.float32)
    rectifier = ReverseStep(i[:, None], v[:, None])
    x0 = torch.rand(1, 3, 16, 20, generator=torch.Generator().manual_seed(0)) * 2 - 1
    first = rectifier.rectify_(x0.clone())
    assert not torch.equal(first, rectifier.rectify_(x0.clone()))
    rectifier.reset()
    assert torch.equal(first, rectifier.rectify_(x0.clone()))


def test_bad_arguments_are_refused():
    plane = torch.zeros(1, 1, 16, 16)
    with pytest.raises(ValueError, match="variant is 'offical'; expected one of official"):
        get_variant("offical")
    with pytest.raises(ValueError, match=r"expected the same \[N, 1, H, W\]"):
        ReverseStep(plane, torch.zeros(1, 1, 16, 17))
    with pytest.raises(ValueError, match=r"expected the same \[N, 1, H, W\]"):
        ReverseStep(plane[0], plane[0])
    with pytest.raises(ValueError, match="noise is 'some'; expected one of none, fixed, learned"):
        ReverseStep(plane, plane, noise="some")


def test_config_lists_the_variants():
    assert tuple(VARIANTS) == VARIANT_NAMES
