"""Fuse a whole data set so that nothing is lost, half-written or done twice, whatever happens.

The output folder carries its own history, ``ddfm_fast_batch.jsonl``: a line for the settings of
each run and a line for each picture with the hashes of its inputs and of the output file. A
picture is written in full to a staging folder, its line is appended, and then it is moved into
place. So a file in place always has its line, and a line whose file is absent or different means
that the work was cut off there and is to be done again. A pair counts as done when settings,
prior, both inputs and the output file are all what the line says.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import errno
import functools
import hashlib
import json
import os
import secrets
import shutil
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..images.files import (
    DEFAULT_MAX_PIXELS,
    SUFFIXES,
    ImageFileError,
    atomic_write_bytes,
    ensure_writable_dir,
    read_image,
    write_image,
)
from ..priors.checkpoint import file_sha256, weights_sha256
from ..runtime.memory import is_out_of_memory, pages_kept
from .jobs import SUFFIXES_16_BIT, same_depth
from .pairs import PairItem, image_size

if TYPE_CHECKING:
    from ..api import Fuser
    from ..priors.prior import Prior

MATHS_VERSION = 2
"""Raised whenever the same settings, prior and inputs give another picture: it redoes them."""

MANIFEST, REPORT, STAGING = "ddfm_fast_batch.jsonl", "ddfm_fast_report.json", ".ddfm_fast_staging"
DONE, SKIPPED, FAILED, PENDING = "done", "skipped", "failed", "pending"
STOPPED_BY_USER = "interrupted"

_EXPECTED = (ValueError, TypeError, OSError, RuntimeError, MemoryError)
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


@dataclasses.dataclass
class PairResult:
    """What became of a pair."""

    name: str
    status: str = PENDING
    """"done" in this run, "skipped" (done before), "failed", or "pending" (not reached)"""
    output: str | None = None
    error: str | None = None
    height: int | None = None
    width: int | None = None
    dtype: str | None = None
    seconds: float | None = None
    """of fusion, the pair's share of its batch"""


@dataclasses.dataclass
class BatchReport:
    """What a run did; ``results`` are in the order of the items."""

    out: Path
    settings: dict[str, Any]
    results: list[PairResult]
    seconds: float
    batch_size: int
    """most pairs at once: smaller than asked for if memory ran out"""
    stopped: str | None = None
    """why the run ended early, or None"""

    def count(self, status: str) -> int:
        return sum(result.status == status for result in self.results)

    @property
    def ok(self) -> bool:
        """Every pair has its picture, from this run or an earlier one."""
        return self.count(DONE) + self.count(SKIPPED) == len(self.results)

    def to_dict(self) -> dict[str, Any]:
        """JSON types: ``ok``, the counts, ``settings``, ``results``, …"""
        counts = {status: self.count(status) for status in (DONE, SKIPPED, FAILED, PENDING)}
        return {"ok": self.ok, **counts, **dataclasses.asdict(self), "out": str(self.out)}


class BatchInterrupted(KeyboardInterrupt):
    """Ctrl-C during a batch, after everything that was finished has been written: ``report``."""

    def __init__(self, report: BatchReport):
        super().__init__("the batch was interrupted; start it again to go on")
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
    redo: bool = False,
    progress: bool = False,
    on_error: Callable[[PairResult], None] | None = None,
) -> BatchReport:
    """Fuse every pair into ``out/NAME.format``; pairs that are done already are left alone.

    items: from :func:`ddfm_fast.datasets.pairs.find_pairs`; pairs of equal size share a batch.
    batch_size: most pairs at once (default: the fuser's, with its own care for memory); halved
    where memory runs out.
    format: "png", "tif", "jpg" or "bmp". 16-bit sources need one of the first two.
    workers: threads that read, and as many that write, while the fuser computes.
    max_pixels: of an input file, see :func:`ddfm_fast.images.files.read_image`.
    redo: fuse again what is done already. progress: bars with an estimate of the end, on stderr.
    on_error: told of each pair that fails, as it happens; the others go on.

    The report is also written to ``out/ddfm_fast_report.json``. A full disk ends the run, with
    the rest "pending". Raises ValueError or TypeError for arguments that are wrong, an output
    folder that cannot be written or that another run is writing to, and BatchInterrupted on
    Ctrl-C.
    """
    suffix = _checked_suffix(format)
    for name, value in (("batch_size", batch_size), ("workers", workers)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise TypeError(f"{name} is a {type(value).__name__}; expected an int")
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; expected at least 1")
    targets = _checked_targets(items, Path(out), suffix)
    ensure_writable_dir(out)
    settings = describe_settings(fuser, suffix)
    with Manifest(Path(out), settings) as manifest:
        run = _Run(
            manifest,
            fuser,
            targets,
            batch_size=batch_size,
            workers=workers,
            max_pixels=max_pixels,
            redo=redo,
            progress=progress,
            on_error=on_error,
        )
        report = run.run(list(items))
    _write_report(report)
    if report.stopped == STOPPED_BY_USER:
        raise BatchInterrupted(report)
    return report


def describe_settings(fuser: Fuser, suffix: str) -> dict[str, Any]:
    """Everything but the inputs that decides the bytes of an output file, as JSON types.

    A callable prior is known by its name only, having no weights to hash; change the name, or
    pass ``redo``, when its function changes.
    """
    prior = fuser.prior
    config = dataclasses.asdict(fuser.config)
    del config["summary"]
    return {
        "maths": MATHS_VERSION,
        "config": config,
        "part": fuser.part,
        "seed": fuser.seed,
        "color": fuser.color,
        "format": suffix,
        "prior": {
            "weights": _fingerprint(prior) or f"callable {prior.name}",
            "dtype": prior.precision,
            "multiple": prior.multiple,
            "noise_schedule": prior.noise_schedule,
            "num_train_timesteps": prior.num_train_timesteps,
            "rescale_timesteps": prior.rescale_timesteps,
        },
    }


class Manifest:
    """The history of an output folder; open in one process at a time."""

    def __init__(self, out: Path, settings: dict[str, Any]):
        self.out = out
        self.settings = settings
        self.key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        self._lock = threading.Lock()
        self._records: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Manifest:
        path = self.out / MANIFEST
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise ImageFileError(f"{path}: cannot be written ({error.strerror})") from error
        try:
            _lock_file(self._file, self.out)
            self._load(path)
        except BaseException as error:
            os.close(self._file)
            if not isinstance(error, OSError):
                raise
            raise ImageFileError(
                f"{path}: cannot be written ({error.strerror}); choose a folder that has room"
            ) from error
        return self

    def __exit__(self, *_) -> None:
        os.close(self._file)

    def _load(self, path: Path) -> None:
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        os.ftruncate(self._file, whole)  # what a crash left of a line that was being appended
        known_settings, unreadable = set(), 0
        for line in data[:whole].splitlines():
            try:
                record = json.loads(line)
                if "run" in record:
                    known_settings.add(record["run"])
                else:
                    record["files"] = [*record["inputs"], record["sha256"]]
                    self._records[record["name"]] = record
            except (ValueError, KeyError, TypeError):
                unreadable += 1
        if unreadable:
            warnings.warn(
                f"{path}: {unreadable} lines cannot be read; their pairs are done again",
                stacklevel=4,
            )
        if self.key not in known_settings:
            self._append({"run": self.key, "settings": self.settings})

    def is_done(self, item: PairItem, target: Path) -> dict[str, Any] | None:
        """The pair's line if settings, inputs and output are still what it says, else None."""
        record = self._records.get(item.name)
        if record is None or record.get("settings") != self.key:
            return None
        try:
            found = [*_input_hashes(item), file_sha256(target)]
        except OSError:
            return None
        return record if found == record["files"] else None

    def commit(self, item: PairItem, inputs: list[str], staged: Path, target: Path, facts) -> None:
        """Append the pair's line, then move the staged file into place."""
        record = {
            "name": item.name,
            "settings": self.key,
            "inputs": inputs,
            "output": target.relative_to(self.out).as_posix(),
            "sha256": file_sha256(staged),
            **facts,
        }
        self._append(record)
        os.replace(staged, target)

    def _append(self, record: dict[str, Any]) -> None:
        line = json.dumps(record).encode() + b"\n"
        with self._lock:
            end = os.fstat(self._file).st_size
            try:
                written = os.write(self._file, line)
                while written < len(line):
                    written += os.write(self._file, line[written:])
                os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, end)
                raise


@dataclasses.dataclass
class _Loaded:
    item: PairItem
    ir: np.ndarray
    vis: np.ndarray
    inputs: list[str]

    @property
    def pixels(self) -> int:
        return self.ir.shape[0] * self.ir.shape[1]


class _Run:
    """The state of one run. Results and the fuser belong to the main thread."""

    def __init__(
        self,
        manifest: Manifest,
        fuser: Fuser,
        targets: dict[str, Path],
        *,
        batch_size: int | None,
        workers: int,
        max_pixels: int,
        redo: bool,
        progress: bool,
        on_error: Callable[[PairResult], None] | None,
    ):
        self.manifest, self.targets = manifest, targets
        self.fuser = copy.copy(fuser)
        self.fuser.automatic_batch &= batch_size is None
        batch_size = batch_size or fuser.batch_size
        self.fuser.batch_size = self.batch_size = self.least_batch_size = batch_size
        self.workers, self.max_pixels, self.redo = workers, max_pixels, redo
        self.progress, self.on_error = progress, on_error
        self.staging = manifest.out / STAGING
        self.results: dict[str, PairResult] = {}
        self.writes: deque[Future[PairResult]] = deque()
        self.too_many_pixels = float("inf")
        self.stopped: str | None = None
        self.bar = None

    def run(self, items: list[PairItem]) -> BatchReport:
        started = time.perf_counter()
        shutil.rmtree(self.staging, ignore_errors=True)
        self.readers = ThreadPoolExecutor(self.workers, "ddfm-read")
        self.writers = ThreadPoolExecutor(self.workers, "ddfm-write")
        try:
            pending = self._pending(items)
            with pages_kept(self.fuser.device):
                self._work(pending)
        except KeyboardInterrupt:
            self.stopped = STOPPED_BY_USER
        finally:
            self.readers.shutdown(cancel_futures=True)
            self._collect(0)
            self.writers.shutdown()
            if self.bar is not None:
                self.bar.close()
            shutil.rmtree(self.staging, ignore_errors=True)
        return BatchReport(
            out=self.manifest.out,
            settings=self.manifest.settings,
            results=[self.results.get(item.name, PairResult(item.name)) for item in items],
            seconds=time.perf_counter() - started,
            batch_size=self.least_batch_size,
            stopped=self.stopped,
        )

    def _pending(self, items: list[PairItem]) -> list[PairItem]:
        """The items still to do, equal sizes together, in the order in which sizes first occur."""
        from tqdm import tqdm

        inspected = _prefetch(self.readers, self._inspect, items, 4 * self.workers)
        bar = tqdm(
            inspected, "checking", len(items), leave=False, unit="pair", disable=not self.progress
        )
        order: dict[Any, int] = {}
        pending = []
        for item, (result, size) in zip(items, bar, strict=True):
            if result is None:
                pending.append((order.setdefault(size, len(order)), item))
            else:
                self.results[item.name] = result
        return [item for _, item in sorted(pending, key=lambda found: found[0])]

    def _inspect(self, item: PairItem) -> tuple[PairResult | None, tuple[int, int] | None]:
        target = self.targets[item.name]
        record = None if self.redo else self.manifest.is_done(item, target)
        if record is None:
            return None, image_size(item.ir)
        facts = {key: record.get(key) for key in ("height", "width", "dtype", "seconds")}
        return PairResult(item.name, SKIPPED, str(target), **facts), None

    def _work(self, items: list[PairItem]) -> None:
        from tqdm import tqdm

        self.bar = tqdm(total=len(items), desc="pairs", unit="pair", disable=not self.progress)
        chunk: list[_Loaded] = []
        for loaded in _prefetch(self.readers, self._load, items, self.batch_size + self.workers):
            if self.stopped:
                return
            if isinstance(loaded, PairResult):
                self._record(loaded)
                continue
            if chunk and loaded.ir.shape[:2] != chunk[0].ir.shape[:2]:
                self._fuse(chunk)
                chunk = []
            chunk.append(loaded)
            if len(chunk) >= self._limit(loaded.pixels):
                self._fuse(chunk)
                chunk = []
        if chunk and not self.stopped:
            self._fuse(chunk)

    def _load(self, item: PairItem) -> _Loaded | PairResult:
        """In a reading thread."""
        try:
            # Before decoding: a file that changes meanwhile is then redone, never taken as done.
            inputs = _input_hashes(item)
            ir, vis = (read_image(p, max_pixels=self.max_pixels) for p in (item.ir, item.vis))
            if ir.shape[:2] != vis.shape[:2]:
                raise ValueError(
                    f"ir has {ir.shape[0]}x{ir.shape[1]} and vis {vis.shape[0]}x{vis.shape[1]}; "
                    "expected aligned images of equal size: register and resize them first"
                )
            ir, vis = same_depth(ir, vis)
            target = self.targets[item.name]
            if ir.dtype == np.uint16 and target.suffix not in SUFFIXES_16_BIT:
                raise ValueError(
                    f"output {target.name} would lose the 16 bits of the input; write png or tif"
                )
            return _Loaded(item, ir, vis, inputs)
        except _EXPECTED as error:
            return _failure(item, error)

    def _limit(self, pixels: int) -> int:
        """Most images of that many pixels at once, after what memory has refused so far."""
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
                self._record(failure)
            elif no_memory:
                self._shrink(part)
                pairs = part + pairs
            else:  # one of them is at fault: alone each shows which
                for pair in part:
                    self._fuse([pair])

    def _attempt(self, part: list[_Loaded]) -> tuple[PairResult | None, bool]:
        """(None, False), or the failure and whether it was for want of memory."""
        started = time.perf_counter()
        try:
            fused = self.fuser(
                [pair.ir for pair in part], [pair.vis for pair in part], progress=self.progress
            )
        except _EXPECTED as error:
            no_memory = is_out_of_memory(error)
            if os.environ.get("DDFM_FAST_DEBUG") and not no_memory:
                raise
            return _failure(part[0].item, error), no_memory
        seconds = (time.perf_counter() - started) / len(part)
        for pair, picture in zip(part, fused, strict=True):
            self.writes.append(self.writers.submit(self._write, pair, picture, seconds))
        self._collect(2 * self.batch_size + self.workers)
        return None, False

    def _shrink(self, part: list[_Loaded]) -> None:
        self.too_many_pixels = len(part) * part[0].pixels
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        height, width = part[0].ir.shape[:2]
        self.least_batch_size = min(self.least_batch_size, self._limit(part[0].pixels))
        warnings.warn(
            f"memory ran out with {len(part)} images of {height}x{width} at once; "
            f"going on with {self._limit(part[0].pixels)}",
            stacklevel=2,
        )

    def _write(self, pair: _Loaded, picture: np.ndarray, seconds: float) -> PairResult:
        """In a writing thread."""
        target = self.targets[pair.item.name]
        staged = self.staging / f"{secrets.token_hex(8)}{target.suffix}"
        height, width = picture.shape[:2]
        facts = {"height": height, "width": width, "dtype": str(picture.dtype), "seconds": seconds}
        try:
            write_image(staged, picture)
            target.parent.mkdir(parents=True, exist_ok=True)
            self.manifest.commit(pair.item, pair.inputs, staged, target, facts)
        except _EXPECTED as error:
            if no_room := _no_room(error):
                self.stopped = f"{self.manifest.out}: {no_room}"
            return _failure(pair.item, error)
        finally:
            with contextlib.suppress(OSError):
                staged.unlink()
        return PairResult(pair.item.name, DONE, str(target), **facts)

    def _collect(self, most: int) -> None:
        """Record finished writes; wait until at most that many are under way."""
        while self.writes and (len(self.writes) > most or self.writes[0].done()):
            self._record(self.writes[0].result())
            self.writes.popleft()

    def _record(self, result: PairResult) -> None:
        if result.name in self.results:
            return
        self.results[result.name] = result
        self.bar.update()
        if result.status == FAILED and self.on_error is not None:
            with self.bar.external_write_mode():
                self.on_error(result)


def _prefetch(pool: ThreadPoolExecutor, function, items: Iterable, ahead: int) -> Iterator:
    """``function(item)`` of each item in order, at most ``ahead`` of them in the background."""
    waiting: deque[Future] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _input_hashes(item: PairItem) -> list[str]:
    """sha256 of both files; "" for what is no file, which reading then refuses in plain words."""
    return [file_sha256(path) if path.is_file() else "" for path in (item.ir, item.vis)]


def _failure(item: PairItem, error: BaseException) -> PairResult:
    text = str(error) or type(error).__name__
    if is_out_of_memory(error):
        text = f"memory ran out even for this pair alone ({text.splitlines()[0]})"
    return PairResult(item.name, FAILED, error=text)


def _no_room(error: BaseException | None) -> str | None:
    """What the system says, if the error comes from a disk that takes no more from anyone."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            return error.strerror
        error = error.__cause__
    return None


def _fingerprint(prior: Prior) -> str:
    module = getattr(prior, "function", None)
    if not prior.fingerprint and isinstance(module, torch.nn.Module):
        return weights_sha256(module.state_dict())
    return prior.fingerprint


def _lock_file(file: int, out: Path) -> None:
    """Keep a second run out of the folder; the lock ends with the process, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ImageFileError(
            f"{out}: another run is writing there; wait for it, or choose another --out"
        ) from None
    except OSError:  # file systems that have no locks
        return


def _checked_suffix(format: str) -> str:
    suffix = "." + str(format).lower().lstrip(".")
    if suffix not in SUFFIXES:
        names = ", ".join(s.lstrip(".") for s in SUFFIXES)
        raise ValueError(f"format is {format!r}; expected one of {names}")
    return suffix


def _checked_targets(items: Sequence[PairItem], out: Path, suffix: str) -> dict[str, Path]:
    """Name → output path, none of which is an input, a folder, or another pair's output."""
    if not items:
        raise ValueError("items is empty; expected at least one pair")
    real_folder = functools.lru_cache(maxsize=None)(os.path.realpath)
    targets = {item.name: out / f"{item.name}{suffix}" for item in items}
    if len(targets) < len(items):
        raise ValueError(
            f"items: {len(items)} pairs have {len(targets)} names; expected unique names"
        )
    inputs = {(real_folder(p.parent), p.name) for item in items for p in (item.ir, item.vis)}
    for target in targets.values():
        if (real_folder(target.parent), target.name) in inputs:
            raise ValueError(f"output {target} would replace an input; choose another --out")
        if target.is_dir():
            raise ValueError(f"output {target} is a folder; choose another --out")
    return targets


def _write_report(report: BatchReport) -> None:
    text = json.dumps(report.to_dict(), indent=1) + "\n"
    try:
        atomic_write_bytes(report.out / REPORT, text.encode())
    except ImageFileError as error:
        warnings.warn(f"the report was not written: {error}", stacklevel=3)
