"""What the smoke test of a GPU fuses, in which ways, and the sources of its pictures."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddfm_fast import Fuser
from ddfm_fast.datasets.demo import asset
from ddfm_fast.kernels import module_status

from .data import NETWORKS, random_unet

LEVELS = 255


class Scene(NamedTuple):
    """What is fused; a CPU's pictures of it are recorded.

    ``sigma``: gray levels of noise that the sources get. ``color``: RGB, uint8 in and out.
    ``every``: only every so-manyth row and column is recorded. ``graph``: what graphs capture: the
    loop, evaluations of the prior ("eps") or nothing.
    """

    name: str
    options: dict[str, Any]
    size: tuple[int, int] = (45, 59)
    prior: str = "embedded"
    sigma: float = 0.0
    batch: int = 1
    color: bool = False
    every: int = 1
    graph: str = "loop"


WAVES = {"preset": "official", "steps": 5}
SCENES = {
    scene.name: scene
    for scene in (
        Scene("waves", WAVES, prior="waves"),
        Scene("waves, DDPM", {"preset": "paper", "steps": 5}, prior="waves"),
        Scene("waves, gradient", WAVES | {"variant": "gradient"}, prior="waves"),
        Scene("waves, batch of 3", WAVES, prior="waves", batch=3),
        Scene("small network", {"preset": "official", "steps": 2}, (16, 32), prior="tiny"),
        Scene("balanced", {"preset": "balanced"}, (61, 75), sigma=12, graph="eps"),
        Scene("fast", {"preset": "fast"}, (61, 75), sigma=12, graph="eps"),
        Scene("fast in color, batch of 2", {"preset": "fast", "denoise": 12}, sigma=12, batch=2,
              color=True, graph="eps"),
        Scene("instant", {"preset": "instant"}, graph=""),
        Scene("official, 3 steps", {"preset": "official", "steps": 3}),
        Scene("official, denoised", {"preset": "official", "steps": 3, "denoise": 12}, sigma=12),
        Scene("official", {"preset": "official"}),
        Scene("paper", {"preset": "paper"}),
        Scene("ADM with attention", {"preset": "official", "steps": 2}, prior="small ADM"),
        Scene("fast, 512x640", {"preset": "fast"}, (512, 640), sigma=12, every=8, graph="eps"),
        Scene("official, 512x640", {"preset": "official", "steps": 3}, (512, 640), every=8),
    )
}  # fmt: skip


class Way(NamedTuple):
    """How it is fused."""

    precision: str = "float32"
    backend: str = "triton"
    solver: str = "torch"
    graph: str = "loop"

    def __str__(self) -> str:
        return f"{self.precision} {self.backend}/{self.solver} graph={self.graph}"


class Case(NamedTuple):
    scene: Scene
    way: Way

    def __str__(self) -> str:
        return f"{self.scene.name} | {self.way}"


def cases(device: torch.device, small: bool = False) -> list[Case]:
    """Return all cases, the most telling first; ``small``: those that a slow device can do."""
    if device.type == "cpu":
        cheap = [scene for scene in SCENES.values() if scene.every == 1]
        return [Case(scene, Way("float32", "torch", "torch", "off")) for scene in cheap]
    half, exact, local = Way("float16"), Way(), Way(solver="local")
    plain, eager = Way(backend="torch", graph="off"), Way(graph="off")
    usual = Way("float16", "auto", "auto", "auto")
    first = {
        "waves": [plain, eager, exact, local, exact._replace(graph="step")],
        "waves, DDPM": [exact, local],
        "small network": [exact, half],
        "fast": [usual, half, exact, eager, half._replace(graph="off"),
                 half._replace(backend="torch")],
        "balanced": [usual, half, exact],
        "fast in color, batch of 2": [half, exact],
        "official, 3 steps": [usual, exact, half, half._replace(graph="off"),
                              exact._replace(graph="step"), half._replace(graph="step"),
                              half._replace(solver="local")],
        "official": [half, exact],
        "paper": [half, exact],
        "ADM with attention": [exact, half, Way("bfloat16")],
        "fast, 512x640": [half],
        "official, 512x640": [half, half._replace(solver="local")],
        "official, denoised": [half, exact],
        "instant": [eager, plain],
    }  # fmt: skip
    found = [Case(SCENES[name], way) for name, ways in first.items() for way in ways]
    if small:
        exact = [case for case in found if case.way.precision == "float32"]
        return [c for c in exact if c.scene.prior == "waves" or c.scene.name == "small network"]
    solvers = ["torch", "local", *(["cupy"] if module_status("cupy")["version"] else [])]
    ways = [Way(solver=s, graph=g) for g in ("loop", "step", "off") for s in solvers]
    ways += [Way(backend="torch", graph=g) for g in ("off", "loop")]
    by_a_formula = [scene for scene in SCENES.values() if scene.prior == "waves"]
    found += [Case(scene, way) for scene in by_a_formula for way in ways]
    found += [Case(SCENES[name], Way("bfloat16")) for name in ("fast", "official, 3 steps")]
    return list({str(case): case for case in found}.values())


def waves(x: Tensor, t: Tensor) -> Tensor:
    """Evaluate a prior that is a formula: any difference is then in the loop."""
    return torch.tanh(x * (0.3 + t.to(x.dtype) / 1500).view(-1, 1, 1, 1))


waves.multiple = 1  # type: ignore[attr-defined]


def sources(scene: Scene, picture: str) -> tuple[np.ndarray, np.ndarray]:
    """Make infrared and visible of picture "A" or "B": [N, H, W] float32, or uint8 with RGB."""
    return tuple(
        np.stack([_source(scene, name, 5 * n + 20 * (picture == "B")) for n in range(scene.batch)])
        for name in ("sentinel2_nir.png", "sentinel2_visible.png")
    )


def _source(scene: Scene, name: str, start: int) -> np.ndarray:
    """Return a piece of the demo pair, mirrored if that is too small, with noise."""
    height, width = scene.size
    image = asset(name)[start : start + height, start : start + width]
    missing = [(0, height - image.shape[0]), (0, width - image.shape[1])]
    image = np.pad(image, missing + [(0, 0)] * (image.ndim - 2), mode="symmetric")
    if image.ndim == 3 and not scene.color:
        image = image[..., 1]
    noise = np.random.default_rng(start).normal(0, scene.sigma, image.shape)
    noisy = np.clip(image + noise, 0, LEVELS)
    return noisy.astype(np.uint8) if scene.color else (noisy / LEVELS).astype(np.float32)


@lru_cache
def _network(name: str) -> torch.nn.Module:
    return random_unet(NETWORKS[name], torch.device("cpu"))  # a GPU draws other weights


def fuser_of(scene: Scene, way: Way, device: torch.device) -> Fuser:
    """Return the fuser of a case."""
    chosen = {"backend": way.backend, "solver": way.solver, "graph": way.graph}
    if scene.prior == "waves":
        return Fuser(prior=waves, device=device, **scene.options, **chosen)
    prior = _network(scene.prior) if scene.prior in NETWORKS else scene.prior
    return Fuser(prior=prior, dtype=way.precision, device=device, **scene.options, **chosen)


def fused(fuser: Fuser, scene: Scene, picture: str) -> np.ndarray:
    """Return the recorded pixels of a fused picture, [N, …] in gray levels."""
    images = (list(source) for source in sources(scene, picture))
    out = np.stack([np.asarray(image) for image in fuser(*images)])
    scale = 1 if scene.color else LEVELS
    return out[:, :: scene.every, :: scene.every].astype(np.float32) * scale
