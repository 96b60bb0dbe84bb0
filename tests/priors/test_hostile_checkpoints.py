"""Checkpoints that are damaged, malicious, or of other kinds of networks."""

from __future__ import annotations

import codecs
import json
import math
import re
import struct
import sys
import zipfile

import costs
import numpy as np
import pytest
import torch
from networks import SMALL, random_unet
from safetensors.torch import save_file

from ddfm_fast.priors.checkpoint import CONFIG_KEY, load_checkpoint
from ddfm_fast.priors.hf import load_diffusers
from ddfm_fast.priors.load import load_prior

PLAIN = {**SMALL, "middle_attention": False}
STATE = {k: v.contiguous() for k, v in random_unet(PLAIN).state_dict().items()}


def refused(path, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_prior(path)


CHANGES = {
    "time embedding of one dimension": ("time_embed.0.weight", lambda w: w.flatten()),
    "time embedding of none": ("time_embed.0.weight", lambda w: w.sum()),
    "first convolution of two": ("input_blocks.0.0.weight", lambda w: w.flatten(1)),
    "block of three": ("input_blocks.1.0.in_layers.2.weight", lambda w: w.flatten(2)),
    "empty": ("input_blocks.1.0.in_layers.2.weight", lambda w: w[:0]),
    "sparse": ("time_embed.0.weight", lambda w: w.to_sparse()),
    "meta": ("time_embed.0.weight", lambda w: w.to("meta")),
    "NaN": ("time_embed.0.weight", lambda w: w * float("nan")),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_tensor_is_refused_by_its_key(name, tmp_path):
    key, change = CHANGES[name]
    torch.save({**STATE, key: change(STATE[key])}, tmp_path / "p.pt")
    refused(tmp_path / "p.pt", key.replace(".", r"\."))


class Call:
    """A call that a pickle asks for."""

    def __init__(self, function, *given):
        self.parts = function, given

    def __reduce__(self):
        return self.parts


def twice_as_long(times: int):
    return b"12" if times == 0 else Call(codecs.encode, twice_as_long(times - 1), "hex")


def save_legacy(content, path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def rewritten(path, pickled=None, compression=zipfile.ZIP_STORED, extra=0) -> None:
    """Write a checkpoint with another pickle, compressed, or with empty entries."""
    torch.save({"state_dict": STATE, "zeros": torch.zeros(1 << 22)}, path.with_name("whole.pt"))
    with (
        zipfile.ZipFile(path.with_name("whole.pt")) as source,
        zipfile.ZipFile(path, "w", compression) as target,
    ):
        for item in source.infolist():
            is_pickle = pickled is not None and item.filename.endswith("data.pkl")
            target.writestr(item.filename, pickled if is_pickle else source.read(item))
        for n in range(extra):
            target.writestr(zipfile.ZipInfo(f"whole/data/x{n}"), b"")


def with_header(path, header: dict, data: int) -> None:
    """Write a safetensors file whose data, mostly a hole, are that many bytes."""
    written = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(written)) + written)
        file.truncate(8 + len(written) + data)


def empty(shape: list[int]) -> dict:
    return {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * math.prod(shape)]}


def many_views(path) -> None:
    torch.save({**STATE, **{f"x{n}": VIEWED.view(2048, -1) for n in range(300)}}, path)


WEIGHT = "time_embed.0.weight"
VIEWED = torch.zeros(1 << 22)
LARGE = torch.zeros(1).expand(1 << 36)
PUT = b"\x80\x02}N%sK\x01s."
"""a pickle of a dictionary with one odd key"""
BOMBS = {
    "stride 0": (lambda p: torch.save({**STATE, WEIGHT: LARGE}, p), ".pt", "larger than the data"),
    "stride 0, legacy": (
        lambda p: save_legacy({**STATE, WEIGHT: LARGE}, p),
        ".pt",
        "larger than the data",
    ),
    "shared by many": (many_views, ".pt", "they share their data"),
    "compressed": (
        lambda p: rewritten(p, compression=zipfile.ZIP_DEFLATED),
        ".pt",
        "is a compressed archive",
    ),
    "directory": (lambda p: rewritten(p, extra=40_000), ".pt", "a directory or record of more"),
    "large pickle": (
        lambda p: rewritten(p, b"\x80\x02](" + b"}" * (1 << 23) + b"e."),
        ".pt",
        "data.pkl has 8,388,614 bytes",
    ),
    "many instructions": (
        lambda p: rewritten(p, b"\x80\x02](" + b"}" * (1 << 20) + b"e."),
        ".pt",
        "more than 200,000 instructions",
    ),
    "nested key": (lambda p: rewritten(p, PUT % (b"\x85" * 150_000)), ".pt", "nested 501 times"),
    "long tuple": (
        lambda p: rewritten(p, PUT % (b"(" + b"N" * 50_000 + b"t")),
        ".pt",
        "tuples of 50000",
    ),
    "bytearray": (
        lambda p: torch.save({**STATE, "x": Call(bytearray, 1 << 33)}, p),
        ".pt",
        "bytearray for x",
    ),
    "bytearray, legacy": (
        lambda p: save_legacy({**STATE, "x": Call(bytearray, 1 << 33)}, p),
        ".pt",
        "bytearray for x",
    ),
    "codec": (
        lambda p: torch.save({"state_dict": STATE, "x": twice_as_long(31)}, p),
        ".pt",
        r"_codecs\.encode for x",
    ),
    "large tensor": (
        lambda p: torch.save({**STATE, WEIGHT: Call(torch.FloatTensor, 1 << 33)}, p),
        ".pt",
        r"torch\.FloatTensor for time_embed\.0\.weight",
    ),
    "set of a tensor": (
        lambda p: torch.save({**STATE, "x": Call(set, LARGE)}, p),
        ".pt",
        r"set for x",
    ),
    "size from a tensor": (
        lambda p: torch.save({**STATE, "x": Call(torch.Size, LARGE)}, p),
        ".pt",
        r"a call of torch\.Size",
    ),
    "hole": (
        lambda p: with_header(p, {WEIGHT: empty([1 << 30])}, 1 << 32),
        ".safetensors",
        r"time_embed\.0\.weight has shape",
    ),
    "large header": (
        lambda p: with_header(p, {f"{n}": empty([0]) for n in range(50_000)}, 0),
        ".safetensors",
        "a header of .* bytes, expected at most",
    ),
    "many tensors": (
        lambda p: with_header(p, {f"{n}": empty([0]) for n in range(20_000)}, 0),
        ".safetensors",
        "20,000 tensors, expected at most 10,000",
    ),
    "many blocks": (
        lambda p: save_file({**STATE, "output_blocks.8000.0.x": torch.ones(1)}, p),
        ".safetensors",
        "names 8001 output blocks and has",
    ),
    "larger than any": (
        lambda p: with_header(p, {}, 1 << 35),
        ".safetensors",
        "bytes, expected at most",
    ),
}


def assert_costs_little(path, words: str) -> None:
    """Check the error's words, and that loading costs little memory and few processor seconds."""
    kib, seconds, error = costs.of_loading(path)
    assert re.search(words, error), error
    assert kib < 100_000 and seconds < 3


in_a_child = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="fork, and getrusage in KiB"
)


@in_a_child
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_costs_little(name, tmp_path):
    make, suffix, words = BOMBS[name]
    path = tmp_path / f"p{suffix}"
    make(path)
    assert_costs_little(path, words)


def test_a_long_key_is_not_repeated_whole(tmp_path):
    torch.save({**STATE, "k" * 1_000_000: torch.ones(1)}, tmp_path / "p.pt")
    with pytest.raises(ValueError, match="1 unexpected: kkk.*…") as raised:
        load_prior(tmp_path / "p.pt")
    assert len(str(raised.value)) < 1000


def test_what_training_programs_save_beside_the_weights_is_no_matter(tmp_path):
    groups = [{"lr": 1e-3, "betas": (0.9, 0.999), "foreach": None, "params": [0, 1]}]
    moments = {n: {"step": torch.tensor(2.0), "exp_avg": torch.ones(3)} for n in (0, 1)}
    content = {
        "state_dict": STATE,
        "optimizer": {"state": moments, "param_groups": groups},
        "shape": torch.ones(2, 3).shape,
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "dtype": torch.bfloat16,
        "hyper": {"rates": [1e-4, 2], "name": "ä", "flags": (True, None)},
    }
    for legacy in (False, True):
        path = tmp_path / f"{legacy}.pt"
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        assert torch.equal(load_checkpoint(path)[0].state_dict()[WEIGHT], STATE[WEIGHT])


@pytest.mark.parametrize("keyword", ["num_train_timesteps", "multiple"])
def test_numbers_of_the_metadata_that_would_fill_memory(keyword, tmp_path):
    config = json.dumps({**PLAIN, keyword: 10**9})
    save_file(STATE, tmp_path / "p.safetensors", {CONFIG_KEY: config})
    refused(tmp_path / "p.safetensors", f"{keyword}=1000000000, expected an integer, 1 to")


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bytes_load_or_are_refused(seed, tmp_path):
    rng = np.random.default_rng(seed)
    suffix = (".pt", ".safetensors")[seed % 2]
    path = tmp_path / f"p{suffix}"
    if suffix == ".pt":
        torch.save(STATE, path)
    else:
        save_file(STATE, path)
    data = bytearray(path.read_bytes())
    header = len(data) if seed % 3 else min(4000, len(data))
    for place in rng.integers(0, header, 1 + seed % 5):
        data[place] ^= 1 << int(rng.integers(8))
    path.write_bytes(data[: len(data) - seed % 4 * 1000])
    try:
        load_checkpoint(path)
    except ValueError as error:
        assert "p." in str(error)


@pytest.mark.parametrize(
    "config, words",
    [
        ("[" * 100_000, "is not JSON"),
        (json.dumps({**PLAIN, "channel_mult": [1e400]}), "channel_mult"),
        (json.dumps({**PLAIN, "model_channels": 10**9}), "model_channels=1000000000"),
        (json.dumps({**PLAIN, "num_res_blocks": 10**9}), "num_res_blocks=1000000000"),
        (json.dumps({**PLAIN, "channel_mult": [1] * 99}), "channel_mult"),
    ],
    ids=["nested", "infinite", "wide", "deep", "levels"],
)
def test_hostile_metadata_is_refused(config, words, tmp_path):
    save_file(STATE, tmp_path / "p.safetensors", {CONFIG_KEY: config})
    refused(tmp_path / "p.safetensors", words)


def test_names_that_no_file_has(tmp_path):
    refused(tmp_path / ("n" * 5000 + ".pt"), "there is no file")
    with pytest.raises(ValueError, match="no file"):
        load_checkpoint(tmp_path)


UNET = {
    "_class_name": "UNet2DModel",
    "down_block_types": ["DownBlock2D"] * 2,
    "in_channels": 3,
    "out_channels": 3,
}
OTHER_KINDS = [
    ({"time_embedding_type": "fourier"}, {}, "'fourier' time embeddings.*variance-exploding"),
    ({"in_channels": 4, "out_channels": 4}, {}, "latent model"),
    ({"num_class_embeds": 10}, {}, "class-conditional"),
    ({"_class_name": "UNet2DConditionModel"}, {}, "expected an unconditional UNet2DModel"),
    ({}, {"_class_name": "ScoreSdeVeScheduler"}, "'positional' time embeddings"),
    ({}, {"_class_name": "EDMEulerScheduler"}, "EDM's preconditioning"),
    ({}, {"_class_name": "LCMScheduler"}, "latent consistency"),
    ({}, {"prediction_type": "noise"}, "predicts 'noise', expected one of epsilon, sample"),
    ({}, {"beta_start": 0.00085, "beta_end": 1.2}, "was trained with betas"),
    ({}, {"beta_schedule": "other"}, "was trained with betas 'other'"),
]


@pytest.mark.parametrize("model, scheduler, words", OTHER_KINDS, ids=lambda value: str(value)[:40])
def test_networks_of_other_kinds_are_refused_by_name(model, scheduler, words, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**UNET, **model}))
    (tmp_path / "scheduler_config.json").write_text(json.dumps(scheduler))
    with pytest.raises(ValueError, match=words):
        load_diffusers(tmp_path)


def folder_of(tmp_path, **changes):
    """Save diffusers' smallest network, and then change its configuration."""
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.UNet2DModel(
        sample_size=32,
        block_out_channels=(32, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    weights = {k: v.contiguous() for k, v in model.state_dict().items()}
    return weights, tmp_path / "diffusion_pytorch_model.safetensors"


@in_a_child
@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"block_out_channels": [8192, 8192]}, {"layers_per_block": 64}, {"time_embedding_dim": 8192}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_folder_whose_network_is_larger_than_its_weights_costs_little(changes, tmp_path):
    folder_of(tmp_path, **changes)
    assert_costs_little(tmp_path, "makes a network of .* weights, the file has")


@pytest.mark.slow
def test_weights_of_a_folder_are_read_strictly(tmp_path):
    weights, file = folder_of(tmp_path)
    renamed = {f"{k}x" if k == "conv_in.bias" else k: v for k, v in weights.items()}
    save_file(renamed, file)
    refused(tmp_path, r"do not fit its config.json \(1 missing keys: conv_in.bias\)")
    save_file({**weights, "conv_in.bias": weights["conv_in.bias"] / 0}, file)
    refused(tmp_path, r"NaN or inf \(conv_in.bias\)")
    file.unlink()
    refused(tmp_path, "has no diffusion_pytorch_model.safetensors")
    torch.save({**weights, "x": Call(bytearray, 1 << 33)}, file.with_suffix(".bin"))
    refused(tmp_path, "bytearray for x")
    torch.save(weights, file.with_suffix(".bin"))
    assert load_prior(tmp_path).multiple == 2


LARGE_CONFIGS = [
    ({"layers_per_block": 10**6}, {}, "layers_per_block has 1 values up to 1000000"),
    ({"block_out_channels": [10**9, 32]}, {}, "block_out_channels has 2 values up to 1000000000"),
    ({"block_out_channels": [32] * 99}, {}, "block_out_channels has 99 values"),
    ({"norm_num_groups": float("nan")}, {}, "norm_num_groups has 1 values up to nan"),
    ({"down_block_types": 2}, {}, "down_block_types is no list"),
    ({"quantization_config": {"load_in_8bit": True}}, {}, "is quantized"),
    ({"x": "x" * (1 << 20)}, {}, "is not JSON .it has .* bytes"),
    ({}, {"num_train_timesteps": 10**10}, "num_train_timesteps 10000000000, expected an integer"),
    ({}, {"beta_schedule": []}, "was trained with betas"),
]


@pytest.mark.parametrize("model, scheduler, words", LARGE_CONFIGS, ids=lambda v: str(v)[:40])
def test_numbers_of_a_folder_are_bounded(model, scheduler, words, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**UNET, **model}))
    (tmp_path / "scheduler_config.json").write_text(json.dumps(scheduler))
    refused(tmp_path, words)
