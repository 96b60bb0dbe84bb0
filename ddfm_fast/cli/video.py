"""``ddfm-fast video``: two streams, or a data set of them, to a video each."""

# ruff: noqa: ARG001  (read_settings and _options take options from the context)

from __future__ import annotations

import json
from collections import Counter
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, cast

import typer

from ..runtime.words import parse_range
from ..storage.urls import without_password
from . import options as opt
from .errors import INTERRUPTED, OK, SOME_FAILED, termination_is_an_interrupt
from .options import default
from .settings import (
    Settings,
    elsewhere,
    parse_nodata,
    picked,
    plain,
    read_settings,
    show_progress,
)

if TYPE_CHECKING:
    from ..video.frames import BadFrame
    from ..video.pipeline import VideoOptions
    from ..video.report import VideoReport
    from ..video.tasks import Elsewhere, TaskResult

EPILOG = "Example:  `ddfm-fast video thermal.mp4 visible.mp4 -o fused.mp4`"


def video(
    context: typer.Context,
    ir: opt.Stream,
    vis: opt.OtherStream = None,
    *,
    resize: opt.Resize = None,
    align: opt.Align = default.align,
    align_field: opt.AlignField = opt.Frame.visible,
    ir_range: opt.IrRange = None,
    vis_range: opt.VisRange = None,
    nodata: opt.Nodata = None,
    offset: opt.Offset = 0.0,
    start: opt.Start = 0.0,
    end: opt.End = None,
    rate: opt.Rate = None,
    on_error: opt.OnBadFrame = opt.OnError.skip,
    deinterlace: opt.Deinterlace = opt.Fields.auto,
    tone_map: opt.ToneMap = opt.Switch.auto,
    reconnect: opt.Reconnect = 0.0,
    preset: opt.VideoPreset = "balanced",
    image_preset: opt.ImagePreset = default.preset,
    denoise: opt.Denoise = default.denoise,
    images: opt.Images = default.images,
    seed: opt.Seed = default.seed,
    prior: opt.Prior = default.prior,
    prior_config: opt.PriorConfig = None,
    out: opt.OutVideo,
    codec: opt.VideoCodec = None,
    crf: opt.Crf = None,
    skip_existing: opt.SkipExisting = False,
    no_audio: opt.NoAudio = False,
    side_by_side: opt.SideBySide = False,
    preview: opt.Preview = False,
    gray: opt.Gray = False,
    color_from: opt.ColorSource = opt.ColorFrom.auto,
    profile: opt.Profile = False,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
    realtime: opt.Realtime = False,
    device: opt.Device = default.device,
    tile: opt.Tile = default.tile,
    on: opt.On = opt.Place.here,
    address: opt.Address = None,
    actors: opt.Actors = None,
    num_gpus: opt.NumGpus = None,
) -> None:
    """Fuse two streams at the visible one's frame rate, without flicker.

    The streams are paired by time, starting together unless --offset says otherwise; each
    visible frame gets the infrared frame nearest to it. Rate, timestamps, color tags and audio
    of the visible stream are kept. Ctrl-C ends the file properly; until then it is called
    NAME.part-….SUFFIX. Exit code: 0 good, 1 bad or missing frames, 2 bad input, 130 interrupted.
    """
    there = elsewhere(on, address, actors, num_gpus, work="videos")
    raise typer.Exit(_run(read_settings(context), _options(context), context.params, there))


def _run(
    settings: Settings,
    options: VideoOptions,
    given: dict[str, Any],
    there: AbstractContextManager[Elsewhere | None],
) -> int:
    """Fuse what the command says; return the exit code."""
    from ..video.streams import STDOUT
    from ..video.tasks import TasksInterrupted, plan, run_tasks
    from ..video.temporal import get_video_preset

    tasks = plan(given["ir"], given["vis"], given["out"], plain(given["codec"]))
    get_video_preset(given["preset"])
    streamed = given["out"] == STDOUT
    fuser = settings.fuser(preset=given["image_preset"])
    as_json, quiet, profile = (given[name] for name in ("as_json", "quiet", "profile"))

    def tell(result: TaskResult) -> None:
        if result.error is not None and len(tasks) == 1:
            raise result.error
        wanted = {"quiet": quiet or as_json, "profile": profile and not as_json}
        _echo_result(result, **wanted, err=streamed)

    more = {"on_result": tell, "skip_existing": given["skip_existing"]}
    try:
        with termination_is_an_interrupt(), there as elsewhere:
            results = run_tasks(tasks, fuser=fuser, elsewhere=elsewhere, **more, **options)
        code = _exit_code(results)
    except TasksInterrupted as interrupted:
        results, code = interrupted.results, INTERRUPTED
        left = f"{len(tasks) - len(results)} videos not reached"
        typer.echo(f"interrupted: {left}; run it again with --skip-existing to resume", err=True)
    if as_json:
        _echo_json(results, code, err=streamed)
    return code


def _echo_json(results: list[TaskResult], code: int, *, err: bool) -> None:
    from .. import __version__

    videos = [result.as_dict() for result in results]
    typer.echo(json.dumps({"ok": code == OK, "version": __version__, "videos": videos}), err=err)


_PASSED_ON = (
    *("preset", "offset", "start", "end", "rate"),
    *("codec", "crf", "side_by_side", "realtime", "on_error"),
    *("deinterlace", "tone_map", "reconnect", "preview"),
)
"""options of `fuse_video` that the command line has as they are"""


def _options(context: typer.Context) -> VideoOptions:
    """Return the options of `fuse_video`; ValueError for text that is none."""
    given = context.params
    changed = {
        "resize": parse_resize(given["resize"]),
        "ir_range": parse_range(given["ir_range"], "--ir-range"),
        "vis_range": parse_range(given["vis_range"], "--vis-range"),
        "nodata": parse_nodata(given["nodata"]),
        "audio": not given["no_audio"],
        "progress": show_progress(given["quiet"]),
        "on_bad": _echo_bad,
    }
    return cast("VideoOptions", {**picked(context, _PASSED_ON), **changed})


def parse_resize(text: str | None) -> str | tuple[int, int] | None:
    """``vis``, ``ir`` or WIDTHxHEIGHT; ValueError otherwise."""
    if text is None or text in ("vis", "ir"):
        return text
    try:
        width, height = (int(n) for n in text.lower().split("x"))
    except ValueError:
        raise ValueError(f"--resize is {text!r}; expected vis, ir or WIDTHxHEIGHT") from None
    return height, width


def _echo_bad(bad: BadFrame) -> None:
    text = f"bad frame {bad.number} of {bad.stream}: {bad.reason}"
    typer.echo(without_password(text), err=True)


def _echo_result(result: TaskResult, *, quiet: bool, profile: bool, err: bool) -> None:
    if result.skipped:
        if not quiet:
            typer.echo(without_password(f"{result.task.out}  is already there"), err=err)
        return
    if result.report is None:
        typer.echo(without_password(f"error: {result.task.name}: {result.error}"), err=True)
        return
    _echo_report(result.report, quiet=quiet, err=err)
    if profile:
        _echo_profile(result.report, err=err)


def _echo_report(report: VideoReport, *, quiet: bool, err: bool) -> None:
    """Print what was written in a line, and on stderr what went wrong."""
    from ..video.report import READER_GONE

    out = without_password(str(report.out))
    if not quiet:
        ms = (report.latency_p50 * 1e3, report.latency_p99 * 1e3)
        frames = "1 frame" if report.frames == 1 else f"{report.frames} frames"
        dropped = f", {report.dropped} dropped" if report.dropped else ""
        typer.echo(
            f"{out}  {frames}{dropped}, {report.fps:.1f} frames/s, "
            f"{report.evaluations / max(1, report.frames):.1f} prior evaluations per frame, "
            f"latency p50 {ms[0]:.0f} ms, p99 {ms[1]:.0f} ms",
            err=err,
        )
        if report.clocks:
            typer.echo(
                "clocks: infrared started {offset:+.3f} s later, and drifts by {drift_ppm:+.0f} "
                "parts per million".format(**report.clocks),
                err=err,
            )
    if report.bad_count:
        streams = Counter(bad.stream for bad in report.bad)
        of = ", ".join(f"{count} of {stream}" for stream, count in streams.items())
        more = f"{report.frames} frames are written"
        typer.echo(f"{out}: {report.bad_count} bad frames ({of}); {more}", err=True)
    if report.stopped not in (None, READER_GONE):
        kept = f"the {report.frames} frames before that are in {out}"
        kept = kept if report.frames else "nothing was written"
        typer.echo(without_password(f"stopped: {report.stopped}; {kept}"), err=True)


def _echo_profile(report: VideoReport, *, err: bool) -> None:
    """Print where the time went: milliseconds per frame of each stage; stages overlap."""
    frames = max(1, report.frames)
    for stage, seconds in report.stages.items():
        typer.echo(f"{stage:<8}{seconds * 1e3 / frames:8.1f} ms per frame", err=err)
    whole = f"{report.seconds * 1e3 / frames:8.1f} ms per frame, stages overlapping"
    typer.echo(f"{'in all':<8}{whole}", err=err)


def _exit_code(results: list[TaskResult]) -> int:
    """0 all is well, 1 bad frames, early ends or failed sequences, 130 after Ctrl-C."""
    from ..video.report import INTERRUPTED as BY_USER

    if any(result.report is not None and result.report.stopped == BY_USER for result in results):
        return INTERRUPTED
    return OK if all(result.ok for result in results) else SOME_FAILED
