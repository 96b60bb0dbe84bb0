"""Checkpoints: what is inferred, what is refused, what a conversion keeps."""

from __future__ import annotations

import json
import os
import pickle

import pytest
import torch
from conftest import shared
from networks import SMALL, option_grid, option_id, random_unet
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ddfm_fast.priors.architecture import infer_config
from ddfm_fast.priors.checkpoint import convert, describe, load_checkpoint, save_unet
from ddfm_fast.priors.state_dict import read_tensors, weights_sha256
from ddfm_fast.priors.unet import UNet
from ddfm_fast.priors.unet_config import UNetConfig

NOT_IN_SHAPES = (
    "num_heads", "num_head_channels", "num_heads_upsample", "use_new_attention_order", "sigma_data",
)  # fmt: skip
PLAIN = {**SMALL, "middle_attention": False}


def shapes_of(unet: UNet) -> dict[str, tuple[int, ...]]:
    return {k: tuple(v.shape) for k, v in unet.state_dict().items()}


def meta_shapes(**config) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return shapes_of(UNet(UNetConfig.from_dict(config)))


@pytest.fixture
def plain_pt(tmp_path):
    """A checkpoint that needs no configuration, and its network."""
    unet = random_unet(PLAIN)
    torch.save(unet.state_dict(), tmp_path / "plain.pt")
    return tmp_path / "plain.pt", unet


@pytest.mark.parametrize("config", option_grid(), ids=option_id)
def test_every_option_is_inferred_from_shapes(config):
    wanted = UNetConfig.from_dict(config)
    found = infer_config(meta_shapes(**config))
    for key, value in found.items():
        assert value == getattr(wanted, key), key
    told = set(wanted.to_dict()) - set(found) - set(NOT_IN_SHAPES)
    assert told <= {"conv_resample", "resblock_updown"}
    if "conv_resample" in told:
        assert wanted.resblock_updown or wanted.levels == 1


def test_small_official_checkpoint():
    path = shared("golden/adm_small.safetensors")
    with pytest.raises(ValueError, match="num_head_channels"):
        load_checkpoint(path)
    unet, _ = load_checkpoint(path, {"num_head_channels": 32})
    assert unet.config == UNetConfig.from_dict(
        {
            "model_channels": 32,
            "out_channels": 6,
            "num_res_blocks": 1,
            "channel_mult": [1, 2, 2, 4],
            "attention_resolutions": [4, 8],
            "num_head_channels": 32,
            "use_scale_shift_norm": True,
            "resblock_updown": True,
        }
    )


@pytest.mark.parametrize("mult", [(1, 1, 2, 2, 4, 4), (0.5, 1, 1, 2, 2, 4, 4)])
def test_published_networks_need_no_configuration(mult):
    from ddfm_fast.priors.architecture import complete_config

    config = {
        "model_channels": 256,
        "num_res_blocks": 2,
        "channel_mult": mult,
        "num_head_channels": 64,
        "attention_resolutions": [2 ** (len(mult) - i) for i in (3, 2, 1)],
        "out_channels": 6,
        "use_scale_shift_norm": True,
        "resblock_updown": True,
    }
    assert complete_config(meta_shapes(**config)) == UNetConfig.from_dict(config)


def test_published_256_network_has_its_published_size():
    shapes = meta_shapes(
        model_channels=256,
        num_res_blocks=2,
        channel_mult=(1, 1, 2, 2, 4, 4),
        num_head_channels=64,
        attention_resolutions=(8, 16, 32),
        out_channels=6,
        use_scale_shift_norm=True,
        resblock_updown=True,
    )
    count = sum(torch.Size(s).numel() for s in shapes.values())
    assert round(count / 1e6, 2) == 552.81


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("legacy", [False, True])
def test_pt_loads_the_very_weights(tmp_path, wrapper, legacy):
    unet = random_unet(PLAIN)
    content = unet.state_dict() if wrapper is None else {wrapper: unet.state_dict(), "step": 7}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    loaded, info = load_checkpoint(tmp_path / "a.pt")
    assert loaded.config == unet.config
    assert info["prior"] == {} and info["training"] is None
    for key, value in unet.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    assert not any(p.requires_grad for p in loaded.parameters())


def test_metadata_stands_in_for_config(tmp_path):
    config = {**SMALL, "num_heads": 4, "use_new_attention_order": True}
    unet = random_unet(config)
    save_unet(tmp_path / "a.safetensors", unet, prior={"rescale_timesteps": True})
    loaded, info = load_checkpoint(tmp_path / "a.safetensors")
    assert loaded.config == unet.config
    assert info["prior"] == {"rescale_timesteps": True}
    overridden, info = load_checkpoint(
        tmp_path / "a.safetensors", {"num_head_channels": 32, "rescale_timesteps": False}
    )
    assert overridden.config.heads(64, up=False) == 2
    assert info["prior"] == {"rescale_timesteps": False}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_channels": 64}, ["model_channels=64", "model_channels=32"]),
        ({"channel_mult": [1, 4]}, ["channel_mult=[1, 4]", "(1, 2)"]),
        ({"num_res_blocks": 2}, ["num_res_blocks=2", "num_res_blocks=1"]),
        ({"out_channels": 3}, ["out_channels=3", "out_channels=6"]),
        ({"use_scale_shift_norm": True}, ["use_scale_shift_norm=True", "False"]),
        ({"attention_resolutions": [2]}, ["attention_resolutions=[2]", "()"]),
        ({"resblock_updown": True}, ["resblock_updown=True", "False"]),
        ({"middle_attention": True}, ["middle_attention=True", "False"]),
        ({"pixel_unshuffle": 2}, ["pixel_unshuffle=2", "3 inputs"]),
        ({"num_classes": 10}, ["class-conditional"]),
        ({"channels": 10}, ["unknown keyword 'channels'"]),
    ],
)
def test_contradicting_config_names_both_values(plain_pt, change, words):
    with pytest.raises(ValueError) as caught:
        load_checkpoint(plain_pt[0], change)
    for word in [*words, "plain.pt"]:
        assert word in str(caught.value)


def test_agreeing_config_is_welcome(plain_pt):
    path, unet = plain_pt
    full = {**PLAIN, "image_size": 64, "attention_resolutions": (), "num_heads": 1}
    assert load_checkpoint(path, full)[0].config == unet.config


def test_wrong_keys_are_listed(tmp_path):
    state = random_unet(PLAIN).state_dict()
    del state["out.0.weight"], state["middle_block.2.in_layers.0.bias"]
    state["ema.decay"] = torch.zeros(1)
    state["time_embed.2.bias"] = torch.zeros(5)
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ValueError) as caught:
        load_checkpoint(tmp_path / "a.pt")
    message = str(caught.value)
    for part in (
        "2 missing",
        "out.0.weight",
        "1 unexpected: ema.decay",
        "1 misshapen: time_embed.2.bias (5,) instead of (128,)",
    ):
        assert part in message


def test_class_conditional_is_refused(tmp_path):
    state = {**random_unet(PLAIN).state_dict(), "label_emb.weight": torch.zeros(10, 128)}
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="class-conditional"):
        load_checkpoint(tmp_path / "a.pt")


class Harmful:
    """Unpickling it would create a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_pickled_code_is_refused_and_does_not_run(tmp_path):
    torch.save({"weights": Harmful(tmp_path / "ran")}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="could run code"):
        load_checkpoint(tmp_path / "a.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_pt(tmp_path, legacy, share):
    path = tmp_path / "a.pt"
    torch.save(random_unet(PLAIN).state_dict(), path, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match="is empty|not a whole PyTorch checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_truncated_safetensors(tmp_path, share):
    path = save_unet(tmp_path / "a.safetensors", random_unet(PLAIN))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match="is empty|not a whole safetensors file"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pt", b"<!DOCTYPE html><html>download page</html>", "not a whole PyTorch checkpoint"),
        ("a.pt", pickle.dumps([1, 2], protocol=2), "not a whole PyTorch checkpoint"),
        ("a.safetensors", b"\x89PNG\r\n\x1a\n" + bytes(64), "not a whole safetensors file"),
        ("a.bin", b"x", "must be a .pt, .pth or .safetensors"),
    ],
)
def test_other_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "holds a Tensor, expected a dict of tensors"),
        ({"epoch": 3}, "not a dict of tensors: epoch"),
        ({}, "holds no tensors"),
        ({"a": torch.zeros(2)}, "not those of a guided-diffusion UNet"),
        ({"a": torch.zeros(2, dtype=torch.int8)}, "not floating point"),
    ],
)
def test_other_contents_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path / "a.pt")


def test_missing_file_is_named():
    with pytest.raises(ValueError, match="no file 'nowhere.pt'"):
        load_checkpoint("nowhere.pt")


@pytest.mark.parametrize("dtype", [None, "float32", "float16", "bfloat16"])
def test_convert_keeps_weights_and_configuration(tmp_path, plain_pt, dtype):
    src, unet = plain_pt
    dst = convert(src, tmp_path / "b.safetensors", dtype, {"noise_schedule": "cosine"})
    target = getattr(torch, dtype or "float32")
    for key, value in load_file(dst).items():
        assert torch.equal(value, unet.state_dict()[key].to(target)), key
    loaded, info = load_checkpoint(dst)
    assert loaded.config == unet.config and info["prior"] == {"noise_schedule": "cosine"}
    with safe_open(dst, "pt") as file:
        source = json.loads(file.metadata()["ddfm_fast.source"])
    assert source == {"file": "plain.pt", "sha256": describe(src)["sha256"]}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.safetensors", "plain.pt"]


@pytest.mark.parametrize("link", [None, os.symlink, os.link], ids=["itself", "link", "hard link"])
def test_convert_does_not_write_over_its_source(tmp_path, link):
    path = save_unet(tmp_path / "a.safetensors", random_unet(PLAIN))
    other, before = path, path.read_bytes()
    if link is not None:
        link(path, other := tmp_path / "b.safetensors")
    for src, dst in ((path, other), (other, path)):
        with pytest.raises(ValueError, match="dst: .* is src, .*; choose another name"):
            convert(src, dst, "bfloat16")
    assert path.read_bytes() == before and path.samefile(other)


def test_convert_refuses_what_it_cannot_do(tmp_path, plain_pt):
    src, unet = plain_pt
    with pytest.raises(ValueError, match="must end in .safetensors"):
        convert(src, tmp_path / "b.pt")
    with pytest.raises(ValueError, match="'int8' is not one of float32, float16, bfloat16"):
        convert(src, tmp_path / "b.safetensors", "int8")
    with pytest.raises(ValueError, match="no folder"):
        convert(src, tmp_path / "absent" / "b.safetensors")
    unet.out[2].weight[0, 0] = 1e6
    torch.save(unet.state_dict(), src)
    with pytest.raises(ValueError, match="cannot hold the weights of out.2.weight"):
        convert(src, tmp_path / "b.safetensors", "float16")
    assert [p.name for p in tmp_path.iterdir()] == ["plain.pt"]


def test_failed_convert_leaves_the_old_file(tmp_path, plain_pt, monkeypatch):
    dst = tmp_path / "b.safetensors"
    dst.write_bytes(b"old")

    def fail(_tensors, path, _metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("ddfm_fast.priors.checkpoint.save_file", fail)
    with pytest.raises(ValueError, match="b.safetensors.* cannot be written .disk full"):
        convert(plain_pt[0], dst)
    assert dst.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.safetensors", "plain.pt"]


def test_describe(plain_pt):
    path, unet = plain_pt
    found = describe(path, {"rescale_timesteps": True})
    assert found["parameters"] == sum(p.numel() for p in unet.parameters())
    assert found["dtype"] == "float32" and found["bytes"] == path.stat().st_size
    assert UNetConfig.from_dict(found["config"]) == unet.config
    assert found["unknown"] == [] and found["prior"] == {"rescale_timesteps": True}
    assert found["weights_sha256"] == weights_sha256(unet.state_dict())
    json.dumps(found)


def test_describe_says_what_has_to_be_passed(tmp_path):
    torch.save(random_unet({**SMALL, "num_heads": 4}).state_dict(), tmp_path / "a.pt")
    found = describe(tmp_path / "a.pt")
    assert found["unknown"] == ["num_heads", "num_head_channels"]
    assert not set(found["unknown"]) & set(found["config"])
    assert describe(tmp_path / "a.pt", {"num_heads": 4})["config"]["num_heads"] == 4


def test_fingerprint_sees_values_names_and_not_the_container(tmp_path, plain_pt):
    src, unet = plain_pt
    state = unet.state_dict()
    same = weights_sha256(state)
    assert weights_sha256(read_tensors(convert(src, tmp_path / "b.safetensors"))[0]) == same
    channels_last = {
        k: v.to(memory_format=torch.channels_last) if v.ndim == 4 else v for k, v in state.items()
    }
    assert weights_sha256(channels_last) == same
    state["out.0.bias"] = state["out.0.bias"] + 1e-3
    assert weights_sha256(state) != same


def test_corrupt_metadata_is_named(tmp_path):
    tensors = {k: v.contiguous() for k, v in random_unet(PLAIN).state_dict().items()}
    for text in ("{", "[1]"):
        save_file(tensors, tmp_path / "a.safetensors", {"ddfm_fast.config": text})
        with pytest.raises(ValueError, match="metadata ddfm_fast.config is not"):
            load_checkpoint(tmp_path / "a.safetensors")
