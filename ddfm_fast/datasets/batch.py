"""Fuse a whole data set so that nothing is lost, half-written or done twice, whatever happens.

The output folder carries its own history (:mod:`.history`), which says what is already done.
Threads read and write while the fuser computes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import shutil
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from tqdm import tqdm

from ..align.call import Aligner
from ..files.depth import Levels, Sources, read_sources
from ..files.paths import (
    ImageFileError,
    ensure_writable_dir,
    look,
)
from ..files.reading import DEFAULT_MAX_PIXELS, image_size
from ..images.doubts import about, warn
from ..runtime import environment
from ..runtime.capture import release_cached_memory
from ..runtime.items import reached
from ..runtime.memory import is_out_of_memory, pages_kept
from .ahead import prefetch
from .history import History, Inputs, describe_settings, input_hashes
from .items import PairItem
from .output import Output
from .results import DONE, FAILED, BatchReport, PairResult, Results
from .targets import Targets, check_counts, checked_suffix, checked_targets, no_room

if TYPE_CHECKING:
    from ..api import Fuser
    from ..restore.sources import FusionReport

REPORT, STAGING = "ddfm_fast_report.json", ".ddfm_fast_staging"
STOPPED_BY_USER = "interrupted"
CHECKED, SORTED = 128, 4096
"""pairs that are looked up in the history at once, and that are sorted by size at once"""
FAR = 5e-4
"""seconds a pair beyond which files are on a disk or a server that several threads may ask"""

_EXPECTED = (ValueError, TypeError, OSError, RuntimeError, MemoryError)


class BatchInterrupted(KeyboardInterrupt):
    """Ctrl-C during a batch, after everything that was finished has been written: ``report``."""

    def __init__(self, report: BatchReport):
        super().__init__("the batch was interrupted; run it again to resume")
        self.report = report


def run_batch(
    items: Sequence[PairItem],
    out: str | os.PathLike[str],
    fuser: Fuser,
    *,
    batch_size: int | None = None,
    format: str = "png",
    workers: int = 2,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    levels: Levels | None = None,
    output: Output | None = None,
    resize: str | None = None,
    redo: bool = False,
    progress: bool = False,
    on_error: Callable[[PairResult], None] | None = None,
    elsewhere: Elsewhere | None = None,
) -> BatchReport:
    """Fuse every pair into ``out/NAME.format``; skip pairs that are already done.

    ``out/ddfm_fast_report.json`` is the report. A full disk leaves the rest "pending".

    Args:
        items: From :func:`.pairs.find_pairs`; pairs of equal size share a batch.
        out: Folder to write to, made if it is missing.
        fuser: What fuses them; its settings are part of the history.
        batch_size: Most pairs at once, halved on out-of-memory; None for the fuser's own.
        format: "png", "tif", "jpg" or "bmp"; the first two hold 16 bits.
        workers: Threads for reading, and as many for writing, while the fuser computes.
        max_pixels: Most pixels of an input file, see :func:`.files.reading.read_image`.
        levels: What the values of the files mean; found from each pair by default.
        output: How results are written.
        resize: "ir" or "vis": both sources get its size, before they are aligned.
        redo: Fuse again what is already done.
        progress: Show bars with an estimate of the end, on stderr.
        on_error: Called with each pair that fails, as it happens; the others continue.
        elsewhere: Fuses the pairs in other processes; None for this process.

    Returns:
        What became of each pair.

    Raises:
        ValueError, TypeError: An argument is wrong, or the output folder cannot be written.
        BatchInterrupted: Ctrl-C; it carries the report.
    """
    suffix = checked_suffix(format)
    check_counts(batch_size=batch_size, workers=workers)
    (output := output or Output()).check([suffix])
    targets, _ = checked_targets(items, Path(out), suffix), ensure_writable_dir(out)
    levels = levels or Levels()
    aligner = Aligner(fuser.align, resize, field=fuser.align_field)
    own = elsewhere.settings(fuser, suffix) if elsewhere else describe_settings(fuser, suffix)
    settings = own | levels.to_dict() | output.to_dict() | aligner.to_dict()
    with History(Path(out), settings) as history:
        run = Run(
            history, fuser, targets, batch_size=batch_size, workers=workers, max_pixels=max_pixels,
            levels=levels, output=output, aligner=aligner, redo=redo, progress=progress,
            on_error=on_error, elsewhere=elsewhere,
        )  # fmt: skip
        return _written(run.run(list(items)))


def _written(report: BatchReport) -> BatchReport:
    """Write and return the report; raise BatchInterrupted if Ctrl-C ended the run."""
    _write_report(report)
    if report.stopped == STOPPED_BY_USER:
        raise BatchInterrupted(report)
    return report


@dataclasses.dataclass
class _Loaded:
    item: PairItem
    sources: Sources
    inputs: Inputs
    sent: tuple  # both pictures as they are fused, on their way to the device

    @property
    def size(self) -> tuple[int, ...]:
        return self.sources.ir.shape[:2]

    @property
    def pixels(self) -> int:
        return self.size[0] * self.size[1]


class Ledger(Protocol):
    """Where a run puts its pictures: a ``History``, or a worker's list of staged files."""

    out: Path

    def commit(
        self, item: PairItem, inputs: Inputs, staged: Path, target: Path, facts: dict[str, Any]
    ) -> None:
        """Take over a staged picture."""


class Elsewhere(Protocol):
    """Fuses the pairs of a run in other processes; the history stays here."""

    def settings(self, fuser: Fuser, suffix: str) -> dict[str, Any]:
        """Describe the fuser as it will be there: :func:`.history.describe_settings`."""
        ...

    def work(self, run: Run, items: list[PairItem]) -> None:
        """Fuse the pairs; pass pictures to ``run.finish``, then each result to ``run.record``."""


class Run:
    """The state of one run. Results and the fuser belong to the main thread."""

    def __init__(
        self,
        history: Ledger,
        fuser: Fuser,
        targets: Targets,
        *,
        batch_size: int | None,
        workers: int,
        max_pixels: int,
        levels: Levels,
        output: Output,
        aligner: Aligner,
        redo: bool,
        progress: bool,
        on_error: Callable[[PairResult], None] | None,
        elsewhere: Elsewhere | None = None,
    ):
        self.history, self.targets, self.elsewhere = history, targets, elsewhere
        self.fuser = fuser if batch_size is None else fuser.with_options(batch_size=batch_size)
        self.batch_size = self.least_batch_size = self.fuser.batch_size
        self.workers, self.max_pixels, self.redo = workers, max_pixels, redo
        self.levels, self.output, self.aligner, self.told = levels, output, aligner, set[str]()
        self.progress, self.on_error = progress, on_error
        self.staging = history.out / STAGING
        self.results: dict[str, PairResult | int] = {}
        """results of pairs that were reached; for those in the history, where their line begins"""
        self.writes: deque[Future[PairResult]] = deque()
        self.too_many_pixels = float("inf")
        self.stopped: str | None = None
        self.bar: tqdm | None = None
        self.readers = ThreadPoolExecutor(workers, "ddfm-read")
        self.writers = ThreadPoolExecutor(workers, "ddfm-write")

    def run(self, items: list[PairItem]) -> BatchReport:
        """Fuse what is not done yet; return a report of everything."""
        started = time.perf_counter()
        shutil.rmtree(self.staging, ignore_errors=True)
        assert isinstance(self.history, History)
        settings = self.history.settings
        skipped = array("q", [-1]) * len(items)
        try:
            pending = self._pending(items, self.history, skipped)
            self.bar = tqdm(
                total=len(pending), desc="pairs", unit="pair", disable=not self.progress
            )
            if self.elsewhere is not None:
                self.elsewhere.work(self, pending)
            else:
                self.work(self.by_size(pending))
        except KeyboardInterrupt:
            self.stopped = STOPPED_BY_USER
        finally:
            self.close()
            if self.bar is not None:
                self.bar.close()
            shutil.rmtree(self.staging, ignore_errors=True)
        return BatchReport(
            out=self.history.out,
            settings=settings,
            results=Results(items, skipped, self.results, self.targets),
            seconds=time.perf_counter() - started,
            batch_size=self.least_batch_size,
            stopped=self.stopped,
        )

    def _pending(
        self, items: list[PairItem], history: History, skipped: array[int]
    ) -> list[PairItem]:
        """Return the items still to do; put where the others' lines begin into ``skipped``."""
        if self.redo:
            return items

        def look_up(start: int) -> list[int | None]:
            return self._where_done(items[start : start + CHECKED], history)

        starts, pending = range(0, len(items), CHECKED), []
        found = self._looked_up(look_up, starts)
        hidden = not self.progress
        with tqdm(None, "checking", len(items), leave=False, unit="pair", disable=hidden) as bar:
            for start, places in zip(starts, found, strict=True):
                for n, at in enumerate(places, start):
                    if at is None:
                        pending.append(items[n])
                    else:
                        skipped[n] = at
                bar.update(len(places))
        return pending

    def _looked_up(
        self, look_up: Callable[[int], list[int | None]], starts: Iterable[int]
    ) -> Iterator[list[int | None]]:
        """Look up in this thread, as others only get in its way; where files are far, in others."""
        starts = iter(starts)
        for start in starts:
            before = time.perf_counter()
            found = look_up(start)
            seconds = time.perf_counter() - before
            yield found
            if seconds > FAR * CHECKED:
                break
        yield from prefetch(self.readers, look_up, starts, self.workers)

    def _where_done(self, items: list[PairItem], history: History) -> list[int | None]:
        targets = [self.targets.text(item.name) for item in items]
        found = history.where_done(items, targets)
        if self.output.panel:
            for n, target in enumerate(targets):
                if found[n] is not None and self.output.lacks_panel(Path(target)):
                    found[n] = None
        return found

    def by_size(self, items: Sequence[PairItem]) -> Iterator[PairItem]:
        """Yield items, in chunks of some thousand sorted so that equal sizes come together."""
        for start in range(0, len(items), SORTED):
            some = items[start : start + SORTED]
            sizes = prefetch(self.readers, lambda item: image_size(item.ir), some, 4 * self.workers)
            order: dict[Any, int] = {}
            ranks = [order.setdefault(size, len(order)) for size in sizes]
            yield from (some[n] for n in sorted(range(len(some)), key=ranks.__getitem__))

    def work(self, items: Iterable[PairItem]) -> None:
        """Fuse pairs here, and collect their outcomes in ``results``."""
        with pages_kept(self.fuser.device):
            self._work(items)
            self._collect(0)

    def close(self) -> None:
        """End the threads after they have finished writing."""
        self.readers.shutdown(cancel_futures=True)
        self._collect(0)
        self.writers.shutdown()

    def _work(self, items: Iterable[PairItem]) -> None:
        chunk: list[_Loaded] = []
        for loaded in prefetch(self.readers, self._load, items, self.batch_size + self.workers):
            if self.stopped:
                return
            if isinstance(loaded, PairResult):
                self.record(loaded)
                continue
            if chunk and loaded.size != chunk[0].size:
                self._fuse(chunk)
                chunk = []
            chunk.append(loaded)
            if len(chunk) >= self._limit(loaded.pixels):
                self._fuse(chunk)
                chunk = []
        if chunk and not self.stopped:
            self._fuse(chunk)

    def _load(self, item: PairItem) -> _Loaded | PairResult:
        """Read a pair; runs in a reading thread."""
        try:
            target = self.targets[item.name]
            look(target)
            # before decoding, so that a file that changes meanwhile is redone, not taken as done
            inputs = input_hashes(item)
            with about([item.name], self.told):
                found = read_sources(item.ir, item.vis, self.levels, self.max_pixels)
                found = self.aligner.sources(found)
            ir, vis = found.ir, found.vis
            if ir.shape[:2] != vis.shape[:2]:
                raise ValueError(
                    f"ir is {ir.shape[0]}x{ir.shape[1]} and vis is {vis.shape[0]}x{vis.shape[1]} "
                    "(height x width); expected images of equal size: --resize vis if both show "
                    "the same view, else --align homography"
                )
            return _Loaded(item, found, inputs, self.fuser.pixels.ahead(ir, vis))
        except _EXPECTED as error:
            return _failure(item, error)

    def _limit(self, pixels: int) -> int:
        """Return the most images of that many pixels at once, after past shortages of memory."""
        n = self.batch_size
        while n > 1 and n * pixels >= self.too_many_pixels:
            n //= 2
        return n

    def _fuse(self, pairs: list[_Loaded]) -> None:
        while pairs and not self.stopped:
            n = self._limit(pairs[0].pixels)
            part, pairs = pairs[:n], pairs[n:]
            failure, no_memory = self._attempt(part)
            if failure is None:
                continue
            if len(part) == 1:
                self.record(failure)
            elif no_memory:
                self._shrink(part)
                pairs = part + pairs
            else:  # one of them is at fault: fusing each alone shows which
                for pair in part:
                    self._fuse([pair])

    def _attempt(self, part: list[_Loaded]) -> tuple[PairResult | None, bool]:
        """Return (None, False), or the failure and whether memory ran out."""
        started = time.perf_counter()
        found: list[FusionReport] = []
        try:
            with about([pair.item.name for pair in part]):
                fused = self.fuser(
                    [pair.sent[0] for pair in part],
                    [pair.sent[1] for pair in part],
                    progress=self.progress,
                    report=found,
                    align="off",
                    value_range="dtype",
                )
        except _EXPECTED as error:
            no_memory = is_out_of_memory(error)
            if environment.is_on("DDFM_FAST_DEBUG") and not no_memory:
                raise
            return _failure(part[0].item, error), no_memory
        seconds = (time.perf_counter() - started) / len(part)
        for pair, picture, report in zip(part, fused, found, strict=True):
            pair.sent = ()
            args = pair, pair.sources.mended(picture), seconds, report.to_dict()
            self.writes.append(self.writers.submit(self._write, *args))
        self._collect(2 * self.batch_size + self.workers)
        return None, False

    def _shrink(self, part: list[_Loaded]) -> None:
        self.too_many_pixels = len(part) * part[0].pixels
        release_cached_memory()
        height, width = part[0].size
        self.least_batch_size = min(self.least_batch_size, self._limit(part[0].pixels))
        warn(
            f"memory ran out with {len(part)} images of {height}x{width} at once; "
            f"continuing with {self._limit(part[0].pixels)}",
        )

    def _write(
        self, pair: _Loaded, picture: np.ndarray, seconds: float, report: dict[str, Any]
    ) -> PairResult:
        """Write a picture; runs in a writing thread."""
        item = pair.item
        target = self.targets[item.name]
        staged = self.staging / f"{secrets.token_hex(8)}{target.suffix}"

        def write() -> dict[str, Any]:
            with about([item.name], self.told):
                facts = self.output.write(
                    staged, picture, pair.sources, (item.ir, item.vis), color=self.fuser.color,
                    final=target,
                )  # fmt: skip
            return {**facts, "seconds": seconds, "report": report}

        return self.finish(item, pair.inputs, staged, write)

    def finish(
        self, item: PairItem, inputs: Inputs, staged: Path, write: Callable[[], dict[str, Any]]
    ) -> PairResult:
        """Commit a picture that ``write`` stages, in any thread; ``write`` returns its facts."""
        target = self.targets[item.name]
        try:
            facts = write()
            self.history.commit(item, inputs, staged, target, facts)
        except _EXPECTED as error:
            if full := no_room(error):
                self.stopped = f"{self.history.out}: {full}"
            return _failure(item, error)
        finally:
            with contextlib.suppress(OSError):
                staged.unlink()
        return PairResult(item.name, DONE, str(target), **facts)

    def _collect(self, most: int) -> None:
        """Record finished writes; wait until at most that many are in progress."""
        while self.writes and (len(self.writes) > most or self.writes[0].done()):
            self.record(self.writes[0].result())
            self.writes.popleft()

    def record(self, result: PairResult) -> None:
        """Count a pair as reached, once; call this in the main thread."""
        if result.name in self.results:
            return
        self.results[result.name] = result
        if result.status == DONE and isinstance(self.history, History):
            self.results[result.name] = self.history.fresh.pop(result.name)
        if self.bar is not None:
            self.bar.set_postfix_str(result.name, refresh=False)
            self.bar.update()
        tell(result, self.on_error)


def tell(result: PairResult, on_error: Callable[[PairResult], None] | None) -> None:
    """Report the outcome of a pair, see :mod:`..runtime.items`; a failure also to ``on_error``."""
    reached(result.name, result.error or result.status, dataclasses.asdict(result))
    if result.status == FAILED and on_error is not None:
        with tqdm.external_write_mode():
            on_error(result)


def _failure(item: PairItem, error: BaseException) -> PairResult:
    text = str(error) or type(error).__name__
    if is_out_of_memory(error):
        text = f"memory ran out even for this pair alone ({text.splitlines()[0]})"
    return PairResult(item.name, FAILED, error=text)


def _write_report(report: BatchReport) -> None:
    """Write it in the staging folder first, which the next run clears if this one is killed."""
    target, staging = report.out / REPORT, report.out / STAGING
    try:
        staging.mkdir(exist_ok=True)
        with (staging / REPORT).open("w", encoding="utf-8") as file:
            file.writelines(report.json())
            file.flush()
            os.fsync(file.fileno())
        os.replace(staging / REPORT, target)
    except (ImageFileError, OSError) as error:
        why = error.__cause__ or error
        warn(f"the report was not written: {target} ({getattr(why, 'strerror', None) or why})")
    finally:
        shutil.rmtree(staging, ignore_errors=True)
