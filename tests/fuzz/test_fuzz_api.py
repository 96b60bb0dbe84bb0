"""Calls of ``fuse`` and ``Fuser`` with arrays and options of all kinds."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from campaign import SECONDS, Campaign, pick
from PIL import Image

from ddfm_fast import FuseConfig, Fuser, fuse

NAMES = (
    "ir", "vis", "value_range", "layout", "seed", "color", "preset", "steps", "stretch", "denoise",
    "images", "variant", "sampler", "psi", "eta", "dtype", "backend", "solver", "graph", "device",
    "batch_size", "compile", "progress", "callback", "report", "prior", "shapes", "config",
    "num_train_timesteps",
)  # fmt: skip
"""what a refusal must name one of"""
ODD = (None, True, -1, 0, 1.5, float("nan"), float("inf"), 10**30, "x", "", [], {}, (1, 2), b"x",
       np.float32(2), np.int64(3), np.array([1, 2]), torch.tensor([1, 2]), object())  # fmt: skip


def array(rng: np.random.Generator):
    """An image, or what hardly is one, of any container."""
    sizes = 16, 17, 24, 33, 40
    height, width = (int(rng.choice(sizes)) for _ in range(2))
    shape = pick(
        rng, (height, width), (height, width), (height, width, 3), (3, height, width),
        (2, height, width), (2, height, width, 3), (height, width, 4), (height,), (), (0, width),
        (1, height, width, 1), (height, 3), (2, 3, height, width),
    )  # fmt: skip
    dtype = pick(
        rng, "u1", "u1", "u1", "u2", "f4", "f4", "f8", "f2", "i2", "i4", "?", "c8", ">u2", "O"
    )
    with np.errstate(all="ignore"):
        values = rng.random(shape) * (1 if np.dtype(dtype).kind == "f" else 255)
        found = np.asarray(values).astype(dtype)
    if rng.random() < 0.1 and found.size and found.dtype.kind == "f":
        found.flat[int(rng.integers(found.size))] = pick(rng, np.nan, np.inf, -1.0, 1e30)
    if rng.random() < 0.1 and found.ndim > 1:
        found = pick(rng, found[::-1], found[:, ::-1], found.T, np.asfortranarray(found))
    kind = rng.integers(10)
    if kind < 6:
        return found
    if kind < 8:
        try:
            return torch.from_numpy(np.ascontiguousarray(found))
        except (TypeError, ValueError):
            return found
    if kind == 8:
        try:
            return Image.fromarray(found)
        except (TypeError, ValueError, KeyError, IndexError):
            return found
    return pick(rng, None, "picture.png", [found], (found, found), memoryview(b"abc"), 5)


def options(rng: np.random.Generator) -> dict:
    good = {
        "preset": ("instant", "instant", "fast", "balanced", "official"),
        "steps": (1, 2, "ddim2", "1,1"),
        "stretch": ("none", "minmax", "percentile", "sources"),
        "denoise": ("auto", "off", 5, {"ir": 3}),
        "images": ("auto", "functional", "photographic"),
        "variant": ("official", "paper", "printed", "gradient", "saliency"),
        "sampler": ("ddim", "ddpm"),
        "psi": (0.0, 0.5, 5),
        "eta": (0.0, 0.01, 10),
        "seed": (0, 7),
        "color": (True, False, "ir", "vis"),
        "batch_size": (None, 1, 2),
        "dtype": ("auto", "float32"),
        "backend": ("auto", "torch"),
        "graph": ("auto", "off"),
    }
    names = rng.permutation(list(good))[: int(rng.integers(0, 4))]
    found = {}
    for name in map(str, names):
        found[name] = pick(rng, *ODD) if rng.random() < 0.25 else pick(rng, *good[name])
    if (
        isinstance(p := found.get("preset"), str)
        and p == "official"
        or set(found) & {"variant", "sampler", "psi", "eta"}
    ):
        found.setdefault("steps", 1)
        if isinstance(found["steps"], float | int) and not isinstance(found["steps"], bool):
            found["steps"] = min(found["steps"], 2)
    if rng.random() < 0.15:
        found["value_range"] = pick(rng, (0, 255), (0, 1e-320), (-1e308, 1e308), (0, 65535), *ODD)
    if rng.random() < 0.1:
        found["layout"] = pick(rng, "HWC", "CHW", "NHW", *ODD)
    return found


def call(rng: np.random.Generator) -> str:
    ir = array(rng)
    vis = ir if rng.random() < 0.1 else array(rng)
    if rng.random() < 0.6 and isinstance(ir, np.ndarray) and ir.dtype != object and ir.ndim > 1:
        vis = ir[::-1].copy()  # mostly of one size, or little is fused
    given = options(rng)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = fuse(ir, vis, device="cpu", **given)
        except (ValueError, TypeError) as error:
            assert any(name in str(error) for name in NAMES), f"no argument is named: {error}"
            return "refused"
    for one in result if isinstance(result, list) else [result]:
        numbers = np.asarray(one).astype(np.float64)
        assert np.isfinite(numbers).all(), given
    return "taken"


def fields(rng: np.random.Generator) -> str:
    names = list(FuseConfig.__dataclass_fields__)
    given = {str(n): pick(rng, *ODD) for n in rng.permutation(names)[: int(rng.integers(1, 4))]}
    try:
        config = FuseConfig(**given)
        hash(config)
    except (ValueError, TypeError) as error:
        assert any(name in str(error) for name in (*given, *NAMES)), str(error)
        return "refused"
    return "taken"


def shapes(rng: np.random.Generator) -> str:
    fuser = _instant()
    given = [pick(rng, (16, 16), (2, 17, 33), *ODD) for _ in range(int(rng.integers(0, 3)))]
    try:
        fuser.warmup(pick(rng, given, *ODD))
    except (ValueError, TypeError) as error:
        assert "shapes" in str(error), str(error)
        return "refused"
    return "taken"


def _instant(_made: list = []) -> Fuser:  # noqa: B006  (one for all)
    if not _made:
        _made.append(Fuser(preset="instant", device="cpu"))
    return _made[0]


def test_calls():
    Campaign("calls of fuse", call).run().check(least=50)


def test_configurations():
    Campaign("configurations", fields).run(SECONDS / 4).check(least=200)


def test_warm_ups():
    Campaign("warm-ups", shapes).run(SECONDS / 4).check(least=100)
