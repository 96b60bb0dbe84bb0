"""Where a prior was loaded from; this travels to other processes in place of its weights."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..storage import cache
from ..storage.urls import as_url
from .state_dict import file_sha256, files_of


class Origin(NamedTuple):
    """The name or the path of a prior, with what is needed to load it again."""

    load: Callable[..., Any]
    """``load_prior``"""
    spec: str
    """a name, or the absolute path of a file or a folder"""
    config: dict[str, Any] | None = None
    identity: tuple | None = None
    """of the files when they were loaded; None for a name"""
    sha256: str = ""
    """of the files; "" for a name, and before the origin leaves"""

    def leaving(self) -> Origin:
        """Return what is sent: with the hash of the files, without what only this machine needs.

        Raises:
            ValueError: The files are not those that were loaded.
        """
        if self.identity is None:
            return self
        if file_identity(Path(self.spec)) != self.identity:
            raise ValueError(
                f"prior: {self.spec!r} was changed after it was loaded, so it cannot be sent by "
                "its path; load it again"
            )
        return self._replace(identity=None, sha256=_files_sha256(self.identity))

    def found(self) -> str:
        """Return the name or the path, after checking that the files here are those meant.

        Raises:
            ValueError: They are not here, or differ.
        """
        if not self.sha256:
            return self.spec
        identity = file_identity(Path(self.spec))
        if identity is None:
            raise ValueError(
                f"prior: there is no {self.spec!r} here; a prior travels by its path: put the file "
                "there, where every process finds it"
            )
        if (here := _files_sha256(identity)) != self.sha256:
            raise ValueError(
                f"prior: {self.spec!r} is not what was sent by this path (sha256 {here[:12]}… "
                f"here, {self.sha256[:12]}… where it was loaded): it changed, or is another file "
                "here; give both the same file"
            )
        return self.spec


class Sent(NamedTuple):
    """A prior on its way, by its origin."""

    origin: Origin
    device: str
    precision: str
    compiled: bool

    def arrive(self, device: torch.device | str | None = None) -> Any:
        """Load the prior, on another device if one is given.

        Raises:
            ValueError: The files are not those that were loaded.
        """
        origin = self.origin
        return origin.load(
            origin.found(),
            origin.config,
            device=device or self.device,
            dtype=self.precision,
            compile=self.compiled,
        )


def arrive(sent: Sent) -> Any:
    """Load a prior that was sent, on its own device; its pickle calls this."""
    return sent.arrive()


def file_identity(path: Path) -> tuple | None:
    """Return the path of a file, or of a folder's files, with sizes and times; None if missing.

    For a URL these are the size and the version of its object.
    """
    if url := as_url(path):
        return (url, cache.found(url).state)
    try:
        if path.is_dir():
            files = [p for p in sorted(path.rglob("*")) if p.is_file()]
        else:
            files = files_of(path)
        facts = [(str(p), p.stat()) for p in files]
    except (OSError, ValueError):
        return None
    return (
        str(path.resolve()),
        *((name, s.st_size, s.st_mtime_ns, s.st_ino) for name, s in facts),
    )


@functools.lru_cache(maxsize=8)
def _files_sha256(identity: tuple) -> str:
    """Hash the files of an identity: names within their folder, and contents."""
    if as_url(identity[0]):  # it has the version of its object, which is the same for all processes
        return hashlib.sha256(repr(identity).encode()).hexdigest()
    names = [name for name, *_ in identity[1:]]
    root = os.path.commonpath(names) if len(names) > 1 else os.path.dirname(names[0])
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{os.path.relpath(name, root)} {file_sha256(name)}\n".encode())
    return digest.hexdigest()
