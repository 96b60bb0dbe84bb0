"""Hashes of what the package draws, to hold a change of the code against the code before it.

    python tests/tools/picture_hashes.py before.json            # in the old checkout
    python tests/tools/picture_hashes.py after.json --against before.json

Public interface only, so that the same file runs on both. ``TRITON_INTERPRET=1`` adds the Triton
kernels, solver by solver. Rounding differs between processors: compare on one machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, os.getcwd())
import ddfm_fast  # noqa: E402
from ddfm_fast.integrations import official  # noqa: E402

FOUND: dict[str, str] = {}


def tanh_prior(x, t):
    """Return ε and a learned-range half by a formula: fast, and no library's choices enter."""
    eps = torch.tanh(x * (0.3 + t[:, None, None, None] / 1500))
    return torch.cat([eps, 0.1 * x.clamp(-1, 1)], 1)


tanh_prior.multiple = 8
tanh_prior.has_variance = True


def note(name: str, *results) -> None:
    digest = hashlib.sha256()
    for result in results:
        array = result.detach().cpu().numpy() if isinstance(result, torch.Tensor) else result
        array = np.ascontiguousarray(array)
        digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    FOUND[name] = digest.hexdigest()


def picture(height: int, width: int, channels: int, dtype, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    base = 0.5 + 0.4 * np.sin(9 * rows + seed) * np.cos(7 * columns)
    image = base[..., None] * generator.uniform(0.6, 1, channels)
    image = np.clip(image + generator.normal(0, 0.03, (height, width, channels)), 0, 1)
    if dtype != np.float32:
        image = image * np.iinfo(dtype).max
    return image.astype(dtype).squeeze()


KINDS = {
    "gray": (1, np.uint8),
    "color": (3, np.uint8),
    "color16": (3, np.uint16),
    "float": (1, np.float32),
}


def settings(steps: int = 4) -> dict[str, dict]:
    named = {
        name: {"preset": name} | ({"steps": steps} if "official" in name or name == "paper" else {})
        for name in ddfm_fast.PRESETS
    }
    return named | {
        "printed": {"preset": "paper", "variant": "printed", "steps": steps},
        "paper-ddim": {"preset": "paper", "sampler": "ddim", "steps": steps},
        "official-ddpm": {"preset": "official", "sampler": "ddpm", "steps": steps},
        "gradient-ddpm": {"preset": "balanced", "sampler": "ddpm", "stretch": "minmax"},
        "strong": {"preset": "official", "psi": 0.1, "eta": 5.0, "stretch": "none", "steps": steps},
    }


def pictures() -> None:
    for name, options in settings().items():
        fuser = ddfm_fast.Fuser(prior=tanh_prior, device="cpu", **options)
        for height, width in ((32, 32), (37, 53), (96, 80)):
            for kind, (channels, dtype) in KINDS.items():
                for count in (1, 3):
                    ir = [picture(height, width, 1, dtype, s) for s in range(count)]
                    vis = [picture(height, width, channels, dtype, 9 + s) for s in range(count)]
                    fused = fuser(ir, vis, seed=7)
                    note(f"{name} {height}x{width} {kind} x{count}", *fused)
        if name in ("official", "balanced", "paper"):
            fuser = ddfm_fast.Fuser(prior=tanh_prior, device="cpu", batch_size=2, **options)
            ir = [picture(40 + 8 * (s % 2), 64, 1, np.uint8, s) for s in range(5)]
            vis = [picture(40 + 8 * (s % 2), 64, 3, np.uint8, 9 + s) for s in range(5)]
            note(f"{name} mixed batch", *fuser(ir, vis))
            note(f"{name} gray wanted", *fuser(ir, vis, color=False))
            note(f"{name} color of ir", *fuser(vis, ir, color="ir"))


def embedded() -> None:
    for name, options in settings(2).items():
        for height, width in ((64, 64), (75, 101)):
            ir, vis = picture(height, width, 1, np.uint8, 1), picture(height, width, 3, np.uint8, 2)
            note(f"embedded {name} {height}x{width}",
                 ddfm_fast.fuse(ir, vis, device="cpu", dtype="float32", **options))  # fmt: skip
    seen = []
    ddfm_fast.fuse(
        ir,
        vis,
        steps=3,
        device="cpu",
        callback=lambda info: seen.extend([info.x_t.clone(), info.x0.clone()]),
    )
    note("callback", *seen)


def kernels() -> None:
    for solver in ("torch", "local"):
        for name, options in settings(3).items():
            if options.get("preset") == "official-script" and solver == "local":
                continue
            fuser = ddfm_fast.Fuser(
                prior=tanh_prior, device="cpu", backend="triton", solver=solver, **options
            )
            for height, width, count in ((32, 40, 1), (33, 49, 2)):
                ir = [picture(height, width, 1, np.uint8, s) for s in range(count)]
                vis = [picture(height, width, 3, np.uint8, 9 + s) for s in range(count)]
                note(f"triton {solver} {name} {height}x{width} x{count}", *fuser(ir, vis))


def video() -> None:
    for preset in ("exact", "balanced", "realtime"):
        fuser = ddfm_fast.Fuser(prior=tanh_prior, device="cpu", steps=4)
        ir = [np.roll(picture(64, 80, 1, np.uint8, 3), 2 * n, 1) for n in range(4)]
        vis = [np.roll(picture(64, 80, 3, np.uint8, 4), 2 * n, 1) for n in range(4)]
        stream = fuser.stream(zip(ir, vis, strict=True), preset=preset)
        note(f"stream {preset}", *stream)


def shim() -> None:
    i, v = (torch.from_numpy(picture(40, 48, 1, np.float32, s))[None, None] * 2 - 1 for s in (1, 2))
    state = official.EM_Initial(i)
    f = (i + v) / 2
    for n in range(3):
        f, state = official.EM_onestep(f, i, v, state, rho=0.1)
        note(f"EM_onestep {n}", f, state["H"], state["tau_a"], state["C"], state["F1"])
    sampler = official.create_sampler(
        "ddim", 1000, "linear", "epsilon", "learned_range", False, True, False, 10
    )
    x = torch.randn(1, 3, 40, 48, generator=torch.Generator().manual_seed(0))
    result = sampler.p_sample_loop(tanh_prior, x, False, i, v, "", 0, 0.5, 0.001)
    note("p_sample_loop", result)
    out, state = sampler.p_sample(
        tanh_prior, x, torch.tensor([9]), official.EM_Initial(i), i, v, 0.5, 0.001
    )
    note("p_sample", out["sample"], out["pred_xstart"], state["H"])


def commands() -> None:
    """Hash what the commands write: files' bytes, and JSON reports without times and paths."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for kind, channels in (("ir", 1), ("vi", 3)):
            (root / "set" / kind).mkdir(parents=True)
            for n in range(3):
                image = Image.fromarray(picture(48, 64, channels, np.uint8, n + channels))
                image.save(root / "set" / kind / f"{n}.png")
        run = [
            ["fuse", "set/ir", "set/vi", "-o", "fused", "--preset", "fast", "--panel"],
            ["fuse", "set/ir/0.png", "set/vi/0.png", "-o", "one.tif", "--steps", "2", "--gray"],
            ["batch", "set", "-o", "batch", "--steps", "2", "--sampler", "ddpm"],
            ["ablate", "set", "-o", "ablated", "--steps", "3", "--preset", "fast"],
        ]
        for arguments in run:
            command = [sys.executable, "-m", "ddfm_fast", *arguments, "--quiet"]
            env = {**os.environ, "PYTHONPATH": os.environ["CHECKOUT"], "TRITON_INTERPRET": "0"}
            subprocess.run(command, cwd=root, env=env, check=True, stdout=subprocess.DEVNULL)
        for path in sorted(root.rglob("*")):
            if path.suffix in (".png", ".tif") and "set" not in path.parts:
                pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
                note(f"file {path.relative_to(root)}", pixels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    os.environ.setdefault("CHECKOUT", os.getcwd())
    parts = {f.__name__: f for f in (pictures, embedded, video, shim, commands)}
    if os.environ.get("TRITON_INTERPRET") == "1":
        parts = {"kernels": kernels}
    for name, part in parts.items():
        if not arguments.only or name in arguments.only:
            part()
    arguments.out.write_text(json.dumps(FOUND, indent=1))
    print(f"{len(FOUND)} hashes of {Path(ddfm_fast.__file__).parent.parent}")
    if arguments.against:
        before = json.loads(arguments.against.read_text())
        differ = [name for name in FOUND if before.get(name) != FOUND[name]]
        print("\n".join(differ) or "all as before")
        sys.exit(bool(differ))


if __name__ == "__main__":
    main()
