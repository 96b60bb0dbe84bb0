"""A data set behind URLs fused so that nothing is lost, half-written or done twice.

The work goes in portions: the objects of a portion are fetched while the one before is fused by
`run_batch`, its pictures are put, and then its part of the history is, an object of its own in
``ddfm_fast_history/``, as objects cannot be appended to. A pair counts as done when settings and
prior, the states of both inputs (size and ETag, as listed) and the size of the output are what the
history says: a resumed run lists and reads no picture. A pair whose picture was put and whose
history was not is done again.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from tqdm import tqdm

from ..align.call import Aligner
from ..files.depth import Levels
from ..files.paths import ImageFileError
from ..images.doubts import warn
from ..runtime.items import silently
from ..storage.objects import check_writable, listing, put, read
from ..storage.staging import Stage
from ..storage.trouble import StorageError
from ..storage.urls import as_url, join
from .batch import REPORT, STOPPED_BY_USER, BatchInterrupted, run_batch, tell
from .history import describe_settings
from .items import PairItem
from .output import Output
from .remote import Place
from .results import DONE, FAILED, KEPT, SKIPPED, BatchReport, PairResult

if TYPE_CHECKING:
    from ..api import Fuser

HISTORY = "ddfm_fast_history"
PORTION = 64
"""pairs that are fetched, fused and put together, where a batch is not larger"""
PART_SECONDS = 5.0
"""for which lines of the history wait for others, where pairs come in ones and twos"""

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
    history = _History(url, settings, suffix)
    shown = {"format": format, "levels": levels, "output": output, "resize": resize}
    portions = Portions(stage, url, suffix, fuser, {**options, **shown})
    run = RemoteRun(stage, history, portions, on_error, elsewhere)
    started = time.perf_counter()
    run.work(run.pending(items, redo), portion or max(PORTION, portions.batch_size), progress)
    report = run.report(items, Path(out), settings, time.perf_counter() - started)
    _put_report(url, report)
    if run.stopped == STOPPED_BY_USER:
        raise BatchInterrupted(report)
    return report


class _History:
    """What the objects below a prefix were made from, in parts that are written once."""

    def __init__(self, url: str, settings: dict[str, Any], suffix: str):
        self.url, self.suffix = url, suffix
        self.key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        self.there = {name: one.size for name, one in listing(url).items()}
        self.records: dict[str, dict[str, Any]] = {}
        self.coming: list[dict[str, Any]] = []
        self.since = 0.0
        self.parts = sorted(name for name in self.there if name.startswith(f"{HISTORY}/"))
        with ThreadPoolExecutor(8) as pool:
            for data in pool.map(lambda name: read(join(url, name)), self.parts):
                self._load(data)

    def _load(self, data: bytes) -> None:
        for line in data.splitlines():
            try:
                record = json.loads(line)
                self.records[record["name"]] = record
            except (ValueError, KeyError, TypeError):
                warn(f"{self.url}: a line of the history cannot be read; its pair is done again")

    def name(self, item: PairItem) -> str:
        return f"{item.name}{self.suffix}"

    def is_done(self, item: PairItem, inputs: list[str]) -> dict[str, Any] | None:
        """Return the pair's line if settings, inputs and output are what it says, else None."""
        record = self.records.get(item.name)
        if record is None or record.get("settings") != self.key:
            return None
        same = record.get("inputs") == inputs
        return record if same and record.get("size") == self.there.get(self.name(item)) else None

    def add(self, record: dict[str, Any]) -> None:
        """Keep a line for the next part."""
        if not self.coming:
            self.since = time.monotonic()
        self.coming.append(record)

    def flush(self, least: int = 1) -> None:
        """Write a part, whose name sorts after those before; not few lines that came just now."""
        count, age = len(self.coming), time.monotonic() - self.since
        if not count or (count < least and age < PART_SECONDS):
            return
        name = f"{HISTORY}/{time.time_ns():020d}-{secrets.token_hex(4)}.jsonl"
        lines = "".join(json.dumps(record) + "\n" for record in self.coming)
        put(join(self.url, name), lines.encode())
        self.coming.clear()


class Given(NamedTuple):
    """What became of a pair."""

    result: PairResult
    """whose output is the URL of the picture"""
    size: int | None = None
    """of the picture in bytes, where it was put"""


class Portions:
    """Fuses portions of pairs whose files stand for objects, and puts the pictures.

    Args:
        stage: Where they do.
        url: The prefix to put to.
        suffix: Of the pictures.
        fuser: What fuses them.
        options: Of `run_batch`.
    """

    def __init__(self, stage: Stage, url: str, suffix: str, fuser: Fuser, options: dict[str, Any]):
        self.stage, self.url, self.suffix = stage, url, suffix
        self.fuser, self.options = fuser, options
        self.batch_size = options.get("batch_size") or fuser.batch_size
        self.stopped: str | None = None

    def fuse(self, portion: Sequence[PairItem], failures: Failures) -> list[Given]:
        """Fuse pairs and put them; ``failures`` are those of files that could not be fetched.

        Raises:
            StorageError: No object can be written there, for want of rights or a bucket.
        """
        ready, found = [], []
        for item in portion:
            if error := failures.get(item.ir) or failures.get(item.vis):
                found.append(Given(PairResult(item.name, FAILED, error=str(error))))
            else:
                ready.append(item)
        if ready:
            local = self.stage.folder / f"portion-{secrets.token_hex(4)}"
            try:
                found += self._put(ready, self._run(ready, local))
            finally:
                shutil.rmtree(local, ignore_errors=True)
        return found

    def _run(self, ready: list[PairItem], local: Path) -> BatchReport:
        try:
            with silently():
                report = run_batch(ready, local, self.fuser, **self.options)
        except BatchInterrupted as interrupted:
            report = interrupted.report
        self.stopped = report.stopped
        self.batch_size = min(self.batch_size, report.batch_size)
        return report

    def _put(self, ready: list[PairItem], report: BatchReport) -> list[Given]:
        results = {result.name: result for result in report.results}
        done = {n: Path(r.output or "") for n, r in results.items() if r.status == DONE}
        places = {item.name: join(self.url, f"{item.name}{self.suffix}") for item in ready}
        failures = self.stage.put({path: places[name] for name, path in done.items()})
        found = []
        for name, result in results.items():
            size = None
            if name in done and (error := failures.get(done[name])) is not None:
                result = PairResult(name, FAILED, error=str(error))
            elif name in done:
                result.output, size = places[name], done[name].stat().st_size
            if result.error is not None:
                result.error = self.stage.text(result.error)
            found.append(Given(result, size))
        return found


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
        self, stage: Stage, history: _History, portions: Portions,
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
            finally:
                self.history.flush()

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

    def take(self, given: Sequence[Given]) -> None:
        """Count what became of pairs; of those that were put, write the history."""
        for result, size in given:
            if size is not None:
                facts = {key: getattr(result, key) for key in KEPT}
                made_of = {"inputs": self.inputs[result.name], "size": size}
                settings = {"name": result.name, "settings": self.history.key}
                self.history.add({**settings, **made_of, **facts})
        self.history.flush(least=1 if self.elsewhere is None else PORTION)
        for result, _ in given:
            if result.status in (DONE, FAILED):
                self.record(result)

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
                self.take(self.portions.fuse(portion, failures))
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
