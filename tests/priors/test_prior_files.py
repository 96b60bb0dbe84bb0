"""Files of every family: wrapped weights, several files, and what is refused by name."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
import torch
from adm import Adm
from networks import SMALL, random_unet
from safetensors.torch import save_file

from ddfm_fast import Fuser
from ddfm_fast.images.doubts import DDFMWarning
from ddfm_fast.priors.checkpoint import convert, describe, load_checkpoint
from ddfm_fast.priors.load import file_identity, load_prior

X = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(5))
PLAIN = {**SMALL, "middle_attention": False}
STATE = {k: v.contiguous() for k, v in random_unet(PLAIN).state_dict().items()}
OTHER = {k: v.contiguous() for k, v in random_unet(PLAIN, seed=1).state_dict().items()}
ATTENTIVE = {**SMALL, "attention_resolutions": [2], "num_head_channels": 32}


def assert_loads(path, wanted):
    found = load_checkpoint(path)[0].state_dict()
    assert all(torch.equal(found[k], v) for k, v in wanted.items())


def prefixed(prefix, state=STATE):
    return {prefix + k: v for k, v in state.items()}


@pytest.mark.parametrize(
    "content",
    [
        prefixed("module."),
        prefixed("_orig_mod."),
        prefixed("module._orig_mod."),
        {"ema": STATE},
        {"ema_params": prefixed("module.")},
        {"state_dict": {"model": STATE}},
        {"model": OTHER, "ema": STATE, "optimizer": {"state": {}, "param_groups": []}, "step": 7},
        {"params": OTHER, "params_ema": STATE, "iter": 3},
        {"state_dict": prefixed("model."), "epoch": 1},
        {"model_state_dict": STATE, "epoch": 1},
        {"net": prefixed("denoise_fn.")},
        {"ema": prefixed("ema_model.")},
        {"state_dict": prefixed("model.", OTHER) | prefixed("ema_model.")},
        {"state_dict": prefixed("ema.module.") | prefixed("module.", OTHER)},
    ],
    ids=lambda content: ",".join(list(content)[:3]),
)
def test_what_is_around_the_weights(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_loads(tmp_path / "a.pt", STATE)


def test_module_prefix_in_safetensors(tmp_path):
    save_file(prefixed("module."), tmp_path / "a.safetensors")
    assert_loads(tmp_path / "a.safetensors", STATE)


def test_averages_without_names_are_passed_over_with_a_sentence(tmp_path):
    shadows = {"decay": 0.9, "shadow_params": list(OTHER.values())}
    torch.save({"model": STATE, "ema": shadows}, tmp_path / "a.pt")
    with pytest.warns(DDFMWarning, match="averaged weights .'ema'.* of 'model' were taken"):
        assert_loads(tmp_path / "a.pt", STATE)


@pytest.mark.parametrize("around", [lambda s: s, lambda s: {"state_dict": s}])
def test_optimizer_files_are_refused_by_name(tmp_path, around):
    parameters = [torch.nn.Parameter(torch.ones(3))]
    optimizer = torch.optim.AdamW(parameters)
    parameters[0].sum().backward()
    optimizer.step()
    torch.save(around(optimizer.state_dict()), tmp_path / "opt0001.pt")
    with pytest.raises(ValueError, match="opt0001.pt.* optimizer .* ema_"):
        load_prior(tmp_path / "opt0001.pt")


@pytest.fixture
def shards(tmp_path):
    """The index of a network in three files."""
    keys, places = sorted(STATE), {}
    for i in range(3):
        part = {k: STATE[k] for k in keys[i::3]}
        name = f"net-{i + 1:05}-of-00003.safetensors"
        save_file(part, tmp_path / name)
        places |= dict.fromkeys(part, name)
    index = tmp_path / "net.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


def test_network_in_several_files(shards, tmp_path):
    assert_loads(shards, STATE)
    assert load_prior(shards).name == "net"
    found = describe(shards)
    assert found["bytes"] == sum(p.stat().st_size for p in tmp_path.iterdir())
    assert found["parameters"] == sum(v.numel() for v in STATE.values())
    assert_loads(convert(shards, tmp_path / "one.safetensors"), STATE)
    before = file_identity(shards)
    part = tmp_path / "net-00002-of-00003.safetensors"
    part.touch()
    assert file_identity(shards) != before  # a Fuser's cache sees a part change


def test_parts_that_do_not_fit_their_index(shards, tmp_path):
    part = tmp_path / "net-00002-of-00003.safetensors"
    whole = part.read_bytes()
    part.unlink()
    with pytest.raises(ValueError, match="no file .*net-00002"):
        load_checkpoint(shards)
    part.write_bytes(whole[:-8])
    with pytest.raises(ValueError, match="net-00002.* not a whole safetensors file"):
        load_checkpoint(shards)
    save_file({"strange": torch.ones(2)}, part)
    with pytest.raises(ValueError, match="net-00002.* does not hold what .*index.json"):
        load_checkpoint(shards)


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"weight_map": {"a": "../a.safetensors"}}', '{"weight_map": {"a": 1}}',
     '{"weight_map": {"a": "/etc/passwd"}}', '{"weight_map": {"a": "b.pt"}}'],
)  # fmt: skip
def test_bad_index(tmp_path, content):
    path = tmp_path / "a.safetensors.index.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="a.safetensors.index.json.* (not JSON|no weight_map)"):
        load_checkpoint(path)
    assert file_identity(path) is None


def test_folder_of_diffusers_in_several_files(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(
        sample_size=32, block_out_channels=(32, 32), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    ).eval()  # fmt: skip
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    with torch.no_grad():
        wanted = model(X, 7).sample
    prior = load_prior(tmp_path)
    found = prior.eps(X, prior.conditioning(torch.tensor([7]))[0])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)  # float32, in another order
    part = sorted(tmp_path.glob("*.safetensors"))[0]
    part.write_bytes(part.read_bytes()[:-4])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_prior(tmp_path)


# Families under ADM's keys

CONSISTENCY = {**ATTENTIVE, "out_channels": 3, "resblock_updown": True}
HEAD = {"num_head_channels": 32}


def saved(tmp_path, config, seed=2):
    state = random_unet(config, seed).state_dict()
    torch.save(state, tmp_path / "net.pt")
    return tmp_path / "net.pt", state


@pytest.mark.parametrize("prediction", ["consistency", "edm"])
@pytest.mark.parametrize("converted", [False, True])
def test_consistency_models(tmp_path, prediction, converted):
    """The denoiser of its karras_diffusion.py, D = c_skip x + c_out F(c_in x, 250 ln σ)."""
    path, state = saved(tmp_path, {**CONSISTENCY, "use_new_attention_order": True})
    config = {"prediction": prediction, **HEAD}
    if converted:
        path, config = convert(path, tmp_path / "b.safetensors", config=config), None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prior = load_prior(path, config)
    network = Adm(state, head=32, three_first=True, updown=True)
    for t in (100, 400):
        sigma = float(prior.noise_levels[t])
        alpha = 1 / math.sqrt(1 + sigma**2)
        noisy = X.double() / alpha  # x₀ + σ ε
        least = 0.002 if prediction == "consistency" else 0.0
        skip = 0.25 / ((sigma - least) ** 2 + 0.25)
        out = (sigma - least) * 0.5 / math.sqrt(sigma**2 + 0.25)
        answer = network(noisy / math.sqrt(sigma**2 + 0.25), 1000 * 0.25 * math.log(sigma))
        wanted = (noisy - (skip * noisy + out * answer)) / sigma
        found = prior.eps(X, prior.conditioning(torch.tensor([t]))[0])
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-4)


def test_order_of_attention_may_be_said(tmp_path):
    path, _ = saved(tmp_path, CONSISTENCY)
    for said, taken in ((None, True), (False, False)):
        order = {} if said is None else {"use_new_attention_order": said}
        config = {"prediction": "consistency", **HEAD, **order}
        assert load_checkpoint(path, config)[0].config.use_new_attention_order is taken
        assert describe(path, config)["config"]["use_new_attention_order"] is taken


def test_consistency_models_are_not_silently_taken_for_eps(tmp_path):
    path, _ = saved(tmp_path, CONSISTENCY)
    with pytest.warns(DDFMWarning, match="consistency_models.*taken for one that predicts eps"):
        load_prior(path, HEAD)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_prior(path, {"prediction": "eps", **HEAD})


def test_improved_diffusion(tmp_path):
    """4,000 steps of a cosine schedule, given to the network as 0 to 1000; convs resample."""
    path, state = saved(tmp_path, {**ATTENTIVE, "use_scale_shift_norm": True})
    config = {
        "num_heads": 2, "noise_schedule": "cosine", "num_train_timesteps": 4000,
        "rescale_timesteps": True,
    }  # fmt: skip
    prior = load_prior(path, config)
    network = Adm(state, head=32, three_first=False, updown=False)
    for t in (400, 3000):
        found = prior.eps(X, prior.conditioning(torch.tensor([t]))[0])
        wanted = network(X, t * 1000 / 4000)[:, :3]
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-4)
    steps = np.arange(4001) / 4000
    bars = np.cos((steps + 0.008) / 1.008 * math.pi / 2) ** 2
    alphas = np.cumprod(1 - np.minimum(1 - bars[1:] / bars[:-1], 0.999))
    np.testing.assert_allclose(prior.noise_levels[:3900], np.sqrt(1 / alphas - 1)[:3900], rtol=1e-6)


def test_gray_prior_with_variance(tmp_path):
    """As DDS's AAPM: one channel in, and ε with the variance's half out."""
    gray = {"in_channels": 1, "out_channels": 2}
    path, state = saved(
        tmp_path, {**ATTENTIVE, **gray, "resblock_updown": True, "use_scale_shift_norm": True}
    )
    prior = load_prior(path, HEAD)
    assert prior.channels == 1 and prior.has_variance
    network = Adm(state, head=32, three_first=False, updown=True)
    found = prior.eps(X[:, :1], prior.conditioning(torch.tensor([300]))[0])
    torch.testing.assert_close(found.double(), network(X[:, :1], 300)[:, :1], rtol=0, atol=2e-4)
    rng = np.random.default_rng(0)
    ir, vis = (rng.integers(0, 256, (40, 36), dtype=np.uint8) for _ in range(2))
    fused = Fuser(prior=prior, preset="official", steps=2)(ir, vis)
    assert fused.shape == (40, 36)


@pytest.mark.parametrize(
    ("channels", "words"),
    [((2, 4), "complex data .fastMRI.*magnitudes"), ((4, 8), "latent"), ((6, 6), "enlarges")],
)
def test_channels_that_are_no_picture(tmp_path, channels, words):
    config = {**PLAIN, "in_channels": channels[0], "out_channels": channels[1]}
    path, _ = saved(tmp_path, config)
    with pytest.raises(ValueError, match=f"maps {channels[0]} to {channels[1]} channels.*{words}"):
        load_prior(path)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ([*STATE, "label_emb.weight"], "class-conditional"),
        (["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.a.b"], "latent"),
        (["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"], "text-conditioned"),
        ([*STATE, "xf_proj.weight"], "GLIDE"),
        (["x_embedder.proj.weight", "blocks.0.attn.qkv.weight"], "DiT.*latents"),
        (["all_modules.0.W", "all_modules.1.weight"], "score_sde.*wrap.function, .score"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "latent"),
        (["lora_unet_down_blocks_0_attentions_0.lora_down.weight"], "LoRA.*merge"),
        (["unet.down_blocks.0.attentions.0.processor.to_q_lora.down.weight"], "LoRA.*merge"),
        (["base.input_blocks.1.1.qkv.lora_A.weight"], "LoRA.*merge"),
        (["map_layer0.weight", "enc.64x64_conv.weight"], "EDM network.*wrap"),
        (["inner_model.patch_in.proj.weight"], "k-diffusion"),
        (["down_blocks.0.resnets.0.conv1.weight"], "diffusers.*config.json"),
        ([k for k in STATE if not k.startswith("output_blocks")], "classifier"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_other_families_are_refused_by_name(tmp_path, keys, words, prefix):
    torch.save({prefix + k: torch.zeros(2, 2) for k in keys}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=words):
        load_prior(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.gguf", "quantized"),
        ("a.pkl", "never run"),
        ("a.ckpt", "state_dict"),
        ("a.onnx", "graph"),
    ],
)
def test_other_formats_are_refused_by_name(tmp_path, name, words):
    (tmp_path / name).write_bytes(b"something")
    with pytest.raises(ValueError, match=f"must be a .pt.*{words}"):
        load_prior(tmp_path / name)


@pytest.mark.parametrize(
    ("config", "beside", "words"),
    [
        ({"_class_name": "UNet2DModel", "down_block_types": ["DownBlock2D"]}, "vqvae", "latent"),
        ({"_class_name": "UNet2DConditionModel"}, "", "holds a UNet2DCond.*on text"),
        ({"_class_name": "SD3Transformer2DModel"}, "", "transformer of latents"),
        ({"_class_name": "UNet2DModel", "down_block_types": ["DownBlock2D"],
          "num_class_embeds": 10}, "", "class-conditional"),
        ({"_class_name": "UNet2DModel", "down_block_types": ["DownBlock2D"], "in_channels": 4,
          "out_channels": 4}, "", "latent model"),
    ],
)  # fmt: skip
def test_folders_are_refused_by_name(tmp_path, config, beside, words):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config))
    if beside:
        (tmp_path / beside).mkdir()
    with pytest.raises(ValueError, match=words):
        load_prior(tmp_path)
