"""A fuser under any legal options: what holds of every result, whatever was called before."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from analytic import tanh_prior
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from PIL import Image
from properties import examples

from ddfm_fast import Fuser
from ddfm_fast.images.pair import COLORS

SIZES = ((16, 16), (20, 17), (33, 24))
KINDS = ("uint8", "uint16", "float16", "float32", "float64", "rgb", "pil", "torch", "batch")
OPTIONS = st.fixed_dictionaries(
    {"preset": st.sampled_from(["official", "paper", "robust", "instant", "official-script"])},
    optional={
        "steps": st.sampled_from([1, 2, "ddim2", "1,1"]),
        "variant": st.sampled_from(["official", "paper", "printed", "gradient", "saliency"]),
        "sampler": st.sampled_from(["ddim", "ddpm"]),
        "psi": st.sampled_from([0.1, 0.5, 5]),
        "eta": st.sampled_from([0.01, 0.1, 10]),
        "stretch": st.sampled_from(["none", "minmax", "percentile", "sources"]),
        "denoise": st.sampled_from(["auto", "off", 4, {"ir": 3}]),
        "images": st.sampled_from(["auto", "functional", "photographic"]),
        "color": st.sampled_from(COLORS),
        "seed": st.integers(0, 2**63 - 1),
        "batch_size": st.sampled_from([None, 1, 2, 3]),
        "prior": st.sampled_from([tanh_prior, "embedded"]),
        "graph": st.sampled_from(["auto", "off"]),
    },
)
PICTURES = st.tuples(st.sampled_from(SIZES), st.sampled_from(KINDS), st.integers(0, 5))
"""pictures, each with a size, a container and a seed"""


def picture(size: tuple[int, int], kind: str, seed: int):
    """Draw a smooth picture with some noise, in a container."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]] / 20
    gray = 0.5 + 0.3 * np.sin((seed + 2) * rows) * np.cos(3 * columns)
    gray = (gray + 0.05 * rng.standard_normal(size)).clip(0, 1)
    if kind in ("rgb", "pil"):
        color = np.stack([gray, gray**2, gray[::-1]], -1)
        image = (255 * color).round().astype(np.uint8)
        return Image.fromarray(image) if kind == "pil" else image
    if kind == "torch":
        return torch.from_numpy(gray.astype(np.float32))[None]
    if kind == "batch":
        return np.stack([gray, gray[::-1]])[..., None].astype(np.float32)
    if kind.startswith("uint"):
        return (gray * np.iinfo(kind).max).round().astype(kind)
    return gray.astype(kind)


def numbers(image) -> np.ndarray:
    return np.asarray(image)


class AnyCalls(RuleBasedStateMachine):
    """Calls of one fuser in any order; a result that was seen before has to come again."""

    @initialize(options=OPTIONS)
    def make(self, options):
        self.fuser = Fuser(device="cpu", **self.legal(options))
        self.known: dict = {}

    @staticmethod
    def legal(options: dict) -> dict:
        """Add two steps to options that run the loop and do not set ``steps``."""
        has_steps = options["preset"] in ("official", "paper", "official-script")
        if has_steps or options.get("variant", "saliency") != "saliency":
            return {"steps": 2, **options}
        return options

    def teardown(self):
        assert torch.get_default_dtype() == torch.float32

    @rule(options=OPTIONS)
    def change(self, options):
        before = self.fuser
        self.fuser = before.with_options(**self.legal(options))
        assert self.fuser is not before
        self.known = {}

    def call(self, pairs: list, **options) -> list:
        """Fuse pairs as a list, and check that results are what they were."""
        kept = [(numbers(a).tobytes(), numbers(b).tobytes()) for a, b in pairs]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pictures that are the same
            results = self.fuser([a for a, _ in pairs], [b for _, b in pairs], **options)
        assert isinstance(results, list) and len(results) == len(pairs)
        assert kept == [(numbers(a).tobytes(), numbers(b).tobytes()) for a, b in pairs]
        for (ir, vis), result in zip(pairs, results, strict=True):
            self.check(ir, vis, result)
        return results

    def check(self, ir, vis, result) -> None:
        """Check for the container, dtype and layout of the source whose color the result has."""
        config, color = self.fuser.config, self.fuser.color
        has_rgb = [numbers(x).ndim == 3 and numbers(x).shape[-1] == 3 for x in (ir, vis)]
        colored = bool(color) and config.color
        from_ir = colored and (color == "ir" or (color is True and has_rgb == [True, False]))
        source = ir if from_ir else vis
        found, like = numbers(result), numbers(source)
        multiple = config.crop_multiple
        axes = {"torch": (1, 2), "batch": (1, 2)}.get(self.layout(source), (0, 1))
        shape = list(like.shape)
        for axis in axes:
            shape[axis] -= shape[axis] % multiple
        if like.ndim == 3 and like.shape[-1] == 3 and not colored:
            shape[-1] = 1
        if isinstance(result, Image.Image) and shape[-1] == 1:
            shape = shape[:-1]
        assert type(result) is type(source) and found.dtype == like.dtype
        assert list(found.shape) == shape
        values = found.astype(np.float64)
        top = np.iinfo(found.dtype).max if found.dtype.kind == "u" else 1
        assert np.isfinite(values).all() and values.min() >= 0 and values.max() <= top

    @staticmethod
    def layout(image) -> str:
        if isinstance(image, torch.Tensor):
            return "torch"
        return "batch" if numbers(image).ndim == 4 else "one"

    @rule(one=PICTURES, kind=st.sampled_from(KINDS), seed=st.none() | st.integers(0, 3))
    def alone(self, one, kind, seed):
        size, other, number = one
        if (kind == "batch") != (other == "batch"):
            kind = other  # both hold one image, or both two
        if min(size) < self.fuser.config.crop_multiple:
            return
        pair = picture(size, other, number), picture(size, kind, number + 10)
        (result,) = self.call([pair], seed=seed)
        self.remember((size, other, kind, number, seed), numbers(result))

    def remember(self, key, result: np.ndarray) -> None:
        if key in self.known:
            np.testing.assert_array_equal(result, self.known[key])
        self.known.setdefault(key, result.copy())

    @rule(order=st.permutations(range(4)), seed=st.none() | st.integers(0, 3))
    def together(self, order, seed):
        """Fuse every pair that was fused alone in a list, in another order, with any others."""
        keys = [key for key in self.known if key[-1] == seed][:4]
        keys = [keys[n] for n in order if n < len(keys)]
        if not keys or not self.fuser.reproducible:
            return
        pairs = [
            (picture(size, other, n), picture(size, kind, n + 10))
            for size, other, kind, n, _ in keys
        ]
        for key, result in zip(keys, self.call(pairs, seed=seed), strict=True):
            self.remember(key, numbers(result))

    @rule(one=PICTURES)
    def another_seed_changes_only_what_is_drawn(self, one):
        """Nor does a call change the state of the process's generators."""
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        self.alone(one, one[1], 3)
        assert torch.equal(before[0], torch.get_rng_state())
        assert (before[1] == np.random.get_state()[1]).all()

    @invariant()
    def threads_are_as_before(self):
        assert torch.get_num_threads() == THREADS and not torch.is_inference_mode_enabled()


THREADS = torch.get_num_threads()


class TestAnyCalls(AnyCalls.TestCase):
    settings = examples(12, stateful_step_count=8)


def test_the_machine_can_fail(monkeypatch):
    """A fuser whose result depends on the number of calls is detected."""

    class Counting(Fuser):
        calls = 0

        def __call__(self, ir, vis, **options):
            type(self).calls += 1
            results = super().__call__(ir, vis, **options)
            return [r + 0 if self.calls % 2 else 255 - r for r in results]

    machine = AnyCalls()
    machine.fuser, machine.known = Counting(device="cpu", preset="instant"), {}
    machine.alone(((16, 16), "uint8", 0), "uint8", 1)
    with pytest.raises(AssertionError):
        machine.alone(((16, 16), "uint8", 0), "uint8", 1)
