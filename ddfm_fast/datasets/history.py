"""The history of an output folder: what each of its pictures was made from, line by line.

``ddfm_fast_batch.jsonl`` has a line for the settings of each run and a line for each picture with
the hashes of its inputs and of the output file. A picture is written in full to a staging folder,
its line is appended, and then it is moved into place. So a file in place always has its line, and a
line whose file is missing or different means that the work was cut off there and must be redone. A
pair counts as done if settings, prior, both inputs and the output file are all as the line says: by
size and times and, if one of these differs, by hash.

Of a million lines only an index is kept: where each name's last line begins.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import stat
import threading
import time
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import torch

from ..files.paths import ImageFileError, is_file
from ..images.doubts import warn
from ..priors.state_dict import file_sha256, weights_sha256
from ..runtime.own_files import open_own
from .items import PairItem

if TYPE_CHECKING:
    from ..api import Fuser
    from ..priors.prior import Prior

HISTORY_FILE = "ddfm_fast_batch.jsonl"

_BEGINS = re.compile(rb'\{"name": ("(?:[^"\\\\]|\\\\.)*"), ')
"""how a picture's line begins, as this program writes it"""
_BLOCK = 4 << 20
"""bytes of a history that are read at once, at most"""
_text = json.JSONEncoder().encode
_RECENT = 2_000_000_000
"""nanoseconds within which a file may change once more and keep its times"""

MATHS_VERSION = 2
"""raised whenever the same settings, prior and inputs give another picture, which redoes them"""


def describe_settings(fuser: Fuser, suffix: str) -> dict[str, Any]:
    """Collect everything but the inputs that decides the bytes of an output file, as JSON types.

    A callable prior is known by its name only, having no weights to hash; change the name, or
    pass ``redo``, when its function changes.
    """
    prior, tile = fuser.prior, getattr(fuser.tiled, "tile", "off")
    config = dataclasses.asdict(fuser.config)
    del config["summary"]
    denoiser = {}
    if config["denoise"] == "off":  # settings without effect are left out: older folders stay done
        del config["denoise"], config["draws"]
    else:
        denoiser = {"denoiser": _fingerprint(fuser.sources.denoiser)}
    if config["variant"] != "saliency":
        del config["images"]
    return {
        **denoiser,
        "maths": MATHS_VERSION,
        "config": config,
        "part": fuser.method.part,
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
            **({"tile": tile} if isinstance(tile, int) else {}),
            **({} if prior.alphas is None else {"alphas": prior.alphas.tolist()}),
        },
    }


class History:
    """The history of an output folder; open in one process at a time."""

    def __init__(self, out: Path, settings: dict[str, Any]):
        self.out = out
        self.settings = settings
        self.key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        self._lock, self._reading = threading.Lock(), threading.Lock()
        self._index = Index()
        self.fresh: dict[str, int] = {}
        """name → where its line begins, for lines that were committed but not yet taken"""

    def __enter__(self) -> History:
        path = self.out / HISTORY_FILE
        try:
            self._file = open_own(path, os.O_APPEND)
        except OSError as error:
            raise ImageFileError(f"{path}: cannot be written ({error.strerror})") from error
        try:
            _lock_file(self._file, self.out)
            self._load(path)
            self._reader = path.open("rb")
        except BaseException as error:
            os.close(self._file)
            if not isinstance(error, OSError):
                raise
            raise ImageFileError(
                f"{path}: cannot be written ({error.strerror}); choose a folder that has room"
            ) from error
        return self

    def __exit__(self, *_) -> None:
        self._reader.close()
        os.close(self._file)

    def _load(self, path: Path) -> None:
        known_settings, unreadable, at, whole = set(), 0, 0, 0
        with path.open("rb") as file:
            for line in file:
                at, whole = whole, whole + len(line)
                if not line.endswith(b"\n"):
                    os.ftruncate(self._file, at)  # what a crash left of a line being appended
                    break
                try:
                    if line.endswith(b"}\n") and (begins := _BEGINS.match(line)):
                        text = begins[1]
                        self._index.add(
                            json.loads(text) if b"\\" in text else text[1:-1].decode(), at
                        )
                    elif "run" in (record := json.loads(line)):
                        known_settings.add(record["run"])
                    else:
                        self._index.add(record["name"], at)
                except (ValueError, KeyError, TypeError):
                    unreadable += 1
        self._index.sort()
        if unreadable:
            warn(
                f"{path}: {unreadable} lines cannot be read; their pairs are done again",
            )
        if self.key not in known_settings:
            self._append({"run": self.key, "settings": self.settings})

    def where_done(self, items: Sequence[PairItem], targets: Sequence[str]) -> list[int | None]:
        """Return where each pair's line begins, if settings, inputs and output are what it says.

        Args:
            items: The pairs; some hundred that follow one another take the least time each.
            targets: The output of each.
        """
        names = [item.name for item in items]
        places = self._index.find(names)
        with self._reading:
            lines = read_lines(self._reader, places)
        return [
            at if at is not None and line and self._is_done(item, name, target, line) else None
            for item, name, target, at, line in zip(
                items, names, targets, places, lines, strict=True
            )
        ]

    def _is_done(self, item: PairItem, name: str, target: str, line: bytes) -> bool:
        """Compare a line with what is there: as text, and by its values where that differs."""
        if item.error:
            return False
        files = *item.files, target
        try:
            states = [*map(_state, files[:2]), _state(target, moved=True)]
            if _as_written(name, self.key, states, line):
                return True
            record = as_record(line) or {}
            if record.get("name") != name or record.get("settings") != self.key:
                return False
            if all(states) and states == [*record.get("states", ()), record.get("state")]:
                return True
            found = [*input_hashes(item).hashes, file_sha256(target)]
            return found == [*record["inputs"], record["sha256"]]
        except (OSError, ImageFileError, KeyError, TypeError):
            return False

    def commit(
        self,
        item: PairItem,
        inputs: Inputs,
        staged: Path,
        target: Path,
        facts: dict[str, Any],
    ) -> None:
        """Append the pair's line, then move the staged file into place."""
        record = {
            "name": item.name,
            "settings": self.key,
            "inputs": inputs.hashes,
            "output": target.relative_to(self.out).as_posix(),
            "sha256": _hashed(staged),
            "states": inputs.states,
            "state": _state(staged, moved=True),
            **facts,
        }
        at = self._append(record)
        with _naming(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged, target)
        self.fresh[item.name] = at

    def _append(self, record: dict[str, Any]) -> int:
        line = json.dumps(record).encode() + b"\n"
        with self._lock, _naming(self.out / HISTORY_FILE):
            end = os.fstat(self._file).st_size
            try:
                written = os.write(self._file, line)
                while written < len(line):
                    written += os.write(self._file, line[written:])
                os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, end)
                raise
            return end


class Index:
    """Where lines begin, by their names: 16 bytes per line; a name's last line counts."""

    def __init__(self) -> None:
        self._hashes: Any = array("q")
        self._places: Any = array("q")

    def add(self, name: str, at: int) -> None:
        """Add the line of a name; TypeError if it is not text."""
        if not isinstance(name, str):
            raise TypeError(f"name is a {type(name).__name__}; expected a str")
        self._hashes.append(hash(name))
        self._places.append(at)

    def sort(self) -> None:
        """Prepare the index for look-ups."""
        # a name's last line comes last; one array after the other, since each sort makes a copy
        order = np.argsort(np.frombuffer(self._hashes, np.int64), kind="stable")
        self._hashes = np.frombuffer(self._hashes, np.int64)[order]
        self._places = np.frombuffer(self._places, np.int64)[order]

    def find(self, names: Sequence[str]) -> list[int | None]:
        """Find where the last line of each name (or of an equal hash) begins; None: nowhere."""
        if not len(self._hashes):
            return [None] * len(names)
        wanted = np.fromiter(map(hash, names), np.int64, len(names))
        n = np.searchsorted(self._hashes, wanted, side="right") - 1  # −1 is the last, and differs
        there = self._hashes[n] == wanted
        places = self._places[n].tolist()
        return [at if found else None for at, found in zip(places, there.tolist(), strict=True)]


def read_lines(file: BinaryIO, places: Sequence[int | None]) -> list[bytes]:
    """Read the lines of a history that begin there; empty without a place, or if that fails.

    Lines that lie close together are read at once.
    """
    there = [at for at in places if at is not None]
    if not there:
        return [b""] * len(places)
    first, last = min(there), max(there)
    try:
        block = b""
        if last - first <= _BLOCK:
            file.seek(first)
            block = file.read(last - first) + file.readline()
        return [b"" if at is None else _line(file, block, at - first, at) for at in places]
    except OSError:
        return [b""] * len(places)


def _line(file: BinaryIO, block: bytes, start: int, at: int) -> bytes:
    if block:
        return block[start : block.find(b"\n", start) + 1]
    file.seek(at)
    return file.readline()


def as_record(line: bytes) -> dict[str, Any] | None:
    """Return what a line of a history says; None if it is none."""
    try:
        record = json.loads(line)
        return record if isinstance(record, dict) else None
    except ValueError:
        return None


def _as_written(name: str, key: str, states: list[list[int] | None], line: bytes) -> bool:
    """Whether a line has these facts, letter by letter; False says nothing.

    In a text of the line the quotes would be escaped, so what is found are its own keys.
    """
    ir, vis, target = states
    if not (ir and vis and target):
        return False
    begins = b'{"name": %s, "settings": "%s", ' % (_text(name).encode(), key.encode())
    told = b'"states": [[%d, %d, %d], [%d, %d, %d]], "state": [%d, %d, %d], ' % (*ir, *vis, *target)
    return line.startswith(begins) and told in line and line.endswith(b"}\n")


class Inputs(NamedTuple):
    """What identifies the two files of a pair."""

    hashes: list[str]
    """SHA-256; "" for anything but a file"""
    states: list[list[int] | None]
    """size and times before they were hashed; None if these are not reliable yet"""


def input_hashes(item: PairItem) -> Inputs:
    """Hash both files (SHA-256); "" for anything but a file, which reading then refuses in words.

    Raises:
        ImageFileError: A file cannot be read, a name is impossible, or an entry of a list is bad.
    """
    if item.error:
        raise ImageFileError(item.error)
    paths = item.ir, item.vis
    files = [is_file(path) for path in paths]
    states = [_state(path) if there else None for path, there in zip(paths, files, strict=True)]
    now = time.time_ns() - _RECENT
    return Inputs(
        [_hashed(path) if there else "" for path, there in zip(paths, files, strict=True)],
        [one if one and one[1] < now and one[2] < now else None for one in states],
    )


def _state(path: str | os.PathLike[str], *, moved: bool = False) -> list[int] | None:
    """Return size, time of writing, and time of any change (of a file to be moved, the inode).

    None if it is not a regular file.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ino if moved else found.st_ctime_ns]


def _hashed(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise ImageFileError(
            f"{path}: cannot be read ({error.strerror}); check its permissions and the disk"
        ) from error


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn the system's errors into ones that name the file."""
    try:
        yield
    except OSError as error:
        raise ImageFileError(
            f"{path}: cannot be written ({error.strerror}); choose a folder that you may write to "
            "and that has room"
        ) from error


def _fingerprint(prior: Prior) -> str:
    module = getattr(prior, "function", None)
    if not prior.fingerprint and isinstance(module, torch.nn.Module):
        return weights_sha256(module.state_dict())
    return prior.fingerprint


def _lock_file(file: int, out: Path) -> None:
    """Lock a second run out of the folder; the lock ends with the process, however it ends."""
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
    except OSError:  # file systems without locks
        return
