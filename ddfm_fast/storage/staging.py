"""Local files that stand for objects, so that what reads and pairs files reads and pairs objects.

An object that a listing names is an empty file at first: names decide what is paired. `fill`
brings the bytes of those that are wanted next, `drop` gives the room back.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from ..files.paths import ImageFileError, few, is_picture
from ..images.doubts import warn
from .objects import Object, fetch, listing, look, put
from .trouble import StorageError
from .urls import as_url, join, name_of

THREADS = 8
"""that fetch or put at once; they wait for the network"""

Keep = Callable[[Path], bool]


class Stage:
    """A temporary folder whose files stand for objects; it goes when the block ends."""

    def __init__(self) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="ddfm_fast_")
        self.folder = Path(self._temporary.name)
        self.objects: dict[Path, Object] = {}
        """what each file stands for"""
        self._places: dict[str, Path] = {}
        self._shown: dict[str, str] = {}
        self._threads = ThreadPoolExecutor(THREADS, "ddfm-objects")

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._temporary.cleanup()

    def source(self, place: str | os.PathLike[str], keep: Keep = is_picture) -> Path:
        """Return the local file or folder that stands for a source; a local path is its own.

        Args:
            place: A URL of an object or of a prefix, or a path.
            keep: Which files of a prefix are wanted, by name.

        Raises:
            StorageError: There is nothing, or it cannot be reached.
        """
        if (url := as_url(place)) is None:
            return Path(place)
        if url in self._places:
            return self._places[url]
        found = look(url)
        if found is None:
            raise StorageError(
                f"{url}: no such object or prefix; check the name of the bucket and the object"
            )
        return self._folder_of(url, keep) if found.is_prefix else self.file(url, found)

    def file(self, url: str, found: Object | None = None) -> Path:
        """Return the local file that stands for one object, which is not looked for here."""
        if url not in self._places:
            local = self._new_place(url)
            local.touch()
            self.objects[local] = found or Object(url)
        return self._places[url]

    def _folder_of(self, url: str, keep: Keep) -> Path:
        root = self._new_place(url)
        root.mkdir()
        made, refused = {root}, []
        for name, one in listing(url).items():
            local = root / name
            if not keep(local):
                continue
            if not set(name.split("/")).isdisjoint(("", ".", "..")) or "\0" in name:
                refused.append(name)  # no place below the folder
                continue
            try:
                if local.parent not in made:
                    local.parent.mkdir(parents=True, exist_ok=True)
                    made.add(local.parent)
                local.touch(exist_ok=False)
            except OSError:
                refused.append(name)
                continue
            self.objects[local] = one
        if refused:
            warn(f"{url}: left out, as no file here can have such names: {few(refused)}")
        return root

    def output(self, place: str | os.PathLike[str]) -> Path:
        """Return the local file or folder that is written in the place of a URL; it is not made."""
        url = as_url(place)
        return Path(place) if url is None else self._new_place(url)

    def _new_place(self, url: str) -> Path:
        above = self.folder / str(len(self._shown))
        above.mkdir()
        local = above / (name_of(url) or "root")
        self._places[url] = local
        self._shown[str(local)] = url
        return local

    def url_of(self, local: Path) -> str:
        """Return the URL that a file or folder of the stage stands for; other paths as text."""
        if local in self.objects:
            return self.objects[local].url
        for above in (local, *local.parents):
            if url := self._shown.get(str(above)):
                return url if above == local else join(url, local.relative_to(above).as_posix())
        return str(local)

    def text(self, message: str) -> str:
        """Return a message with URLs in the place of the stage's own paths."""
        for local, url in self._shown.items():
            message = message.replace(local, url)
        return message

    @contextlib.contextmanager
    def named_errors(self) -> Iterator[None]:
        """Inside, errors of bad input name URLs."""
        try:
            yield
        except ImageFileError as error:
            raise ImageFileError(self.text(str(error))) from error
        except ValueError as error:
            raise ValueError(self.text(str(error))) from error

    def state(self, local: Path) -> str:
        """Return what changes with the content of a source, "" where that is unknown.

        Of an object it is size and version, as listed or as `inform` found them, else by stat.
        """
        if local in self.objects:
            one = self.objects[local]
            return one.state if one.version else ""
        facts = local.stat()
        return f"{facts.st_size} {facts.st_mtime_ns}"

    def inform(self, files: Iterable[Path]) -> None:
        """Look at the objects that no listing named, in threads; what fails stays unknown."""

        def ask(path: Path) -> None:
            with contextlib.suppress(ValueError):
                self.objects[path] = look(self.objects[path].url) or self.objects[path]

        unknown = [p for p in dict.fromkeys(files) if p in self.objects and not self.state(p)]
        list(self._threads.map(ask, unknown))

    def fill(self, files: Iterable[Path]) -> dict[Path, Exception]:
        """Fetch the objects of these files, in threads; return what failed, by file."""
        wanted = [path for path in dict.fromkeys(files) if path in self.objects]
        failures: dict[Path, Exception] = {}

        def bring(path: Path) -> None:
            try:
                fetch(self.objects[path].url, path)
            except OSError as error:
                failures[path] = ImageFileError(
                    f"{self.folder}: {self.objects[path].url} cannot be fetched to it "
                    f"({error.strerror}); set TMPDIR to a folder that has room"
                )
            except (ValueError, ImportError) as error:
                failures[path] = error

        list(self._threads.map(bring, wanted))
        return failures

    def drop(self, files: Iterable[Path]) -> None:
        """Empty these files again, where they stand for objects."""
        for path in files:
            if path in self.objects:
                path.write_bytes(b"")

    def put(
        self, files: dict[Path, str], versions: dict[Path, str] | None = None
    ) -> dict[Path, Exception]:
        """Write local files to URLs, in threads; return what failed, by file.

        Args:
            files: File → URL.
            versions: Filled with the version of each object, "" where that is unknown.

        Raises:
            StorageError: No object can be written there, for lack of rights or a bucket.
        """
        failures: dict[Path, Exception] = {}

        def send(path: Path) -> None:
            try:
                version = put(files[path], path.read_bytes())
                if versions is not None:
                    versions[path] = version
            except (ValueError, ImportError, OSError) as error:
                failures[path] = error

        list(self._threads.map(send, files))
        for error in failures.values():
            if getattr(error, "is_common", False):
                raise error
        return failures


def any_url(*places: object) -> bool:
    """Return whether one of the places is a URL."""
    return any(as_url(place) for place in places)
