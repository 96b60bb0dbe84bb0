"""A video whose places are objects (``s3://``, ``zip://``, …): local files in their place.

Whoever fuses the video has them, this process or a worker: its sources are fetched when its turn
comes, what it wrote is put, and both are dropped. An object has the output's name only once the
file had it; a part is put under a part's name.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..images.doubts import DDFMWarning
from ..storage.objects import check_writable, put_file
from ..storage.staging import Stage
from ..storage.urls import as_url, is_object, join, name_of, parent
from .frames import VideoError


def object_of(place: Any) -> str | None:
    """Return the URL of an object or a prefix; None for anything else, such as FFmpeg's URLs."""
    return as_url(place) if is_object(place) else None


def objects_of(source: Any) -> list[str]:
    """Return the URLs of a stream, which may be a list of pictures."""
    items = source if isinstance(source, list | tuple) else [source]
    return [url for item in items if (url := object_of(item)) is not None]


def suffix_of(out: str | os.PathLike[str]) -> str:
    """Return the suffix of a file's or an object's name; "" of a folder's."""
    url = object_of(out)
    return Path(out if url is None else name_of(url)).suffix


def below(out: str | os.PathLike[str], name: str) -> Path | str:
    """Return the path or the URL of a name in a folder or below a prefix."""
    url = object_of(out)
    return Path(out) / name if url is None else join(url, name)


def check_output(url: str) -> None:
    """Refuse the URL of an output that can be no video.

    Raises:
        StorageError: It is read-only.
        ValueError: It has no suffix.
    """
    check_writable(url)
    if not suffix_of(url):
        raise ValueError(
            f"--out is {url}; expected a file there, such as fused.mp4 (folders of PNG files are "
            "only written locally)"
        )


class Staged:
    """The places of one video in a stage of its own, where files stand for objects.

    Args:
        stage: The stage.
        ir: A stream as `open_source` takes it, the URL of an object or of a prefix of pictures, or
            a list of URLs.
        vis: See ``ir``.
        out: A local output, or the URL of an object.

    Raises:
        StorageError: A source is not there, or cannot be reached.
        ValueError: The output is an object that can be no video.
    """

    def __init__(self, stage: Stage, ir: Any, vis: Any, out: Path | str):
        self._stage, self._url = stage, object_of(out)
        if self._url is not None:
            check_output(self._url)
        self.ir, self.vis = self._source(ir), self._source(vis)
        self.out = out if self._url is None else stage.output(self._url)

    def _source(self, source: Any) -> Any:
        if isinstance(source, list | tuple):
            urls = map(object_of, source)
            return [
                item if url is None else self._stage.file(url)
                for item, url in zip(source, urls, strict=True)
            ]
        url = object_of(source)
        return source if url is None else self._stage.source(url)

    def fetch(self) -> None:
        """Bring the sources here.

        Raises:
            StorageError: One of them cannot be read.
            ImageFileError: There is no room for it.
            ImportError: A library is missing.
        """
        if failures := self._stage.fill(self._stage.objects):
            raise next(iter(failures.values()))

    def put(self) -> None:
        """Put the output, or the part of it that is left, if it is an object.

        Raises:
            StorageError: It cannot be written.
            OSError: It cannot be read.
        """
        if self._url is None:
            return
        for file in Path(self.out).parent.iterdir():
            if file.is_file() and not file.name.startswith("."):
                put_file(self._given(file), file)

    def given(self, path: Path | str) -> Path | str:
        """Return the output, or a part, as it is called where it goes."""
        return path if self._url is None else self._given(Path(path))

    def _given(self, file: Path) -> str:
        assert self._url is not None
        return self._url if file == self.out else join(parent(self._url), file.name)

    def text(self, message: str) -> str:
        """Return a message with URLs in the place of the stage's own paths."""
        message = self._stage.text(message)
        if self._url is None:
            return message
        return message.replace(str(Path(self.out).parent), parent(self._url))

    def named(self, error: Exception) -> Exception:
        """Return the error with a message that names URLs."""
        if len(error.args) == 1 and isinstance(error.args[0], str):
            error.args = (self.text(error.args[0]),)
            return error
        said = self.text(str(error))
        return error if said == str(error) else VideoError(said)


@contextmanager
def named_warnings(text: Callable[[str], str]) -> Iterator[None]:
    """Inside, warnings of this package have the text that ``text`` makes of theirs."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def renamed(message: Warning | str, *rest: Any, **more: Any) -> None:
            if isinstance(message, DDFMWarning):
                message = DDFMWarning(text(str(message)))
            show(message, *rest, **more)

        warnings.showwarning = renamed
        yield
