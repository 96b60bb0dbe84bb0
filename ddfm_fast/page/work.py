"""What the page computes, by the functions of the commands: a pair, a video, a folder of pairs."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from ..align.call import Aligner
from ..datasets.items import PairItem
from ..datasets.jobs import Job, plan_jobs, run_jobs
from ..datasets.pairs import find_pairs
from ..files.depth import Sources, read_sources, resized_sources
from ..files.paths import VIDEO_SUFFIXES, ImageFileError
from ..serve.fusers import Fusers
from ..serve.logs import hearing
from .archives import Bounds, pack, root_of, unpack
from .controls import Controls, command
from .sentences import Sentence, about_report, about_sources
from .views import Views, make_views

if TYPE_CHECKING:
    from ..api import Fuser

Tell = Callable[[float, str], None]
"""called with the progress, from 0 to 1, and what is being done"""
KEPT_SECONDS = 3600
"""seconds for which results stay on the disk"""
_NAMED = 50
"""most pairs of a folder that get a line each"""
_HEADS = {
    ".avi": ((0, b"RIFF"),),
    ".mkv": ((0, b"\x1aE\xdf\xa3"),),
    ".mp4": ((4, b"ftyp"),),
    ".m4v": ((4, b"ftyp"),),
    ".mov": ((4, b"ftyp"), (4, b"moov"), (4, b"mdat"), (4, b"wide"), (4, b"free")),
    ".ts": ((0, b"\x47"),),
}
"""bytes, and their place, by which a file is what its suffix says: FFmpeg also follows playlists"""


class Result(NamedTuple):
    """A fused file, and the sentences about it."""

    file: Path
    lines: list[Sentence]
    note: str = ""
    """the command that does the same"""
    views: Views | None = None


@dataclass(frozen=True)
class Limits:
    """Limits for visitors."""

    max_pixels: int = 2**26
    """of a picture, by its header"""
    max_bytes: int = 2**30
    """of an upload; an archive may hold four times as many"""


class Work:
    """All of the page's work on one device, for one caller at a time, except `look`."""

    def __init__(self, fuser: Fuser, root: Path, limits: Limits | None = None):
        """``root``: a folder for results, whose name no sentence reveals."""
        self.fusers, self.root, self.limits = Fusers(fuser), root, limits or Limits()

    def look(self, ir: str | None, vis: str | None, controls: Controls) -> list[Sentence]:
        """Describe two files, and whether they seem to fit; nothing until both are there."""
        if not ir or not vis:
            return []
        with hearing() as said:
            found = self._read(ir, vis, controls)
            Aligner("check").look(found.ir, found.vis)
        return [*about_sources(found), *_warnings(said)]

    def _read(self, ir: str, vis: str, controls: Controls) -> Sources:
        found = read_sources(ir, vis, controls.levels(), self.limits.max_pixels)
        return resized_sources(found, controls.size_of)

    def pair(self, ir: str | None, vis: str | None, controls: Controls, tell: Tell) -> Result:
        """Fuse two files as ``ddfm-fast fuse`` does.

        Raises:
            ValueError: A file is missing or not usable, or an option is wrong.
        """
        first, second = _both(ir, vis, "picture")
        folder = self._fresh()
        out = folder / f"{first.stem}_fused.{controls.format}"
        kept: list[Views] = []

        def on_fused(_: Job, sources: Sources, fused: Any) -> None:
            tell(0.9, "writing")
            kept.append(make_views(folder, sources, fused))

        (job,) = plan_jobs(first, second, out)
        report, said = self._run(job, controls, tell, on_fused)
        height, width = report["height"], report["width"]
        bits = 8 if report["dtype"] == "uint8" else 16
        done = f"{out.name}: {width} × {height} pixels of {bits} bits, {report['seconds']:.1f} s"
        lines = [Sentence(done), *about_report(report["report"]), *_warnings(said)]
        return Result(out, lines, command(first.name, second.name, out.name, controls), kept[0])

    def _run(
        self, job: Job, controls: Controls, tell: Tell, on_fused: Any = None
    ) -> tuple[dict[str, Any], list[str]]:
        """Return the report of a job that went well, and the warnings about it."""
        tell(0.0, "reading")
        with hearing() as said:
            fuser, told = self.fusers.get(cast("dict[str, Any]", controls.options()))
            (report,) = run_jobs(
                [job],
                fuser,
                max_pixels=self.limits.max_pixels,
                levels=controls.levels(),
                resize=controls.size_of,
                on_fused=on_fused,
                callback=lambda i: tell(0.9 * i.step / i.steps, f"step {i.step} of {i.steps}"),
            )
        if not report["ok"]:
            raise ImageFileError(report["error"])
        return report, [*told, *said]

    def folder(self, archive: str | None, controls: Controls, tell: Tell) -> Result:
        """Fuse the pairs of a ZIP file, each as ``ddfm-fast fuse`` does, into a ZIP file.

        A pair that fails gets a line, and the others are fused.

        Raises:
            ValueError: The archive is not usable, or no pair in it can be fused.
        """
        if not archive:
            raise ValueError("no file is chosen; choose a ZIP file with pairs of pictures")
        folder = self._fresh()
        tell(0.0, "unpacking")
        with hearing() as heard:
            unpack(Path(archive), folder / "in", Bounds(bytes=4 * self.limits.max_bytes))
            items = find_pairs(root_of(folder / "in"), check_sizes=False)
        jobs = [self._job(item, folder / "out", controls) for item in items]
        lines = _warnings(heard)
        done = []
        for n, (item, job) in enumerate(zip(items, jobs, strict=True)):
            tell(n / len(jobs), f"pair {n + 1} of {len(jobs)}")
            try:
                _, said = self._run(job, controls, lambda *_: None)
                done.append((f"{item.name}.{controls.format}", job.output))
                lines += _warnings(said)
            except (ValueError, TypeError, OSError, RuntimeError, MemoryError) as error:
                lines.append(Sentence(f"{item.name}: {error}", "error"))
        if not done:
            raise ImageFileError(f"none of {len(jobs)} pairs could be fused: {lines[-1].text}")
        tell(1.0, "packing")
        result = pack(done, folder / "fused.zip")
        shutil.rmtree(folder / "in")
        shutil.rmtree(folder / "out")
        more = [Sentence(f"{len(lines) - _NAMED} more lines")] if len(lines) > _NAMED else []
        summary = Sentence(f"{len(done)} of {len(jobs)} pairs are fused")
        return Result(result, [summary, *lines[:_NAMED], *more])

    def _job(self, item: PairItem, out: Path, controls: Controls) -> Job:
        (job,) = plan_jobs(item.ir, item.vis, out / f"{item.name}.{controls.format}")
        return job

    def video(
        self, ir: str | None, vis: str | None, preset: str, controls: Controls, tell: Tell
    ) -> Result:
        """Fuse two videos as ``ddfm-fast video`` does, by a name of ``VIDEO_PRESETS``.

        Raises:
            ValueError: A file is missing or not usable, or an option is wrong.
            ImportError: The extra ``video`` is missing.
        """
        from ..video.pipeline import fuse_video

        first, second = _both(ir, vis, "video")
        for path in (first, second):
            _check_video(path)
        options = cast("dict[str, Any]", controls.options())
        if preset != "exact":
            del options["preset"]  # the image preset, which only "exact" takes
        ranges = controls.ranges()
        out = self._fresh() / f"{first.stem}_fused.mp4"
        tell(0.0, "reading")

        def on_frame(count: int, of: int | None) -> None:
            at, total = (count / of, f" of {of}") if of else (0.5, "")
            tell(min(1.0, at), f"frame {count}{total}")

        with hearing() as said:
            fuser, told = self.fusers.get(options)
            report = fuse_video(
                first, second, out, fuser=fuser, preset=preset, on_frame=on_frame,
                resize=cast(Any, controls.size_of),
                ir_range=ranges.get("ir"), vis_range=ranges.get("vis"),
            )  # fmt: skip
        lines = [Sentence(f"{out.name}: {report.frames} frames, {report.fps:.1f} in a second")]
        if report.stopped:
            lines.append(Sentence(f"it ends early: {report.stopped}", "warning"))
        for bad in report.bad[:_NAMED]:
            lines.append(Sentence(f"frame {bad.number} of {bad.stream}: {bad.reason}", "warning"))
        return Result(Path(report.out), [*lines, *_warnings([*told, *said])])

    def _fresh(self) -> Path:
        """Return a new folder for a result, and remove expired ones."""
        for old in self.root.iterdir():
            with contextlib.suppress(OSError):
                if time.time() - old.stat().st_mtime > KEPT_SECONDS:
                    shutil.rmtree(old)
        return Path(tempfile.mkdtemp(dir=self.root))


def _both(ir: str | None, vis: str | None, what: str) -> tuple[Path, Path]:
    missing = [name for name, path in (("infrared", ir), ("visible", vis)) if not path]
    if missing:
        raise ValueError(f"no {' and no '.join(missing)} {what} is chosen; choose both")
    return Path(cast(str, ir)), Path(cast(str, vis))


def _check_video(path: Path) -> None:
    """Refuse a file that is not what its suffix says, such as a list of other files."""
    heads = _HEADS.get(path.suffix.lower(), ())
    with path.open("rb") as file:
        start = file.read(16)
    if not any(start[at:].startswith(head) for at, head in heads):
        raise ImageFileError(
            f"{path.name}: is not a video that the page takes; expected a file of "
            + ", ".join(suffix.lstrip(".") for suffix in VIDEO_SUFFIXES)
        )


def _warnings(said: list[str]) -> list[Sentence]:
    return [Sentence(text, "warning") for text in dict.fromkeys(said)]
