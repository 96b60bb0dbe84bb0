"""``python -m bench.video``: how fast, how steady and how good fused videos are.

Steadiness and quality: flicker and flow-warped error of ``ddfm_fast.metrics.temporal``, and SCD,
VIF, Qabf and SSIM (convention cddfuse) as means over the frames, of the image presets frame by
frame and of the video presets, on the pan over the demo pair and on a sequence given by two
folders (``--sequence IR VIS``, halved by ``--scale``). Also what parts of the temporal engine do.

Speed: seconds a frame of the engine (motion and fusion), interleaved with the default image preset
frame by frame in one run, and of the whole command with decoding and encoding. ``--device cuda``
and ``--prior adm`` (the architecture of OpenAI's checkpoint with random weights) measure a GPU,
with its idle share by PyTorch's profiler; neither has run on a GPU yet.

``--save`` writes bench/results/video.json, .md and the strip of frames video.png.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch

from ddfm_fast import Fuser
from ddfm_fast.images.files import atomic_write_bytes, read_image, write_image
from ddfm_fast.images.panel import draw_panel
from ddfm_fast.metrics import compute, to_luma
from ddfm_fast.metrics import temporal as steadiness
from ddfm_fast.priors.cost import OFFICIAL as OFFICIAL_UNET
from ddfm_fast.priors.load import load_prior
from ddfm_fast.video import VIDEO_PRESETS, TemporalFuser, VideoPreset, fuse_video
from ddfm_fast.video.demo import pan
from ddfm_fast.video.motion import MotionFinder
from ddfm_fast.video.sources import pictures

from .machine import RESULTS, machine
from .timing import interleave

QUALITY = ("SCD", "VIF", "Qabf", "SSIM")
OFFICIAL = "image preset official, frame by frame"


class Remembering(Fuser):
    """Samples a pair once: frame by frame and as preset exact only the scale differs."""

    known: dict[tuple, torch.Tensor] = {}

    def _fuse_unscaled(self, ir, vis, run):
        key = (self.config, ir.cpu().numpy().tobytes(), vis.cpu().numpy().tobytes())
        if key not in self.known:
            self.known[key] = super()._fuse_unscaled(ir, vis, run)
        return self.known[key]


def by_frame(preset: str) -> Callable:
    """Row: an image preset on each frame by itself; (frames, evaluations a frame)."""

    def row(pairs: list, device: str | None):
        fuser = Remembering(preset=preset, device=device)
        return [fuser(*pair) for pair in pairs], float(fuser.config.steps)

    return row


def as_video(preset: str | VideoPreset, *, flow: bool = True) -> Callable:
    """Row: a video preset; ``flow=False`` leaves out the motion compensation."""

    def row(pairs: list, device: str | None):
        engine, find = TemporalFuser(Remembering(device=device), preset), MotionFinder()
        stream, frames = engine.open(), []
        for pair in pairs:
            motion = find(*pair)
            motion = motion if flow else motion._replace(flow=None)
            frames.append(engine.fuse(stream, *pair, motion))
        return frames, engine.evaluations / len(pairs)

    return row


def rows() -> dict[str, Callable]:
    realtime = VIDEO_PRESETS["realtime"]
    return {
        OFFICIAL: by_frame("official"),
        "image preset balanced, frame by frame": by_frame("balanced"),
        "image preset fast, frame by frame": by_frame("fast"),
        "video preset exact": as_video("exact"),
        "video preset balanced": as_video("balanced"),
        "video preset realtime": as_video("realtime"),
        "realtime, nothing kept (scale only)": as_video(replace(realtime, trust=1e-3)),
        "realtime, kept without flow": as_video(realtime, flow=False),
        "realtime, trust 4": as_video(replace(realtime, trust=4.0)),
    }


def score(frames: list, pairs: list) -> dict[str, float]:
    """Means over the frames of the steadiness and the quality of a fused video."""
    lumas = [[to_luma(image) for image in video] for video in (frames, *zip(*pairs, strict=True))]
    found = steadiness.compute(*lumas) | compute(*map(torch.stack, lumas), names=QUALITY)
    return {name: float(found[name].mean()) for name in (*steadiness.NAMES, *QUALITY)}


def judge(
    clips: dict[str, list], chosen: list[str], device: str | None
) -> tuple[dict, dict[str, list]]:
    """Scores by clip and row, and the frames of the first clip by row."""
    table: dict[str, dict] = {clip: {} for clip in clips}
    shown = {}
    for name in chosen:
        make = rows()[name]
        for clip, pairs in clips.items():
            frames, evaluations = make(pairs, device)
            if clip == next(iter(clips)):
                shown[name] = frames
            facts = {"evaluations": evaluations, "commit": machine()["commit"]}
            table[clip][name] = facts | score(frames, pairs)
            print(f"{clip}, {name}: {table[clip][name]}", flush=True)
    return table, shown


def speed(height: int, width: int, repeats: int, device: str | None, prior: str) -> dict:
    """Seconds a frame, interleaved, and the whole command from files to a file."""
    fuser = Fuser(device=device, prior=adm() if prior == "adm" else prior)
    pairs = list(zip(*pan(12, height, width), strict=True))
    sync = torch.cuda.synchronize if fuser.device.type == "cuda" else lambda: None
    engines = {name: _Engine(fuser, name, pairs, sync) for name in ("balanced", "realtime")}
    counts = {OFFICIAL: 1, "video preset balanced": 3, "video preset realtime": 6}

    def official():
        fuser(*pairs[0])
        sync()

    candidates = {OFFICIAL: official} | {
        f"video preset {name}": (lambda e=engine, n=name: e(counts[f"video preset {n}"]))
        for name, engine in engines.items()
    }
    samples = interleave(candidates, repeats=repeats, warmup=0 if device is None else 1)
    found = {}
    base = statistics.median(samples[OFFICIAL])
    for name, seconds in samples.items():
        frame = statistics.median(seconds) / counts[name]
        found[name] = {
            "seconds_a_frame": frame,
            "frames_a_second": 1 / frame,
            "times_faster": base / frame,
            "samples": [s / counts[name] for s in seconds],
        }
    for name in engines:
        found[f"command, preset {name}"] = row = _command(fuser, name, height, width)
        if fuser.device.type == "cuda":
            row["gpu_idle_share"] = idle_share(lambda n=name: _command(fuser, n, height, width))
    return {"height": height, "width": width, "prior": prior, "device": str(fuser.device), **found}


class _Engine:
    """Fuses the next frames of an endless clip that goes to and fro."""

    def __init__(self, fuser: Fuser, preset: str, pairs: list, sync: Callable):
        self.engine, self.find, self.sync = TemporalFuser(fuser, preset), MotionFinder(), sync
        self.stream = self.engine.open()
        self.pairs = itertools.cycle(pairs + pairs[-2:0:-1])
        self(1)  # the cold start is not what a second of video costs

    def __call__(self, frames: int) -> None:
        for pair in itertools.islice(self.pairs, frames):
            self.engine.fuse(self.stream, *pair, self.find(*pair))
        self.sync()


def _command(fuser: Fuser, preset: str, height: int, width: int) -> dict:
    frames = 300 if fuser.device.type == "cuda" else 16
    ir, vis = pan(frames, height, width)
    with tempfile.TemporaryDirectory() as folder:
        report = fuse_video(ir, vis, Path(folder) / "out.mp4", fuser=fuser, preset=preset)
    return {
        "frames_a_second": report.fps,
        "frames": report.frames,
        "latency_p50": report.latency_p50,
        "latency_p99": report.latency_p99,
    }


def adm():
    """A prior with the official architecture and random weights: only its cost is real."""
    from ddfm_fast.priors.unet import UNet

    torch.manual_seed(0)
    unet = UNet(OFFICIAL_UNET).eval().requires_grad_(False)
    return load_prior(unet, device="cuda", dtype="bfloat16")


def idle_share(function: Callable) -> float:
    """The share of the wall time of ``function`` in which no kernel or copy runs on the GPU."""
    from torch.profiler import ProfilerActivity, profile

    function()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        function()
        torch.cuda.synchronize()
    spans = sorted(
        (e.time_range.start, e.time_range.end)
        for e in found.events()
        if e.device_type == torch.autograd.DeviceType.CUDA
    )
    busy, end = 0.0, spans[0][0]
    for first, last in spans:
        busy += max(0.0, last - max(first, end))
        end = max(end, last)
    return 1 - busy / (end - spans[0][0])


def load_sequence(ir: Path, vis: Path, scale: int) -> list[tuple]:
    """The frames of two folders, sizes divided by ``scale``."""
    found = []
    for paths in zip(pictures(ir), pictures(vis), strict=True):
        images = [read_image(path) for path in paths]
        size = (images[0].shape[1] // scale, images[0].shape[0] // scale)
        found.append(tuple(cv2.resize(i, size, interpolation=cv2.INTER_AREA) for i in images))
    return found


def markdown(report: dict) -> str:
    where = report["machine"]
    lines = [
        f"Made by `python -m bench.video`, last at commit {where['commit']} (every row's is in "
        f"video.json), on {where['cores']} cores "
        f"of an {where['cpu']}, PyTorch {where['torch']}; prior {report['prior'][:12]}.\n"
    ]
    for clip, table in report["quality"].items():
        columns = (*steadiness.NAMES, *QUALITY)
        lines += [f"## {clip}\n", "| | evaluations a frame | " + " | ".join(columns) + " |"]
        lines.append("|---" * (len(columns) + 2) + "|")
        for name, row in table.items():
            cells = " | ".join(f"{row[c]:.3f}" for c in columns)
            lines.append(f"| {name} | {row['evaluations']:.1f} | {cells} |")
        lines.append("")
    for found in report["speed"]:
        lines.append(
            f"## Speed at {found['width']}x{found['height']}, {found['device']}, "
            f"prior {found['prior']}; {found['made']}\n"
        )
        lines += ["| | frames a second | times faster |", "|---|---|---|"]
        for name, row in found.items():
            if isinstance(row, dict):
                faster = f"{row['times_faster']:.1f}" if "times_faster" in row else ""
                lines.append(f"| {name} | {row['frames_a_second']:.3f} | {faster} |")
        lines.append("")
    return "\n".join(lines)


def strip(pairs: list, shown: dict[str, list]) -> np.ndarray:
    """Every eighth frame: infrared, visible and the fused video."""
    names = {"fused, realtime": shown["video preset realtime"]}
    videos = {"infrared": [p[0] for p in pairs], "visible": [p[1] for p in pairs], **names}
    return draw_panel(
        [
            [(f"{label}, frame {n}", frames[n]) for n in range(0, len(pairs), 8)]
            for label, frames in videos.items()
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.video", description=__doc__)
    parser.add_argument("--sequence", nargs=2, type=Path, metavar=("IR", "VIS"))
    parser.add_argument("--scale", type=int, default=2, help="divide the sequence's size by this")
    parser.add_argument("--frames", type=int, default=25, help="of the pan")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--size", nargs=2, type=int, default=(480, 640), metavar=("H", "W"))
    parser.add_argument("--device", help="cpu or cuda")
    parser.add_argument("--prior", default="embedded", help="of the speed: embedded or adm")
    parser.add_argument("--only", choices=("quality", "speed"))
    parser.add_argument(
        "--row", action="append", choices=list(rows()), help="only this row of the quality tables"
    )
    parser.add_argument("--save", action="store_true", help="write bench/results/video.*")
    args = parser.parse_args()
    path = RESULTS / "video.json"
    report = json.loads(path.read_text()) if path.is_file() else {"quality": {}, "speed": []}
    if args.only != "speed":
        clips = {"pan over the demo pair": list(zip(*pan(args.frames), strict=True))}
        if args.sequence:
            pairs = load_sequence(*args.sequence, args.scale)
            clips[f"sequence, {len(pairs)} frames, 1/{args.scale} size"] = pairs
        table, shown = judge(clips, args.row or list(rows()), args.device)
        for clip, found in table.items():
            report["quality"].setdefault(clip, {}).update(found)
        if args.save and "video preset realtime" in shown:
            write_image(RESULTS / "video.png", strip(next(iter(clips.values())), shown))
    if args.only != "quality":
        found = speed(*args.size, args.repeats, args.device, args.prior)
        found["made"] = f"commit {machine()['commit']}, {torch.get_num_threads()} threads"
        key = ("height", "width", "device", "prior")
        others = [s for s in report["speed"] if any(s[k] != found[k] for k in key)]
        report["speed"] = [*others, found]
    if args.only != "speed":
        report |= {"machine": machine(), "prior": Fuser().prior.fingerprint}
    if args.save:
        atomic_write_bytes(path, (json.dumps(report, indent=1) + "\n").encode())
        atomic_write_bytes(RESULTS / "video.md", markdown(report).encode())
    print(markdown(report))


if __name__ == "__main__":
    main()
