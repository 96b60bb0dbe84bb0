"""``--dry-run``: what a command would read and write, and with which settings; writes nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..storage.urls import as_url, is_object, without_password
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
            typer.echo(without_password(f"  not there: {', '.join(row['missing'])}"))
        elif row.get("error"):
            typer.echo(without_password(f"  cannot be fused: {row['error']}"))
        if row.get("panel"):
            typer.echo(without_password(f"  panel: {row['panel']}"))
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
    from ..datasets.remote import plan_remote
    from ..storage.staging import Stage, any_url

    given, settings = context.params, read_settings(context)
    places = [Path(given[name]) for name in ("ir", "vis", "out")]
    how = output(context)
    _check_levels(context)
    shape = {**picked(context, ("format", "panel")), "make": False}
    stage = context.with_resource(Stage()) if any_url(*places) else None
    if stage is None:
        jobs = plan_jobs(*places, **shape)
    else:
        jobs, _ = plan_remote(stage, *places, **shape)
    how.check(job.output.suffix for job in jobs)
    named = [(job.ir, job.vis, job.output) for job in jobs]
    rows = _rows(named, stage, left=given["skip_existing"])
    for row, job in zip(rows, jobs, strict=True):
        row["panel"] = job.panel and _named(job.panel, stage)
    return {"items": rows, "settings": _settings(settings)}


def batch(context: typer.Context) -> Row:
    """Return what ``batch`` would do, without checking which pictures are up to date."""
    from ..datasets.judges import arranged
    from ..datasets.output import panel_of
    from ..datasets.targets import checked_suffix, checked_targets
    from ..storage.objects import check_writable
    from .batch import check_panels, given_format

    given, settings = context.params, read_settings(context)
    if given["out"] is None:
        raise ValueError("--out is missing; expected a folder to write to, or --list")
    root, vis, manifest, out = (
        given[name] and Path(given[name]) for name in ("root", "vis", "manifest", "out")
    )
    source = {"manifest": manifest, **picked(context, ("layout", "pattern"))}
    stage = stage_for(context, root, vis, manifest, out)
    items = find_items(root, vis, stage=stage, strict=False, **source)
    where = "here" if plain(given["on"]) == Place.here.value else "ray"
    check_panels(items, given["panel"], local=stage is None and where == "here")
    _check_levels(context)
    format = given["format"]
    if given["layout_out"] is not None:
        items, format = arranged(items, given["layout_out"], given_format(context))
    suffix = checked_suffix(format)
    output(context).check([suffix])
    if (url := as_url(out)) is not None:
        check_writable(url)
    targets = checked_targets(items, out, suffix)
    rows = _rows([(one.ir, one.vis, targets[one.name]) for one in items], stage, left=False)
    for row, one in zip(rows, items, strict=True):
        row["error"] = one.error or None
    _check_outputs(rows, where)
    for row in rows if given["panel"] else ():
        row["panel"] = panel_of(Path(row["output"]))
    return {"items": rows, "settings": {**_settings(settings), "on": where}}


def video(context: typer.Context) -> Row:
    """Return what ``video`` would do."""
    from ..files.paths import look
    from ..storage import objects
    from ..video.tasks import plan
    from ..video.temporal import get_video_preset
    from .video import parse_resize

    given, settings = context.params, read_settings(context)
    _check_levels(context)
    parse_resize(given["resize"])
    tasks = plan(given["ir"], given["vis"], given["out"], plain(given["codec"]))
    get_video_preset(given["preset"])
    for name, stream in (("IR", given["ir"]), ("VIS", given["vis"])):
        if stream is None or stream.isdecimal() or stream == "-":
            continue
        far = "://" in stream
        there = objects.look(stream) if is_object(stream) else far or look(stream)
        if there is None:
            raise ValueError(f"{name} is {stream}, which does not exist; give a video or a folder")
    named = [(_stream(one.ir), _stream(one.vis), one.out) for one in tasks]
    rows = _rows(named, None, left=given["skip_existing"])
    _check_outputs(rows, plain(given["on"]))
    own = {"preset": given["preset"], "image preset": given["image_preset"]}
    return {"items": rows, "settings": {**_machine(settings, preset=given["image_preset"]), **own}}


def volume(context: typer.Context) -> Row:
    """Return what ``volume`` would do."""
    from ..files.paths import look
    from ..medical.files import check_apart, check_kind
    from ..medical.volume import parse_slices
    from .remote import local_volumes

    given, settings = context.params, read_settings(context)
    _check_levels(context)
    parse_slices(given["slices"])
    ir, vis, out = (Path(given[name]) for name in ("ir", "vis", "out"))
    local_volumes(IR=ir, VIS=vis, **{"--out": out})
    for name, path in (("IR", ir), ("VIS", vis)):
        if look(path) is None:
            raise ValueError(f"{name} is {path}, which does not exist; give a volume")
    check_apart(out, (ir, vis))
    check_kind(out)
    return {"items": _rows([(ir, vis, out)], None, left=False), "settings": _settings(settings)}


def _check_levels(context: typer.Context) -> None:
    """Refuse values of ``--ir-range`` and so on that the run refuses."""
    names = ("ir_range", "vis_range", "nodata", "raw_size")
    levels(*map(context.params.get, names))


def _check_outputs(rows: list[Row], where: str) -> None:
    """Refuse what the run refuses of objects: to write over an input, or where none can be."""
    from ..storage.objects import check_writable

    taken = {row[name] for row in rows for name in ("ir", "vis")}
    if where != Place.here.value:
        from ..integrations.ray_pool import check_shared

        check_shared([*taken, *(row["output"] for row in rows)])
    for url in (row["output"] for row in rows if is_object(row["output"])):
        check_writable(url)
        if url in taken:
            raise ValueError(f"output {url} would replace an input; choose another --out")


def _rows(found: Sequence[tuple[Any, Any, Any]], stage: Stage | None, *, left: bool) -> list[Row]:
    """Return a row for each (ir, vis, output): their names, what is there, and what is not.

    Objects are looked for where no listing has named them; nothing is fetched. Sources that are
    text are not looked for.
    """
    from ..storage.objects import existing

    sources = {one: _named(one, stage) for row in found for one in row[:2] if isinstance(one, Path)}
    sought = {url for path, url in sources.items() if _is_url(url) and not _listed(path, stage)}
    absent = sought - existing(sought)
    outputs = {out: _named(out, stage) for _, _, out in found}
    there = existing([one for out, one in outputs.items() if is_object(one) or _is_far(out, one)])

    def is_absent(path: Path) -> bool:
        name = sources[path]
        return name in absent if _is_url(name) else not os.path.exists(path)

    rows = []
    for ir, vis, out in found:
        name = outputs[out]
        is_here = isinstance(out, Path) and not _is_url(name) and os.path.exists(out)
        missing = [sources[one] for one in (ir, vis) if one in sources and is_absent(one)]
        named = {"ir": sources.get(ir, str(ir)), "vis": sources.get(vis, str(vis)), "output": name}
        rows.append({**named, "there": name in there or is_here, "left": left, "missing": missing})
    return rows


def _is_url(place: Any) -> bool:
    return as_url(place) is not None


def _is_far(place: Any, name: str) -> bool:
    """Return whether a place is a URL, but no address of FFmpeg's, which is text."""
    return isinstance(place, Path) and _is_url(name)


def _named(place: Any, stage: Stage | None) -> str:
    """Return a path or URL as text; what stands for an object by its URL."""
    text = stage.url_of(place) if stage is not None and isinstance(place, Path) else str(place)
    return text if _is_url(text) else as_url(Path(text)) or text


def _listed(path: Path, stage: Stage | None) -> bool:
    """Return whether a file stands for an object that was seen."""
    one = None if stage is None else stage.objects.get(path)
    return one is not None and bool(one.size or one.version)


def _stream(source: Any) -> str:
    """Return a stream in a word or two: a sequence of pictures is a list."""
    from ..storage.urls import parent

    if isinstance(source, list):
        url = as_url(source[0])
        folder = Path(source[0]).parent if url is None else parent(url)
        return f"{folder} ({len(source)} pictures)"
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

    options = settings.options
    prior = str(options["prior"])
    if prior != "embedded" and as_url(prior) is None and look(prior) is None:
        raise ValueError(f"--prior is {prior}, which does not exist; give a file, or embedded")
    Fuser(**{**options, "prior": _unloaded, "dtype": "auto", "reuse": None, **changed})
    kept = {name: as_json(options.get(name)) for name in ("seed", "color", "align", "tile")}
    return {"prior": prior, "device": str(settings.device), **kept}


def _unloaded(x: Tensor, t: Tensor) -> Tensor:
    raise NotImplementedError("a dry run evaluates no prior")
