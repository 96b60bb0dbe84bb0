"""Conversion of every family: what is written loads again, and answers as rounded weights do."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from networks import SMALL, random_unet
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from ddfm_fast import fuse
from ddfm_fast.cli.app import app
from ddfm_fast.priors import checkpoint as home
from ddfm_fast.priors.conversion import convert, loss_of, weights_of
from ddfm_fast.priors.info import inspect
from ddfm_fast.priors.load import ASSETS, load_prior

X = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(5))
ATTENTIVE = {**SMALL, "attention_resolutions": [2], "num_head_channels": 32}


def assert_same(found, wanted):
    """Check equality up to rounding of matrix products, which depends on weights' addresses."""
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def answer(prior, t=300):
    return prior.eps(X[:, : prior.channels], prior.conditioning(torch.tensor([t]))[0])


def network(**keywords):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=32, block_out_channels=(32, 32), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), **keywords,
    ).eval()  # fmt: skip


FOLDERS = {
    "ddpm": ("DDPMScheduler", {}, {}),
    "ddim, v, zero SNR": (
        "DDIMScheduler", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, {}),
    "pndm, gray": ("PNDMScheduler", {}, {"in_channels": 1, "out_channels": 1}),
    "ddpm, x0, own betas": (
        "DDPMScheduler", {"prediction_type": "sample", "beta_end": 0.015}, {}),
    "ve": ("ScoreSdeVeScheduler", {"sigma_max": 50.0}, {"time_embedding_type": "fourier"}),
    "consistency": ("CMStochasticIterativeScheduler", {}, {}),
    "flow": ("FlowMatchEulerDiscreteScheduler", {}, {}),
}  # fmt: skip


def folder(path, kind, **how):
    """Write a pipeline's folder, and return its network."""
    diffusers = pytest.importorskip("diffusers")
    name, of_scheduler, of_network = FOLDERS[kind]
    model = network(**of_network)
    model.save_pretrained(path / "unet", **how)
    getattr(diffusers, name)(**of_scheduler).save_pretrained(path / "scheduler")
    (path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return model


@pytest.mark.extras
@pytest.mark.parametrize("kind", FOLDERS)
def test_folders_in_half_the_bits(tmp_path, kind):
    model = folder(tmp_path / "a", kind)
    made = convert(tmp_path / "a", tmp_path / "b", "float16")
    tensors = load_file(made / "unet" / "diffusion_pytorch_model.safetensors")
    frequencies = {"time_proj.weight"} & tensors.keys()
    assert bool(frequencies) == (kind == "ve")
    assert {v.dtype for k, v in tensors.items() if k not in frequencies} == {torch.float16}
    before, after = load_prior(tmp_path / "a"), load_prior(made)
    assert type(before) is type(after) and before.channels == after.channels
    assert torch.equal(before.noise_levels, after.noise_levels)
    exact = answer(before)
    with torch.no_grad():
        for name, parameter in before.function.named_parameters():
            if name not in frequencies:
                parameter.copy_(parameter.half())
    state = after.function.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in before.function.state_dict().items())
    assert_same(answer(after), answer(before))
    assert 0 < (answer(after) - exact).norm() / exact.norm() < 2e-3
    again = type(model).from_pretrained(made / "unet")
    assert again.config["sample_size"] == 32
    assert torch.equal(again.conv_in.weight, model.conv_in.weight.half().float())
    assert inspect(made, timed=False)["license"] == "apache-2.0"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"], "nothing else is left"
    assert made.stat().st_mode & 0o777 == (tmp_path / "a" / "unet").stat().st_mode & 0o777


@pytest.mark.extras
def test_the_loss_of_a_folder_is_measured(tmp_path):
    folder(tmp_path / "a", "ddpm")
    made = convert(tmp_path / "a", tmp_path / "b", "bfloat16")
    numbers = weights_of(tmp_path / "a", made)
    assert numbers.vanished == 0 and 0.9 < numbers.largest < 100
    rounded = load_prior(tmp_path / "a")
    with torch.no_grad():
        for parameter in rounded.function.parameters():
            parameter.copy_(parameter.bfloat16())
    exact = load_prior(tmp_path / "a")
    from ddfm_fast.priors.check import answers

    for row, a, b in zip(loss_of(tmp_path / "a", made), answers(exact), answers(rounded),
                         strict=True):  # fmt: skip
        assert row.error == pytest.approx(float((b.eps - a.eps).norm() / a.eps.norm()), rel=1e-3)
        assert 1e-4 < row.error < 0.1


@pytest.mark.extras
@pytest.mark.parametrize(
    "how", [{"max_shard_size": "100KB"}, {"safe_serialization": False}], ids=["shards", "pickle"]
)
def test_shards_and_pickles_become_one_file(tmp_path, how):
    folder(tmp_path / "a", "ddpm", **how)
    kept = convert(tmp_path / "a", tmp_path / "b")
    names = sorted(p.name for p in (kept / "unet").iterdir())
    assert names == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert_same(answer(load_prior(kept)), answer(load_prior(tmp_path / "a")))


@pytest.mark.extras
def test_folders_that_cannot_be_written(tmp_path, monkeypatch):
    model = folder(tmp_path / "a", "ddpm")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for dst, words in (
        ("a", "is src"),
        ("a/half", "is src, or in it"),
        ("full", "is there already"),
        ("link", "is there already"),
        ("b.safetensors", "a file, but src"),
        ("no/b", "there is no folder"),
    ):
        with pytest.raises(ValueError, match=words):
            convert(tmp_path / "a", tmp_path / dst, "float16")
    with pytest.raises(ValueError, match="brings its own.*scheduler_config"):
        convert(tmp_path / "a", tmp_path / "b", config={"prediction": "v"})
    with torch.no_grad():
        model.conv_in.weight[0, 0, 0, 0] = 7e4
    model.save_pretrained(tmp_path / "a" / "unet")
    with pytest.raises(ValueError, match=r"hold the weights of conv_in.weight, up to 7e\+04"):
        convert(tmp_path / "a", tmp_path / "b", "float16")
    convert(tmp_path / "a", tmp_path / "empty", "bfloat16")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(home, "save_file", full)
    with pytest.raises(ValueError, match="cannot be written .No space left"):
        convert(tmp_path / "a", tmp_path / "b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "empty", "full", "link"]


@pytest.mark.parametrize("name", ASSETS)
def test_the_networks_of_the_package(tmp_path, name):
    made = convert(name, tmp_path / "a.safetensors")
    assert torch.equal(answer(load_prior(made)), answer(load_prior(name)))
    assert inspect(made, timed=False)["weights_sha256"] == load_prior(name).fingerprint
    line = ["prior", "convert", name, str(tmp_path / "b.safetensors"), "--dtype", "float16"]
    result = CliRunner().invoke(app, [*line, "--json"])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert [row["error"] for row in found["loss"]] == [0, 0, 0], "they are float16 already"
    assert found["weights"]["vanished"] == 0 and found["bytes"] > 3e6
    with pytest.raises(ValueError, match="brings its own"):
        convert(name, tmp_path / "c.safetensors", config={"noise_schedule": "cosine"})


def test_the_embedded_file_draws_the_same_bytes(tmp_path):
    made = convert("embedded", tmp_path / "embedded.safetensors")
    ir, vis = (np.random.default_rng(n).integers(0, 256, (32, 48), np.uint8) for n in (1, 2))
    how = {"preset": "official", "steps": 2}
    np.testing.assert_array_equal(fuse(ir, vis, prior=made, **how), fuse(ir, vis, **how))


@pytest.mark.parametrize(
    ("network_config", "config"),
    [
        ({**ATTENTIVE, "out_channels": 3}, {"prediction": "consistency", "num_head_channels": 32}),
        ({**ATTENTIVE, "out_channels": 3},
         {"prediction": "edm", "num_head_channels": 32, "sigmas": (0.01, 50.0)}),
        ({**SMALL, "in_channels": 1, "out_channels": 2}, {"num_heads": 1}),
        ({**SMALL, "out_channels": 6}, {"num_heads": 1, "noise_schedule": "cosine",
                                        "num_train_timesteps": 4000, "rescale_timesteps": True}),
        ({**SMALL, "out_channels": 3}, {"num_heads": 1, "prediction": "v",
                                        "alphas": np.linspace(0.99, 0.01, 500)}),
    ],
    ids=["consistency", "edm", "one channel", "improved", "v"],
)  # fmt: skip
def test_checkpoints_of_every_prediction(tmp_path, network_config, config):
    torch.save({"ema": random_unet(network_config).state_dict()}, tmp_path / "a.pt")
    kept = convert(tmp_path / "a.pt", tmp_path / "b.safetensors", config=config)
    before, after = load_prior(tmp_path / "a.pt", config), load_prior(kept)
    assert torch.equal(before.noise_levels, after.noise_levels)
    assert_same(answer(after), answer(before))
    half = convert(tmp_path / "a.pt", tmp_path / "c.safetensors", "float16", config)
    assert 0 < (answer(load_prior(half)) - answer(before)).norm() / answer(before).norm() < 3e-3
    assert all(0 < row.error < 3e-3 for row in loss_of(tmp_path / "a.pt", half, config))
    assert load_file(half)["out.2.weight"].dtype == torch.float16


def test_shards_of_a_checkpoint_become_one_file_with_its_license(tmp_path):
    tensors = dict(random_unet({**SMALL, "out_channels": 3}).state_dict())
    names = sorted(tensors)
    halves = {"a-1.safetensors": names[::2], "a-2.safetensors": names[1::2]}
    for file, keys in halves.items():
        save_file({k: tensors[k].clone() for k in keys}, tmp_path / file, {"license": "cc-by-4.0"})
    places = {k: file for file, keys in halves.items() for k in keys}
    index = tmp_path / "a.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    made = convert(index, tmp_path / "b.safetensors", config={"num_heads": 1})
    assert_same(answer(load_prior(made)), answer(load_prior(index, {"num_heads": 1})))
    assert inspect(made, timed=False)["license"] == "cc-by-4.0"


def test_what_has_no_file_is_refused_by_name(tmp_path):
    module = random_unet(SMALL)
    for src, name in ((lambda x, t: x, "function"), (module, "UNet"), (load_prior("embedded"),
                      "UNetPrior"), (None, "NoneType")):  # fmt: skip
        with pytest.raises(TypeError, match=f"src: got {name}, expected the path of a checkpoint"):
            convert(src, tmp_path / "b.safetensors")
    (tmp_path / "edm.pkl").write_bytes(b"\x80\x04N.")
    with pytest.raises(ValueError, match="never run here.*denoised"):
        convert(tmp_path / "edm.pkl", tmp_path / "b.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["edm.pkl"]
