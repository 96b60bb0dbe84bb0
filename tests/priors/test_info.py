"""``inspect``: what it reports about files and folders, with cost counted by hand."""

from __future__ import annotations

import json

import pytest
import torch
from networks import SMALL, random_unet
from typer.testing import CliRunner

from ddfm_fast.cli.app import app
from ddfm_fast.priors.checkpoint import save_unet
from ddfm_fast.priors.info import inspect

PLAIN = {**SMALL, "middle_attention": False}


def test_embedded():
    found = inspect("embedded")
    assert (found["family"], found["channels"], found["prediction"]) == ("ddfm_fast", 3, "eps")
    assert found["schedule"] == "linear betas, 1000 timesteps" and found["license"].startswith(
        "MIT"
    )
    assert found["trained_at"] == 64 and found["missing"] == [] and found["assumed"] == []
    small, large = found["cost"]["256x256"], found["cost"]["512x640"]
    assert large["flops"] == 5 * small["flops"]  # no attention: in proportion to pixels
    assert 0 < small["seconds"] < large["seconds"]
    assert large["reused"] == small["reused"] and 0.4 < small["reused"] < 0.7
    assert large["peak_bytes"] > small["peak_bytes"] > 4 * found["parameters"]
    json.dumps(found)
    assert inspect("embedded", timed=False)["cost"]["256x256"]["seconds"] is None


def test_flops_of_a_known_network(tmp_path):
    """Multiplications and additions of the convolutions, layer by layer."""
    config = {**PLAIN, "channel_mult": (1,)}
    torch.save(random_unet(config).state_dict(), tmp_path / "a.pt")
    found = inspect(tmp_path / "a.pt", timed=False)
    block = 2 * 9 * 32 * 32
    wide = 9 * 64 * 32 + 9 * 32 * 32 + 64 * 32  # after a skip: two convolutions and the 1×1
    pixel = 9 * 3 * 32 + block + 2 * block + 2 * wide + 9 * 32 * 3
    assert found["cost"]["256x256"]["flops"] == 2 * 256 * 256 * pixel
    assert "linear betas" in found["assumed"][0] and found["license"] is None
    assert found["trained_at"] is None and found["family"].startswith("improved-diffusion")


def test_what_is_missing_names_its_option(tmp_path):
    attentive = {**SMALL, "attention_resolutions": [2], "out_channels": 3, "resblock_updown": True}
    torch.save(random_unet(attentive).state_dict(), tmp_path / "a.pt")
    found = inspect(tmp_path / "a.pt", timed=False)
    what = [row["what"] for row in found["missing"]]
    assert what == ["the number of attention heads", "what it predicts"]
    assert "--prior-config '{\"num_head_channels\": 64}'" in found["missing"][0]["option"]
    assert found["family"].startswith("consistency_models")
    told = inspect(tmp_path / "a.pt", {"num_heads": 2, "prediction": "edm"}, timed=False)
    assert told["missing"] == [] and told["schedule"] == "noise of sigma 0.002 to 80"


def test_schedule_of_a_converted_file(tmp_path):
    prior = {"noise_schedule": "cosine", "num_train_timesteps": 4000, "rescale_timesteps": True}
    path = save_unet(tmp_path / "a.safetensors", random_unet(PLAIN), prior=prior)
    found = inspect(path, timed=False)
    assert found["schedule"] == "cosine betas, 4000 timesteps, given to it as 0 to 1000"
    assert found["assumed"] == []


def test_folder_of_diffusers(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    counters = pytest.importorskip("torch.utils.flop_counter")
    model = diffusers.UNet2DModel(
        sample_size=48, block_out_channels=(32, 32), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    model.save_pretrained(tmp_path / "unet")
    found = inspect(tmp_path, timed=False)
    assert [row["what"] for row in found["missing"]] == [
        "its scheduler (linear betas, eps are taken)"
    ]
    scheduler = diffusers.DDPMScheduler(prediction_type="v_prediction", beta_end=0.03)
    scheduler.save_pretrained(tmp_path / "scheduler")
    (tmp_path / "README.md").write_text("---\ntags: [x]\nlicense: apache-2.0\n---\nA model.\n")
    found = inspect(tmp_path)
    assert found["family"] == "diffusers UNet2DModel, DDPMScheduler" and found["missing"] == []
    assert (found["channels"], found["prediction"], found["trained_at"]) == (3, "v", 48)
    assert found["schedule"] == "betas of its own, 1000 timesteps"
    assert found["license"] == "apache-2.0"
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    with counters.FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 256, 256), 1)
    # PyTorch's counter ignores attention on a CPU: 4 blocks, 128² places, 32 channels
    wanted = counter.get_total_flops() + 4 * 4 * (128 * 128) ** 2 * 32
    assert found["cost"]["256x256"]["flops"] == pytest.approx(wanted, rel=1e-3)
    assert found["cost"]["256x256"]["seconds"] > 0
    # what a step that reuses deep layers runs, by PyTorch's counter; no attention in it
    model.up_blocks[0] = model.mid_block = model.down_blocks[1] = torch.nn.Identity()
    emb, ends = torch.zeros(1, 128), (model.down_blocks[0], model.up_blocks[1])
    with counters.FlopCounterMode(display=False) as counter, torch.no_grad():
        model.time_embedding(torch.zeros(1, 32))
        h = model.conv_in(torch.zeros(1, 3, 256, 256))
        _, skips = ends[0](h, emb)
        model.conv_out(ends[1](h, (h, *skips[:1]), emb))
    share = counter.get_total_flops() / found["cost"]["256x256"]["flops"]
    assert found["cost"]["256x256"]["reused"] == pytest.approx(share, rel=1e-3)
    json.dumps(found)


def test_command():
    result = CliRunner().invoke(app, ["prior", "info", "embedded-gray"])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert any(line.startswith("family ") and line.endswith("ddfm_fast") for line in lines)
    assert any("forward at 512x640" in line and "(an estimate)" in line for line in lines)
    assert sum("of the FLOP where deep layers are reused" in line for line in lines) == 2
    result = CliRunner().invoke(app, ["prior", "info", "embedded", "--json"])
    assert json.loads(result.stdout)["cost"]["512x640"]["flops"] > 1e10
    result = CliRunner().invoke(app, ["prior", "info", "nowhere.pt"])
    assert result.exit_code == 2 and "nowhere.pt" in result.stderr
