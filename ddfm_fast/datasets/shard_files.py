"""Files of many pairs: Parquet tables, and tars as webdataset names their members.

A Parquet row has a column of each source: image files as bytes, structs of bytes and a path as
``datasets`` writes pictures, or paths, relative to the table. A tar has members ``KEY.ir.png`` and
``KEY.vis.png`` one after the other. Both are read in portions, so memory does not grow with them,
and nothing in a tar decides where a file is written.
"""

from __future__ import annotations

import gzip
import importlib
import io
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, cast

from ..files.paths import ImageFileError
from ..images.doubts import warn
from ..storage.urls import as_url

PORTION = 64
"""pairs at once; fewer if rows are large"""
INSTALL = "pip install 'ddfm_fast[ray]', or pip install pyarrow"
PARQUET, TARS = (".parquet",), (".tar", ".tar.gz", ".tgz")
NAMES = {
    "ir": ("ir", "infrared", "thermal", "source1"),
    "vis": ("vis", "vi", "visible", "rgb", "source2"),
}
"""names of a source's columns and members"""
_KEYS = ("name", "stem", "key", "__key__")
FUSED, ERROR = "fused", "error"
_MOST_BYTES = 1 << 30  # of a picture's file
_PORTION_BYTES = 1 << 28
_MOST_BESIDE = 1 << 20  # of another member, which is passed on
_MOST_HEADER = 1 << 20
_SUFFIX = re.compile(r"\.[a-z0-9]{1,8}")
_DAMAGED = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError, UnicodeError)


@dataclass
class Row:
    """A pair of a shard, its pictures as local files."""

    index: int
    """number in the shard, from 0"""
    key: str
    """its name there"""
    ir: Path | None = None
    vis: Path | None = None
    error: str = ""
    """why it cannot be fused"""
    beside: dict[str, bytes] = field(default_factory=dict)
    """other members of a tar, by the part of their names after the key"""


@dataclass
class Portion:
    """Some rows in order; ``table`` has what a Parquet source holds besides its pictures."""

    rows: list[Row]
    table: Any = None


def is_shard(path: Path) -> bool:
    """Return whether a name is that of a Parquet file or a tar, and not hidden."""
    return path.name.lower().endswith((*PARQUET, *TARS)) and not path.name.startswith(".")


def suffix_of(path: Path) -> str:
    """Return the suffix of a shard, such as ".tar.gz"; "" of other names."""
    name = path.name.lower()
    return next((one for one in (*PARQUET, *TARS) if name.endswith(one)), "")


def portions(path: Path, folder: Path) -> Iterator[Portion]:
    """Read a shard, its pictures put into a folder that the caller empties after each portion.

    Raises:
        ImageFileError: It is damaged, or holds no pairs.
        ImportError: pyarrow is missing.
    """
    return (_of_parquet if suffix_of(path) in PARQUET else _of_tar)(path, folder)


def count(path: Path) -> int | None:
    """Return how many rows a Parquet file says it has; None for a tar."""
    if suffix_of(path) not in PARQUET:
        return None
    with _opened(path) as file:
        return int(file.metadata.num_rows)


def paths_in(path: Path) -> Iterator[Path]:
    """Yield the files that a Parquet file's columns of paths name."""
    if suffix_of(path) not in PARQUET:
        return
    pa = parquet_library()[0]
    with _opened(path) as file:
        columns = _columns(file.schema_arrow, path)
        texts = []
        for name in columns[:2]:
            kind = file.schema_arrow.field(name).type
            if _is_text(kind):
                texts.append(name)
            elif pa.types.is_struct(kind) and kind.get_field_index("path") >= 0:
                texts.append(f"{name}.path")
        for batch in file.iter_batches(PORTION, columns=texts) if texts else ():
            for row in batch.to_pylist():
                found = (one["path"] if isinstance(one, dict) else one for one in row.values())
                yield from (path.parent / text for text in found if isinstance(text, str) and text)


def _is_text(kind: Any) -> bool:
    """Return whether a column's values are text, in any of Arrow's types for it."""
    types = parquet_library()[0].types
    if types.is_dictionary(kind):
        kind = kind.value_type
    is_view = getattr(types, "is_string_view", types.is_string)  # older versions have no views
    return types.is_string(kind) or types.is_large_string(kind) or is_view(kind)


def _is_bytes(kind: Any) -> bool:
    types = parquet_library()[0].types
    is_view = getattr(types, "is_binary_view", types.is_binary)
    return types.is_binary(kind) or types.is_large_binary(kind) or is_view(kind)


def parquet_library() -> tuple[Any, Any]:
    """Import pyarrow and pyarrow.parquet; ImportError naming the extra if they are missing."""
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ImportError(f"Parquet needs {error.name or 'pyarrow'}: {INSTALL}") from None


def _opened(path: Path) -> Any:
    pa, parquet = parquet_library()
    try:
        return parquet.ParquetFile(path, memory_map=True, pre_buffer=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ImageFileError(
            f"{path}: cannot be read as Parquet ({_first_line(error)}); write it again"
        ) from error


def _columns(schema: Any, path: Path) -> tuple[str, str, str | None]:
    """Return the columns of both sources, and that of names."""
    pa = parquet_library()[0]
    lower = {name.lower(): name for name in schema.names}
    found = []
    for source, names in NAMES.items():
        column = next((lower[name] for name in names if name in lower), None)
        if column is None:
            raise ImageFileError(
                f"{path}: no column of {source} pictures; expected one called "
                f"{' or '.join(names)}, and it has {', '.join(schema.names)}"
            )
        kind, types = schema.field(column).type, pa.types
        pictures = types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        if not (pictures or _is_bytes(kind) or _is_text(kind)):
            raise ImageFileError(
                f"{path}: column {column!r} is {kind}; expected the bytes of image files, paths, "
                "or structs of bytes and path"
            )
        found.append(column)
    if taken := [name for name in (FUSED, ERROR) if name in schema.names]:
        raise ImageFileError(f"{path}: has a column {taken[0]!r} already; rename or drop it")
    return found[0], found[1], next((lower[name] for name in _KEYS if name in lower), None)


def _of_parquet(path: Path, folder: Path) -> Iterator[Portion]:
    pa = parquet_library()[0]
    with _opened(path) as file:
        schema = file.schema_arrow
        *sources, key = _columns(schema, path)
        pictures = [name for name in sources if not _is_text(schema.field(name).type)]
        index, meta = 0, file.metadata
        try:
            for group in range(meta.num_row_groups):
                size = _portion_size(meta.row_group(group))
                for batch in file.iter_batches(size, row_groups=[group]):
                    kept = batch.select([n for n in schema.names if n not in pictures])
                    rows = [
                        _parquet_row(batch, n, index + n, sources, key, path, folder)
                        for n in range(batch.num_rows)
                    ]
                    index += batch.num_rows
                    yield Portion(rows, kept)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, ImageFileError):
                raise
            raise ImageFileError(
                f"{path}: is damaged after row {index} ({_first_line(error)}); write it again"
            ) from error
        if not index:
            raise ImageFileError(f"{path}: has no rows; write it again")


def _portion_size(group: Any) -> int:
    each = max(1, group.total_byte_size // max(1, group.num_rows))
    return int(max(1, min(PORTION, _PORTION_BYTES // each)))


def _parquet_row(
    batch: Any, n: int, index: int, sources: list[str], key: str | None, path: Path, folder: Path
) -> Row:
    named = batch.column(key)[n].as_py() if key else None
    row = Row(index, str(named) if named not in (None, "") else f"row {index}")
    for source, column in zip(NAMES, sources, strict=True):
        value = batch.column(column)[n]
        value = value.as_py() if value.is_valid else None
        hint = ""
        if isinstance(value, dict):
            hint = str(value.get("path") or "")
            value = hint if value.get("bytes") is None else value["bytes"]
        if isinstance(value, str) and value:
            if as_url(value):
                row.error = row.error or f"{column} is {value}: URLs in a table are not fetched"
            setattr(row, source, path.parent / value)
        elif isinstance(value, bytes) and value:
            file = folder / _local_name(index, source, hint)
            file.write_bytes(value)
            setattr(row, source, file)
        else:
            row.error = row.error or f"column {column!r} is empty"
    return row


def _local_name(index: int, source: str, hint: str) -> str:
    """Return a name of our own; of the given name only a plain suffix is kept."""
    suffix = PurePosixPath(hint).suffix.lower()
    return f"{index:08d}.{source}{suffix if _SUFFIX.fullmatch(suffix) else ''}"


class _Member(tarfile.TarInfo):
    """A member with a limit on its extended headers, which are held in memory.

    A damaged header in the middle is an error; `tarfile` would treat it as the end of the tar.
    """

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Any:
        """Read the next member."""
        try:
            return super().fromtarfile(tar)
        except tarfile.HeaderError as error:
            if type(error).__name__ in ("TruncatedHeaderError", "InvalidHeaderError"):
                raise tarfile.ReadError(str(error)) from error
            raise

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        long = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE,
                tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)  # fmt: skip
        if self.type in long and self.size > _MOST_HEADER:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        return super()._proc_member(tar)  # type: ignore[misc]


def _of_tar(path: Path, folder: Path) -> Iterator[Portion]:
    rows: list[Row] = []
    seen: set[str] = set()
    try:
        for row in _samples(path, folder):
            if row.key in seen:
                row.error = f"{row.key} occurs twice in the tar, or in separate places"
            seen.add(row.key)
            rows.append(row)
            if len(rows) == PORTION:
                yield Portion(rows)
                rows = []
    except _DAMAGED as error:
        if isinstance(error, ImageFileError):
            raise
        raise ImageFileError(
            f"{path}: is damaged after {len(seen)} samples ({_first_line(error)}); pack it again"
        ) from error
    if rows:
        yield Portion(rows)
    if not seen:
        raise ImageFileError(
            f"{path}: holds no pairs; expected members such as 0001.ir.png and 0001.vis.png"
        )


def _samples(path: Path, folder: Path) -> Iterator[Row]:
    """Yield rows of members that share a key; a row that is incomplete has an error."""
    row: Row | None = None
    count = 0
    with tarfile.open(path, "r|*", tarinfo=_Member) as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # else the list grows with the tar
            split = _key_and_field(member.name)
            if not member.isreg() or member.issparse() or split is None:
                continue
            key, name = split
            if row is None or row.key != key:
                if row is not None:
                    yield _checked(row)
                row, count = Row(count, key), count + 1
            _take(tar, member, row, name, folder)
    if row is not None:
        yield _checked(row)


def _key_and_field(name: str) -> tuple[str, str] | None:
    """Split ``a/0001.ir.png`` into ("a/0001", "ir.png"); None for names that webdataset skips."""
    above, _, last = name.rpartition("/")
    stem, dot, rest = last.partition(".")
    if not stem or not dot or not rest:
        return None
    return (f"{above}/{stem}" if above else stem), rest


def _take(tar: tarfile.TarFile, member: Any, row: Row, name: str, folder: Path) -> None:
    head = name.lower().split(".")[0]
    source = next((one for one, names in NAMES.items() if head in names), None)
    if source is None:
        if head == FUSED or name.lower() == f"{ERROR}.txt":
            warn(f"{member.name}: is not copied, as the result has that name", "result's name")
        elif member.size > _MOST_BESIDE:
            warn(f"{member.name}: of {member.size} bytes is not copied, as only up to 1 MiB are",
                 "beside")  # fmt: skip
        elif (file := tar.extractfile(member)) is not None:
            row.beside[name] = file.read()
        return
    if member.size > _MOST_BYTES:
        row.error = f"{member.name} has {member.size} bytes, more than {_MOST_BYTES}"
        return
    target = folder / _local_name(row.index, source, name)
    data = tar.extractfile(member)
    assert data is not None  # of a regular file
    with target.open("wb") as file:
        while block := data.read(1 << 20):
            file.write(block)
        if file.tell() != member.size:
            raise tarfile.ReadError(f"{member.name} is cut short")
    setattr(row, source, target)


def _checked(row: Row) -> Row:
    lacking = [name for name in NAMES if getattr(row, name) is None]
    if lacking and not row.error:
        row.error = f"{row.key}: no member {row.key}.{lacking[0]}.*"
    return row


class Sink:
    """Writes results in the order of rows; the file is valid once it is closed."""

    def write(self, portion: Portion, found: list[tuple[Path | None, str]]) -> None:
        """Add the rows of a portion, each with the file of its picture, or what failed."""
        raise NotImplementedError

    def close(self) -> None:
        """End the file."""
        raise NotImplementedError


def sink(path: Path, kind: str) -> Sink:
    """Make a sink of a kind: ".parquet", ".tar" or ".tar.gz"."""
    return ParquetSink(path) if kind in PARQUET else TarSink(path, kind)


class ParquetSink(Sink):
    """Rows of the source without its pictures' bytes, then ``fused`` (a file's bytes), ``error``.

    For a tar the columns are ``name``, ``fused`` and ``error``.
    """

    def __init__(self, path: Path):
        self.path, self.writer = path, cast(Any, None)
        parquet_library()

    def write(self, portion: Portion, found: list[tuple[Path | None, str]]) -> None:
        """See :class:`Sink`."""
        pa, parquet = parquet_library()
        kept = portion.table
        if kept is None:
            kept = pa.record_batch({"name": pa.array([_text(row.key) for row in portion.rows])})
        pictures = [None if file is None else file.read_bytes() for file, _ in found]
        columns = [
            *kept.columns,
            pa.array(pictures, pa.large_binary()),
            pa.array([_text(error) for _, error in found], pa.string()),
        ]
        fields = [*kept.schema, pa.field(FUSED, pa.large_binary()), pa.field(ERROR, pa.string())]
        schema = pa.schema(fields)
        if self.writer is None:
            squeeze = {name: "zstd" for name in schema.names if name != FUSED}
            self.writer = parquet.ParquetWriter(
                self.path, schema, compression={**squeeze, FUSED: "none"}
            )
        self.writer.write_batch(pa.record_batch(columns, schema=self.writer.schema))

    def close(self) -> None:
        """See :class:`Sink`."""
        if self.writer is not None:
            self.writer.close()


class TarSink(Sink):
    """Members ``KEY.fused.png``, or ``KEY.error.txt``, after a tar's members besides pictures.

    The same rows give the same bytes.
    """

    def __init__(self, path: Path, kind: str):
        self.files = ExitStack()
        stream: Any = self.files.enter_context(path.open("wb"))
        if kind != ".tar":
            packed = gzip.GzipFile("", "wb", fileobj=stream, mtime=0)
            stream = self.files.enter_context(packed)
        tar = tarfile.open(fileobj=stream, mode="w|")  # noqa: SIM115
        self.tar = self.files.enter_context(tar)

    def write(self, portion: Portion, found: list[tuple[Path | None, str]]) -> None:
        """See :class:`Sink`."""
        for row, (file, error) in zip(portion.rows, found, strict=True):
            key = _safe_key(row)
            for name, data in row.beside.items():
                if _is_plain(name):
                    self._add(f"{key}.{name}", data)
            if file is not None:
                self._add(f"{key}.{FUSED}{file.suffix}", file.read_bytes())
            else:
                self._add(f"{key}.{ERROR}.txt", _text(error).encode())

    def _add(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(data), 0o644
        self.tar.addfile(member, io.BytesIO(data))

    def close(self) -> None:
        """See :class:`Sink`."""
        self.files.close()


def _text(name: str) -> str:
    r"""Return a text that UTF-8 can hold: bytes of a tar's names that are none become \udcXX."""
    return name.encode(errors="backslashreplace").decode()


def _safe_key(row: Row) -> str:
    """Return the key, or the row's number if unpacking by the key could write elsewhere."""
    above, _, last = row.key.rpartition("/")
    key = f"{above}/{last.replace('.', '_')}" if above else last.replace(".", "_")
    return key if _is_plain(key) and last else f"{row.index:08d}"


def _is_plain(name: str) -> bool:
    parts = name.split("/")
    odd = {"", ".", ".."} & set(parts) or any(mark in name for mark in "\\:\0\n")
    return not odd and len(os.fsencode(name)) < 200


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
