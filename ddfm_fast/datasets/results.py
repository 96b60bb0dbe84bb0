"""The outcomes of a batch's pairs: each alone, all of them, and as JSON.

For pairs that are done, only the place of their line in the history is kept, so that a million of
them take little memory; a result is read on demand.
"""

from __future__ import annotations

import dataclasses
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np

from ..files.paths import ImageFileError
from .history import HISTORY_FILE, as_record, read_lines
from .items import PairItem
from .targets import Targets

DONE, SKIPPED, FAILED, PENDING = "done", "skipped", "failed", "pending"
KEPT = ("height", "width", "dtype", "range", "seconds", "report")
"""facts of a result that the history has"""
AT_ONCE = 128
"""results whose lines are read together"""
_text = json.JSONEncoder().encode
_STATE = b', "state": ['
"""what precedes the facts in a line of the history; inside a text its quotes would be escaped"""


@dataclasses.dataclass
class PairResult:
    """The outcome of a pair."""

    name: str
    status: str = PENDING
    """"done" in this run, "skipped" (done before), "failed", or "pending" (not reached)"""
    output: str | None = None
    error: str | None = None
    height: int | None = None
    width: int | None = None
    dtype: str | None = None
    range: list[float] | None = None
    """the values of black and white"""
    seconds: float | None = None
    """fusion time, as the pair's share of its batch"""
    report: dict[str, Any] | None = None
    """what was found in the sources and done about it: ``FusionReport.to_dict``"""


class Results(Sequence[PairResult]):
    """The results of a run, in the order of its items, read from its history.

    Args:
        items: The pairs.
        skipped: For each item, where the line of an earlier run begins; −1 without one.
        reached: Name → the result of a pair, or where its line begins.
        targets: Where the pictures are.
    """

    def __init__(
        self,
        items: Sequence[PairItem],
        skipped: array[int],
        reached: Mapping[str, PairResult | int],
        targets: Targets,
    ):
        self._items, self._skipped, self._reached = items, skipped, reached
        self._targets = targets

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> PairResult: ...

    @overload
    def __getitem__(self, index: slice) -> list[PairResult]: ...

    def __getitem__(self, index: int | slice) -> PairResult | list[PairResult]:
        chosen = range(len(self))[index]
        if isinstance(chosen, range):
            return list(self._read(chosen))
        return next(self._read([chosen]))

    def __iter__(self) -> Iterator[PairResult]:
        return self._read(range(len(self)))

    def _read(self, chosen: Sequence[int]) -> Iterator[PairResult]:
        with self._history() as history:
            for n in chosen:
                name = self._items[n].name
                found = self._reached.get(name, -1)
                status = SKIPPED if found == -1 else DONE
                at = self._skipped[n] if found == -1 else found
                if isinstance(at, PairResult):
                    yield at
                elif at < 0:
                    yield PairResult(name)
                else:
                    record = as_record(*read_lines(history, [at])) or {}
                    facts = {key: record.get(key) for key in KEPT}
                    yield PairResult(name, status, self._targets.text(name), **facts)

    def _history(self) -> BinaryIO:
        path = self._targets.out / HISTORY_FILE
        try:
            return path.open("rb")
        except OSError as error:
            raise ImageFileError(f"{path}: cannot be read ({error.strerror})") from error

    def json(self) -> Iterator[str]:
        """Yield each result as JSON, with facts as in the history: nothing is parsed."""
        with self._history() as history:
            for start in range(0, len(self), AT_ONCE):
                chosen = range(start, min(start + AT_ONCE, len(self)))
                names = [self._items[n].name for n in chosen]
                found = [self._reached.get(name, -1) for name in names]
                places = [
                    self._skipped[n] if one == -1 else one
                    for n, one in zip(chosen, found, strict=True)
                ]
                known = [None if isinstance(at, PairResult) or at < 0 else at for at in places]
                lines = read_lines(history, known)
                for n, name, one, line in zip(chosen, names, found, lines, strict=True):
                    status = SKIPPED if one == -1 else DONE
                    yield self._as_json(name, status, line) or json.dumps(vars(self[n]))

    def _as_json(self, name: str, status: str, line: bytes) -> str | None:
        """Return a result by the text of its line; None where that has no facts."""
        start = line.find(b'], "height": ', line.find(_STATE))
        if not line.startswith(b'{"name": ') or _STATE not in line or start < 0:
            return None
        output = _text(self._targets.text(name))
        facts = line[start + 3 :].decode().rstrip("\n")
        head = f'{{"name": {_text(name)}, "status": "{status}", "output": {output}'
        return f'{head}, "error": null, {facts}'

    def count(self, value: Any) -> int:
        """Count the results with a status, without reading them; or those equal to a result."""
        if not isinstance(value, str):
            return super().count(value)
        own = sum(
            isinstance(one, PairResult) and one.status == value for one in self._reached.values()
        )
        done = sum(not isinstance(one, PairResult) for one in self._reached.values())
        skipped = int((np.frombuffer(self._skipped, np.int64) >= 0).sum())
        if value == PENDING:
            return own + len(self) - len(self._reached) - skipped
        return own + {DONE: done, SKIPPED: skipped}.get(value, 0)


@dataclasses.dataclass
class BatchReport:
    """What a run did; ``results`` are in the order of the items."""

    out: Path
    settings: dict[str, Any]
    results: Sequence[PairResult]
    seconds: float
    batch_size: int
    """most pairs at once: smaller than requested if memory ran out"""
    stopped: str | None = None
    """why the run ended early, or None"""

    def count(self, status: str) -> int:
        if isinstance(self.results, Results):
            return self.results.count(status)
        return sum(result.status == status for result in self.results)

    @property
    def ok(self) -> bool:
        """Whether every pair has its picture, from this run or an earlier one."""
        return self.count(DONE) + self.count(SKIPPED) == len(self.results)

    def head(self) -> dict[str, Any]:
        """Return ``ok``, the counts, ``settings`` and so on as JSON types: all but the results."""
        counts = {status: self.count(status) for status in (DONE, SKIPPED, FAILED, PENDING)}
        names = "settings", "seconds", "batch_size", "stopped"
        return {
            "ok": self.ok,
            **counts,
            "out": str(self.out),
            **{name: getattr(self, name) for name in names},
        }

    def to_dict(self) -> dict[str, Any]:
        """Return ``ok``, the counts, ``settings``, ``results``, … as JSON types."""
        return {**self.head(), "results": [dataclasses.asdict(result) for result in self.results]}

    def json(self, **changed: Any) -> Iterator[str]:
        """Yield the same as JSON in pieces, one line per pair, with some values changed."""
        yield json.dumps({**self.head(), **changed})[:-1] + ', "results": ['
        results = self.results
        if isinstance(results, Results):
            texts = results.json()
        else:
            texts = (json.dumps(vars(one)) for one in results)
        for n, text in enumerate(texts):
            yield ("," if n else "") + "\n" + text
        yield "\n]}\n"
