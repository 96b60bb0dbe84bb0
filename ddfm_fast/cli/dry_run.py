"""``--dry-run``: what a command would read and write, and with which settings; writes nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..storage.urls import without_password
from .errors import BAD_INPUT, OK, SOME_FAILED
from .manners import CONFIG, as_json, as_option, changed, origins
from .options import Place
from .settings import (
    Settings,
    find_items,
    levels,
    output,
    picked,
    plain,
    read_settings,
    stage_for,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ..storage.staging import Stage

_CONFIG = ("variant", "sampler", "steps", "psi", "eta", "stretch", "denoise", "images")
"""options that are fields of a preset"""
Row = dict[str, Any]


def show(plan: Callable[[typer.Context], Row], context: typer.Context) -> None:
    """Print a plan, as one JSON object or in lines."""
    found = plan(context)
    set_ones = changed(origins(context, context.meta.get(CONFIG)))
    if context.params.get("as_json"):
        given = {
            name: {"value": value, "from": origin} for name, (value, origin) in set_ones.items()
        }
        about = {"ok": not _failing(found), "dry_run": True, **found, "given": given}
        typer.echo(without_password(json.dumps(about, default=str)))
        raise typer.Exit(_exit_code(found))
    for row in found["items"]:
        there = ""
        if row["there"]:
            there = "  (already there: left alone)" if row["left"] else "  (already there)"
        typer.echo(without_password(f"{row['ir']} + {row['vis']} -> {row['output']}{there}"))
        if row["missing"]:
            typer.echo(f"  not there: {', '.join(row['missing'])}")
        elif row.get("error"):
            typer.echo(f"  cannot be fused: {row['error']}")
        if row.get("panel"):
            typer.echo(f"  panel: {row['panel']}")
    for name, (value, origin) in set_ones.items():
        typer.echo(as_option(name, value, origin))
    for name, value in found["settings"].items():
        typer.echo(f"{name}: {value}")
    count = len(found["items"])
    typer.echo(f"dry run: {count} to do, nothing was written")
    raise typer.Exit(_exit_code(found))


def _failing(found: Row) -> list[Row]:
    return [row for row in found["items"] if row["missing"] or row.get("error")]


def _exit_code(found: Row) -> int:
    """That of the run, as far as files that are not there or have no partner decide it."""
    if not (failing := _failing(found)):
        return OK
    return BAD_INPUT if len(failing) == len(found["items"]) == 1 else SOME_FAILED


def fuse(context: typer.Context) -> Row:
    """Return what ``fuse`` would do."""
    from ..datasets.jobs import plan_jobs

    given, settings = context.params, read_settings(context)
    places = [Path(given[name]) for name in ("ir", "vis", "out")]
    _refuse_urls(*places)
    how = output(context)
    _check_levels(context)
    ir, vis, out = places
    jobs = plan_jobs(ir, vis, out, format=given["format"], panel=given["panel"], make=False)
    how.check(job.output.suffix for job in jobs)
    _refuse_urls(*(path for job in jobs for path in (job.ir, job.vis)))
    rows = [
        {**_row(job.ir, job.vis, job.output, left=given["skip_existing"]), "panel": job.panel}
        for job in jobs
    ]
    return {"items": rows, "settings": _settings(settings)}


def batch(context: typer.Context) -> Row:
    """Return what ``batch`` would do, without checking which pictures are up to date."""
    from ..datasets.judges import arranged
    from ..datasets.output import panel_of
    from ..datasets.targets import checked_suffix, checked_targets
    from .batch import given_format

    given, settings = context.params, read_settings(context)
    if given["out"] is None:
        raise ValueError("--out is missing; expected a folder to write to, or --list")
    root, vis, manifest, out = (
        given[name] and Path(given[name]) for name in ("root", "vis", "manifest", "out")
    )
    _refuse_urls(root, vis, manifest, out)
    source = {"manifest": manifest, **picked(context, ("layout", "pattern"))}
    stage: Stage | None = stage_for(context, root, vis, manifest, None)
    items = find_items(root, vis, stage=stage, strict=False, **source)
    _check_levels(context)
    format = given["format"]
    if given["layout_out"] is not None:
        items, format = arranged(items, given["layout_out"], given_format(context))
    suffix = checked_suffix(format)
    output(context).check([suffix])
    targets = checked_targets(items, out, suffix)
    rows = [
        {**_row(one.ir, one.vis, targets[one.name], left=False), "error": one.error or None}
        for one in items
    ]
    for row in rows if given["panel"] else ():
        row["panel"] = panel_of(Path(row["output"]))
    where = "here" if plain(given["on"]) == Place.here.value else "ray"
    return {"items": rows, "settings": {**_settings(settings), "on": where}}


def video(context: typer.Context) -> Row:
    """Return what ``video`` would do."""
    from ..files.paths import look
    from ..storage.urls import as_url
    from ..video.tasks import plan
    from ..video.temporal import get_video_preset
    from .video import parse_resize

    given, settings = context.params, read_settings(context)
    _check_levels(context)
    parse_resize(given["resize"])
    tasks = plan(given["ir"], given["vis"], given["out"], plain(given["codec"]))
    get_video_preset(given["preset"])
    for name, stream in (("IR", given["ir"]), ("VIS", given["vis"])):
        named = stream is not None and not stream.isdecimal() and stream != "-"
        if named and "://" not in stream and as_url(stream) is None and look(stream) is None:
            raise ValueError(f"{name} is {stream}, which does not exist; give a video or a folder")
    rows = [_row(_stream(one.ir), _stream(one.vis), one.out, left=False) for one in tasks]
    own = {"preset": given["preset"], "image preset": given["image_preset"]}
    return {"items": rows, "settings": {**_machine(settings, preset=given["image_preset"]), **own}}


def volume(context: typer.Context) -> Row:
    """Return what ``volume`` would do."""
    from ..files.paths import look
    from ..medical.files import check_apart, check_kind
    from ..medical.volume import parse_slices

    given, settings = context.params, read_settings(context)
    _check_levels(context)
    parse_slices(given["slices"])
    ir, vis, out = (Path(given[name]) for name in ("ir", "vis", "out"))
    for name, path in (("IR", ir), ("VIS", vis)):
        if look(path) is None:
            raise ValueError(f"{name} is {path}, which does not exist; give a volume")
    check_apart(out, (ir, vis))
    check_kind(out)
    row = _row(ir, vis, out, left=False)
    return {"items": [row], "settings": _settings(settings)}


def _check_levels(context: typer.Context) -> None:
    """Refuse values of ``--ir-range`` and so on that the run refuses."""
    names = ("ir_range", "vis_range", "nodata", "raw_size")
    levels(*map(context.params.get, names))


def _refuse_urls(*places: Any) -> None:
    from ..storage.staging import any_url

    if any_url(*places):
        raise ValueError("--dry-run takes no URLs yet; leave it out, or give local files")


def _row(ir: Any, vis: Any, out: Any, *, left: bool) -> Row:
    there = isinstance(out, Path) and os.path.exists(out)  # of a name that is too long: False
    missing = [str(one) for one in (ir, vis) if isinstance(one, Path) and not os.path.exists(one)]
    named = {"ir": str(ir), "vis": str(vis), "output": str(out)}
    return {**named, "there": there, "left": left, "missing": missing}


def _stream(source: Any) -> str:
    """Return a stream in a word or two: a sequence of pictures is a list."""
    if isinstance(source, list):
        return f"{source[0].parent} ({len(source)} pictures)"
    return str(source)


def _settings(settings: Settings) -> Row:
    """Return what the method would be, checked; the prior is not loaded."""
    from ..config import FuseConfig
    from ..schedule import make_schedule

    options = settings.options
    config = FuseConfig.from_preset(settings.preset)
    changes = {name: options[name] for name in _CONFIG if name in options}  # type: ignore[literal-required]
    config = config.with_overrides(**{name: as_json(value) for name, value in changes.items()})
    if config.steps != 0:
        make_schedule(config.steps)
    name = settings.preset if isinstance(settings.preset, str) else "of its own"
    fields = {one: getattr(config, one) for one in (*_CONFIG, "iterations") if hasattr(config, one)}
    return {"preset": name, **fields, **_machine(settings)}


def _machine(settings: Settings, **changed: Any) -> Row:
    """Prior, device and so on; ValueError for a prior that is not a file.

    Every option is checked by the fuser that it makes, on a prior that is not loaded.
    """
    from ..api import Fuser
    from ..files.paths import look
    from ..storage.urls import as_url

    options = settings.options
    prior = str(options["prior"])
    if prior != "embedded" and as_url(prior) is None and look(prior) is None:
        raise ValueError(f"--prior is {prior}, which does not exist; give a file, or embedded")
    Fuser(**{**options, "prior": _unloaded, "dtype": "auto", "reuse": None, **changed})
    kept = {name: as_json(options.get(name)) for name in ("seed", "color", "align", "tile")}
    return {"prior": prior, "device": str(settings.device), **kept}


def _unloaded(x: Tensor, t: Tensor) -> Tensor:
    raise NotImplementedError("a dry run evaluates no prior")
