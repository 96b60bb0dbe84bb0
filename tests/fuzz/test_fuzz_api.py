"""Calls of ``fuse`` and ``Fuser`` with arrays and options of all kinds."""

from __future__ import annotations

import functools
import warnings

import numpy as np
import torch
from campaign import SECONDS, Campaign, pick
from hypothesis import strategies as st
from PIL import Image

from ddfm_fast import FuseConfig, Fuser, fuse

NAMES = (
    "ir", "vis", "value_range", "layout", "seed", "color", "preset", "steps", "stretch", "denoise",
    "images", "variant", "sampler", "psi", "eta", "dtype", "backend", "solver", "graph", "device",
    "batch_size", "tile", "compile", "progress", "callback", "report", "prior", "shapes", "config",
    "num_train_timesteps",
)  # fmt: skip
"""a refusal must name one of these"""
ODD = (None, True, -1, 0, 1.5, float("nan"), float("inf"), 10**30, "x", "", [], {}, (1, 2), b"x",
       np.float32(2), np.int64(3), np.array([1, 2]), torch.tensor([1, 2]), object())  # fmt: skip
odd = st.sampled_from(range(len(ODD))).map(lambda n: ODD[n])  # some cannot be compared or hashed

size = st.sampled_from([16, 17, 24, 33, 40])
DTYPES = ["u1", "u1", "u1", "u2", "f4", "f4", "f8", "f2", "i2", "i4", "?", "c8", ">u2", "O"]
VIEWS = [np.copy, np.flipud, np.transpose, np.asfortranarray]


@st.composite
def arrays(draw):
    """Make an image, or something that hardly is one, as an array."""
    height, width = draw(size), draw(size)
    shape = draw(
        st.sampled_from(
            [(height, width), (height, width, 3), (3, height, width), (2, height, width),
             (2, height, width, 3), (height, width, 4), (height,), (), (0, width),
             (1, height, width, 1), (height, 3), (2, 3, height, width)]
        )
    )  # fmt: skip
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    with np.errstate(all="ignore"):
        values = np.random.default_rng(draw(st.integers(0, 9))).random(shape)
        found = np.asarray(values * (1 if dtype.kind == "f" else 255)).astype(dtype)
    if found.size and dtype.kind == "f" and draw(st.integers(0, 9)) == 9:
        found.flat[0] = draw(st.sampled_from([np.nan, np.inf, -1.0, 1e30]))
    return draw(st.sampled_from(VIEWS))(found) if found.ndim > 1 else found


def in_torch(array: np.ndarray):
    try:
        return torch.from_numpy(np.ascontiguousarray(array))
    except (TypeError, ValueError):
        return array


def in_pil(array: np.ndarray):
    try:
        return Image.fromarray(array)
    except (TypeError, ValueError, KeyError, IndexError):
        return array


images = st.one_of(
    *[arrays()] * 6,  # mostly: only arrays of one size are fused
    arrays().map(in_torch),
    arrays().map(in_pil),
    st.sampled_from([None, "picture.png", memoryview(b"abc"), 5]),
    st.lists(arrays(), max_size=2),
)


def mostly(*good, others=odd):
    """Draw one of these or, in a quarter of the examples, something else."""
    return st.integers(0, 3).flatmap(lambda n: others if n == 3 else st.sampled_from(good))


OPTIONS = {
    "preset": mostly("instant", "fast", "balanced", "official"),
    "steps": mostly(1, 2, "ddim2", "1,1"),
    "stretch": mostly("none", "minmax", "percentile", "sources"),
    "denoise": mostly("auto", "off", 5, others=odd | st.just({"ir": 3})),
    "images": mostly("auto", "functional", "photographic"),
    "variant": mostly("official", "paper", "printed", "gradient", "saliency"),
    "sampler": mostly("ddim", "ddpm"),
    "psi": mostly(0.0, 0.5, 5),
    "eta": mostly(0.0, 0.01, 10),
    "seed": mostly(0, 7),
    "color": mostly(True, False, "ir", "vis"),
    "batch_size": mostly(None, 1, 2),
    "tile": mostly("auto", "off", 64, "128"),
    "dtype": mostly("auto", "float32"),
    "backend": mostly("auto", "torch"),
    "graph": mostly("auto", "off"),
    "value_range": mostly((0, 255), (0, 1e-320), (-1e308, 1e308), (0, 65535)),
    "layout": mostly("HWC", "CHW", "NHW"),
}


@st.composite
def calls(draw):
    ir = draw(images)
    vis = draw(images)
    if (
        isinstance(ir, np.ndarray)
        and ir.dtype != object
        and ir.ndim > 1
        and draw(st.integers(0, 3))
    ):
        vis = ir[::-1].copy()
    names = draw(st.sets(st.sampled_from(sorted(OPTIONS)), max_size=4))
    given = {name: draw(OPTIONS[name]) for name in sorted(names)}
    preset = given.setdefault("preset", "instant")
    slow = isinstance(preset, str) and preset == "official"
    if slow or given.keys() & {"variant", "sampler", "psi", "eta"}:
        steps = given.setdefault("steps", 1)
        if isinstance(steps, float | int) and not isinstance(steps, bool):
            given["steps"] = min(steps, 2)
    return ir, vis, given


def call(example) -> str:
    ir, vis, given = example
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
    given = [pick(rng, (16, 16), (2, 17, 33), *ODD) for _ in range(int(rng.integers(0, 3)))]
    try:
        instant().warmup(pick(rng, given, *ODD))
    except (ValueError, TypeError) as error:
        assert "shapes" in str(error), str(error)
        return "refused"
    return "taken"


@functools.cache
def instant() -> Fuser:
    return Fuser(preset="instant", device="cpu")


def test_calls():
    Campaign("calls of fuse", call, calls()).run().check(least=50)


def test_configurations():
    Campaign("configurations", fields).run(SECONDS / 4).check(least=200)


def test_warm_ups():
    Campaign("warm-ups", shapes).run(SECONDS / 4).check(least=100)
