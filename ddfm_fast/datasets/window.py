"""One range for a whole data set, so that equal values look the same in all of its results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from tqdm.auto import tqdm

from ..files.depth import Levels, nodata_of
from ..files.reading import DEFAULT_MAX_PIXELS, read_picture
from ..images.ranges import SOURCES, by_source, chosen, ignored
from .items import PairItem

Ready = Callable[[Sequence[PairItem], str], Iterable[PairItem]]


def over_dataset(
    items: Sequence[PairItem],
    levels: Levels,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    progress: bool = False,
    ready: Ready | None = None,
) -> Levels:
    """Find the range of each source over all pictures, in place of each picture's own.

    Args:
        items: The pairs; unreadable files are left to the run that fuses them.
        levels: What was requested; a given range stays.
        max_pixels: Most pixels of an input file, see :func:`.files.reading.read_image`.
        progress: Show a bar on stderr.
        ready: Yields the pairs again, each once its file of a source has arrived.

    Returns:
        Levels with a range for each source: the span of all pictures' windows, or "dtype" if one
        uses the dtype's own.
    """
    wanted, nodata = by_source(levels.value_range), by_source(levels.nodata, "nodata")
    found = {
        name: (
            _over(
                items,
                name,
                wanted[name],
                levels._replace(nodata=nodata[name]),
                max_pixels,
                progress,
                ready,
            )
            if wanted[name] in (None, "auto", "data")
            else wanted[name]
        )
        for name in SOURCES
    }
    return levels._replace(value_range=found)


def _over(
    items: Sequence[PairItem],
    name: str,
    setting: str | None,
    levels: Levels,
    max_pixels: int,
    progress: bool,
    ready: Ready | None,
) -> tuple[float, float] | str:
    ranges = []
    bar = tqdm(
        items if ready is None else ready(items, name),
        f"range of {name}", len(items), unit="file", leave=False, disable=not progress,
    )  # fmt: skip
    for item in bar:
        if item.error:
            continue
        try:
            picture = read_picture(
                getattr(item, name),
                max_pixels=max_pixels,
                radiometric=name == "ir",
                raw_size=levels.raw_size,
            )
        except (ValueError, OSError, MemoryError):
            continue
        nothing = ignored(nodata_of(picture, levels.nodata, name, told=False))
        limits = chosen(picture.values, setting, name, nothing, told=False)
        if limits is None:
            return "dtype"
        ranges.append(limits)
    if not ranges:
        return "dtype"
    return min(low for low, _ in ranges), max(high for _, high in ranges)
