"""Fusion in Ray: :class:`FuseBatch` for ``Dataset.map_batches`` (extra ``ray``).

>>> import ray                                                        # doctest: +SKIP
>>> from ddfm_fast.integrations.ray import FuseBatch
>>> pairs = ray.data.from_items([{"ir": "a/1.png", "vis": "b/1.png"}])  # doctest: +SKIP
>>> fused = pairs.map_batches(                                        # doctest: +SKIP
...     FuseBatch,
...     fn_constructor_kwargs={"out": "fused/", "preset": "fast"},
...     compute=ray.data.ActorPoolStrategy(size=4),
...     batch_size=8,
... )

Rows are pairs, in columns of paths, of encoded files as bytes, or of arrays. A failure becomes a
row whose column ``error`` says why; no row affects others.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from typing_extensions import Unpack

from ..align.call import Aligner
from ..api import Fuser
from ..datasets.output import Output
from ..files.depth import Levels, sources
from ..files.paths import SUFFIXES, ImageFileError
from ..files.reading import DEFAULT_MAX_PIXELS, read_image
from ..files.writing import write_image
from ..images.doubts import about
from ..options import FuserOptions

_EXPECTED = (ValueError, TypeError, OSError, RuntimeError, MemoryError)


class _Ready(NamedTuple):
    """A pair as a call takes it, and what undoes that."""

    ir: Any
    vis: Any
    value_range: Any
    sources: Any = None
    """of files; None for arrays"""


class FuseBatch:
    """Fuses the rows of a batch: a class for ``map_batches``.

    Args:
        ir: The column of infrared sources: paths, bytes of image files, or arrays of any shape and
            dtype that ``Fuser`` takes. The two columns may differ in kind.
        vis: The column of visible sources.
        fused: The column that is added: arrays, or paths if ``out`` is given; None in a failed
            row.
        error: The column that says what failed; "" if nothing did.
        out: Folder to write to, which every node shares; None gives arrays.
        name: The column of names of files to write, without suffix; None for the stem of ``ir``.
        format: "png", "tif", "jpg" or "bmp".
        value_range: As in the call of ``Fuser``; so is ``nodata``.
        nodata: See ``value_range``.
        max_pixels: Most pixels of an input file, see :func:`.files.reading.read_image`.
        fuser: A ``Fuser`` to use, in place of options of one.
        **options: Options of ``Fuser``.

    Raises:
        ValueError, TypeError: The format or an option does not exist.
    """

    def __init__(
        self,
        *,
        ir: str = "ir",
        vis: str = "vis",
        fused: str = "fused",
        error: str = "error",
        out: str | os.PathLike[str] | None = None,
        name: str | None = None,
        format: str = "png",
        value_range: Any = None,
        nodata: Any = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        fuser: Fuser | None = None,
        **options: Unpack[FuserOptions],
    ):
        use_own_threads()
        if fuser is not None and options:
            raise ValueError(
                f"fuser is given and so is {', '.join(options)}; leave out one of them"
            )
        self.suffix = "." + format.lower().lstrip(".")
        if self.suffix not in SUFFIXES:
            names = ", ".join(suffix.lstrip(".") for suffix in SUFFIXES)
            raise ValueError(f"format is {format!r}; expected one of {names}")
        self.ir, self.vis, self.fused, self.error, self.name = ir, vis, fused, error, name
        self.out = None if out is None else Path(out)
        self.levels, self.max_pixels = Levels(value_range, nodata), max_pixels
        self.fuser = Fuser(**options) if fuser is None else fuser
        self.told: set[str] = set()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Fuse a batch of NumPy columns: the same columns, and those of results and errors."""
        for column in filter(None, (self.ir, self.vis, self.name)):
            if column not in batch:
                raise ValueError(
                    f"there is no column {column!r}; expected one of {', '.join(batch)}: pass "
                    "ir=, vis= or name="
                )
        rows = list(zip(batch[self.ir], batch[self.vis], strict=True))
        results: list[Any] = [None] * len(rows)
        errors = [""] * len(rows)
        ready: dict[int, _Ready] = {}
        for n, row in enumerate(rows):
            try:
                with about([self._about(n, row[0])], self.told):
                    ready[n] = self._read(*row)
            except _EXPECTED as error:
                errors[n] = _said(error)
        for members in _groups(ready):
            for n, found in self._fused({n: ready[n] for n in members}).items():
                try:
                    if isinstance(found, Exception):
                        raise found
                    results[n] = self._given(found, ready[n], batch, n)
                except _EXPECTED as error:
                    errors[n] = _said(error)
        return {**batch, self.fused: _column(results), self.error: np.array(errors, object)}

    def _about(self, n: int, ir: Any) -> str:
        return Path(ir).name if isinstance(ir, str) else f"row {n} of a batch"

    def _read(self, ir: Any, vis: Any) -> _Ready:
        if not any(isinstance(one, str | bytes | os.PathLike) for one in (ir, vis)):
            return _Ready(np.asarray(ir), np.asarray(vis), self.levels.value_range)
        a, b = (self._picture(one) for one in (ir, vis))
        aligner = Aligner(self.fuser.align, field=self.fuser.align_field)
        found = aligner.sources(sources(a, b, self.levels))
        return _Ready(found.ir, found.vis, "dtype", found)

    def _picture(self, given: Any) -> np.ndarray:
        if isinstance(given, bytes):
            # by a file: formats are told by contents, and some decoders take names alone
            with tempfile.TemporaryDirectory(prefix="ddfm-fast-") as folder:
                path = Path(folder) / "picture"
                path.write_bytes(given)
                try:
                    return read_image(path, max_pixels=self.max_pixels)
                except ImageFileError as error:
                    why = str(error).removeprefix(f"{path}: ")
                    raise ImageFileError(f"the bytes of a picture: {why}") from error
        if isinstance(given, str | os.PathLike):
            return read_image(given, max_pixels=self.max_pixels)
        return np.asarray(given)

    def _fused(self, pairs: dict[int, _Ready]) -> dict[int, Any]:
        """Results, or what was raised, of pairs that are read alike."""
        first = next(iter(pairs.values()))
        reading: dict[str, Any] = {"value_range": first.value_range}
        if first.sources is None:
            reading["nodata"] = self.levels.nodata
        else:
            reading["align"] = "off"  # they are, as a batch does it
        ir, vis = [p.ir for p in pairs.values()], [p.vis for p in pairs.values()]
        try:
            return dict(zip(pairs, self.fuser(ir, vis, **reading), strict=True))
        except _EXPECTED as error:
            if len(pairs) == 1:
                return dict.fromkeys(pairs, error)
        return {n: one for n in pairs for one in self._fused({n: pairs[n]}).values()}

    def _given(self, fused: Any, pair: _Ready, batch: dict[str, Any], n: int) -> Any:
        if pair.sources is not None:
            fused = pair.sources.mended(fused)
        if self.out is None:
            return fused
        target = self.out / f"{self._name(batch, n)}{self.suffix}"
        for column in (self.ir, self.vis):
            source = batch[column][n]
            if isinstance(source, str) and os.path.realpath(source) == os.path.realpath(target):
                raise ValueError(f"output {target} would replace an input; choose another out")
        given = batch[self.ir][n], batch[self.vis][n]
        if pair.sources is None or not all(isinstance(one, str) for one in given):
            return str(write_image(target, fused))
        paths = Path(given[0]), Path(given[1])
        Output().write(target, fused, pair.sources, paths, color=self.fuser.color)
        return str(target)

    def _name(self, batch: dict[str, Any], n: int) -> str:
        if self.name is not None:
            return str(batch[self.name][n])
        source = batch[self.ir][n]
        if not isinstance(source, str | os.PathLike):
            raise ValueError(
                f"column {self.ir!r} holds no paths to name results after; pass name=, the column "
                "with their names"
            )
        return Path(source).stem


def use_own_threads() -> int | None:
    """Compute on as many threads as this actor has CPUs; None outside of an actor."""
    try:
        import ray
    except ImportError:
        return None
    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return None
    import cv2
    import torch

    cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
    threads = max(1, int(cpus))
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    return threads


def _groups(pairs: dict[int, _Ready]) -> list[list[int]]:
    """Rows of one size and kind, which can be a batch of the prior."""
    groups: dict[Any, list[int]] = {}
    for n, pair in pairs.items():
        groups.setdefault((pair.ir.shape, pair.vis.shape, pair.sources is None), []).append(n)
    return list(groups.values())


def _column(values: list[Any]) -> np.ndarray:
    column = np.empty(len(values), object)
    for n, value in enumerate(values):  # at once, arrays of one shape would be taken apart
        column[n] = value
    return column


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__
