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
from typing import TYPE_CHECKING, Any

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
        **options: Options of `run_batch`: ``batch_size``, ``workers``, ``max_pixels``.

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
    settings = describe_settings(fuser, suffix) | levels.to_dict() | output.to_dict()
    settings |= Aligner(fuser.align, resize, field=fuser.align_field).to_dict()
    history = _History(url, settings, suffix)
    shown = {"format": format, "levels": levels, "output": output, "resize": resize}
    run = _Remote(stage, history, fuser, on_error, {**options, **shown})
    started = time.perf_counter()
    run.work(run.pending(items, redo), portion or max(PORTION, run.batch_size), progress)
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

    def put(self, records: list[dict[str, Any]]) -> None:
        """Write a part; its name sorts after those of the parts before."""
        if records:
            name = f"{HISTORY}/{time.time_ns():020d}-{secrets.token_hex(4)}.jsonl"
            lines = "".join(json.dumps(record) + "\n" for record in records)
            put(join(self.url, name), lines.encode())


class _Remote:
    """The state of one run."""

    def __init__(
        self,
        stage: Stage,
        history: _History,
        fuser: Fuser,
        on_error: Callable[[PairResult], None] | None,
        options: dict[str, Any],
    ):
        self.stage, self.history, self.fuser = stage, history, fuser
        self.on_error, self.options = on_error, options
        self.results: dict[str, PairResult] = {}
        self.inputs: dict[str, list[str]] = {}
        self.batch_size = options.get("batch_size") or fuser.batch_size
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
                self._work(portions)
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
            batch_size=self.batch_size,
            stopped=self.stopped,
        )

    def _work(self, portions: list[list[PairItem]]) -> None:
        with ThreadPoolExecutor(1, "ddfm-ahead") as ahead:
            coming: Future[Failures] | None = None
            for n, portion in enumerate(portions):
                after = portions[n + 1] if n + 1 < len(portions) else []
                failures = self._fill(portion) if coming is None else coming.result()
                coming = ahead.submit(self._fill, after)
                self._fuse(portion, failures)
                wanted = {*_files(after)}
                self.stage.drop(path for path in _files(portion) if path not in wanted)
                if self.stopped:
                    break

    def _fill(self, portion: list[PairItem]) -> Failures:
        return self.stage.fill(_files(portion))

    def _fuse(self, portion: list[PairItem], failures: Failures) -> None:
        ready = []
        for item in portion:
            if error := failures.get(item.ir) or failures.get(item.vis):
                self._record(PairResult(item.name, FAILED, error=str(error)))
            else:
                ready.append(item)
        if ready:
            local = self.stage.folder / f"portion-{secrets.token_hex(4)}"
            try:
                self._give(ready, self._run(ready, local))
            finally:
                shutil.rmtree(local, ignore_errors=True)

    def _run(self, ready: list[PairItem], local: Path) -> BatchReport:
        try:
            with silently():
                report = run_batch(ready, local, self.fuser, **self.options)
        except BatchInterrupted as interrupted:
            report = interrupted.report
        self.stopped = report.stopped
        self.batch_size = min(self.batch_size, report.batch_size)
        return report

    def _give(self, ready: list[PairItem], report: BatchReport) -> None:
        """Put the pictures, then their history."""
        results = {result.name: result for result in report.results}
        done = {n: Path(r.output or "") for n, r in results.items() if r.status == DONE}
        names = {item.name: self.history.name(item) for item in ready}
        failures = self.stage.put({p: join(self.history.url, names[n]) for n, p in done.items()})
        records = []
        for name, result in results.items():
            if name in done and (error := failures.get(done[name])) is not None:
                result = PairResult(name, FAILED, error=str(error))
            elif name in done:
                facts = {key: getattr(result, key) for key in KEPT}
                sizes = {"inputs": self.inputs[name], "size": done[name].stat().st_size}
                settings = {"name": name, "settings": self.history.key}
                records.append({**settings, **sizes, **facts})
                result.output = join(self.history.url, names[name])
            if result.error is not None:
                result.error = self.stage.text(result.error)
            if result.status in (DONE, FAILED):
                self._record(result)
        self.history.put(records)

    def _record(self, result: PairResult) -> None:
        self.results[result.name] = result
        self.bar.set_postfix_str(result.name, refresh=False)
        self.bar.update()
        tell(result)
        if result.status == FAILED and self.on_error is not None:
            with tqdm.external_write_mode():
                self.on_error(result)


def _files(items: Sequence[PairItem]) -> Iterator[Path]:
    return (path for item in items for path in (item.ir, item.vis))


def _put_report(url: str, report: BatchReport) -> None:
    text = "".join(report.json(out=url))
    try:
        put(join(url, REPORT), text.encode())
    except StorageError as error:
        warn(f"the report was not written: {error}")
