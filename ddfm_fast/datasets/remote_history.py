"""The history of what lies below a URL: what each picture was made from, in parts.

Objects cannot be appended to, so the history is in parts, objects of their own that are written
once in ``ddfm_fast_history/``. A part has a line for each picture of a portion. Whoever has put
these pictures puts it right after them, be it this process or a worker of a cluster, so that it is
lost with neither. A picture without a line, or other than its line says, is made again.

A run that ends, or that finds very many parts, merges them: it puts the lines that it has read as
one part, and then deletes the parts that this one replaces. The new part names them. Where they
stay, after a kill or for lack of the right to delete, nobody reads them again. Of two lines for
one picture the later counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from ..images.doubts import warn
from ..storage.objects import Object, listing, look, put, read, remove
from ..storage.trouble import StorageError
from ..storage.urls import join
from .items import PairItem

HISTORY = "ddfm_fast_history"
MANY = 300
"""parts above which a run merges them before it begins"""
LARGEST = 8 << 20
"""bytes from which on a part stays as it is"""
THREADS = 16
"""that read or delete parts at once"""
_LOOKS = 5
"""listings at most, where other runs merge what is to be read"""
_PART = re.compile(r"(\d{20})-[0-9a-f]{8}(-merged)?\.jsonl")
_REPLACES = "replaces"

Record = dict[str, Any]


class PartWriter(NamedTuple):
    """What puts the parts of a run, in this process or in workers."""

    url: str
    """the prefix of the pictures"""
    key: str
    """of the settings that they are made with"""
    after: int
    """stamp of the last part before the run: its own are later, whatever a worker's clock says"""

    def put(self, records: Sequence[Record]) -> None:
        """Put a part.

        Args:
            records: Of each picture ``name``, ``inputs``, ``size``, ``version`` and facts.

        Raises:
            StorageError: It cannot be written.
        """
        lines = "".join(json.dumps({"settings": self.key, **one}) + "\n" for one in records)
        put(_place(self.url, _new_name(self.after)), lines.encode())


class RemoteHistory:
    """The history as a run finds it when it begins.

    Args:
        url: The prefix of the pictures.
        settings: Of the run.
        suffix: Of the pictures.

    Attributes:
        writer: What puts the parts of the run.

    Raises:
        StorageError: It cannot be listed or read.
    """

    def __init__(self, url: str, settings: dict[str, Any], suffix: str):
        self.url, self.suffix = url, suffix
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        self.records: dict[str, Record] = {}
        self._replaces: dict[str, list[str]] = {}
        """merged part → the parts that it replaces"""
        found = self._load()
        self.there = {name: one.state for name, one in found.items()}
        last = max(map(_stamp, _sizes(found, f"{HISTORY}/")), default=0)
        self.writer = PartWriter(url, key, last)

    def _load(self) -> dict[str, Object]:
        """Read all parts; return the listing that they belong to."""
        found = listing(self.url)
        if len(_sizes(found, f"{HISTORY}/")) > MANY:
            self.merge(MANY)
            found = listing(self.url)
        known: set[str] = set()
        for _ in range(_LOOKS):
            names = _sizes(found, f"{HISTORY}/").keys() - known
            if not self._take(names):
                break
            known |= names
            found = listing(self.url)
        return found

    def _take(self, names: Iterable[str]) -> bool:
        """Read parts, first those that replace others; return whether one is not there any more."""
        merged = {name for name in names if _is_merged(name)}
        gone = False
        for some in (merged, {*names} - merged):
            for part in self._read(sorted(some - self._replaced())):
                if part is None:
                    gone = True
                    continue
                _keep_later(self.records, part.records)
                if not part.is_whole:
                    warn(f"{self.url}: a line of the history cannot be read; its pair is redone")
        return gone

    def _read(self, names: Sequence[str]) -> Iterator[_Part | None]:
        """Yield parts, None for one that is not there any more."""
        with ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, len(names), 4 * THREADS):
                some = names[start : start + 4 * THREADS]
                for part in pool.map(lambda name: _read_part(self.url, name), some):
                    if part is not None and part.is_whole and part.replaces:
                        self._replaces[part.name] = part.replaces
                    yield part

    def _replaced(self) -> set[str]:
        return {name for names in self._replaces.values() for name in names}

    def name(self, item: PairItem) -> str:
        """Return the name of a pair's picture below the prefix."""
        return f"{item.name}{self.suffix}"

    def is_done(self, item: PairItem, inputs: list[str]) -> Record | None:
        """Return the pair's line if settings, inputs and output are what it says, else None."""
        record, there = self.records.get(item.name), self.there.get(self.name(item))
        if record is None or there is None or record.get("settings") != self.writer.key:
            return None
        size, version = str(record.get("size")), record.get("version")
        same = there == f"{size} {version}" if version else there.split(" ")[0] == size
        return record if same and record.get("inputs") == inputs else None

    def merge(self, least: int = 2) -> None:
        """Merge small parts where there are at least so many; what prevents it is no error.

        Without the right to delete, only what is in no merged part yet is merged, and not before
        it is `MANY` parts: the objects that stay would be more each time.
        """
        with contextlib.suppress(StorageError):
            sizes = _sizes(listing(join(self.url, HISTORY)))
            for _ in self._read([n for n in sizes if _is_merged(n) and n not in self._replaces]):
                pass
            replaced = self._replaced()
            can_delete = self._remove(sorted(replaced & sizes.keys()))
            small = [
                name
                for name, size in sorted(sizes.items())
                if name not in replaced and size < LARGEST and (can_delete or not _is_merged(name))
            ]
            if len(small) < (least if can_delete else MANY):
                return
            for group in _groups(small, sizes):
                self._merge(group)

    def _merge(self, names: list[str]) -> None:
        """Put one part in the place of these; those that are damaged stay."""
        latest: dict[str, Record] = {}
        done: list[str] = []
        for part in self._read(names):
            if part is not None and part.is_whole:
                done.append(part.name)
                _keep_later(latest, part.records)
        if len(done) < 2:
            return
        lines = [json.dumps(one) + "\n" for one in ({_REPLACES: done}, *latest.values())]
        name = _new_name(_stamp(done[-1]), merged=True)
        put(_place(self.url, name), "".join(lines).encode())
        self._replaces[name] = done
        self._remove(done)

    def _remove(self, names: list[str]) -> bool:
        """Delete parts that another one replaces; return whether that is allowed."""

        def attempt(name: str) -> bool:
            try:
                remove(_place(self.url, name))
            except StorageError:
                return False
            return True

        if not names:
            return True
        with ThreadPoolExecutor(THREADS) as pool:
            return attempt(names[0]) and all(pool.map(attempt, names[1:]))


class _Part(NamedTuple):
    name: str
    records: list[Record]
    replaces: list[str]
    is_whole: bool
    """whether all of its lines could be read"""


def _read_part(url: str, name: str) -> _Part | None:
    """Read a part; None if it is not there any more."""
    try:
        data = read(_place(url, name))
    except StorageError:
        if look(_place(url, name)) is None:
            return None
        raise
    records: list[Record] = []
    replaces: list[str] = []
    is_whole = True
    for line in data.splitlines():
        try:
            record = json.loads(line)
            if _REPLACES in record:
                replaces += map(str, record[_REPLACES])
            else:
                stamps = {"name": str(record["name"]), "at": int(record.get("at", _stamp(name)))}
                records.append({**record, **stamps})
        except (ValueError, KeyError, TypeError, AttributeError):
            is_whole = False
    return _Part(name, records, replaces, is_whole)


def _keep_later(records: dict[str, Record], more: Iterable[Record]) -> None:
    for record in more:
        known = records.get(record["name"])
        if known is None or record["at"] >= known["at"]:
            records[record["name"]] = record


def _groups(names: Iterable[str], sizes: dict[str, int]) -> Iterator[list[str]]:
    """Yield as many parts at a time as make one that is not small."""
    group: list[str] = []
    total = 0
    for name in names:
        group.append(name)
        total += sizes[name]
        if total >= LARGEST:
            yield group
            group, total = [], 0
    yield group


def _sizes(found: dict[str, Object], prefix: str = "") -> dict[str, int]:
    """Return the parts in a listing, and their sizes in bytes."""
    names = {n.removeprefix(prefix): one.size for n, one in found.items() if n.startswith(prefix)}
    return {name: size for name, size in names.items() if _PART.fullmatch(name)}


def _new_name(after: int, *, merged: bool = False) -> str:
    stamp = max(time.time_ns(), after + 1)
    return f"{stamp:020d}-{secrets.token_hex(4)}{'-merged' * merged}.jsonl"


def _is_merged(name: str) -> bool:
    return name.endswith("-merged.jsonl")


def _stamp(name: str) -> int:
    return int(name[:20])


def _place(url: str, name: str) -> str:
    return join(join(url, HISTORY), name)
