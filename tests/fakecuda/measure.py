"""What a call costs the host, by count: prints the JSON that ``budgets.json`` records.

    tests/fakecuda/run.sh python tests/fakecuda/measure.py > tests/fakecuda/budgets.json

Run it in a process of its own, since a kernel is loaded once per process.
"""

from __future__ import annotations

import json
import logging
import warnings

import fakeplugin
import numpy as np
import torch
import triton

from ddfm_fast import Fuser
from ddfm_fast.config import FuseConfig
from ddfm_fast.graphs.cache import GraphCache
from ddfm_fast.priors.load import load_prior
from ddfm_fast.restore import sources
from ddfm_fast.restore.defects import Defects
from ddfm_fast.restore.noise_level import CLEAN
from ddfm_fast.runtime.dispatch import Backend

fake = fakeplugin.fake
SIZE = 512, 640
OTHER_SIZES = [(256, 320), (480, 640), (1088, 1920), (64, 96), (368, 496), (500, 333)]
CALLS = {
    "instant": dict(preset="instant"),
    "fast": dict(preset="fast"),
    "fast, denoise 20": dict(preset="fast", denoise=20),
    "balanced": dict(preset="balanced"),
    "official, 4 steps": dict(preset="official", steps=4),
    "official": dict(preset="official"),
    "official-script, 4 steps": dict(preset="official-script", steps=4),
    "paper, 4 steps": dict(preset="paper", steps=4),
}


def enqueued(function) -> int:
    """Count the kernels, copies and graphs that the host enqueues one by one."""
    fake.fake_record(1)
    function()
    count = fake.fake_launch_count()
    fake.fake_record(0)
    return count


def loaded(function) -> int:
    """Count the compiled kernels that are loaded for the first time."""
    before = fake.fake_module_loads()
    function()
    return fake.fake_module_loads() - before


def take_garbage_for_clean() -> None:
    """Answer that no source has noise: looking for it would read garbage from the device."""
    sources.estimate = lambda plane: CLEAN
    sources.remove_defects = lambda luma: (luma, [Defects(0.0, 0.0, 0)])
    sources.chroma_noise = lambda planes, estimators=None: 0.0


def images(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:height, :width] / 16
    gray = 127 + 60 * np.sin(x) + 50 * np.cos(y * 0.7)
    color = np.stack([127 + 60 * np.cos(x * 0.6) + 50 * np.sin(y * f) for f in (1, 1.1, 1.2)], -1)
    return gray.astype(np.uint8), color.astype(np.uint8)


def forward(dtype: str) -> dict[str, int]:
    """Measure an evaluation of the embedded prior."""
    prior = load_prior("embedded", device="cuda", dtype=dtype)
    steps = prior.conditioning(torch.tensor([500, 400]))

    def evaluate(size=SIZE):
        x = torch.zeros(1, 3, *(-(-n // prior.multiple) * prior.multiple for n in size)).cuda()
        for step in (steps[0], steps[1]):
            prior.eps(x, step)

    return {
        "binaries": loaded(evaluate),
        "binaries of other sizes": loaded(lambda: [evaluate(size) for size in OTHER_SIZES]),
        "launches": enqueued(evaluate) // 2,
    }


def loop(solver: str) -> dict[str, int]:
    """Measure three steps, as one graph and step by step, the prior's forward included."""
    prior = load_prior("embedded", device="cuda", dtype="float16")
    nodes = {}
    for mode in ("loop", "step"):
        cache = GraphCache(mode, Backend("triton", solver, ""))
        cache.warm_up(prior, FuseConfig(steps=3), (1, *SIZE))
        nodes[f"nodes, graph {mode!r}"] = cache.summary()[0]["nodes"]
    return nodes


def call(settings: dict) -> dict[str, int]:
    """Measure a call whose graphs exist: what is left to the host, and memory."""
    fuser, pair = Fuser(device="cuda", **settings), images(*SIZE)
    fuser.warmup([SIZE])
    fuser(*pair)
    torch.cuda.reset_peak_memory_stats()
    operations = enqueued(lambda: fuser(*pair))
    return {
        "host operations": operations,
        "peak MiB": -(-torch.cuda.max_memory_allocated() // 2**20),
        "graph nodes": sum(s["nodes"] for s in fuser.summary()),
        "binaries of other sizes": loaded(lambda: fuser.warmup(OTHER_SIZES[:4])),
    }


def main() -> None:
    logging.disable()
    warnings.simplefilter("ignore")
    torch.zeros(1, device="cuda")
    take_garbage_for_clean()
    versions = {"torch": torch.__version__.split("+")[0], "triton": triton.__version__}
    with torch.inference_mode():
        found = {f"embedded prior, {name}": forward(name) for name in ("float16", "float32")}
    found |= {f"loop of three steps, solver {name!r}": loop(name) for name in ("torch", "local")}
    found |= {f"call, {name}": call(settings) for name, settings in CALLS.items()}
    print(json.dumps({"versions": versions, **found}, indent=2))


if __name__ == "__main__":
    main()
