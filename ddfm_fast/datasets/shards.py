"""Shards of pairs, Parquet files and tars, fused into shards: safe to interrupt.

A shard is processed in portions, each fused by `run_batch` into its own folder beside the output,
with a history: after an interruption, a run reads the shard again and fuses only what is missing.
The output appears when it is whole; ``OUT.ddfm_fast.json`` tells what it was made from, so that a
later run can leave it alone. A row that fails is written with its error.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ..align.call import Aligner
from ..files.depth import Levels
from ..files.paths import ImageFileError, atomic_write_bytes, ensure_writable_dir, is_picture
from ..priors.state_dict import file_sha256
from ..storage import objects
from ..storage.staging import Stage
from ..storage.urls import as_url, join, name_of
from .batch import STOPPED_BY_USER, BatchInterrupted, run_batch
from .history import describe_settings
from .items import PairItem
from .output import Output
from .results import DONE, FAILED, PENDING, SKIPPED, PairResult
from .shard_files import Portion, Row, count, is_shard, paths_in, portions, sink, suffix_of

if TYPE_CHECKING:
    from ..api import Fuser

RECORD = ".ddfm_fast.json"
"""end of the name of an output's record"""
_ERRORS = 100
"""most failed rows that the record names"""

Place = str | os.PathLike[str]


@dataclasses.dataclass
class ShardResult:
    """The outcome of a shard."""

    source: str
    output: str
    status: str = PENDING
    """as for a pair; a "failed" shard could not be read, and has no output"""
    done: int = 0
    """rows with a picture"""
    failed: int = 0
    """rows with an error"""
    error: str | None = None
    errors: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """the first failed rows"""


@dataclasses.dataclass
class ShardsReport:
    """What a run did."""

    out: str
    shards: list[ShardResult]
    seconds: float
    stopped: str | None = None

    @property
    def ok(self) -> bool:
        """Whether every row has its picture."""
        return all(one.status in (DONE, SKIPPED) and not one.failed for one in self.shards)

    def count(self, status: str) -> int:
        return sum(one.status == status for one in self.shards)

    def to_dict(self) -> dict[str, Any]:
        """Return ``ok``, the counts and the shards as JSON types."""
        counts = {status: self.count(status) for status in (DONE, SKIPPED, FAILED, PENDING)}
        return {"ok": self.ok, **counts, **dataclasses.asdict(self)}


def are_shards(place: Place) -> bool:
    """Return whether a source is a shard, a pattern ("a/*.tar"), or a local folder of shards.

    The prefix of a URL is one only if it ends in such a pattern.
    """
    url = as_url(place)
    path = Path(name_of(url) if url else place)
    if is_shard(path):
        return True
    if url or not path.is_dir():
        return False
    with os.scandir(path) as entries:
        names = [Path(one.name) for one in entries if not one.name.startswith(".")]
    pictures = any(is_picture(name) or (path / name).is_dir() for name in names)
    return not pictures and any(map(is_shard, names))


def find_shards(stage: Stage, place: Place) -> list[Path]:
    """Return the files that a source means, by name; the stage fills those of URLs later.

    Raises:
        ImageFileError: There are none.
    """
    url = as_url(place)
    if url is None:
        path = Path(place)
        if path.is_dir():
            found = [one for one in path.iterdir() if is_shard(one)]
        elif "*" in path.name:
            found = [one for one in path.parent.glob(path.name) if is_shard(one)]
        else:
            found = [path] if path.is_file() else []
    elif "*" in name_of(url):
        above, pattern = url.removesuffix(name_of(url)), name_of(url)
        folder = stage.source(above, is_shard)
        found = [one for one in folder.glob(pattern) if is_shard(one)]
    else:
        found = [stage.source(url, is_shard)]
    if not found:
        raise ImageFileError(f"{place}: there is no such shard; check the name")
    return sorted(found)


def fuse_shards(
    place: Place,
    out: Place,
    fuser: Fuser,
    *,
    format: str = "png",
    levels: Levels | None = None,
    output: Output | None = None,
    resize: str | None = None,
    redo: bool = False,
    progress: bool = False,
    on_error: Callable[[PairResult], None] | None = None,
    **options: Any,
) -> ShardsReport:
    """Fuse every pair of shards into shards with a picture or an error for each row, in order.

    Args:
        place: A shard, a pattern of them, a folder, or a URL of one.
        out: For one shard, a name that ends like a shard's; else a folder, in which each keeps its
            name. It may be a URL.
        fuser: What fuses them.
        format: Format of the pictures.
        levels: What the values of the pictures mean.
        output: How pictures are encoded.
        resize: As `run_batch` takes it.
        redo: Fuse again what is already done.
        progress: Show a bar on stderr.
        on_error: Called with each row, and each shard, that fails.
        **options: Options of `run_batch`: ``batch_size``, ``workers``, ``max_pixels``.

    Raises:
        ValueError: A source is not a shard, or an output cannot be written.
        ImportError: pyarrow is missing.
    """
    output, levels = output or Output(), levels or Levels()
    if output.panel:
        raise ValueError("--panel is for folders of pictures; leave it out with shards")
    output.check([f".{format.lower().lstrip('.')}"])
    started = time.perf_counter()
    shown = {"format": format, "levels": levels, "output": output, "resize": resize}
    settings = describe_settings(fuser, f".{format.lower().lstrip('.')}")
    settings |= levels.to_dict() | output.to_dict()
    settings |= Aligner(fuser.align, resize).to_dict()
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    with Stage() as stage:
        found = find_shards(stage, place)
        run = _Run(stage, fuser, key, {**options, **shown}, redo, on_error, progress)
        run.alone = len(found) == 1
        plan = _outputs(stage, found, out)
        results = [ShardResult(stage.url_of(path), target) for path, target in plan]
        for (path, target), result in zip(plan, results, strict=True):
            if run.stopped is None:
                run.shard(path, target, result)
    seconds = time.perf_counter() - started
    return ShardsReport(str(as_url(out) or out), results, seconds, run.stopped)


def _outputs(stage: Stage, found: Sequence[Path], out: Place) -> list[tuple[Path, str]]:
    """Return each shard and its output, a path or a URL."""
    url = as_url(out)
    if url is not None:
        objects.check_writable(url)
    if suffix_of(Path(name_of(url) if url else out)):
        if len(found) > 1:
            raise ValueError(
                f"--out is {out}, one file, and there are {len(found)} shards; give a folder"
            )
        targets = [url or str(out)]
    else:
        targets = [join(url, one.name) if url else str(Path(out) / one.name) for one in found]
    for path, target in zip(found, targets, strict=True):
        if target == stage.url_of(path) or os.path.realpath(path) == os.path.realpath(target):
            raise ValueError(f"output {target} would replace an input; choose another --out")
        if url is None:
            ensure_writable_dir(Path(target).parent)
    return list(zip(found, targets, strict=True))


class _Stopped(Exception):
    """The run ends early, for this reason."""


@dataclasses.dataclass
class _Run:
    stage: Stage
    fuser: Fuser
    key: str
    options: dict[str, Any]
    redo: bool
    on_error: Callable[[PairResult], None] | None
    progress: bool
    alone: bool = False
    """whether there is only one shard, whose failure is the run's"""
    stopped: str | None = None

    def shard(self, path: Path, target: str, result: ShardResult) -> None:
        """Fuse a shard, unless it is done, and put the outcome into ``result``."""
        try:
            source = self._source(path)
            if self._is_done(target, source, result):
                return
            with self._written(target) as file:
                self._fuse(path, target, file, result)
            self._record(target, source, result)
            if as_url(target) is None:
                shutil.rmtree(_work(target), ignore_errors=True)
        except KeyboardInterrupt:
            self._stop(result, STOPPED_BY_USER)
        except _Stopped as stopped:
            self._stop(result, str(stopped))
        except (ValueError, OSError) as error:
            result.status, result.error = FAILED, self.stage.text(str(error))
            result.done = result.failed = 0
            if self.alone or getattr(error, "is_common", False):
                raise ImageFileError(result.error) from error
            self._tell(result.source, result.error)
        finally:
            self.stage.drop([path])

    def _stop(self, result: ShardResult, why: str) -> None:
        self.stopped, result.status, result.done, result.failed = why, PENDING, 0, 0

    def _source(self, path: Path) -> dict[str, Any]:
        """Return what tells whether a shard has changed; fetch it if it is behind a URL."""
        if path in self.stage.objects:
            state = self.stage.state(path)
            return {"state": state or secrets.token_hex(8)}
        files = hashlib.sha256()
        for one in paths_in(path):
            with suppress(OSError):
                facts = one.stat()
                files.update(f"{one}\0{facts.st_size} {facts.st_mtime_ns}\0".encode())
        return {"sha256": file_sha256(path), "files": files.hexdigest()}

    def _is_done(self, target: str, source: dict[str, Any], result: ShardResult) -> bool:
        try:
            url = as_url(target)
            if url is None:
                text, size = Path(target + RECORD).read_bytes(), Path(target).stat().st_size
            else:
                there = objects.look(url)
                text, size = objects.read(url + RECORD), there.size if there else -1
            known = json.loads(text)
        except (OSError, ValueError):
            return False
        wanted = {"settings": self.key, "made_from": source, "size": size}
        if self.redo or known.get("failed") or any(known.get(k) != v for k, v in wanted.items()):
            return False
        result.status, result.done = SKIPPED, known.get("done", 0)
        return True

    @contextmanager
    def _written(self, target: str) -> Iterator[Path]:
        """Yield a file to write, which becomes the target at the end, or is removed on failure."""
        url = as_url(target)
        # if a killed run leaves the folder, the next one removes it
        folder = _work(target) if url is None else self.stage.folder
        folder.mkdir(exist_ok=True)
        file = folder / f".{secrets.token_hex(8)}.tmp"
        try:
            yield file
            if url is None:
                with file.open("rb+") as whole:
                    os.fsync(whole.fileno())
                os.replace(file, target)
            else:
                objects.put_file(url, file)
        finally:
            file.unlink(missing_ok=True)
            if url is None:
                with suppress(OSError):  # it still has pictures
                    folder.rmdir()

    def _record(self, target: str, source: dict[str, Any], result: ShardResult) -> None:
        url = as_url(target)
        size = (objects.look(url) or objects.Object(url)).size if url else os.stat(target).st_size
        result.status = DONE
        facts = {"settings": self.key, "made_from": source, "size": size}
        text = json.dumps({**facts, **dataclasses.asdict(result)}, indent=1) + "\n"
        if url is None:
            atomic_write_bytes(target + RECORD, text.encode())
        else:
            objects.put(url + RECORD, text.encode())

    def _fuse(self, path: Path, target: str, file: Path, result: ShardResult) -> None:
        if failures := self.stage.fill([path]):
            raise failures[path]
        local = as_url(target) is None
        work = _work(target) if local else self.stage.folder / f"work-{secrets.token_hex(4)}"
        written = sink(file, suffix_of(Path(name_of(target) if not local else target)))
        with (
            tempfile.TemporaryDirectory(prefix="ddfm_fast_") as folder,
            tqdm(total=count(path), desc=path.name, unit="pair", disable=not self.progress) as bar,
        ):
            try:
                for portion in portions(path, Path(folder)):
                    pictures = work / f"{portion.rows[0].index:08d}"
                    found = self._portion(portion, pictures)
                    written.write(portion, found)
                    self._count(portion, found, result)
                    for one in Path(folder).iterdir():
                        one.unlink()
                    if not local:
                        shutil.rmtree(pictures, ignore_errors=True)
                    bar.update(len(portion.rows))
            finally:
                written.close()

    def _portion(self, portion: Portion, out: Path) -> list[tuple[Path | None, str]]:
        """Fuse the rows of a portion; return each one's picture, or what failed."""
        items = [
            PairItem(f"{row.index:08d}", row.ir, row.vis)
            for row in portion.rows
            if row.ir is not None and row.vis is not None and not row.error
        ]
        results: dict[str, PairResult] = {}
        if items:
            try:
                report = run_batch(items, out, self.fuser, **self.options)
            except BatchInterrupted:
                raise KeyboardInterrupt from None
            if report.stopped is not None:
                raise _Stopped(report.stopped)
            results = {one.name: one for one in report.results}
        found: list[tuple[Path | None, str]] = []
        for row in portion.rows:
            one = results.get(f"{row.index:08d}")
            if one is not None and one.output is not None and one.error is None:
                found.append((Path(one.output), ""))
            else:
                found.append((None, _named(row, row.error or (one and one.error) or "not fused")))
        return found

    def _count(
        self, portion: Portion, found: list[tuple[Path | None, str]], result: ShardResult
    ) -> None:
        for row, (picture, error) in zip(portion.rows, found, strict=True):
            if picture is not None:
                result.done += 1
                continue
            result.failed += 1
            if len(result.errors) < _ERRORS:
                result.errors.append({"row": row.index, "key": row.key, "error": error})
            self._tell(f"{result.source}: {row.key}", error)

    def _tell(self, name: str, error: str) -> None:
        if self.on_error is not None:
            with tqdm.external_write_mode():
                self.on_error(PairResult(name, FAILED, error=error))


def _work(target: str) -> Path:
    """Return the folder beside an output that holds its pictures until it is whole."""
    path = Path(target)
    return path.with_name(f".{path.name}.ddfm_fast_parts")


def _named(row: Row, error: str) -> str:
    """Return an error without the names of temporary files, which are gone when it is read."""
    for source in ("ir", "vis"):
        file = getattr(row, source)
        if file is not None and file.name.startswith(f"{row.index:08d}.{source}"):
            error = error.replace(str(file), source)
    return error
