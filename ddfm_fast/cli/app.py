"""The ``ddfm-fast`` command. Heavy imports happen inside the commands, so ``--help`` is quick."""

from __future__ import annotations

import functools
import json
import os
import sys
import time
import warnings
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ddfm_fast.cli import bench as cli_bench
from ddfm_fast.cli import evaluate as cli_evaluate
from ddfm_fast.cli import options as opt
from ddfm_fast.cli.video import Codec as VideoCodec
from ddfm_fast.cli.video import OnError as OnBadFrame
from ddfm_fast.runtime import environment
from ddfm_fast.runtime.machine import usable_cores

app = typer.Typer(
    name="ddfm-fast",
    help="Fuse infrared and visible (or two medical) images with a diffusion prior.\n\n"
    "Start with:  ddfm-fast demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
prior_app = typer.Typer(
    help="Look into prior files (checkpoints) and convert them.", no_args_is_help=True
)
app.add_typer(prior_app, name="prior")

OK, SOME_FAILED, BAD_INPUT = 0, 1, 2


class DType(str, Enum):
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


def main() -> None:
    """Entry point: exit code 0 ok, 1 something failed, 2 bad usage or input."""
    # OpenMP's threads spin while they wait, which starves them where other programs run too: the
    # demo on two busy cores took up to ten times as long. Torch reads this when it loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A container's share may be smaller than the machine, which OpenMP does not see.
    if (share := usable_cores()) < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(share))
    app()


def _friendly(command):
    """Errors become one or two lines on stderr; ``DDFM_FAST_DEBUG=1`` lets the traceback out."""

    @functools.wraps(command)
    def wrapper(*args, **kwargs):
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                return command(*args, **kwargs)
        except (typer.Exit, typer.Abort):
            raise
        except BrokenPipeError:  # the reader of our output went away, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(OK) from None
        except Exception as error:
            if environment.is_on("DDFM_FAST_DEBUG"):
                raise
            message = _message(error)
            if kwargs.get("as_json"):
                typer.echo(json.dumps({"ok": False, "error": message}))
            typer.echo(f"error: {message}", err=True)
            known = isinstance(error, (ValueError, TypeError, ImportError, OSError))
            raise typer.Exit(BAD_INPUT if known else SOME_FAILED) from None

    return wrapper


def _message(error: Exception) -> str:
    if isinstance(error, (ValueError, TypeError, ImportError, OSError)):
        return str(error) or type(error).__name__
    return f"{type(error).__name__}: {error} (DDFM_FAST_DEBUG=1 shows where)"


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    typer.echo(f"warning: {message}", err=True)


def _version(wanted: bool) -> None:
    if wanted:
        from ddfm_fast import __version__

        typer.echo(f"ddfm-fast {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _json_object(text: str | None, option: str) -> dict[str, Any] | None:
    if text is None:
        return None
    if not text.lstrip().startswith("{"):
        path = Path(text)
        if not path.is_file():
            raise ValueError(
                f"{option} is {text!r}; expected a JSON object such as "
                "'{\"num_head_channels\": 64}' or the path of a file that holds one"
            )
        text = path.read_text(encoding="utf-8")
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{option} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{option} holds a JSON {type(found).__name__}; expected an object")
    return found


def _prior(prior: str, config: dict[str, Any] | None, device: str | None, dtype: opt.Precision):
    """What ``Fuser`` takes: the name, or the prior itself where it needs a configuration."""
    if config is None:
        return prior
    from ddfm_fast.priors.load import load_prior
    from ddfm_fast.runtime.dispatch import resolve_device

    return load_prior(prior, config, device=resolve_device(device), dtype=dtype.value)


def _color(gray: bool, color_from: opt.ColorFrom) -> bool | str:
    if gray and color_from is not opt.ColorFrom.auto:
        raise ValueError(f"--gray and --color-from {color_from.value} exclude each other")
    if gray:
        return False
    return True if color_from is opt.ColorFrom.auto else color_from.value


def _steps(text: str | None) -> int | str | None:
    try:
        return None if text is None else int(text)
    except ValueError:
        return text


@app.command(epilog="Example:  `ddfm-fast fuse ir/ visible/ -o fused/ --steps 50 --panel`")
@_friendly
def fuse(
    ir: Annotated[
        Path, typer.Argument(metavar="IR", help="Infrared (or first) image, or a folder of them.")
    ],
    vis: Annotated[
        Path, typer.Argument(metavar="VIS", help="Visible (or second) image, or a folder of them.")
    ],
    out: Annotated[
        Path,
        typer.Option("-o", "--out", help="File or folder to write; an output there is replaced."),
    ],
    preset: opt.Preset = "official",
    variant: opt.Variant = None,
    sampler: opt.Sampler = None,
    steps: opt.Steps = None,
    psi: opt.Psi = None,
    eta: opt.Eta = None,
    stretch: opt.StretchChoice = None,
    seed: opt.Seed = 3407,
    device: opt.Device = None,
    backend: opt.Backend = None,
    graph: opt.Graph = None,
    dtype: opt.DType = opt.Precision.auto,
    prior: opt.Prior = "embedded",
    prior_config: opt.PriorConfig = None,
    gray: opt.Gray = False,
    color_from: opt.ColorSource = opt.ColorFrom.auto,
    format: Annotated[
        str | None, typer.Option(help="png, jpg, tif or bmp, for outputs in a folder.")
    ] = None,
    panel: Annotated[
        bool, typer.Option("--panel", help="Also write NAME.panel.png, sources beside result.")
    ] = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Leave pairs whose output is there already.")
    ] = False,
    max_pixels: opt.MaxPixels = None,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> None:
    """Fuse two image files, or two folders whose files have the same stems.

    8-bit images give 8-bit images and 16-bit images give 16-bit images. In folders a pair that
    fails is reported and the others go on. Exit code: 0 all fused, 1 some failed, 2 bad input.
    """
    started = time.perf_counter()
    color = _color(gray, color_from)
    config = _json_object(prior_config, "--prior-config")
    from ddfm_fast.datasets.jobs import plan_jobs, run_jobs

    jobs = plan_jobs(ir, vis, out, format=format, panel=panel)
    from ddfm_fast.api import Fuser
    from ddfm_fast.images.files import DEFAULT_MAX_PIXELS

    fuser = Fuser(
        prior=_prior(prior, config, device, dtype),
        preset=preset,
        variant=variant,
        sampler=sampler,
        steps=_steps(steps),
        psi=psi,
        eta=eta,
        stretch=None if stretch is None else stretch.value,
        seed=seed,
        device=device,
        backend=backend,
        graph=graph,
        dtype=dtype.value,
        color=color,
    )
    reports = run_jobs(
        jobs,
        fuser,
        max_pixels=max_pixels or DEFAULT_MAX_PIXELS,
        progress=not quiet and sys.stderr.isatty(),
        skip_existing=skip_existing,
        on_error=lambda job, error: typer.echo(
            f"error: {job.output.stem}: {_message(error)}", err=True
        ),
    )
    _report_fuse(reports, fuser, preset, time.perf_counter() - started, as_json, quiet)
    failed = sum(not report["ok"] for report in reports)
    if failed:
        # a single pair that is refused is bad input; in a folder some of many failed
        raise typer.Exit(BAD_INPUT if len(jobs) == 1 else SOME_FAILED)


def _report_fuse(reports, fuser, preset, seconds, as_json, quiet) -> None:
    import dataclasses

    from ddfm_fast import __version__

    if as_json:
        prior = fuser.prior
        whole = {
            "ok": all(report["ok"] for report in reports),
            "version": __version__,
            "preset": preset,
            "config": dataclasses.asdict(fuser.config),
            "prior": {
                "name": prior.name,
                "fingerprint": prior.fingerprint,
                "dtype": prior.precision,
            },
            "device": str(prior.device),
            "seconds": seconds,
            "results": reports,
        }
        typer.echo(json.dumps(whole, default=str))
    elif not quiet:
        for report in reports:
            _echo_result(report)
        done = sum(report["ok"] for report in reports)
        if len(reports) > 1:
            typer.echo(f"{done} of {len(reports)} pairs in {seconds:.1f} s")


def _echo_result(report: dict[str, Any]) -> None:
    if report["skipped"]:
        typer.echo(f"{report['output']}  (there already)")
    elif report["ok"]:
        size = f"{report['width']}x{report['height']}"
        typer.echo(f"{report['output']}  {size} {report['dtype']}, {report['seconds']:.1f} s")
        if report["panel"]:
            typer.echo(report["panel"])


@app.command(epilog="Example:  `ddfm-fast batch MSRS/test -o fused/ --steps 50`")
@_friendly
def batch(
    root: opt.Root,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write to.")],
    vis: opt.Vis = None,
    layout: opt.Layout = None,
    manifest: opt.Manifest = None,
    preset: opt.Preset = "official",
    variant: opt.Variant = None,
    sampler: opt.Sampler = None,
    steps: opt.Steps = None,
    psi: opt.Psi = None,
    eta: opt.Eta = None,
    stretch: opt.StretchChoice = None,
    seed: opt.Seed = 3407,
    device: opt.Device = None,
    backend: opt.Backend = None,
    graph: opt.Graph = None,
    dtype: opt.DType = opt.Precision.auto,
    prior: opt.Prior = "embedded",
    prior_config: opt.PriorConfig = None,
    gray: opt.Gray = False,
    color_from: opt.ColorSource = opt.ColorFrom.auto,
    format: Annotated[str, typer.Option(help="png, jpg, tif or bmp.")] = "png",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Most pairs at once (a CPU: 1; a GPU: what fits).")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Threads that read, and as many that write.")
    ] = 2,
    redo: Annotated[bool, typer.Option("--redo", help="Fuse again what is done already.")] = False,
    max_pixels: opt.MaxPixels = None,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> None:
    """Fuse a data set. Start it again after anything, and it goes on where it was.

    Finds the pairs in the layouts of MSRS, RoadScene, M3FD, TNO, LLVIP, Harvard, M3SVD, VTMOT and
    their like. A pair that fails is reported and the others go on. What is done already is left
    alone; changed settings, priors or inputs are done again. Exit code: 0 every pair is fused,
    1 some failed, 2 bad input, 130 interrupted.
    """
    color = _color(gray, color_from)
    config = _json_object(prior_config, "--prior-config")
    from ddfm_fast.cli import batch as cli_batch

    items = cli_batch.plan_items(root, vis, layout=layout, manifest=manifest)
    from ddfm_fast.api import Fuser
    from ddfm_fast.images.files import DEFAULT_MAX_PIXELS, ensure_writable_dir

    ensure_writable_dir(out)
    fuser = Fuser(
        prior=_prior(prior, config, device, dtype),
        preset=preset,
        variant=variant,
        sampler=sampler,
        steps=_steps(steps),
        psi=psi,
        eta=eta,
        stretch=None if stretch is None else stretch.value,
        seed=seed,
        device=device,
        backend=backend,
        graph=graph,
        dtype=dtype.value,
        color=color,
    )
    report = cli_batch.run(
        items,
        out,
        fuser,
        batch_size=batch_size,
        format=format,
        workers=workers,
        max_pixels=max_pixels or DEFAULT_MAX_PIXELS,
        redo=redo,
        progress=not quiet and sys.stderr.isatty(),
    )
    cli_batch.echo_report(report, as_json=as_json, quiet=quiet)
    raise typer.Exit(cli_batch.exit_code(report))


@app.command(epilog="Example:  `ddfm-fast video thermal.mp4 visible.mp4 -o fused.mp4`")
@_friendly
def video(
    ir: Annotated[
        str,
        typer.Argument(
            metavar="IR", help="Infrared video, URL or folder of pictures; or a data set of both."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("-o", "--out", help="Video file (.mp4 .mov .mkv .ts), or a folder for PNG."),
    ],
    vis: Annotated[
        str | None, typer.Argument(metavar="VIS", help="Visible video, URL or folder of pictures.")
    ] = None,
    preset: Annotated[
        str, typer.Option(help="exact, balanced or realtime: 100, 3 or 1 evaluations a frame.")
    ] = "balanced",
    image_preset: Annotated[
        str, typer.Option(help="With --preset exact: the row of `ddfm-fast presets` to use.")
    ] = "official",
    offset: Annotated[
        float, typer.Option(help="Seconds by which the infrared stream starts later.")
    ] = 0.0,
    resize: Annotated[
        str | None, typer.Option(help="vis, ir or WIDTHxHEIGHT, where the sizes differ.")
    ] = None,
    ir_range: Annotated[
        str | None, typer.Option(help="LO,HI: infrared values that mean black and white.")
    ] = None,
    start: Annotated[float, typer.Option(min=0, help="First second of the visible stream.")] = 0.0,
    end: Annotated[
        float | None, typer.Option(min=0, help="Second of the visible stream to end before.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Frames a second of picture folders (default 25).")
    ] = None,
    codec: Annotated[
        VideoCodec | None, typer.Option(help="Default: h264 for files, png for folders.")
    ] = None,
    crf: Annotated[
        int | None, typer.Option(min=0, max=51, help="h264 and hevc quality, smaller is better.")
    ] = None,
    no_audio: Annotated[
        bool, typer.Option("--no-audio", help="Leave out the visible stream's audio.")
    ] = False,
    side_by_side: Annotated[
        bool, typer.Option("--side-by-side", help="Write infrared | visible | fused.")
    ] = False,
    realtime: Annotated[
        bool,
        typer.Option(
            "--realtime", help="Keep up with the clock: drop the oldest of two waiting pairs."
        ),
    ] = False,
    on_error: Annotated[
        OnBadFrame, typer.Option(help="A bad frame is left out, shown as the one before, or ends.")
    ] = OnBadFrame.skip,
    seed: opt.Seed = 3407,
    device: opt.Device = None,
    prior: opt.Prior = "embedded",
    prior_config: opt.PriorConfig = None,
    gray: opt.Gray = False,
    color_from: opt.ColorSource = opt.ColorFrom.auto,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> None:
    """Fuse two streams at the visible one's frame rate, without flicker.

    The streams are paired by time, their first frames together unless --offset says otherwise;
    each visible frame gets the infrared frame nearest to it, over the time both have. Rate,
    timestamps, colour tags and audio of the visible stream are kept. Ctrl-C ends the file properly;
    a file being written is called NAME.part.SUFFIX and plays. Exit code: 0 all is well, 1 bad
    frames, an early end or a failed sequence, 2 bad input, 130 interrupted.
    """
    from ddfm_fast.cli import video as cli_video

    color = _color(gray, color_from)
    config = _json_object(prior_config, "--prior-config")
    options = {
        "resize": cli_video.parse_resize(resize),
        "ir_range": cli_video.parse_range(ir_range),
        "codec": None if codec is None else codec.value,
        "on_error": on_error.value,
    }
    tasks = cli_video.plan(ir, vis, out, codec)
    from ddfm_fast.api import Fuser
    from ddfm_fast.priors.load import load_prior
    from ddfm_fast.video.temporal import get_video_preset

    get_video_preset(preset)
    fuser = Fuser(
        prior=prior if config is None else load_prior(prior, config),
        preset=image_preset,
        seed=seed,
        device=device,
        color=color,
    )
    reports, lines = cli_video.run(
        tasks,
        as_json=as_json,
        quiet=quiet,
        fuser=fuser,
        preset=preset,
        offset=offset,
        start=start,
        end=end,
        rate=rate,
        crf=crf,
        audio=not no_audio,
        side_by_side=side_by_side,
        realtime=realtime,
        progress=not quiet and sys.stderr.isatty(),
        **options,
    )
    code = cli_video.exit_code(reports, failed=len(lines) - len(reports))
    if as_json:
        from ddfm_fast import __version__

        typer.echo(json.dumps({"ok": code == OK, "version": __version__, "videos": lines}))
    raise typer.Exit(code)


@app.command(epilog="Example:  `ddfm-fast presets`")
@_friendly
def presets(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the presets: their settings and what each is for."""
    import dataclasses

    from ddfm_fast.config import PRESETS

    if as_json:
        table = {name: dataclasses.asdict(config) for name, config in PRESETS.items()}
        typer.echo(json.dumps(table, indent=2, default=str))
        return
    for name, config in PRESETS.items():
        settings = dataclasses.asdict(config)
        typer.echo(f"{name}: {settings.pop('summary')}")
        typer.echo("    " + "  ".join(f"{key}={value}" for key, value in settings.items()))


@app.command(epilog="Example:  `ddfm-fast doctor`")
@_friendly
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this machine can do, test it, and what to install for more."""
    from ddfm_fast.runtime.doctor import examine, render

    report = examine()
    typer.echo(json.dumps(report, indent=2) if as_json else render(report))
    if not report["ok"]:
        raise typer.Exit(SOME_FAILED)


@app.command(epilog="Example:  `ddfm-fast demo --out out`")
@_friendly
def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write to.")] = Path("out"),
    steps: Annotated[
        str | None, typer.Option(help="Fewer steps for a quicker look (default 100).")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N; CUDA where there is one by default.")
    ] = None,
    video: Annotated[
        bool, typer.Option("--video", help="A video instead: a pan over the satellite pair.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress bars.")] = False,
) -> None:
    """Fuse the two pairs that come with the package: satellite (colour) and brain MRI (grey)."""
    if video:
        from ddfm_fast.video.demo import run as run_video

        run_video(out, device=device, progress=not quiet and sys.stderr.isatty())
        return
    from ddfm_fast.datasets.demo import run

    run(out, steps=_steps(steps), device=device, progress=not quiet and sys.stderr.isatty())


@prior_app.command("info", epilog="Example:  `ddfm-fast prior info embedded`")
@_friendly
def prior_info(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A .pt or .safetensors file, or `embedded`.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what a prior's file holds: parameters, configuration, data type, hash."""
    from ddfm_fast.priors import checkpoint

    if file == "embedded":
        file = str(Path(checkpoint.__file__).with_name("embedded.safetensors"))
    found = checkpoint.describe(file)
    if as_json:
        typer.echo(json.dumps(found, indent=2, default=str))
        return
    for line in _table(found):
        typer.echo(line)


def _table(values: dict[str, Any], indent: str = "") -> list[str]:
    """``key  value`` lines; a dictionary inside becomes an indented table of its own."""
    width = max(map(len, values), default=0)
    lines = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{key}", *_table(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key:<{width}}  {_plain(value)}")
    return lines


def _plain(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


@prior_app.command(
    "convert",
    epilog="Example:  `ddfm-fast prior convert 256x256_diffusion_uncond.pt prior.safetensors "
    "--dtype float16`",
)
@_friendly
def prior_convert(
    src: Annotated[Path, typer.Argument(metavar="SRC", help="A .pt or .safetensors checkpoint.")],
    dst: Annotated[Path, typer.Argument(metavar="DST", help="The .safetensors file to write.")],
    dtype: Annotated[
        DType | None, typer.Option(help="Data type of the weights; kept by default.")
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="JSON (or a file of it) with what the file's shapes lack.")
    ] = None,
) -> None:
    """Turn a checkpoint into safetensors with its configuration inside.

    The result loads faster, cannot carry code, and needs no --prior-config.
    """
    from ddfm_fast.priors import checkpoint

    checkpoint.convert(
        src,
        dst,
        dtype=None if dtype is None else dtype.value,
        config=_json_object(config, "--config"),
    )
    typer.echo(f"{dst}  {dst.stat().st_size / 1e6:.1f} MB")


cli_evaluate.register(app, _friendly)
cli_bench.register(app, _friendly)


if __name__ == "__main__":
    main()
