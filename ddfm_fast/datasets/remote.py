"""Pairs and outputs behind URLs: what finds and fuses files, on files that stand for objects."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ..files.paths import ImageFileError, few
from ..runtime.items import reached, silently
from ..storage.objects import check_writable, existing
from ..storage.staging import Stage
from ..storage.urls import as_url, join, name_of, parent
from .items import PairItem
from .jobs import Job, outcome, plan_jobs, run_jobs
from .lists import MANIFEST_SUFFIXES, read_list
from .pairs import Survey, find_pairs, survey_pairs

if TYPE_CHECKING:
    from ..api import Fuser

PORTION = 64
"""files that are fetched together"""
Place = str | os.PathLike[str]
"""a local path or a URL"""


def find_remote_pairs(
    stage: Stage,
    root: Place | tuple[Place, Place],
    *,
    layout: str | None = None,
    manifest: Place | None = None,
    pattern: str | None = None,
    strict: bool = True,
) -> list[PairItem]:
    """Find pairs as `find_pairs` does, where places are URLs; their files stand for objects.

    A manifest's paths may be URLs, or relative to ``root`` or to the manifest; a bad entry of it
    is an error even if not ``strict``.

    Raises:
        ImageFileError: As `find_pairs` raises it, or a place that cannot be reached.
        ValueError: ``layout``, ``manifest`` and ``pattern`` exclude one another.
    """
    manifest, base = _list_of(root, layout, manifest, pattern)
    if manifest is not None:
        return _listed(stage, manifest, base)
    source = _sources(stage, root)
    with stage.named_errors():
        return find_pairs(source, layout=layout, pattern=pattern, check_sizes=False, strict=strict)


def survey_remote_pairs(
    stage: Stage,
    root: Place | tuple[Place, Place],
    *,
    layout: str | None = None,
    manifest: Place | None = None,
    pattern: str | None = None,
) -> Survey:
    """Find pairs and what has none, as `survey_pairs` does, where places are URLs.

    Args:
        stage: Where files stand for objects.
        root: As `find_remote_pairs` takes it, like the others.
        layout: Names of folders.
        manifest: A list of pairs.
        pattern: Names of files.
    """
    manifest, base = _list_of(root, layout, manifest, pattern)
    if manifest is not None:
        return Survey(_listed(stage, manifest, base))
    source = _sources(stage, root)
    with stage.named_errors():
        return survey_pairs(source, layout=layout, pattern=pattern)


def one_by_one(stage: Stage, items: Sequence[PairItem], name: str) -> Iterator[PairItem]:
    """Yield pairs while their file of a source, "ir" or "vis", is here; portions are fetched.

    One that cannot be fetched is an empty file.
    """
    for start in range(0, len(items), PORTION):
        portion = items[start : start + PORTION]
        files = [getattr(item, name) for item in portion]
        try:
            stage.fill(files)
            yield from portion
        finally:
            stage.drop(files)


def _list_of(
    root: Place | tuple[Place, Place], layout: str | None, manifest: Place | None, pattern: Any
) -> tuple[Place | None, Place | None]:
    """Return the list of pairs, if any, and what its paths are relative to, if given."""
    given = {"layout": layout, "manifest": manifest, "pattern": pattern}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise ValueError(f"{' and '.join(named)} exclude each other; leave out all but one")
    if isinstance(root, tuple):
        return manifest, None
    url = as_url(root)
    name = Path(root if url is None else name_of(url))
    if not named and name.suffix.lower() in MANIFEST_SUFFIXES:
        return root, None
    return manifest, root


def _sources(stage: Stage, root: Place | tuple[Place, Place]) -> Path | tuple[Path, Path]:
    if isinstance(root, tuple):
        return stage.source(root[0]), stage.source(root[1])
    return stage.source(root)


def _listed(stage: Stage, manifest: Place, base: Place | None) -> list[PairItem]:
    path = stage.source(manifest)
    if failures := stage.fill([path]):
        raise failures[path]
    url = as_url(manifest)
    above: Place = base if base is not None else parent(url) if url else Path(manifest).parent

    def locate(text: str) -> Path:
        if as_url(text):
            return stage.file(text)
        prefix = as_url(above)
        return stage.file(join(prefix, text)) if prefix else Path(above) / text

    with stage.named_errors():
        items = read_list(path, None, locate)
    counts = Counter(item.name for item in items)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ImageFileError(
            f"{manifest}: {len(twice)} names occur twice: {few(twice)}; give a column name"
        )
    return items


def fuse_remote(
    ir: Place,
    vis: Place,
    out: Place,
    make_fuser: Callable[[], Fuser],
    *,
    format: str | None = None,
    panel: bool = False,
    skip_existing: bool = False,
    on_error: Callable[[Job, Exception], None] | None = None,
    progress: bool = False,
    **options: Any,
) -> tuple[list[dict[str, Any]], Fuser]:
    """Fuse two files, or the pairs of two folders, as `jobs.fuse_files` does, where any is a URL.

    Args:
        ir: Infrared (first) image, or a folder (a prefix) of them.
        vis: Visible (second) image, or a folder of them.
        out: What is written.
        make_fuser: Makes the fuser, once the pairs are found.
        format: Suffix of the files in a folder.
        panel: Write a panel beside each file.
        skip_existing: Leave pairs alone whose output is listed.
        on_error: Called with each job that fails.
        progress: Show bars on stderr.
        **options: Options of `jobs.run_jobs`.

    Returns:
        The reports of `jobs.run_jobs`, and the fuser.

    Raises:
        ValueError: Paths that do not make pairs, or a place that cannot be read or written.
    """
    with Stage() as stage:
        jobs, targets = plan_remote(stage, ir, vis, out, format=format, panel=panel)
        urls = [found[job.output] for job, found in targets.items()]
        there = existing(urls) if skip_existing else set()
        fuser = make_fuser()
        bar = tqdm(jobs, desc="pairs", unit="pair", disable=not progress or len(jobs) == 1)
        reports = []
        for job in bar:
            bar.set_postfix_str(job.ir.name)
            if targets and targets[job][job.output] in there:
                job.output.touch()
            report = _run_one(stage, job, fuser, targets.get(job, {}), skip_existing, options)
            if report["error"] is not None and on_error is not None:
                with bar.external_write_mode():
                    on_error(job, ImageFileError(report["error"]))
            reports.append(report)
            reached(report["output"], outcome(report), report)
        return reports, fuser


def plan_remote(
    stage: Stage,
    ir: Place,
    vis: Place,
    out: Place,
    *,
    format: str | None = None,
    panel: bool = False,
    make: bool = True,
) -> tuple[list[Job], dict[Job, dict[Path, str]]]:
    """Find the pairs that ``IR VIS -o OUT`` means, as `jobs.plan_jobs` does, where any is a URL.

    Args:
        stage: Where files stand for objects.
        ir: As `fuse_remote` takes it, like ``vis``, ``out``, ``format`` and ``panel``.
        vis: See there.
        out: See there.
        format: See there.
        panel: See there.
        make: Make local folders.

    Returns:
        The jobs, and of each the URLs of what it writes; none if that is local.

    Raises:
        ValueError: As `fuse_remote` raises it.
    """
    if url := as_url(out):
        check_writable(url)
    first, second, place = stage.source(ir), stage.source(vis), stage.output(out)
    with stage.named_errors():
        jobs = plan_jobs(first, second, place, format=format, panel=panel, make=make)
    targets = {job: _targets(stage, job) for job in jobs} if url else {}
    _refuse_own_inputs(stage, jobs, targets)
    return jobs, targets


def _targets(stage: Stage, job: Job) -> dict[Path, str]:
    return {path: stage.url_of(path) for path in (job.output, job.panel) if path is not None}


def _refuse_own_inputs(
    stage: Stage, jobs: Sequence[Job], targets: dict[Job, dict[Path, str]]
) -> None:
    inputs = {stage.url_of(path) for job in jobs for path in (job.ir, job.vis)}
    for url in (url for found in targets.values() for url in found.values()):
        if url in inputs:
            raise ValueError(f"output {url} would replace an input; choose another --out")


def _run_one(
    stage: Stage,
    job: Job,
    fuser: Fuser,
    targets: dict[Path, str],
    skip_existing: bool,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Fetch the sources of a job, fuse them and put what comes of it; return its report."""
    skipped = skip_existing and job.output.is_file()
    failures = {} if skipped else stage.fill((job.ir, job.vis))
    if not failures:
        with silently():
            (report,) = run_jobs([job], fuser, skip_existing=skip_existing, **options)
        if report["ok"] and not report["skipped"]:
            failures = stage.put({path: url for path, url in targets.items() if path.is_file()})
    else:
        report = {k: str(v) if v else None for k, v in dataclasses.asdict(job).items()}
        report["skipped"] = False
    stage.drop((job.ir, job.vis))
    for path in targets:
        path.unlink(missing_ok=True)
    if failures:
        report |= {"ok": False, "error": str(next(iter(failures.values())))}
    places = ("ir", "vis", "output", "panel")
    shown = {key: stage.url_of(Path(report[key])) for key in places if report[key]}
    error = report.get("error")
    return report | shown | {"error": error and stage.text(error)}
