"""Commands whose places may be URLs: what they read is fetched, what they write is put whole."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .settings import find_items, stage_for

if TYPE_CHECKING:
    from ..datasets.items import PairItem
    from ..metrics.evaluation import Evaluation, MethodPictures
    from ..storage.staging import Stage


def scored_items(
    context: typer.Context,
    root: Path,
    vis: Path | None,
    *,
    manifest: Path | None,
    limit: int | None,
    fused: Sequence[str] = (),
    layout: str | None,
    pattern: str | None,
) -> tuple[list[PairItem], Stage | None]:
    """Return the first pairs of ROOT, here or fetched whole into the temporary folder.

    Args:
        context: Of the command, at whose end what was fetched goes.
        root: As in :func:`.settings.find_items`, like ``vis``, ``manifest`` and so on.
        vis: See there.
        manifest: See there.
        limit: The most pairs.
        fused: Of ``--fused``, which may name prefixes, too.
        layout: See ``root``.
        pattern: See ``root``.

    Raises:
        ValueError: It is unclear which, or one of them cannot be fetched.
    """
    folders = [Path(url) for text in fused if _is_url(url := text.partition("=")[2])]
    stage = stage_for(context, root, vis, manifest, next(iter(folders), None))
    source = stage if _any_source(root, vis, manifest) else None
    found = find_items(root, vis, layout=layout, manifest=manifest, pattern=pattern, stage=source)
    items = found[:limit]
    if stage is None or source is None:
        return items, stage
    if failures := stage.fill(file for item in items for file in (item.ir, item.vis)):
        raise next(iter(failures.values()))
    return items, stage


def fused_folders(stage: Stage | None, texts: Sequence[str]) -> list[MethodPictures]:
    """Return the methods of ``--fused``, whose folders may be prefixes."""
    from ..metrics.evaluation import MethodPictures, parse_method

    found = []
    for text in texts:
        name, separator, url = text.partition("=")
        if stage is None or not separator or not _is_url(url):
            found.append(parse_method(text))
            continue
        folder = stage.source(url)
        if failures := stage.fill(file for file in stage.objects if folder in file.parents):
            raise next(iter(failures.values()))
        found.append(MethodPictures(name.strip(), folder))
    return found


@contextlib.contextmanager
def as_named(stage: Stage | None) -> Iterator[Callable[[Evaluation], None]]:
    """Inside, errors name URLs; gives what makes an evaluation name them, too."""

    def named(evaluation: Evaluation) -> None:
        if stage is None:
            return
        for method in evaluation.methods:
            method.folder = method.folder and stage.text(method.folder)
        for pair, why in evaluation.failures.items():
            evaluation.failures[pair] = stage.text(why)
        evaluation.remarks[:] = map(stage.text, evaluation.remarks)

    with contextlib.nullcontext() if stage is None else stage.named_errors():
        yield named


def local_outputs(**places: Path | None) -> None:
    """Refuse URLs where tables, pages and rows go; ValueError names the option."""
    for name, place in places.items():
        if place is not None and _is_url(place):
            raise ValueError(
                f"--{name} is {_url(place)}; this command only writes locally: give a local path, "
                "and copy the result afterwards"
            )


def local_volumes(**places: Path) -> None:
    """Refuse URLs of volumes; ValueError names the argument."""
    for name, place in places.items():
        if _is_url(place):
            raise ValueError(
                f"{name} is {_url(place)}; volumes are read and written locally: copy it to this "
                "machine, or the result from it"
            )


def title_of(root: Path) -> str:
    """Return what a data set is called: the name of its folder, or of its prefix."""
    from ..storage.urls import name_of

    url = _url(root)
    return root.resolve().name if url is None else name_of(url.rstrip("/")) or url


def _is_url(place: Any) -> bool:
    return _url(place) is not None


def _url(place: Any) -> str | None:
    from ..storage.urls import as_url

    return as_url(place)


def _any_source(*places: Path | None) -> bool:
    from ..datasets.lists import names_urls

    root, _, manifest = places
    return any(map(_is_url, places)) or names_urls(root if manifest is None else manifest)
