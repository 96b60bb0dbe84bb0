"""The history of an output folder: what each of its pictures was made from, line by line.

``ddfm_fast_batch.jsonl`` has a line for the settings of each run and a line for each picture with
the hashes of its inputs and of the output file. A picture is written in full to a staging folder,
its line is appended, and then it is moved into place. So a file in place always has its line, and a
line whose file is absent or different means that the work was cut off there and is to be done
again. A pair counts as done when settings, prior, both inputs and the output file are all what the
line says.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..files.paths import ImageFileError, is_file
from ..images.doubts import warn
from ..priors.state_dict import file_sha256, weights_sha256
from ..runtime.own_files import open_own
from .pairs import PairItem

if TYPE_CHECKING:
    from ..api import Fuser
    from ..priors.prior import Prior

HISTORY_FILE = "ddfm_fast_batch.jsonl"

MATHS_VERSION = 2
"""raised whenever the same settings, prior and inputs give another picture: it redoes them."""


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
        self._lock = threading.Lock()
        self._records: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> History:
        path = self.out / HISTORY_FILE
        try:
            self._file = open_own(path, os.O_APPEND)
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
            warn(
                f"{path}: {unreadable} lines cannot be read; their pairs are done again",
            )
        if self.key not in known_settings:
            self._append({"run": self.key, "settings": self.settings})

    def is_done(self, item: PairItem, target: Path) -> dict[str, Any] | None:
        """Return the pair's line if settings, inputs and output are what it says, else None."""
        record = self._records.get(item.name)
        if record is None or record.get("settings") != self.key:
            return None
        try:
            found = [*input_hashes(item), file_sha256(target)]
        except (OSError, ImageFileError):
            return None
        return record if found == record["files"] else None

    def commit(
        self,
        item: PairItem,
        inputs: list[str],
        staged: Path,
        target: Path,
        facts: dict[str, Any],
    ) -> None:
        """Append the pair's line, then move the staged file into place."""
        record = {
            "name": item.name,
            "settings": self.key,
            "inputs": inputs,
            "output": target.relative_to(self.out).as_posix(),
            "sha256": _hashed(staged),
            **facts,
        }
        self._append(record)
        with _naming(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged, target)

    def _append(self, record: dict[str, Any]) -> None:
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


def input_hashes(item: PairItem) -> list[str]:
    """Hash both files (SHA-256); "" for what is no file, which reading then refuses in words.

    Raises:
        ImageFileError: A file that cannot be read, a name that there cannot be, or a bad entry of
            a list.
    """
    if item.error:
        raise ImageFileError(item.error)
    return [_hashed(path) if is_file(path) else "" for path in (item.ir, item.vis)]


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
