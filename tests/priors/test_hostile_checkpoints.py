"""Checkpoints that were damaged, or made to do harm, or are of other kinds of networks."""

from __future__ import annotations

import json
import resource
import time
import zipfile

import numpy as np
import pytest
import torch
from networks import SMALL, random_unet
from safetensors.torch import save_file

from ddfm_fast.priors.checkpoint import CONFIG_KEY, load_checkpoint
from ddfm_fast.priors.hf import load_diffusers
from ddfm_fast.priors.load import load_prior

PLAIN = {**SMALL, "middle_attention": False}
STATE = random_unet(PLAIN).state_dict()


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


def test_a_tensor_larger_than_its_data_costs_nothing(tmp_path):
    bomb = torch.zeros(1).expand(1 << 36)
    torch.save({**STATE, "time_embed.0.weight": bomb}, tmp_path / "p.pt")
    _costs_little(tmp_path / "p.pt", "time_embed.0.weight.*larger than the data")


def test_a_compressed_archive_costs_nothing(tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(1 << 24)}}, tmp_path / "big.pt")
    with (
        zipfile.ZipFile(tmp_path / "big.pt") as source,
        zipfile.ZipFile(tmp_path / "p.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for item in source.infolist():
            packed.writestr(item.filename, source.read(item))
    assert (tmp_path / "p.pt").stat().st_size < 1 << 20
    _costs_little(tmp_path / "p.pt", "is a compressed archive")


def _costs_little(path, words: str) -> None:
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    refused(path, words)
    assert time.monotonic() - started < 5  # of a busy machine; it takes milliseconds
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bytes_load_or_are_refused(seed, tmp_path):
    rng = np.random.default_rng(seed)
    suffix = (".pt", ".safetensors")[seed % 2]
    path = tmp_path / f"p{suffix}"
    if suffix == ".pt":
        torch.save(STATE, path)
    else:
        save_file({k: v.contiguous() for k, v in STATE.items()}, path)
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
    tensors = {k: v.contiguous() for k, v in STATE.items()}
    save_file(tensors, tmp_path / "p.safetensors", {CONFIG_KEY: config})
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
    ({}, {"_class_name": "ScoreSdeVeScheduler"}, "variance-exploding"),
    ({}, {"_class_name": "EDMEulerScheduler"}, "EDM's preconditioning"),
    ({}, {"_class_name": "CMStochasticIterativeScheduler"}, "trained for consistency"),
    ({}, {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "flow matching"),
    ({}, {"prediction_type": "v_prediction"}, "predicts 'v_prediction', expected 'epsilon'"),
    ({}, {"prediction_type": "sample"}, "predicts 'sample'"),
    ({}, {"beta_start": 0.00085, "beta_end": 0.012}, "was trained with betas"),
]


@pytest.mark.parametrize("model, scheduler, words", OTHER_KINDS, ids=lambda value: str(value)[:40])
def test_networks_of_other_kinds_are_refused_by_name(model, scheduler, words, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**UNET, **model}))
    (tmp_path / "scheduler_config.json").write_text(json.dumps(scheduler))
    with pytest.raises(ValueError, match=words):
        load_diffusers(tmp_path)
