"""A data set behind URLs fused so that nothing is lost, half-written or done twice.

The work goes in portions: the objects of a portion are fetched while the one before is fused by
`run_batch`, its pictures are put, and then its part of the history is (`.remote_history`). A pair
counts as done when settings and prior, the states of both inputs (size and ETag, as listed) and
that of the output are what the history says: a resumed run lists and reads no picture. A pair whose
picture was put and whose history was not is done again.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tqdm import tqdm

from ..align.call import Aligner
from ..files.depth import Levels
from ..files.paths import ImageFileError, few
from ..images.doubts import warn
from ..runtime.items import silently
from ..storage.objects import check_writable, put
from ..storage.staging import Stage
from ..storage.trouble import StorageError
from ..storage.urls import as_url, join
from .batch import REPORT, STOPPED_BY_USER, BatchInterrupted, run_batch, tell
from .history import describe_settings
from .items import PairItem
from .output import Output
from .remote import Place
from .remote_history import PartWriter, Record, RemoteHistory
from .results import DONE, FAILED, KEPT, SKIPPED, BatchReport, PairResult

if TYPE_CHECKING:
    from ..api import Fuser

PORTION = 64
"""pairs that are fetched, fused and put together, where a batch is not larger"""

Failures = dict[Path, Exception]


def run_remote_batch(
    stage: Stage,
    items: Sequence[PairItem],
    out: Place,
    fuser: Fuser,
    *,
    portion: int | None = None,
    format: str = "png",
    levels: Levels | None = None,
    output: Output | None = None,
    resize: str | None = None,
    redo: bool = False,
    progress: bool = False,
    on_error: Callable[[PairResult], None] | None = None,
    elsewhere: Elsewhere | None = None,
    **options: Any,
) -> BatchReport:
    """Fuse every pair into ``out/NAME.format`` as `run_batch` does, where places are URLs.

    Args:
        stage: Where the items' files stand for objects.
        items: From :func:`.remote.find_remote_pairs`.
        out: Prefix to write to, or a local folder.
        fuser: What fuses them; its settings are part of the history.
        portion: Pairs that are fetched, fused and put together; None for `PORTION` or a batch.
        format: Format of the pictures.
        levels: What the values of the files mean.
        output: How results are written.
        resize: As `run_batch` takes it.
        redo: Fuse again what is already done.
        progress: Show a bar on stderr.
        on_error: Called with each pair that fails, as it happens.
        elsewhere: What fuses the pairs in other processes; None for this one.
        **options: Of `run_batch`: ``batch_size``, ``workers``, ``max_pixels``.

    Returns:
        What became of each pair; it is also put to ``out/ddfm_fast_report.json``.

    Raises:
        ValueError: Arguments that are wrong, or a place that cannot be listed or written to.
        BatchInterrupted: Ctrl-C; it carries the report.
    """
    url = as_url(out) or f"file://{Path(out).absolute().as_posix()}"
    check_writable(url)
    levels, output = levels or Levels(), output or Output()
    suffix = "." + format.lower().lstrip(".")
    own = elsewhere.settings(fuser, suffix) if elsewhere else describe_settings(fuser, suffix)
    settings = own | levels.to_dict() | output.to_dict()
    settings |= Aligner(fuser.align, resize, field=fuser.align_field).to_dict()
    history = RemoteHistory(url, settings, suffix)
    shown = {"format": format, "levels": levels, "output": output, "resize": resize}
    portions = Portions(stage, history.writer, suffix, fuser, {**options, **shown})
    run = RemoteRun(stage, history, portions, on_error, elsewhere)
    started = time.perf_counter()
    run.work(run.pending(items, redo), portion or max(PORTION, portions.batch_size), progress)
    report = run.report(items, Path(out), settings, time.perf_counter() - started)
    run.end(report)
    return report


class Portions:
    """Fuses portions of pairs whose files stand for objects, and puts pictures and history.

    Args:
        stage: Where they do.
        writer: Of the history; the pictures are put to its prefix.
        suffix: Of the pictures.
        fuser: What fuses them.
        options: Of `run_batch`.
        turn: Held while pairs are fused, not while they are put.

    Attributes:
        said: Sentences to say, of all portions.
    """

    def __init__(
        self, stage: Stage, writer: PartWriter, suffix: str, fuser: Fuser,
        options: dict[str, Any], turn: AbstractContextManager[Any] | None = None,
    ):  # fmt: skip
        self.stage, self.writer, self.suffix = stage, writer, suffix
        self.fuser, self.options = fuser, options
        self.turn = turn or nullcontext()
        self.batch_size = options.get("batch_size") or fuser.batch_size
        self.stopped: str | None = None
        self.said: list[str] = []

    def fuse(
        self, portion: Sequence[PairItem], failures: Failures, inputs: Mapping[str, list[str]]
    ) -> list[PairResult]:
        """Fuse pairs, put them, and then their part of the history.

        Args:
            portion: The pairs.
            failures: Those of files that could not be fetched.
            inputs: Of each pair, by name, the states of its files.

        Returns:
            What became of each; the output is the URL of the picture.

        Raises:
            StorageError: No object can be written there, for want of rights or a bucket.
        """
        ready, found = [], []
        for item in portion:
            if error := failures.get(item.ir) or failures.get(item.vis):
                found.append(PairResult(item.name, FAILED, error=str(error)))
            else:
                ready.append(item)
        if ready:
            local = self.stage.folder / f"portion-{secrets.token_hex(4)}"
            try:
                found += self._put(ready, self._run(ready, local), inputs)
            finally:
                shutil.rmtree(local, ignore_errors=True)
        return found

    def _run(self, ready: list[PairItem], local: Path) -> BatchReport:
        try:
            with self.turn, silently():
                report = run_batch(ready, local, self.fuser, **self.options)
        except BatchInterrupted as interrupted:
            report = interrupted.report
        self.stopped = report.stopped
        self.batch_size = min(self.batch_size, report.batch_size)
        return report

    def _put(
        self, ready: list[PairItem], report: BatchReport, inputs: Mapping[str, list[str]]
    ) -> list[PairResult]:
        results = {result.name: result for result in report.results}
        done = {n: Path(r.output or "") for n, r in results.items() if r.status == DONE}
        places = {item.name: join(self.writer.url, f"{item.name}{self.suffix}") for item in ready}
        versions: dict[Path, str] = {}
        failures = self.stage.put({path: places[name] for name, path in done.items()}, versions)
        found, records = [], []
        for name, result in results.items():
            if name in done and (error := failures.get(done[name])) is not None:
                result = PairResult(name, FAILED, error=str(error))
            elif name in done:
                result.output = places[name]
                state = {"size": done[name].stat().st_size, "version": versions[done[name]]}
                facts = {key: getattr(result, key) for key in KEPT}
                records.append({"name": name, "inputs": inputs[name], **state, **facts})
            if result.error is not None:
                result.error = self.stage.text(result.error)
            found.append(result)
        if records:
            self._write(records)
        return found

    def _write(self, records: list[Record]) -> None:
        """Put a part of the history; what keeps only this one away is said."""
        try:
            self.writer.put(records)
        except StorageError as error:
            if error.is_common:
                raise
            names = few([record["name"] for record in records])
            self.said.append(f"{error}; without it, the next run fuses {names} again")


class Elsewhere(Protocol):
    """What fuses the pairs of a run in other processes."""

    def settings(self, fuser: Fuser, suffix: str) -> dict[str, Any]:
        """Describe the fuser as it is there."""

    def work_remote(self, run: RemoteRun, items: list[PairItem]) -> None:
        """Have all of them fused and put; `RemoteRun.take` is given what became of each."""


class RemoteRun:
    """The state of one run.

    Attributes:
        stage: Where the items' files stand for objects.
        history: What the objects below the output were made from.
        portions: What fuses them here.
        told: Kinds of warnings that the run has said.
        stopped: Why it ends early.
    """

    def __init__(
        self, stage: Stage, history: RemoteHistory, portions: Portions,
        on_error: Callable[[PairResult], None] | None,
        elsewhere: Elsewhere | None = None,
    ):  # fmt: skip
        self.stage, self.history, self.portions = stage, history, portions
        self.on_error, self.elsewhere = on_error, elsewhere
        self.results: dict[str, PairResult] = {}
        self.inputs: dict[str, list[str]] = {}
        self.told: set[str] = set()
        self.stopped: str | None = None
        self.bar: tqdm

    def pending(self, items: Sequence[PairItem], redo: bool) -> list[PairItem]:
        """Return the pairs still to do; none of the outputs may be an input."""
        taken = {self.stage.url_of(path.absolute()) for path in _files(items)}
        self.stage.inform(_files(items))
        found = []
        for item in items:
            target = join(self.history.url, self.history.name(item))
            if target in taken or target.removeprefix("file://") in taken:
                raise ImageFileError(
                    f"output {target} would replace an input; choose another --out"
                )
            try:
                inputs = [self.stage.state(path) for path in (item.ir, item.vis)]
            except OSError:  # reading it says why
                inputs = [""]
            self.inputs[item.name] = inputs
            record = None if redo or not all(inputs) else self.history.is_done(item, inputs)
            if record is None:
                found.append(item)
            else:
                facts = {key: record.get(key) for key in KEPT}
                self.results[item.name] = PairResult(item.name, SKIPPED, target, **facts)
        return found

    def work(self, pending: list[PairItem], size: int, progress: bool) -> None:
        """Fuse them, that many at a time; Ctrl-C ends it after what is under way was put."""
        portions = [pending[i : i + size] for i in range(0, len(pending), size)]
        with tqdm(total=len(pending), desc="pairs", unit="pair", disable=not progress) as self.bar:
            try:
                if self.elsewhere is None:
                    self._work(portions)
                else:
                    self.elsewhere.work_remote(self, pending)
            except KeyboardInterrupt:
                self.stopped = STOPPED_BY_USER

    def report(
        self, items: Sequence[PairItem], out: Path, settings: dict[str, Any], seconds: float
    ) -> BatchReport:
        """Return what became of each pair."""
        return BatchReport(
            out=out,
            settings=settings,
            results=[self.results.get(item.name, PairResult(item.name)) for item in items],
            seconds=seconds,
            batch_size=self.portions.batch_size,
            stopped=self.stopped,
        )

    def end(self, report: BatchReport) -> None:
        """Put the report, and merge the history where all has been reached."""
        _put_report(self.history.url, report)
        if self.stopped == STOPPED_BY_USER:
            raise BatchInterrupted(report)
        if self.stopped is None:
            self.history.merge()

    def take(self, results: Sequence[PairResult]) -> None:
        """Count what became of pairs."""
        for result in results:
            if result.status in (DONE, FAILED):
                self.record(result)

    def say_once(self, sentence: str) -> None:
        """Warn of it, unless the run has said so."""
        if sentence not in self.told:
            self.told.add(sentence)
            warn(sentence)

    def record(self, result: PairResult) -> None:
        """Count a pair, and say what became of it."""
        self.results[result.name] = result
        self.bar.set_postfix_str(result.name, refresh=False)
        self.bar.update()
        tell(result, self.on_error)

    def _work(self, portions: list[list[PairItem]]) -> None:
        with ThreadPoolExecutor(1, "ddfm-ahead") as ahead:
            coming: Future[Failures] | None = None
            for n, portion in enumerate(portions):
                after = portions[n + 1] if n + 1 < len(portions) else []
                failures = self._fill(portion) if coming is None else coming.result()
                coming = ahead.submit(self._fill, after)
                self.take(self.portions.fuse(portion, failures, self.inputs))
                for sentence in self.portions.said:
                    self.say_once(sentence)
                wanted = {*_files(after)}
                self.stage.drop(path for path in _files(portion) if path not in wanted)
                self.stopped = self.portions.stopped
                if self.stopped:
                    break

    def _fill(self, portion: list[PairItem]) -> Failures:
        return self.stage.fill(_files(portion))


def _files(items: Sequence[PairItem]) -> Iterator[Path]:
    return (path for item in items for path in (item.ir, item.vis))


def _put_report(url: str, report: BatchReport) -> None:
    text = "".join(report.json(out=url))
    try:
        put(join(url, REPORT), text.encode())
    except StorageError as error:
        warn(f"the report was not written: {error}")
