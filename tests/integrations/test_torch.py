"""``FuseModule``: what the fuser gives, as a module, and the derivative of its closed form."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch

from ddfm_fast import Fuser
from ddfm_fast.integrations.torch import FuseModule
from ddfm_fast.priors.load import load_prior
from ddfm_fast.target.choose import choose

SIZE = 40, 50


def pair(ir: int = 1, vis: int = 3, *lead: int, dtype=torch.float32, seed: int = 0):
    """Draw sources of smooth random shapes within [0.1, 0.9], so that nothing is clipped."""
    made = []
    for n, channels in enumerate((ir, vis)):
        generator = torch.Generator().manual_seed(seed + n)
        shape = (*lead, channels, *SIZE)
        noise = torch.rand(shape, generator=generator, dtype=torch.float64).reshape(-1, 1, *SIZE)
        smooth = torch.nn.functional.avg_pool2d(noise, 3, 1, 1, count_include_pad=False)
        made.append((0.1 + 0.8 * smooth).reshape(shape).to(dtype))
    return made


@pytest.fixture(scope="module")
def module() -> FuseModule:
    return FuseModule(preset="instant", device="cpu")


@pytest.mark.parametrize("channels", [(1, 1), (1, 3), (3, 1), (3, 3)])
@pytest.mark.parametrize("lead", [(), (2,), (2, 2)])
def test_it_gives_what_the_fuser_gives(module, channels, lead):
    ir, vis = pair(*channels, *lead)
    fused = module(ir, vis)
    assert fused.shape == (*lead, max(channels), *SIZE) and fused.dtype == torch.float32
    flat = zip(ir.reshape(-1, *ir.shape[-3:]), vis.reshape(-1, *vis.shape[-3:]), strict=True)
    expected = [module.fuser(a, b, layout="CHW") for a, b in flat]
    assert torch.equal(fused.reshape(-1, *fused.shape[-3:]), torch.stack(expected))


def test_other_presets_and_options():
    ir, vis = pair(1, 3, 1)
    own = FuseModule(steps=2, color=False, device="cpu")
    assert torch.equal(own(ir, vis), Fuser(steps=2, color=False, device="cpu")(ir, vis))
    with pytest.raises(ValueError, match="options steps have no effect with fuser"):
        FuseModule(own.fuser, steps=3)
    with pytest.raises(TypeError, match="fuser is a str; expected a ddfm_fast.Fuser"):
        FuseModule("instant")
    with pytest.raises(ValueError, match=r"ir: shape \(2, 40, 50\), expected \[..., C, H, W\]"):
        own(ir[0, :, :, :].expand(2, -1, -1), vis[0])
    with pytest.raises(ValueError, match=r"ir: the image is empty, shape \(1, 1, 0, 5\)"):
        own(torch.zeros(1, 1, 0, 5), torch.zeros(1, 3, 0, 5))
    with pytest.raises(TypeError, match=r"vis: got torch.uint8, expected a float tensor"):
        own(ir, vis.to(torch.uint8))
    with pytest.raises(ValueError, match=r"ir has the leading axes \(1,\) and vis \(\)"):
        own(ir, vis[0])
    with pytest.raises(ValueError, match="ir: .*0.*1"):
        own(ir * 255, vis)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_and_autocast(module, dtype):
    ir, vis = (x.to(dtype) for x in pair(1, 3, 1))
    fused = module(ir, vis)
    assert fused.dtype == dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(ir, vis), fused)
        exact = module(ir.double().requires_grad_(), vis.double())
    assert exact.dtype == torch.float64
    tolerance = 2e-6 + float(torch.finfo(dtype).eps)  # float32 inside, then the result's rounding
    np.testing.assert_allclose(exact.detach(), fused.double(), atol=tolerance)


@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize("size", [(16, 16), (33, 40), (70, 90)])
def test_the_derivative_of_the_closed_form(size, functional):
    """It agrees with central differences along a random direction, in float64."""
    generator = torch.Generator().manual_seed(1)
    a, b, *way, u = torch.rand(5, 1, 1, *size, generator=generator, dtype=torch.float64) * 0.8 + 0.1
    way = [w - 0.5 for w in way]

    def f(i, v):
        return (choose(i, v, [functional]) * u).sum()

    sources = [x.clone().requires_grad_() for x in (a, b)]
    gradients = torch.autograd.grad(f(*sources), sources)
    found = float(sum((g * w).sum() for g, w in zip(gradients, way, strict=True)))
    h = 1e-7
    up, down = (f(a + s * way[0], b + s * way[1]) for s in (h, -h))
    assert float(up - down) / (2 * h) == pytest.approx(found, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("channels", [(1, 1), (1, 3), (3, 3)])
def test_gradients_of_the_module(module, channels):
    """The same numbers with gradients as without; the derivative of stretch and color too."""
    ir, vis = pair(*channels, 2, dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    sources = [x.clone().requires_grad_() for x in (ir, vis)]
    fused = module(*sources)
    np.testing.assert_allclose(fused.detach(), module(ir, vis), atol=3e-6)
    u = torch.rand(fused.shape, generator=generator, dtype=torch.float64)
    gradients = torch.autograd.grad((fused * u).sum(), sources)
    way = [torch.rand(x.shape, generator=generator, dtype=torch.float64) - 0.5 for x in sources]
    found = float(sum((g * w).sum() for g, w in zip(gradients, way, strict=True)))

    def f(step: float) -> float:
        moved = [(x + step * w).requires_grad_() for x, w in zip((ir, vis), way, strict=True)]
        return float((module(*moved).detach() * u).sum())

    h = 1e-6
    assert (f(h) - f(-h)) / (2 * h) == pytest.approx(found, rel=1e-4)


def test_a_network_before_it_learns(module):
    """Through the module, gradient descent finds the gain that made a target."""
    ir, vis = pair(1, 1, 1)
    with torch.no_grad():
        target = module(ir * 0.6, vis)
    gain = torch.tensor(0.9, requires_grad=True)
    descent = torch.optim.Adam([gain], lr=0.02)
    first = last = None
    for _ in range(40):
        loss = (module(ir * gain, vis) - target).square().mean()
        descent.zero_grad()
        loss.backward()
        descent.step()
        first, last = first or float(loss.detach()), float(loss.detach())
    assert last < 0.1 * first and float(gain.detach()) == pytest.approx(0.6, abs=0.05)


@pytest.mark.parametrize("options", [{"preset": "balanced"}, {"steps": 2}, {"preset": "fast"}])
def test_what_has_no_gradients_says_so(options):
    ir, vis = pair(1, 3, 1)
    own = FuseModule(device="cpu", **options)
    with pytest.raises(ValueError, match='vis requires gradients.*preset="instant"'):
        own(ir, vis.requires_grad_())
    with torch.no_grad():
        assert own(ir, vis).shape == vis.shape


def test_gradients_are_not_those_of_a_pair_that_was_to_be_aligned():
    """Either the picture with gradients equals the one without, or it is refused."""
    ir, vis = pair(1, 3, 1)
    own = FuseModule(preset="instant", align="shift", device="cpu")
    with pytest.raises(ValueError, match='requires gradients, which alignment.*align="off"'):
        own(ir, vis.requires_grad_())
    with torch.no_grad():
        assert own(ir, vis).shape == vis.shape


def test_a_trace_would_be_of_one_pair_and_is_refused(module):
    with pytest.raises(RuntimeError, match=r"torch\.jit\.trace cannot.*torch\.export\.export"):
        torch.jit.trace(module, tuple(pair(1, 3, 1)))


def test_state_dict_has_the_network_of_the_prior():
    own = FuseModule(preset="instant", device="cpu")
    state = own.state_dict()
    expected = load_prior("embedded").unet.state_dict()
    assert state.keys() == {f"prior.{name}" for name in expected}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    halved = {k: v * 0.5 for k, v in torch.load(buffer).items()}
    inner = torch.nn.Sequential(own)
    done = inner.load_state_dict({f"0.{k}": v for k, v in halved.items()})
    assert not done.missing_keys and not done.unexpected_keys
    for name, value in own.state_dict().items():
        assert torch.equal(value, expected[name.removeprefix("prior.")] * 0.5), name
    assert torch.equal(
        load_prior("embedded").unet.state_dict()["out.2.bias"], expected["out.2.bias"]
    )
    x = torch.rand(1, 3, 64, 64)
    assert not torch.equal(own.fuser.prior(x, 100), load_prior("embedded")(x, 100))


def test_a_state_dict_that_does_not_fit():
    own = FuseModule(preset="instant", device="cpu")
    state = dict(own.state_dict())
    name = next(iter(state))
    with pytest.raises(RuntimeError, match="Missing key.*" + name):
        own.load_state_dict({k: v for k, v in state.items() if k != name})
    with pytest.raises(RuntimeError, match="Unexpected key.*prior.more"):
        own.load_state_dict({**state, "prior.more": state[name]})
    with pytest.raises(RuntimeError, match="prior: "):
        own.load_state_dict({**state, name: state[name][:1]})
    bare = FuseModule(prior=lambda x, t: torch.zeros_like(x), preset="instant", device="cpu")
    assert not bare.state_dict() and not list(bare.parameters())
    bare.load_state_dict({})


def test_to():
    own = FuseModule(preset="instant", device="cpu")
    assert own.to("cpu") is own and own.half() is own
    ir, vis = pair(1, 3, 1)
    assert torch.equal(own(ir, vis), FuseModule(preset="instant", device="cpu")(ir, vis))


def test_copies_are_apart():
    own = FuseModule(preset="instant", device="cpu").eval()
    copied = copy.deepcopy(torch.nn.Sequential(own))[0]
    assert copied is not own and copied.fuser is own.fuser and not copied.training
    state = own.state_dict()
    copied.load_state_dict({name: value * 2 for name, value in state.items()})
    for name, value in own.state_dict().items():
        assert torch.equal(value, state[name])
        assert torch.equal(copied.state_dict()[name], value * 2)


def test_a_default_device_of_the_program_stays_out(module):
    ir, vis = pair(1, 3, 1)
    expected = module(ir, vis)
    with torch.device("meta"):
        exact = module(ir.clone().requires_grad_(), vis)
    np.testing.assert_allclose(exact.detach(), expected, atol=2e-6)


@pytest.mark.gpu
def test_to_a_gpu():
    own = FuseModule(preset="instant", device="cpu")
    ir, vis = pair(1, 3, 1)
    expected = own(ir, vis)
    moved = own.to("cuda")
    assert moved.fuser.device.type == "cuda"
    fused = moved(ir.cuda(), vis.cuda())
    assert fused.device.type == "cuda"
    np.testing.assert_allclose(fused.cpu(), expected, atol=2e-5)
    exact = moved(ir.cuda().requires_grad_(), vis.cuda())
    exact.sum().backward()
    np.testing.assert_allclose(exact.detach().cpu(), expected, atol=2e-5)


@pytest.mark.slow
def test_compiled_and_exported(module):
    ir, vis = pair(1, 3, 1)
    expected = module(ir, vis)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(ir, vis), expected)
    program = torch.export.export(module, (ir, vis))
    assert torch.equal(program.module()(ir, vis), expected)
    broken = torch.compile(module, backend="aot_eager")
    source = ir.clone().requires_grad_()
    broken(source, vis).sum().backward()
    assert source.grad is not None and bool((source.grad != 0).any())
