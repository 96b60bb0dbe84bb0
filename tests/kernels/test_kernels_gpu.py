"""On a real GPU: kernels against their twins, whole loops, CUDA graphs, memory, launches.

The same claims that the interpreter (test_step_kernels.py and others here) and the recorder
(test_graphs.py) check on a CPU, and those that only a GPU can tell. They were written without one.
"""

import threading

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need Triton")

from analytic import tanh_prior, tanh_prior_with_variance

from ddfm_fast.api import Fuser
from ddfm_fast.config import FuseConfig
from ddfm_fast.graphs.cache import GraphCache
from ddfm_fast.noise import normals
from ddfm_fast.priors.load import load_prior
from ddfm_fast.rectify import VARIANTS, KSolver
from ddfm_fast.runtime.dispatch import Backend
from ddfm_fast.sampler import sample
from ddfm_fast.schedule import make_schedule, step_rows
from ddfm_fast.step import NOISES, ReverseStep

pytestmark = pytest.mark.gpu

SIZES = [(1, 64, 64), (2, 37, 53), (3, 271, 481), (1, 512, 640)]
SOLVERS = ["torch", "cupy", "local"]
GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def float32_throughout(monkeypatch):
    """PyTorch lets convolutions round to TF32 by default."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(params=SOLVERS)
def solver(request):
    if request.param == "cupy":
        pytest.importorskip("cupy", reason="CuPy is not installed")
    return request.param


def backend(solver):
    return Backend("triton", solver, "")


def data(n, height, width):
    generator = torch.Generator().manual_seed(n * height + width)
    i, v = torch.rand(2, n, 1, height, width, generator=generator).cuda() * 2 - 1
    x, eps = torch.randn(2, n, 3, height, width, generator=generator).cuda()
    return i, v, x, eps


def make(solver, *sources, **settings):
    from ddfm_fast.kernels import LocalStep, TritonStep

    if solver == "local":
        return LocalStep(*sources, **settings)
    return TritonStep(*sources, solver=solver, **settings)


def network(x, eps):
    out = torch.tanh(0.5 * x + 0.1 * eps)
    return torch.cat([out, torch.sin(3 * x)], 1)


def run_kernels(solver, i, v, x, eps, rows, network=network, **settings):
    rectifier, x = make(solver, i, v, rows=rows, **settings), x.clone()
    for _ in rows:
        x = rectifier.step_(x, network(x, eps))
    return x


def relative(got, wanted):
    return float((got.double() - wanted.double()).abs().max() / wanted.double().abs().max())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_loop_agrees_with_the_twin_in_float64(variant, size, solver):
    """No worse than twice plain float32 against float64, plus rounding."""
    i, v, x, eps = data(*size)
    rows = step_rows(make_schedule(6), "ddim")

    def twin(dtype):
        y = x.to(dtype, copy=True)
        rectifier = ReverseStep(i.to(dtype), v.to(dtype), rows=rows, variant=variant, eta=0.1)
        for _ in rows:
            rectifier.step_(y, network(y, eps.to(dtype)))
        return y

    exact, plain = twin(torch.float64), twin(torch.float32)
    got = run_kernels(solver, i, v, x, eps, rows, variant=variant, eta=0.1)
    assert relative(got, exact) <= 2 * relative(plain, exact) + 2e-6


@pytest.mark.parametrize("noise", NOISES)
def test_noise_is_that_of_the_twin_on_the_cpu(noise, solver):
    i, v, x, eps = data(2, 45, 70)
    rows, seeds = step_rows(make_schedule(4), "ddpm"), torch.tensor([3407, 2**40 + 1])
    settings = dict(rows=rows, noise=noise, variant="paper", eta=0.1)
    twin, y = ReverseStep(i.cpu(), v.cpu(), seeds=seeds, **settings), x.cpu().clone()
    for _ in rows:
        twin.step_(y, network(y, eps.cpu()))
    got = run_kernels(solver, i, v, x, eps, seeds=seeds.cuda(), noise=noise, rows=rows,
                      variant="paper", eta=0.1)  # fmt: skip
    assert relative(got.cpu(), y) < 2e-5


def test_normals_of_the_plain_path_agree_between_devices():
    seeds = torch.tensor([3407, 5])
    on_cpu, on_gpu = normals(seeds, 7, 64, 80), normals(seeds.cuda(), 7, 64, 80).cpu()
    assert float((on_cpu - on_gpu).abs().max()) < 2e-6


@pytest.mark.parametrize("size", [(37, 53), (271, 481), (512, 640), (1080, 1920)])
def test_k_solve(size, solver):
    """Sizes with large prime factors, too, by a whole step whose ψ and η pass rhs on unchanged."""
    from ddfm_fast.kernels.ksolve import SOLVERS as CLASSES

    if solver == "local":
        pytest.skip("its k is checked in the step below")
    rhs = torch.randn(2, *size, device=GPU)
    k = CLASSES[solver](tuple(rhs.shape), GPU)(rhs.clone(), torch.empty_like(rhs))
    exact = KSolver(*size, torch.float64, GPU)(rhs.double())
    assert relative(k, exact) < 2e-6


@pytest.mark.parametrize("size", [(1, 37, 53), (2, 271, 481), (1, 512, 640)])
def test_k_without_an_fft(size):
    i, v, x, eps = data(*size)
    rows = step_rows(make_schedule(4), "ddim")
    local, fft = (make(s, i, v, rows=rows, eta=0.3) for s in ("local", "torch"))
    a, b = x.clone(), x.clone()
    for _ in rows[:3]:
        a, b = local.step_(a, network(a, eps)), fft.step_(b, network(b, eps))
        assert relative(local.k, fft.k) < 2e-6


@pytest.mark.parametrize("size", [(2, 37, 53), (1, 512, 640)])
def test_the_same_call_gives_the_same_bytes(size, solver):
    rows = step_rows(make_schedule(4), "ddim")
    first = run_kernels(solver, *data(*size), rows)
    assert torch.equal(first, run_kernels(solver, *data(*size), rows))


def test_a_batch_gives_each_image_what_it_gets_alone(solver):
    """The same ε is given, since a library's functions may round differently in a batch."""
    i, v, x, eps = data(8, 64, 80)
    rows, seeds = step_rows(make_schedule(4), "ddpm"), torch.arange(8, device=GPU)
    settings = dict(rows=rows, noise="fixed", variant="paper", eta=0.1)
    settings["network"] = lambda x, eps: eps
    together = run_kernels(solver, i, v, x, eps, seeds=seeds, **settings)
    for n in range(8):
        one = slice(n, n + 1)
        alone = run_kernels(solver, i[one], v[one], x[one], eps[one], seeds=seeds[one], **settings)
        assert torch.equal(together[one], alone)


@pytest.mark.parametrize("steps", [2, 3])
def test_for_the_sanitizer(steps):
    """Few launches, every kernel: compute-sanitizer makes each a hundred times slower."""
    rows = step_rows(make_schedule(steps), "ddpm")
    for solver in ("torch", "local"):
        for size in ((1, 32, 64), (2, 37, 53)):
            got = run_kernels(solver, *data(*size), rows, noise="learned", variant="paper", eta=0.1)
            assert torch.isfinite(got).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_output_of_the_prior_is_read_as_it_comes(dtype, solver):
    i, v, x, eps = data(2, 48, 72)
    rows = step_rows(make_schedule(4), "ddpm")
    out = network(x, eps).to(dtype)
    wanted = make(solver, i, v, rows=rows, noise="learned").step_(x.clone(), out.float())
    for given in (out, out.to(memory_format=torch.channels_last)):
        got = make(solver, i, v, rows=rows, noise="learned").step_(x.clone(), given)
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("most", [dict(torch=8, cupy=7, local=2)])
def test_launches_of_a_step(most, solver):
    from torch.profiler import ProfilerActivity, profile

    i, v, x, eps = data(1, 512, 640)
    rectifier = make(solver, i, v, rows=step_rows(make_schedule(4), "ddim"))
    out = network(x, eps)
    rectifier.step_(x, out)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        rectifier.step_(x, out)
        torch.cuda.synchronize()
    names = [e.name for e in profiler.events() if e.device_type.name == "CUDA"]
    assert 0 < len(names) <= most[solver], names


def pair(n, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, n, 1, height, width, generator=generator) * 2 - 1


@pytest.fixture(scope="module")
def embedded():
    return load_prior("embedded", device=GPU)


def drawn(prior, config, size=(1, 64, 96), seed=0, **options):
    sources = pair(*size, seed=seed).to(prior.device)
    return sample(prior, *sources, config, seed=seed, **options).x0


def test_official_preset_agrees_with_the_cpu(embedded, solver):
    """100 DDIM steps in float32 with a network."""
    config = FuseConfig(steps=100)
    on_gpu = drawn(embedded, config, backend=backend(solver)).cpu()
    on_cpu = drawn(load_prior("embedded"), config)
    assert float((on_gpu - on_cpu).abs().max()) < 2e-3


def test_paper_preset_is_as_close_as_chaos_allows(embedded, solver):
    """γ and ρ feed back on f: a rounding grows step by step, on one device as between two.

    Allowed is four times what the CPU's own result moves when x_T changes by one part in 10⁶.
    """
    config = FuseConfig(variant="paper", sampler="ddpm", eta=0.1, steps=20)
    cpu = load_prior("embedded")
    x_T = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    on_cpu = drawn(cpu, config, x_start=x_T)
    moved = drawn(cpu, config, x_start=x_T * (1 + 1e-6))
    on_gpu = drawn(embedded, config, x_start=x_T.cuda(), backend=backend(solver)).cpu()
    allowed = 4 * float((moved - on_cpu).square().mean().sqrt()) + 1e-5
    assert float((on_gpu - on_cpu).square().mean().sqrt()) < allowed


CONFIGS = [
    FuseConfig(steps=5),
    FuseConfig(steps=4, variant="gradient", start=100, psi=5.0, eta=10.0),
    FuseConfig(steps=5, sampler="ddpm", variant="paper", eta=0.1),
]


@pytest.mark.parametrize("mode", ["loop", "step"])
@pytest.mark.parametrize("config", CONFIGS)
def test_a_replay_equals_the_eager_loop(embedded, config, mode, solver):
    cache = GraphCache(mode, backend(solver))
    cache.warm_up(embedded, config, (1, 64, 96))
    assert [s["mode"] for s in cache.summary()] == [mode]
    for seed in (1, 2):
        got = drawn(embedded, config, seed=seed, loops=cache.loop)
        assert torch.equal(got, drawn(embedded, config, seed=seed, backend=backend(solver)))


def test_the_plain_backend_is_captured_too(embedded):
    plain = Backend("torch", "torch", "")
    cache = GraphCache("loop", plain)
    for prior in (embedded, load_prior(tanh_prior_with_variance, device=GPU)):
        config = FuseConfig(steps=4, sampler="ddpm", variant="paper")
        cache.warm_up(prior, config, (1, 64, 96))
        got = drawn(prior, config, seed=3, loops=cache.loop)
        assert torch.equal(got, drawn(prior, config, seed=3, backend=plain))
    assert len(cache) == 2


def test_one_launch_for_the_whole_loop(embedded):
    from torch.profiler import ProfilerActivity, profile

    cache, config = GraphCache("loop", backend("torch")), FuseConfig(steps=10)
    cache.warm_up(embedded, config, (1, 64, 96))
    with torch.inference_mode():
        loop = cache.loop(embedded, config, (1, 64, 96), False)
        loop.load(*pair(1, 64, 96).cuda(), 0)
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
            loop.run(range(10), None)
            torch.cuda.synchronize()
    calls = [e.name for e in profiler.events() if "Launch" in e.name]
    assert calls == ["cudaGraphLaunch"], calls


def test_shapes_change_and_old_graphs_go(embedded):
    cache, config = GraphCache("loop", backend("torch"), limit=2), FuseConfig(steps=3)
    sizes = [(1, 64, 96), (2, 96, 64), (1, 128, 128)]
    for seed, size in enumerate(sizes * 4):
        got = drawn(embedded, config, size, seed, loops=cache.loop)
        wanted = drawn(embedded, config, size, seed, backend=backend("torch"))
        assert torch.equal(got, wanted)
        assert len(cache) <= 2
    one = GraphCache("loop", backend("torch"), limit=1)  # the pool goes with its last graph
    for size in sizes:
        one.warm_up(embedded, config, size)
        assert len(one) == 1


def test_batch_of_eight_equals_eight_alone_to_the_librarys_rounding(embedded):
    config, sources = FuseConfig(steps=10), pair(8, 64, 96).cuda()
    together = sample(embedded, *sources, config).x0
    for n in range(8):
        alone = sample(embedded, *sources[:, n : n + 1], config).x0
        assert float((together[n : n + 1] - alone).abs().max()) < 2e-4


def test_two_fusers_at_once_on_two_streams():
    images = [torch.rand(2, 64, 96, device=GPU) for _ in range(2)]
    fusers = [Fuser(prior="embedded", steps=5, device="cuda") for _ in range(2)]
    wanted = [fuser(*pair) for fuser, pair in zip(fusers, images, strict=True)]
    results = [[], []]

    def work(n):
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(10):
                results[n].append(fusers[n](*images[n]))
            torch.cuda.current_stream().synchronize()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(2):
        assert len(results[n]) == 10
        assert all(torch.equal(found, wanted[n]) for found in results[n])


def test_one_fuser_on_two_streams():
    fuser, images = Fuser(prior="embedded", steps=5, device="cuda"), torch.rand(2, 64, 96).cuda()
    fuser.warmup([(64, 96)])
    wanted = fuser(*images)
    for _ in range(3):
        with torch.cuda.stream(torch.cuda.Stream()):
            assert torch.equal(fuser(*images), wanted)


def test_memory_pressure_never_crashes(embedded):
    """With little of the device left a capture may fail; the result stays the same."""
    config, size = FuseConfig(steps=4), (1, 256, 320)
    wanted = drawn(embedded, config, size, backend=backend("torch"))
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    used = torch.cuda.memory_reserved() + 2**20
    cache = GraphCache("loop", backend("torch"))
    try:
        for spare in (2**28, 2**29, 2**31):
            torch.cuda.set_per_process_memory_fraction(min(1.0, (used + spare) / total))
            try:
                for _ in range(2):
                    assert torch.equal(drawn(embedded, config, size, loops=cache.loop), wanted)
            except torch.OutOfMemoryError:
                assert spare < 2**31, "too little even for the eager loop"
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    cache.clear()


def test_host_code_in_a_prior_runs_step_by_step():
    def host(x, t):
        return tanh_prior(x, t) * (1 if float(x.sum()) > -1e9 else 2)

    host.multiple = 1
    prior, cache = load_prior(host, device=GPU), GraphCache("loop", backend("torch"))
    config = FuseConfig(steps=3)
    for seed in range(3):
        got = drawn(prior, config, seed=seed, loops=cache.loop)
        assert torch.equal(got, drawn(prior, config, seed=seed, backend=backend("torch")))
    assert len(cache) == 0
    assert torch.randn(4, device=GPU).isfinite().all(), "the failed capture left the device usable"
