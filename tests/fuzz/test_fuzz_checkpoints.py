"""Checkpoints of every kind with damage to their bytes or to their structure."""

from __future__ import annotations

import io
import json
import pickletools
import shutil
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from campaign import SECONDS, Campaign, damaged, pick
from networks import SMALL, random_unet
from safetensors.torch import save, save_file

from ddfm_fast.priors.checkpoint import CONFIG_KEY, convert, describe, load_checkpoint
from ddfm_fast.priors.load import load_prior

PLAIN = {**SMALL, "middle_attention": False}
STATE = {k: v.contiguous() for k, v in random_unet(PLAIN).state_dict().items()}
NUMBERS = (0, 1, -1, 2, 3, 31, 255, 1 << 16, 1 << 31, 1 << 40, 1 << 62, 1 << 70)
ODD = (None, True, "", "x", [], {}, [[]], 0.5, float("nan"), float("inf"), *NUMBERS)


def _saved(content: dict, legacy: bool = False) -> bytes:
    written = io.BytesIO()
    torch.save(content, written, _use_new_zipfile_serialization=not legacy)
    return written.getvalue()


def _renamed(key: str, rng: np.random.Generator) -> str:
    parts = key.split(".")
    at = int(rng.integers(len(parts)))
    parts[at] = pick(rng, "0", "1", "9", "99999", "x", "", "qkv", "op", "label_emb", "ä" * 300)
    return pick(rng, ".".join(parts), key + ".weight", "module." + key, key[:-1])


def _other_value(value: torch.Tensor, rng: np.random.Generator):
    """Return a tensor that should not be there, or something else."""
    kind = pick(rng, "number", "cast", "cut", "fold", "view", "special", "bad")
    if kind == "number":
        return pick(rng, *ODD, (1, 2), b"x", torch.Size([2]), np.float32(2))
    if kind == "cast":
        return value.to(pick(rng, torch.float64, torch.bfloat16, torch.float16, torch.int8,
                             torch.complex64, torch.float8_e4m3fn, torch.bool))  # fmt: skip
    if kind == "cut":
        return pick(rng, value[:0], value[: len(value) // 2], value.sum(), value.repeat(2, 1))
    if kind == "fold":
        return pick(rng, value.flatten(), value[None], value.T, value.unsqueeze(-1), value.flip(0))
    if kind == "view":
        return pick(rng, torch.zeros(1).expand(value.shape), torch.zeros(1).expand(1 << 36))
    if kind == "special":
        return pick(rng, value.to_sparse(), value.to("meta"), torch._neg_view(value),
                    torch.nn.Parameter(value))  # fmt: skip
    return value * pick(rng, float("nan"), float("inf"), 1e30, 0.0)


def _changed_state(rng: np.random.Generator) -> dict:
    state: dict = dict(STATE)
    for _ in range(int(rng.integers(1, 4))):
        key = pick(rng, *(k for k in state if k in STATE))
        what = pick(rng, "rename", "drop", "double", "swap", "value", "value")
        if what == "rename":
            state[_renamed(key, rng)] = state.pop(key)
        elif what == "drop":
            del state[key]
        elif what == "double":
            state[_renamed(key, rng)] = state[key]
        elif what == "swap":
            other = pick(rng, *(k for k in state if k in STATE))
            state[key], state[other] = state[other], state[key]
        elif isinstance(state[key], torch.Tensor) and state[key].ndim == 2:
            state[key] = _other_value(STATE[key], rng)
        else:
            state[key] = pick(rng, STATE[key][:-1], STATE[key][..., None], STATE[key] / 0, 5)
    return pick(rng, state, state, {"state_dict": state, "step": 3}, {"model": {"model": state}})


def _lying_pickle(data: bytes, rng: np.random.Generator) -> bytes:
    """Put other numbers, names or instructions into a pickle."""
    steps = list(pickletools.genops(data))
    places = [place for *_, place in steps] + [len(data)]
    out = data
    for n in sorted(rng.integers(1, len(steps) - 1, int(rng.integers(1, 4))), reverse=True):
        opcode, argument, place = steps[int(n)]
        number = int(pick(rng, *NUMBERS[:8])) % (1 << 31)
        if opcode.name.startswith("BININT"):
            new = b"J" + struct.pack("<i", number)
        elif opcode.name == "GLOBAL":
            new = b"c" + pick(rng, b"torch\nDoubleStorage\n", b"torch\nSize\n", b"os\nsystem\n",
                              b"torch._utils\n_rebuild_tensor\n", b"builtins\nset\n",
                              b"_codecs\nencode\n", b"torch\nTensor\n")  # fmt: skip
        else:
            step = int(rng.integers(1, len(steps) - 1))
            new = pick(rng, b"", data[places[step] : places[step + 1]])
        out = out[:place] + new + out[places[int(n) + 1] :]
    return out


def zipped(rng: np.random.Generator) -> bytes:
    """Make a ``.pt`` whose pickle or directory lies."""
    content, written = _saved({"state_dict": STATE}), io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(written, "w") as target:
        for item in source.infolist():
            data = source.read(item)
            if item.filename.endswith("data.pkl") and rng.random() < 0.8:
                data = _lying_pickle(data, rng)
            elif rng.random() < 0.02:
                data = pick(rng, b"", data[:-4], data * 2)
            packed = zipfile.ZIP_DEFLATED if rng.random() < 0.001 else zipfile.ZIP_STORED
            for _ in range(2 if rng.random() < 0.002 else 1):
                target.writestr(item.filename, data, packed)
    return written.getvalue()


def legacy(rng: np.random.Generator) -> bytes:
    """Make a file as PyTorch wrote it before 1.6, whose pickles lie."""
    data = io.BytesIO(_saved(STATE, legacy=True))
    ends = [0]
    for _ in range(5):
        for _ in pickletools.genops(data):
            pass
        ends.append(data.tell())
    parts = [data.getvalue()[a:b] for a, b in zip(ends, ends[1:], strict=False)]
    at = int(pick(rng, 3, 3, 3, 4, 2))
    parts[at] = _lying_pickle(parts[at], rng)
    return b"".join(parts) + data.getvalue()[ends[-1] :]


def headed(rng: np.random.Generator) -> bytes:
    """Make a safetensors file whose header lies."""
    config = {**PLAIN, "noise_schedule": "linear"}
    for key in list(config) if rng.random() < 0.5 else ():
        if rng.random() < 0.2:
            config[key] = pick(rng, *ODD)
    content = save(STATE, {CONFIG_KEY: json.dumps(config)})
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    for _ in range(int(rng.integers(0, 3))):
        key = pick(rng, *(k for k in header if k != "__metadata__"))
        entry = header[key]
        what = pick(rng, "rename", "drop", "double", "shape", "dtype", "offsets", "odd")
        if what in ("rename", "double"):
            header[_renamed(key, rng)] = header.pop(key) if what == "rename" else entry
        elif what == "drop":
            del header[key]
        elif what == "shape":
            entry["shape"] = pick(rng, entry["shape"][::-1], [*entry["shape"], 1], [],
                                  [pick(rng, *NUMBERS)] * 2)  # fmt: skip
        elif what == "dtype":
            entry["dtype"] = pick(rng, "F16", "F64", "I8", "F8_E4M3", "BOOL", "C64", "x", None)
        elif what == "offsets":
            entry["data_offsets"] = [pick(rng, *NUMBERS), pick(rng, *NUMBERS)]
        else:
            entry[pick(rng, "shape", "dtype", "data_offsets")] = pick(rng, *ODD)
    written = json.dumps(header).encode()
    return struct.pack("<Q", pick(rng, len(written), len(written), len(written), length, 0,
                                  1 << 40)) + written + data  # fmt: skip


KINDS = {
    "changed .pt": (".pt", lambda rng: _saved(_changed_state(rng))),
    "changed legacy .pt": (".pt", lambda rng: _saved(_changed_state(rng), legacy=True)),
    "lying .pt": (".pt", zipped),
    "lying legacy .pt": (".pt", legacy),
    "lying .safetensors": (".safetensors", headed),
    "bytes of .pt": (".pt", lambda rng: _bytes(_saved(STATE), rng)),
    "bytes of legacy .pt": (".pt", lambda rng: _bytes(_saved(STATE, legacy=True), rng)),
    "bytes of .safetensors": (".safetensors", lambda rng: _bytes(save(STATE), rng)),
}


def _bytes(data: bytes, rng: np.random.Generator) -> bytes:
    head = 4000 if rng.random() < 0.7 else len(data)  # where the structure is
    data = damaged(data[:head], rng) + data[head:]
    if rng.random() < 0.4:
        data = data[:-4000] + damaged(data[-4000:], rng)
    return data


def test_checkpoints(tmp_path):
    def attempt(rng: np.random.Generator) -> str:
        kind = pick(rng, *KINDS)
        suffix, make = KINDS[kind]
        path = tmp_path / f"prior{suffix}"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                path.write_bytes(make(rng))
                unet = load_checkpoint(path)[0]
                again = tmp_path / "again.safetensors"
                if rng.random() < 0.2:
                    assert describe(path)["parameters"] > 0
                    unet = load_checkpoint(convert(path, again))[0]
        except ValueError as error:
            assert str(path) in str(error), error
            assert len(str(error)) < 2000, error
            return f"{kind} refused"
        assert all(p.isfinite().all() for p in unet.parameters())
        return f"{kind} taken"

    Campaign("checkpoints", attempt).run(SECONDS * 0.4).check(least=5)


def _write_folder(folder: Path) -> dict[str, torch.Tensor]:
    from diffusers import DDPMScheduler, UNet2DModel

    model = UNet2DModel(
        sample_size=32,
        block_out_channels=(32, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    model.save_pretrained(folder)
    DDPMScheduler().save_pretrained(folder)
    return {k: v.contiguous() for k, v in model.state_dict().items()}


def test_folders(tmp_path):
    pytest.importorskip("diffusers")
    state = _write_folder(tmp_path / "whole")
    folder = tmp_path / "prior"

    def attempt(rng: np.random.Generator) -> str:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", folder)
        name = pick(rng, "config.json", "config.json", "scheduler_config.json", "weights")
        if name == "weights":
            changed = dict(state)
            key = pick(rng, *state)
            value = changed.pop(key)
            if rng.random() < 0.7:
                changed[pick(rng, key, _renamed(key, rng))] = pick(
                    rng, value, value[:1].contiguous(), value / 0, value[None]
                )
            save_file(changed, folder / "diffusion_pytorch_model.safetensors")
        else:
            content = json.loads((folder / name).read_text())
            for _ in range(int(rng.integers(1, 3))):
                key = pick(rng, *content)
                old = content[key]
                odd = pick(rng, *ODD)
                content[key] = [odd, *old[1:]] if isinstance(old, list) and old else odd
            (folder / name).write_text(json.dumps(content))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                load_prior(folder)
        except ValueError as error:
            assert "prior" in str(error), error
            return "refused"
        return "taken"

    Campaign("folders of diffusers", attempt).run(SECONDS * 0.1).check(least=1)
