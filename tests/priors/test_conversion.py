"""Conversion to fewer bits: its loss and its numbers, against arithmetic written out here."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from networks import SMALL, random_unet
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from ddfm_fast.cli.app import app
from ddfm_fast.files.reading import read_image
from ddfm_fast.priors import checkpoint as home
from ddfm_fast.priors.checkpoint import build_unet, convert, load_checkpoint, save_unet
from ddfm_fast.priors.conversion import loss_of, weights_of
from ddfm_fast.priors.load import ASSETS, load_prior

PLAIN = {**SMALL, "middle_attention": False, "out_channels": 3}


def picture() -> torch.Tensor:
    from importlib.resources import files

    rgb = read_image(files("ddfm_fast") / "assets" / "sentinel2_visible.png")[:128, :128]
    return torch.from_numpy(rgb.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_loss_is_that_of_rounded_weights(tmp_path, dtype):
    unet, _ = load_checkpoint(ASSETS["embedded"])
    unet = unet.float()
    kind = getattr(torch, dtype)
    for parameter in unet.parameters():  # so that float16, in which the file is, loses too
        parameter.mul_(1.0001)
    source = save_unet(tmp_path / "a.safetensors", unet, dtype=torch.float32)
    target = convert(source, tmp_path / "b.safetensors", dtype=dtype)
    rounded = {k: v.to(kind).float() for k, v in unet.state_dict().items()}
    assert load_file(target)["out.2.weight"].dtype == kind
    other = build_unet(unet.config, rounded)
    noise = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    alphas = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    rows = loss_of(source, target)
    assert len(rows) == 3
    for row, wanted in zip(rows, (0.1, 0.3, 1.0), strict=True):
        t = int(np.abs(np.sqrt(1 / alphas - 1) - wanted).argmin())
        sigma = math.sqrt(1 / alphas[t] - 1)
        x = (picture() + sigma * noise) * math.sqrt(alphas[t])
        a, b = (net(x, torch.tensor([t])) for net in (unet, other))
        assert row.sigma == pytest.approx(127.5 * sigma)
        assert row.error == pytest.approx(float((b - a).norm() / a.norm()), rel=0.02)
        assert 1e-6 < row.error < (1e-3 if dtype == "float16" else 2e-2)
        for found, eps in ((row.before, a), (row.after, b)):
            mse = float((sigma * (noise - eps)).square().mean())
            assert found == pytest.approx(10 * math.log10(4 / mse), abs=0.005)


def test_numbers_are_checked(tmp_path):
    unet = random_unet(PLAIN)
    unet.out[2].weight.fill_(1e-9)
    torch.save(unet.state_dict(), tmp_path / "a.pt")
    target = convert(tmp_path / "a.pt", tmp_path / "b.safetensors", dtype="float16")
    found = weights_of(tmp_path / "a.pt", target)
    total = sum(p.numel() for p in unet.parameters())
    assert found.vanished == pytest.approx(unet.out[2].weight.numel() / total, rel=0.01)
    assert found.limit == 65504
    largest = max(float(p.abs().max()) for p in unet.parameters())
    assert found.largest == pytest.approx(largest, rel=1e-3)


@pytest.mark.parametrize("value", [65520.0, 7e4, -1e9])
def test_what_float16_cannot_hold_is_refused_by_name(tmp_path, value):
    unet = random_unet(PLAIN)
    unet.out[2].weight[0, 0, 0, 0] = value
    torch.save(unet.state_dict(), tmp_path / "a.pt")
    line = ["prior", "convert", str(tmp_path / "a.pt"), str(tmp_path / "b.safetensors")]
    result = CliRunner().invoke(app, [*line, "--dtype", "float16"])
    assert result.exit_code == 2 and not (tmp_path / "b.safetensors").exists()
    assert f"cannot hold the weights of out.2.weight, up to {abs(value):.4g}" in result.stderr
    assert CliRunner().invoke(app, [*line, "--dtype", "bfloat16"]).exit_code == 0


def test_the_command_states_the_loss(tmp_path):
    line = ["prior", "convert", str(ASSETS["embedded-gray"]), str(tmp_path / "b.safetensors")]
    result = CliRunner().invoke(app, [*line, "--dtype", "bfloat16"])
    assert result.exit_code == 0
    rows = [x for x in result.stdout.splitlines() if "prediction off by 0.0" in x]
    assert len(rows) == 3 and all("dB before" in row for row in rows)
    assert "of them became 0" in result.stdout
    kept = CliRunner().invoke(app, line)
    assert kept.exit_code == 0 and "prediction" not in kept.stdout, "nothing was lost"


def test_a_file_that_cannot_be_read_again_replaces_nothing(tmp_path, monkeypatch):
    (tmp_path / "b.safetensors").write_bytes(b"before")

    def damaged(tensors, path, metadata):
        name = next(iter(tensors))
        save_file({**tensors, name: tensors[name] + 1}, path, metadata)

    monkeypatch.setattr(home, "save_file", damaged)
    with pytest.raises(ValueError, match="cannot be written"):
        save_unet(tmp_path / "b.safetensors", random_unet(PLAIN))
    assert (tmp_path / "b.safetensors").read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 1


def test_only_what_loads_again_is_written(tmp_path):
    unet = random_unet({**SMALL, "middle_attention": False})
    save_unet(tmp_path / "a.safetensors", unet)
    new = tmp_path / "b.safetensors"
    for config, words in (
        ({"prediction": "flow", "time": lambda level: level.tau}, "time is a function"),
        ({"prediction": "nonsense"}, "expected one of eps"),
        ({"noise_schedule": "sqrt"}, "expected one of linear"),
        ({"num_train_timesteps": -4}, "expected an integer"),
    ):
        with pytest.raises(ValueError, match=words):
            convert(tmp_path / "a.safetensors", new, config=config)
        assert not new.exists()
    alphas = np.linspace(0.99, 0.01, 50)
    convert(tmp_path / "a.safetensors", new, config={"alphas": alphas})
    np.testing.assert_array_equal(load_prior(new).alphas, alphas)
