"""A fuser and a step inside of graphs of torch.compile and torch.export: one node, equal bytes."""

import gc
import io

import pytest
import torch
from analytic import tanh_prior, tanh_prior_with_variance
from torch import nn
from torch.library import opcheck

from ddfm_fast import PRESETS, FuseConfig, Fuser
from ddfm_fast.method import Baseline
from ddfm_fast.runtime import operators
from ddfm_fast.schedule import make_schedule, step_rows
from ddfm_fast.step import ReverseStep

AOT = dict(fullgraph=True, backend="aot_eager")


class Module(nn.Module):
    """What a user has around a fuser."""

    def __init__(self, **settings):
        super().__init__()
        self.fuser = Fuser(device="cpu", **settings)

    def forward(self, ir, vis, **options):
        return self.fuser(ir, vis, **options)


class Around(Module):
    """Work before and after that a compiler takes apart."""

    def forward(self, ir, vis, **options):
        return self.fuser(ir.clamp(0, 1), vis, **options).square().mean(1)


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()


def pictures(height=37, width=50, seed=0):
    """Draw smooth pictures with a little noise, different from each other."""
    y, x = torch.meshgrid(torch.arange(height) / 9, torch.arange(width) / 7, indexing="ij")
    noise = torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed)) / 200
    ir = (torch.sin(x + seed) / 3 + 0.5 + noise[:1]).clamp(0, 1)
    return ir[None], ((torch.cos(y * x / 5) / 3 + 0.5).expand(3, -1, -1) + noise).clamp(0, 1)[None]


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_exports_to_one_node_with_equal_bytes(preset):
    steps = dict(steps=2) if PRESETS[preset].variant != "saliency" else {}
    module, images = Module(preset=preset, prior=tanh_prior, **steps), pictures()
    exported = torch.export.export(module, images)
    nodes = [n.target for n in exported.graph.nodes if "ddfm_fast" in str(n.target)]
    assert nodes == [torch.ops.ddfm_fast.fuse.default]
    assert torch.equal(exported.module()(*images), module(*images))


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["official-script", "fast"])
def test_a_module_around_a_fuser_compiles_without_a_break(preset):
    steps = dict(steps=2) if preset == "official-script" else {}
    module, images = Around(preset=preset, **steps), pictures(32, 45)
    assert torch.equal(torch.compile(module, **AOT)(*images), module(*images))


@pytest.mark.slow
def test_inductor_keeps_the_node():
    module, images = Module(preset="instant"), pictures()
    assert torch.equal(torch.compile(module, fullgraph=True)(*images), module(*images))


@pytest.mark.slow
def test_options_of_a_call_reach_the_fuser():
    module, (ir, vis) = Module(prior=tanh_prior, preset="official", steps=1), pictures()
    compiled = torch.compile(module, **AOT)
    for options in (dict(seed=1), dict(seed=2), dict(color=False), dict(color="ir")):
        assert torch.equal(compiled(ir, vis, **options), module(ir, vis, **options)), options
    scaled = dict(value_range=(0, 255), layout="NCHW")
    images = ir * 255, vis * 255
    assert torch.equal(compiled(*images, **scaled), module(*images, **scaled))


@pytest.mark.slow
def test_lists_and_integers_come_back_as_they_came():
    module = Module(preset="instant")
    compiled = torch.compile(module, **AOT)
    pairs = [pictures(seed=n) for n in range(2)]
    irs, viss = (
        [(255 * x).byte()[0].movedim(0, -1) for x in side] for side in zip(*pairs, strict=True)
    )
    for color in (True, False):
        got, wanted = (f(irs, viss, color=color) for f in (compiled, module))
        assert isinstance(got, list)
        for a, b in zip(got, wanted, strict=True):
            assert torch.equal(a, b) and a.stride() == b.stride() and a.dtype == torch.uint8


@pytest.mark.slow
def test_a_gradient_ends_at_a_fuser_as_it_does_outside():
    module, (ir, vis) = Module(preset="instant"), pictures()
    weight = nn.Parameter(torch.ones(()))
    got = torch.compile(module, **AOT)(ir * weight, vis)
    assert not got.requires_grad and not module(ir * weight, vis).requires_grad


@pytest.mark.slow
def test_other_settings_compile_again():
    module, images = Module(preset="instant"), pictures()
    compiled = torch.compile(module, **AOT)
    before = compiled(*images)
    module.fuser.config = FuseConfig.from_preset("instant").with_overrides(stretch="minmax")
    assert torch.equal(compiled(*images), module(*images))
    assert not torch.equal(before, module(*images))


@pytest.mark.slow
def test_what_no_graph_holds_runs_outside_of_it():
    module, images = Module(prior=tanh_prior, preset="official", steps=2), pictures()
    compiled, seen, reports = torch.compile(module, backend="aot_eager"), [], []
    got = compiled(*images, callback=seen.append, report=reports)
    assert len(seen) == 2 and len(reports) == 1 and torch.equal(got, module(*images))
    arrays = [x.numpy() for x in images]
    assert type(compiled(*arrays)) is type(arrays[0])
    with pytest.raises(Exception, match="without callback and report"):
        torch.compile(module, **AOT)(*images, callback=seen.append)


def saved(module, images):
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(module, images), buffer)
    buffer.seek(0)
    return torch.export.load(buffer).module()


def test_an_exported_program_finds_a_fuser_built_alike():
    images = pictures()
    module = Module(preset="instant", psi=3)
    wanted, loaded = module(*images), saved(module, images)
    del module
    gc.collect()
    with pytest.raises(RuntimeError, match="which is not in this process; expected a ddfm_fast.F"):
        loaded(*images)
    other = Fuser(device="cpu", preset="instant", psi=4)
    with pytest.raises(RuntimeError, match="which is not in this process"):
        loaded(*images)
    same = Fuser(device="cpu", preset="instant", psi=3, seed=5)  # the seed is in the program
    assert torch.equal(loaded(*images), wanted) and same.digest() != other.digest()


def test_a_prior_without_a_fingerprint_has_a_name_of_this_process():
    fusers = [Fuser(prior=tanh_prior, device="cpu", preset="instant") for _ in range(2)]
    assert fusers[0].digest() == fusers[0].key != fusers[1].digest()


def test_a_size_that_settings_do_not_say_is_refused():
    module = Module(preset="official-script", method=Baseline("mean").of)
    exported, images = torch.export.export(module, pictures(40, 50)), pictures(40, 50)
    with pytest.raises(RuntimeError, match=r"gave \(1, 1, 40, 50\); expected \(1, 1, 32, 32\)"):
        exported.module()(*images)


@pytest.mark.slow
@pytest.mark.parametrize("n, preset", [(1, "instant"), (3, "official-script")])
def test_a_call_is_an_operator(n, preset):
    fuser = Fuser(device="cpu", preset=preset, prior=tanh_prior)
    if preset == "official-script":
        fuser.config = fuser.config.with_overrides(steps=1)
    ir, vis = (torch.cat([x] * n) for x in pictures(33, 41))
    opcheck(operators.fuse, ([ir], [vis], fuser.key, False, 7, "True", False, None, None))
    lists = [ir[0], ir[0]], [vis[0], vis[0]]
    opcheck(operators.fuse, (*lists, fuser.key, True, 7, "False", False, [0.0, 1.0], "CHW"))


def trajectory(sampler, variant, prior, n=3):
    """Return a step's inputs and what ``ReverseStep`` makes of them, step by step."""
    rows = step_rows(make_schedule(4), sampler, 0.0)
    noise = "learned" if prior is tanh_prior_with_variance else "fixed"
    ir, vis = (torch.cat([p[:, :1] for p in ps]) * 2 - 1
               for ps in zip(*(pictures(seed=s) for s in range(n)), strict=True))  # fmt: skip
    seeds = torch.arange(n)
    options = dict(noise=noise, variant=variant, psi=0.5, eta=0.1, update_scales=True)
    made = ReverseStep(ir, vis, rows=rows, seeds=seeds, **options)
    x = torch.randn(n, 3, *ir.shape[2:], generator=torch.Generator().manual_seed(1))
    x0, k, scales = None, torch.zeros_like(ir[:, 0]), torch.ones(n, 2)
    for index, row in enumerate(rows):
        out = prior(x, torch.full((n,), row.timestep))
        numbers = [row.recip, row.recipm1, row.a, row.b, row.c, row.sigma, row.log_var_min,
                   row.log_var_max]  # fmt: skip
        given = dict(x_t=x, out=out, i=ir, v=vis, x0=x0, k=k, scales=scales, seeds=seeds,
                     row=numbers, index=index, **options)  # fmt: skip
        x = made.step_(x.clone(), out)
        x0, k, scales = made.x0.clone(), made.k, made.scales
        yield given, (x, x0, k, scales)


@pytest.mark.parametrize(
    "sampler, variant, prior",
    [
        ("ddim", "official", tanh_prior),
        ("ddpm", "paper", tanh_prior_with_variance),
        ("ddpm", "gradient", tanh_prior),
    ],
)
def test_steps_with_their_state_handed_on_give_the_bytes_of_the_loop(sampler, variant, prior):
    for given, wanted in trajectory(sampler, variant, prior):
        before = {name: x.clone() for name, x in given.items() if isinstance(x, torch.Tensor)}
        assert all(map(torch.equal, operators.step(**given), wanted))
        assert all(torch.equal(given[name], x) for name, x in before.items())


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 3])
def test_a_step_is_an_operator(n):
    for given, _ in list(trajectory("ddpm", "paper", tanh_prior_with_variance, n))[1:2]:
        opcheck(operators.step, (), given)


@pytest.mark.slow
def test_a_loop_of_steps_compiles_without_a_break():
    (first, _), (second, wanted) = list(trajectory("ddim", "official", tanh_prior))[:2]

    def loop(x_t):
        x, x0, k, scales = operators.step(**{**first, "x_t": x_t})
        return operators.step(**{**second, "x_t": x, "x0": x0, "k": k, "scales": scales})

    got = torch.compile(loop, **AOT)(first["x_t"])
    assert all(map(torch.equal, got, wanted))


def test_a_step_names_what_it_lacks():
    given, _ = next(trajectory("ddim", "official", tanh_prior))
    row = given.pop("row")
    with pytest.raises(ValueError, match="row has 3 numbers; expected the 8"):
        operators.step(**given, row=row[:3])
    with pytest.raises(ValueError, match="index is -1; expected the number"):
        operators.step(**{**given, "index": -1}, row=row)
    with pytest.raises(ValueError, match="x0 is None and the row has c"):
        operators.step(**given, row=[*row[:4], 0.5, *row[5:]])
