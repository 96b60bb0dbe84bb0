"""Pairs of image files fused into files: from paths to jobs, from jobs to pictures and a report.

`fuse_files` does it all; `plan_jobs` and `run_jobs` are its two halves.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from ..align.call import Aligner
from ..files.depth import Levels, Sources, read_sources
from ..files.pairing import match_pairs
from ..files.paths import (
    SUFFIXES,
    VIDEO_SUFFIXES,
    as_told_apart,
    ensure_writable_dir,
    is_folder,
    look,
)
from ..files.reading import DEFAULT_MAX_PIXELS
from ..images.doubts import about
from ..runtime import environment
from ..runtime.items import reached
from .names import pair_folders
from .output import Output, panel_of
from .pairs import refuse_lone
from .wildcards import paired

if TYPE_CHECKING:
    from ..api import Fuser
    from ..restore.sources import FusionReport
    from ..sampler import Callback


@dataclasses.dataclass(frozen=True)
class Job:
    """One pair: two files in, one file (and perhaps a panel) out."""

    ir: Path
    vis: Path
    output: Path
    panel: Path | None = None


def fuse_files(
    ir: str | os.PathLike[str],
    vis: str | os.PathLike[str],
    out: str | os.PathLike[str],
    fuser: Fuser,
    *,
    format: str | None = None,
    panel: bool = False,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    levels: Levels | None = None,
    output: Output | None = None,
    resize: str | None = None,
    progress: bool = False,
    skip_existing: bool = False,
    on_error: Callable[[Job, Exception], None] | None = None,
) -> list[dict[str, Any]]:
    """Fuse two files, or the pairs of two folders, into files.

    Args:
        ir: Infrared (first) image, or a folder of them.
        vis: Visible (second) image, or a folder of them.
        out: File or folder to write to, see :func:`plan_jobs`.
        fuser: What fuses them.
        format: Suffix of the files in a folder; None for png.
        panel: Also write a labeled picture of sources and result for each file.
        max_pixels: Limit of an input file, see :func:`.files.reading.read_image`.
        levels: What the values of the files mean; found from them by default.
        output: How results are written.
        resize: "ir" or "vis": both sources get its size, before they are aligned.
        progress: Show bars on stderr, over pairs when there are several and over steps.
        skip_existing: Skip pairs whose output file exists.
        on_error: Called with each job that fails, as it happens; the others continue. Without
            it, only the report has the error.

    Returns:
        A report per pair, see :func:`run_jobs`.

    Raises:
        ValueError: Paths do not make pairs, or outputs cannot be written.
    """
    return run_jobs(
        plan_jobs(Path(ir), Path(vis), Path(out), format=format, panel=panel),
        fuser,
        max_pixels=max_pixels,
        levels=levels,
        output=output,
        resize=resize,
        progress=progress,
        skip_existing=skip_existing,
        on_error=on_error,
    )


def plan_jobs(
    ir: Path,
    vis: Path,
    out: Path,
    *,
    format: str | None = None,
    panel: bool = False,
    make: bool = True,
) -> list[Job]:
    """Find the pairs that ``IR VIS -o OUT`` means, with every output folder made and writable.

    Two files give one job, two folders, patterns or ``@FILE`` lists one for each pair, see
    :func:`.names.pair_folders` and :func:`.wildcards.paired`.
    ``out`` is a file for two files when it has a suffix and is not a folder; otherwise it is a
    folder, and outputs are named after the infrared file's stem with the suffix ``format``
    (default ``png``).

    Args:
        ir: Infrared file or folder.
        vis: Visible file or folder.
        out: File or folder to write to.
        format: Suffix of the files, with or without its point; None for png, or for ``out``'s.
        panel: Plan a panel beside each file.
        make: Make the folders; else nothing is written.

    Raises:
        ValueError: A file is given with a folder, stems have no partner, or an output cannot be
            written or would replace an input.
    """
    listed = paired(ir, vis)
    pairs, folders = (listed, True) if listed is not None else _named(ir, vis, out)
    out_is_folder = is_folder(out)
    suffix = _suffix(format)
    if not folders and out.suffix and not out_is_folder:
        outputs = [_single_output(out, suffix)]
    else:
        if out.suffix.lower() in SUFFIXES and not out_is_folder:
            raise ValueError(f"--out is {out}, a file; two folders need a folder to write to")
        outputs = [out / f"{a.stem}{suffix or '.png'}" for a, _ in pairs]
    jobs = [
        Job(a, b, output, panel_of(output) if panel else None)
        for (a, b), output in zip(pairs, outputs, strict=True)
    ]
    _check_outputs(jobs)
    for folder in {job.output.parent for job in jobs} if make else ():
        ensure_writable_dir(folder)
    return jobs


def _named(ir: Path, vis: Path, out: Path) -> tuple[list[tuple[Path, Path]], bool]:
    """Return the pairs of two files or of two folders, and whether they are folders."""
    for name, path in (("IR", ir), ("VIS", vis)):
        if look(path) is None:
            raise ValueError(f"{name} is {path}, which does not exist; {_hint(path)}")
    folders = is_folder(ir)
    if folders != is_folder(vis):
        folder, file = (ir, vis) if folders else (vis, ir)
        raise ValueError(
            f"IR and VIS must be two files or two folders; {folder} is a folder and {file} a file"
        )
    if folders and os.path.realpath(ir) == os.path.realpath(vis):
        raise ValueError(
            f"IR and VIS are the same folder, {ir}; give two, or for one that holds both sources: "
            f"ddfm-fast batch {ir} -o {out}"
        )
    if not folders:
        _refuse_videos(ir, vis, out)
        return [(ir, vis)], False
    command = shlex.join(["ddfm-fast", "batch", str(ir), str(vis), "-o", str(out)])
    found = match_pairs(ir, vis, _pairs, otherwise=f", or fuse the others: {command}")
    return [(a, b) for _, a, b in found], True


def _hint(missing: Path) -> str:
    try:
        beside = [entry.name for entry in missing.parent.iterdir()]
    except OSError:
        beside = []
    near = difflib.get_close_matches(missing.name, beside, 1, 0.7)
    return f"did you mean {missing.with_name(near[0])}?" if near else "give a file or a folder"


def _refuse_videos(ir: Path, vis: Path, out: Path) -> None:
    for name, path in (("IR", ir), ("VIS", vis)):
        if path.suffix.lower() in VIDEO_SUFFIXES:
            raise ValueError(
                f"{name} is {path}, a video, and fuse takes pictures; give both to "
                f"ddfm-fast video {shlex.quote(str(ir))} {shlex.quote(str(vis))} "
                f"-o {shlex.quote(str(out))}"
            )


def _pairs(ir: dict[str, Path], vis: dict[str, Path]) -> list[tuple[str, Path, Path]]:
    found = pair_folders(ir, vis)
    refuse_lone([one for one in found.alone if one.candidates])
    return [(name, first, second) for name, first, second in found.pairs]


def _suffix(format: str | None) -> str | None:
    if format is None:
        return None
    suffix = "." + format.lower().lstrip(".")
    if suffix not in SUFFIXES:
        raise ValueError(f"--format is {format}; expected one of {_names(SUFFIXES)}")
    return suffix


def _single_output(out: Path, suffix: str | None) -> Path:
    if out.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"--out is {out}: images are not written as {out.suffix}; "
            f"expected a folder or a file ending in {_names(SUFFIXES)}"
        )
    if suffix is not None and out.suffix.lower() != suffix:
        raise ValueError(f"--out is {out} but --format says {suffix}; leave out one of them")
    return out


def _names(suffixes: tuple[str, ...]) -> str:
    return ", ".join(suffix.lstrip(".") for suffix in suffixes)


def _check_outputs(jobs: list[Job]) -> None:
    inputs = {_real(path) for job in jobs for path in (job.ir, job.vis)}
    outputs = set()
    for job in jobs:
        for path in filter(None, (job.output, job.panel)):
            real = _real(path)
            if real in outputs:
                raise ValueError(f"output {path} would be written twice; rename one of the inputs")
            outputs.add(real)
            if real in inputs:
                raise ValueError(f"output {path} would replace an input; choose another --out")
            if os.path.isdir(path):  # any other problem with the name fails only its own job
                raise ValueError(f"output {path} is a folder; choose another --out")


def _real(path: Path) -> str:
    return as_told_apart(os.path.realpath(path))


Read = Callable[[Job], Sources]
"""a job's sources, aligned"""


def run_jobs(
    jobs: list[Job],
    fuser: Fuser,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    levels: Levels | None = None,
    output: Output | None = None,
    resize: str | None = None,
    progress: bool = False,
    skip_existing: bool = False,
    on_error: Callable[[Job, Exception], None] | None = None,
    on_fused: Callable[[Job, Sources, np.ndarray], None] | None = None,
    callback: Callback | None = None,
) -> list[dict[str, Any]]:
    """Fuse every pair, and report each (`runtime.items`); a failure does not stop the others.

    Args:
        jobs: From :func:`plan_jobs`.
        fuser: What fuses them.
        max_pixels: Limit of an input file, see :func:`.files.reading.read_image`.
        levels: What the values of the files mean; found from them by default.
        output: How results are written.
        resize: "ir" or "vis": both sources get its size, before they are aligned.
        progress: Show bars on stderr, over pairs when there are several and over steps.
        skip_existing: Leave jobs alone whose output file exists.
        on_error: Called with each failure as it happens.
        on_fused: Called with each job, its sources as fused, and the result before it is written.
        callback: Gets a ``StepInfo`` after every step of the loop, as in a call of ``Fuser``.

    Returns:
        One dictionary per job: ``ir``, ``vis``, ``output``, ``panel``, ``ok``, ``skipped``,
        ``error``, ``height``, ``width``, ``dtype``, ``range`` (of black and white), ``seconds``
        (fusion alone) and ``crop``, [top, left], where ``align_field`` cut the visible picture.

    Raises:
        ValueError: An output cannot hold what ``output`` says.
    """
    output = output or Output()
    output.check(job.output.suffix for job in jobs)
    run = {"progress": progress, "callback": callback}
    reports: list[dict[str, Any]] = []
    told: set[str] = set()
    read = _reader(fuser, resize, levels or Levels(), max_pixels)
    bar = tqdm(jobs, desc="pairs", unit="pair", disable=not progress or len(jobs) == 1)
    for job in bar:
        bar.set_postfix_str(job.ir.name)
        report = _begun(job)
        try:
            if skip_existing and job.output.is_file():
                report["skipped"] = True
            else:
                with about([_both(job)], told):
                    report |= _run_job(job, fuser, read, output, on_fused, **run)
        except (ValueError, TypeError, OSError, RuntimeError, MemoryError) as error:
            if environment.is_on("DDFM_FAST_DEBUG"):
                raise
            report |= _failed(on_error, job, error, bar)
        reports.append(report)
        reached(report["output"], outcome(report), report)
    return reports


def _both(job: Job) -> str:
    """Return the name of a pair's files in warnings: one if both share it."""
    first, second = job.ir.name, job.vis.name
    return first if first == second else f"{first} with {second}"


def _begun(job: Job) -> dict[str, Any]:
    """Return the report of a job before it is done."""
    report = dataclasses.asdict(job) | {"ok": True, "skipped": False, "error": None}
    return {k: str(v) if isinstance(v, Path) else v for k, v in report.items()}


def _failed(
    on_error: Callable[[Job, Exception], None] | None, job: Job, error: Exception, bar: Any
) -> dict[str, Any]:
    """Report a failure, and return its entry in the report."""
    if on_error is not None:
        with bar.external_write_mode(file=sys.stderr):
            on_error(job, error)
    return {"ok": False, "error": str(error) or type(error).__name__}


def outcome(report: dict[str, Any]) -> str:
    """Describe the outcome of a job in a word or a sentence."""
    return report["error"] or ("already there" if report["skipped"] else "fused")


def _reader(fuser: Fuser, resize: str | None, levels: Levels, max_pixels: int) -> Read:
    aligner = Aligner(fuser.align, resize, field=fuser.align_field)
    return lambda job: aligner.sources(read_sources(job.ir, job.vis, levels, max_pixels))


def _run_job(
    job: Job,
    fuser: Fuser,
    read: Read,
    output: Output,
    on_fused: Callable[[Job, Sources, np.ndarray], None] | None,
    **run: Any,
) -> dict[str, Any]:
    sources = read(job)
    ir, vis = sources.ir, sources.vis
    started = time.perf_counter()
    found: list[FusionReport] = []
    fused = fuser(ir, vis, **run, report=found, align="off", value_range="dtype")
    fused = sources.mended(fused)
    seconds = time.perf_counter() - started
    output = dataclasses.replace(output, panel=job.panel is not None)
    if on_fused is not None:
        on_fused(job, sources, fused)
    facts = output.write(job.output, fused, sources, (job.ir, job.vis), color=fuser.color)
    if sources.cut is not None:
        facts["crop"] = [sources.cut.top, sources.cut.left]
    return {**facts, "seconds": seconds, "report": found[0].to_dict() if found else None}
