"""Every kind of prior behind the one interface that the sampler uses."""

from __future__ import annotations

import json
import sys
import types
import warnings

import pytest
import torch
from networks import SMALL, random_unet
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensorMode

from ddfm_fast.images.doubts import DDFMWarning
from ddfm_fast.priors.callable import CallablePrior
from ddfm_fast.priors.checkpoint import describe, save_unet
from ddfm_fast.priors.load import EMBEDDED, load_prior
from ddfm_fast.priors.network import UNetPrior
from ddfm_fast.priors.prior import Prior

X = torch.randn(2, 3, 32, 64, generator=torch.Generator().manual_seed(0))


def evaluate(prior: Prior, x=X, t=500, **keywords):
    return prior.eps(x, prior.conditioning(torch.tensor([t]))[0], **keywords)


@pytest.fixture
def checkpoint(tmp_path):
    unet = random_unet({**SMALL, "num_heads": 2, "use_scale_shift_norm": True})
    return save_unet(tmp_path / "small.safetensors", unet), unet


def test_checkpoint_prior_is_the_network(checkpoint):
    path, unet = checkpoint
    prior = load_prior(path)
    expected = unet(X, torch.tensor([500, 500]))
    torch.testing.assert_close(evaluate(prior, variance=True), expected, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(evaluate(prior), expected[:, :3], rtol=1e-4, atol=2e-5)
    assert (prior.name, prior.multiple, prior.has_variance) == ("small", 2, True)
    assert (prior.noise_schedule, prior.num_train_timesteps) == ("linear", 1000)
    assert prior.device == torch.device("cpu") and prior.dtype == torch.float32
    assert prior.fingerprint == describe(path)["weights_sha256"]


def test_conditioning_is_one_item_a_step(checkpoint):
    prior = load_prior(checkpoint[0])
    steps = prior.conditioning(torch.tensor([999, 10, 0.5]))
    assert len(steps) == 3
    one_by_one = [evaluate(prior, t=t) for t in (999, 10, 0.5)]
    for step, expected in zip(steps, one_by_one, strict=True):
        torch.testing.assert_close(prior.eps(X, step), expected)
    assert not torch.equal(one_by_one[0], one_by_one[1])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", torch.bfloat16])
def test_dtype(checkpoint, dtype):
    prior = load_prior(checkpoint[0], dtype=dtype)
    exact, out = evaluate(load_prior(checkpoint[0])), evaluate(prior)
    assert out.dtype == prior.dtype
    assert str(prior.dtype).endswith(str(dtype).removeprefix("torch."))
    assert 0 < (out - exact).square().mean().sqrt() / exact.square().mean().sqrt() < 0.05


def test_prior_keywords(checkpoint):
    prior = load_prior(
        checkpoint[0],
        {
            "noise_schedule": "cosine",
            "num_train_timesteps": 4000,
            "rescale_timesteps": True,
            "multiple": 8,
        },
    )
    assert (prior.noise_schedule, prior.num_train_timesteps) == ("cosine", 4000)
    assert prior.rescale_timesteps is True and prior.multiple == 8
    half = prior.to("cpu", torch.bfloat16)
    assert (half.noise_schedule, half.multiple, half.name) == ("cosine", 8, "small")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"noise_schedule": "sqrt"}, "noise_schedule='sqrt', expected one of linear, cosine"),
        ({"num_train_timesteps": 0}, "num_train_timesteps=0"),
        ({"rescale_timesteps": 1}, "rescale_timesteps=1"),
        ({"multiple": 3}, "multiple=3, expected a multiple of 2"),
        ({"multiple": "8"}, "multiple='8'"),
        ({"depth": 3}, "unknown keyword 'depth'"),
        ("cosine", "config: expected a dict"),
    ],
)
def test_bad_keywords(checkpoint, config, message):
    with pytest.raises((ValueError, TypeError), match=message):
        load_prior(checkpoint[0], config)


@pytest.mark.parametrize("shape", [(1, 3, 33, 32), (1, 3, 32, 31), (1, 1, 32, 32), (3, 32, 32)])
def test_bad_input_shapes(checkpoint, shape):
    prior = load_prior(checkpoint[0])
    with pytest.raises(ValueError, match="multiples of 2"):
        evaluate(prior, torch.zeros(shape))


def test_network_with_other_channels_is_refused(tmp_path):
    unet = random_unet({**SMALL, "in_channels": 6, "middle_attention": False})
    with pytest.raises(ValueError, match="maps 6 to 6 channels"):
        load_prior(save_unet(tmp_path / "a.safetensors", unet))


def test_our_module_keeps_its_fast_path_and_is_not_changed():
    unet = random_unet({**SMALL, "middle_attention": False, "out_channels": 3})
    before = {k: (v.data_ptr(), v.stride()) for k, v in unet.state_dict().items()}
    prior = load_prior(unet)
    assert isinstance(prior, UNetPrior) and not prior.has_variance
    assert prior.unet.out[2].weight.is_contiguous(memory_format=torch.channels_last)
    assert {k: (v.data_ptr(), v.stride()) for k, v in unet.state_dict().items()} == before
    half = prior.to("cpu", torch.bfloat16)
    assert half is not prior and unet.out[2].weight.dtype == torch.float32
    assert prior.to("cpu") is prior
    with pytest.raises(ValueError, match="predicts no variance"):
        evaluate(prior, variance=True)


@pytest.mark.parametrize("config", [None, {"prediction": "v"}])
def test_our_module_that_trains_on_leaves_the_prior_as_it_was(config):
    """None of its layers follows while others, and the table of timesteps, do not."""
    unet = random_unet({**SMALL, "out_channels": 3}).to(memory_format=torch.channels_last)
    prior = load_prior(unet, config)
    item = prior.conditioning(torch.tensor([500]))[0]
    before = prior.eps(X, item)
    for parameter in unet.parameters():
        parameter.mul_(1.1)
    assert torch.equal(prior.eps(X, item), before)
    assert torch.equal(evaluate(prior), before)
    assert not torch.equal(evaluate(load_prior(unet, config)), before)


def test_embedded_is_read_once():
    prior = load_prior("embedded")
    assert load_prior("embedded") is prior
    assert load_prior(prior) is prior
    meta = prior.to("meta")
    assert meta is not prior and meta.device.type == "meta"
    assert load_prior("embedded").device.type == "cpu"


def test_embedded_file_is_small_half_precision_and_says_how_it_was_made():
    assert EMBEDDED.stat().st_size < 6e6
    assert {v.dtype for v in load_file(EMBEDDED).values()} == {torch.float16}
    found = describe(EMBEDDED)
    assert found["unknown"] == [] and found["training"]["photos"] == 29
    assert found["weights_sha256"] == load_prior("embedded").fingerprint
    card = EMBEDDED.with_name("MODEL_CARD.md").read_text(encoding="utf-8")
    assert found["sha256"] in card and found["weights_sha256"] in card


@pytest.mark.parametrize(("t", "least"), [(50, 30), (150, 25.5), (300, 22), (500, 17)])
def test_embedded_denoises_images_it_never_saw(t, least):
    data = pytest.importorskip("skimage.data")
    clean = torch.stack(
        [
            torch.from_numpy(image[60:188, 60:188].copy()).permute(2, 0, 1) / 127.5 - 1
            for image in (data.astronaut(), data.chelsea(), data.coffee())
        ]
    )
    alpha = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[t].item()
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    noisy = alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise
    x0 = (noisy - (1 - alpha) ** 0.5 * evaluate(load_prior("embedded"), noisy, t)) / alpha**0.5
    psnr = -10 * torch.log10((x0.clamp(-1, 1) - clean).square().mean() / 4)
    assert psnr > least


def test_embedded_cost_fits_the_demo():
    from torch.utils.flop_counter import FlopCounterMode

    prior = load_prior("embedded")
    step = prior.conditioning(torch.tensor([500]))[0]
    with FlopCounterMode(display=False) as counter:
        prior.eps(torch.zeros(1, 3, 64, 64), step)
    assert counter.get_total_flops() / 64**2 <= 160e3


def test_embedded_takes_no_config():
    with pytest.raises(ValueError, match="leave config out"):
        load_prior("embedded", {"multiple": 32})


class Scaled(torch.nn.Module):
    """eps = x * scale * t / 1000, with a constant variance half; remembers what it was given."""

    multiple, out_channels = 8, 6

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, x, t):
        self.seen = x.dtype, t
        eps = self.scale * x * (t / 1000).view(-1, 1, 1, 1)
        return torch.cat([eps, torch.full_like(x, 0.25)], dim=1)


def test_module():
    module = Scaled()
    prior = load_prior(module)
    torch.testing.assert_close(evaluate(prior), X)
    assert torch.equal(evaluate(prior, variance=True)[:, 3:], torch.full_like(X, 0.25))
    assert module.seen[1].tolist() == [500, 500] and module.seen[1].dtype == torch.int64
    assert (prior.multiple, prior.has_variance, prior.fingerprint) == (8, True, "")
    assert not evaluate(prior).requires_grad


def test_module_in_half_precision_gets_half_inputs():
    module = Scaled().half()
    prior = load_prior(module)
    assert evaluate(prior).dtype == torch.float32 and module.seen[0] == torch.float16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_eps_is_handed_on_as_it_comes_unless_it_is_float64(dtype):
    prior = load_prior(lambda x, _t: x.to(dtype))
    assert evaluate(prior).dtype == (torch.float32 if dtype == torch.float64 else dtype)


def test_conditioning_by_a_step_on_the_device_is_the_same_item():
    for prior in (load_prior("embedded"), load_prior(Scaled())):
        steps = prior.conditioning(torch.tensor([999, 500, 3]))
        x = torch.randn(1, 3, 32, 32)
        for s in range(3):
            wanted = prior.eps(x, steps[s])
            assert torch.equal(prior.eps(x, steps.at(torch.tensor([s], dtype=torch.int32))), wanted)


def test_moving_a_module_copies_it():
    module = Scaled()
    moved = load_prior(module, device="meta")
    assert moved.device.type == "meta" and moved.function is not module
    assert module.scale.device.type == "cpu"


def test_callable_with_fractional_timesteps_and_sample_attribute():
    seen = []

    def eps(x, t):
        seen.append(t)
        return types.SimpleNamespace(sample=x + 1)

    prior = load_prior(eps, {"multiple": 4, "noise_schedule": "cosine"})
    torch.testing.assert_close(evaluate(prior, t=0.25), X + 1)
    assert seen[0].tolist() == [0.25, 0.25]
    assert (prior.name, prior.multiple, prior.noise_schedule) == ("eps", 4, "cosine")


def test_variance_of_a_callable_is_found_by_a_call():
    assert load_prior(lambda x, _t: torch.cat([x, x], 1)).has_variance
    three = load_prior(lambda x, _t: x)
    assert not three.has_variance
    with pytest.raises(ValueError, match="predicts no variance"):
        evaluate(three, variance=True)


def freed(x: torch.Tensor) -> torch.Tensor:
    x.untyped_storage().resize_(0)
    return x


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda _x, _t: None, TypeError, "returned NoneType"),
        (lambda x, _t: x.numpy(), TypeError, "returned ndarray"),
        (lambda x, _t: x.long(), TypeError, "tensor of torch.int64"),
        (lambda x, _t: x[:, :1], ValueError, r"shape \(2, 1, 32, 64\)"),
        (lambda x, _t: x[..., ::2], ValueError, r"shape \(2, 3, 32, 32\)"),
        (lambda x, _t: x.to("meta"), ValueError, "on meta for x on cpu"),
        (lambda x, _t: x.to_sparse(), TypeError, "returned a torch.sparse_coo tensor, expected"),
        (lambda x, _t: torch.nested.nested_tensor([*x]), TypeError, "returned a nested tensor"),
        (lambda x, _t: x.to_mkldnn(), TypeError, "returned a torch._mkldnn tensor"),
        (lambda x, _t: FakeTensorMode().from_tensor(x), TypeError, "a FakeTensor without data"),
        (lambda x, _t: freed(x), TypeError, "a Tensor without data of its own"),
    ],
)
def test_wrong_results_of_a_callable_are_named(function, error, message):
    with pytest.raises(error, match=f"prior: .*{message}"):
        evaluate(load_prior(function))


def test_network_keywords_make_no_sense_for_a_callable():
    with pytest.raises(ValueError, match="'model_channels' has no effect"):
        load_prior(lambda x, _t: x, {"model_channels": 3})


@pytest.mark.parametrize("spec", [None, 3, torch.zeros(3), Scaled, ["embedded"]])
def test_unknown_kinds_list_what_is_accepted(spec):
    with pytest.raises(TypeError, match='expected "embedded", "embedded-gray"'):
        load_prior(spec)


def test_missing_path_is_named():
    with pytest.raises(ValueError, match="no file or folder 'embeded'; expected \"embedded\""):
        load_prior("embeded")


def test_config_for_a_prior_is_refused():
    with pytest.raises(ValueError, match="taken as it is"):
        load_prior(CallablePrior(lambda x, _t: x), {"multiple": 8})


MODEL = {
    "_class_name": "UNet2DModel",
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
}


def write_folder(folder, model=MODEL, scheduler=None):
    (folder / "unet").mkdir()
    (folder / "unet" / "config.json").write_text(json.dumps(model))
    if scheduler is not None:
        (folder / "scheduler").mkdir()
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return folder


@pytest.mark.parametrize(
    ("model", "scheduler", "message"),
    [
        ({**MODEL, "_class_name": "UNet2DConditionModel"}, None, "holds a UNet2DConditionModel"),
        ({**MODEL, "num_class_embeds": 10}, None, "class-conditional"),
        ({**MODEL, "in_channels": 1}, None, "maps 1 to 3"),
        (MODEL, {"prediction_type": "noise"}, "predicts 'noise'"),
        (MODEL, {"beta_schedule": "cosine"}, "'cosine'"),
        (MODEL, {"beta_schedule": "linear", "beta_end": 1.5}, "1.5"),
        (MODEL, {"beta_schedule": "linear", "beta_end": "x"}, "beta_end 'x'"),
        (MODEL, {"trained_betas": [0.1, "y"]}, "expected two or more numbers"),
        (MODEL, {"trained_betas": [0.1, 1.0]}, "expected two or more numbers between 0 and 1"),
        (MODEL, {"trained_betas": [0.1, 1.7]}, "expected two or more numbers between 0 and 1"),
        (MODEL, {"_class_name": "EDMEulerScheduler"}, "EDM's preconditioning"),
        (MODEL, {"_class_name": "LCMScheduler"}, "latent consistency"),
        (MODEL, {"_class_name": "ScoreSdeVeScheduler"}, "'positional' time embeddings"),
        ({**MODEL, "time_embedding_type": "fourier"}, None, "'fourier' time embeddings"),
    ],
)
def test_unfit_diffusers_folders_are_refused(tmp_path, model, scheduler, message):
    with pytest.raises(ValueError, match=message):
        load_prior(write_folder(tmp_path, model, scheduler))


def test_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no config.json"):
        load_prior(tmp_path)


def test_diffusers_missing_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    folder = write_folder(tmp_path)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"weights")
    with pytest.raises(ImportError, match=r'pip install "ddfm_fast\[diffusers\]"'):
        load_prior(folder)


def test_diffusers_folder(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.UNet2DModel(
        sample_size=32,
        block_out_channels=(32, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    model.save_pretrained(tmp_path / "unet")
    diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2").save_pretrained(
        tmp_path / "scheduler"
    )
    prior = load_prior(tmp_path)
    assert (prior.multiple, prior.noise_schedule, prior.has_variance) == (2, "cosine", False)
    with torch.no_grad():
        expected = model(X, torch.tensor([500, 500])).sample
    torch.testing.assert_close(evaluate(prior), expected)


def test_timesteps_that_differ_give_what_each_gives_in_gray_too():
    gray = load_prior("embedded-gray")
    x = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(3))
    both = gray(x, torch.tensor([5, 500]))
    assert both.shape == x.shape
    for n, t in enumerate((5, 500)):
        torch.testing.assert_close(both[n : n + 1], gray(x[n : n + 1], t), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"alphas": [0.9, 0.5], "noise_schedule": "cosine"}, "and alphas"),
        ({"alphas": [0.9, 0.5], "num_train_timesteps": 1000}, "with alphas of 2 timesteps"),
        ({"prediction": ["v"]}, "expected one of eps, x0"),
        ({"prediction": "edm", "num_train_timesteps": 500}, "has no timesteps"),
    ],
)
def test_config_that_contradicts_itself(config, words):
    with pytest.raises(ValueError, match=words):
        load_prior(lambda x, t: x, config)


def test_time_is_a_function():
    with pytest.raises(TypeError, match="time: got 3, expected a function of a level"):
        load_prior(lambda x, t: x, {"prediction": "v", "time": 3})


def test_a_module_in_training_mode_is_doubted():
    class Dropping(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = torch.nn.Dropout(0.1)

        def forward(self, x, _t):
            return self.drop(x)

    with pytest.warns(DDFMWarning, match="training mode.*module.eval"):
        load_prior(Dropping())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_prior(Dropping().eval())
