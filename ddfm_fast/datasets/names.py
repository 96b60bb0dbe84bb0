"""Which two files are a pair, from their names and the times in their headers; never by a guess.

A file that fits two others is left without a partner, and both are named. These rules decide, in
this order: equal names up to case; names that are equal without their marks (``_T`` and ``_V``,
``_ir`` and ``_rgb``, …); the same second and numbers next to each other; a prefix or suffix that
all files of a folder share.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from .shots import Shot, read_shot

IR_MARKS = ("t", "ir", "tir", "lwir", "therm", "thermal", "infrared", "previewdata")
VIS_MARKS = ("v", "w", "z", "vi", "vis", "rgb", "dc", "visible", "visual", "wide", "zoom")
"""words of a name, in any case, that tell a file's source; single letters only as whole words"""
NO_SOURCE = "its name says neither infrared (_T, _ir, …) nor visible (_V, _rgb, …)"
_BLENDS = ("msx",)
_WORD = re.compile(r"\d+|[^\W\d_]+|/")
_NEAR = 2
"""most by which the numbers of one shot differ: a drone writes up to three files for it"""
_STAMP = 14
"""digits of a time in a name: 20240520212354"""

Words = tuple[str, ...]
Edge = tuple[Path, Path]


class Match(NamedTuple):
    """A pair and the name that its files share, below the folder that was searched."""

    name: str
    ir: Path
    vis: Path


class Alone(NamedTuple):
    """A file without a partner."""

    file: Path
    why: str
    candidates: tuple[Path, ...] = ()
    """files that it fits, if there are several, or if they fit others, too"""
    source: str = ""
    """"infrared", "visible", or "" if it claims no partner or several"""


class Found(NamedTuple):
    """The outcome of a search for pairs."""

    pairs: list[Match]
    alone: list[Alone]


# two folders


def pair_folders(ir: Mapping[str, Path], vis: Mapping[str, Path], *, equal: bool = False) -> Found:
    """Pair the files of an infrared and of a visible folder.

    Args:
        ir: Path below the first folder, without suffix → file.
        vis: The same for the second.
        equal: Whether other files with equal names are already paired.
    """
    same = ir.keys() & vis.keys()
    pairs = [Match(stem, ir[stem], vis[stem]) for stem in same]
    first = {file: stem for stem, file in ir.items() if stem not in same}
    second = {file: stem for stem, file in vis.items() if stem not in same}
    rest = _Rest(first, second)
    if first and second:
        rest.settle(_edges(rest.ir, rest.vis, _folded, _folded), whole=True)
        rest.settle(_edges(rest.ir, rest.vis, _ir_keys, _vis_keys))
        rest.settle(_by_time(rest.ir, rest.vis))
        if not (equal or pairs or rest.pairs):
            rest.settle(_by_affix(rest.ir, rest.vis))
    alone = [_lone(file, "infrared") for file in rest.ir]
    alone += [_lone(file, "visible") for file in rest.vis]
    return Found([*pairs, *rest.pairs], [*rest.doubtful, *alone])


def _lone(file: Path, source: str) -> Alone:
    other = "visible" if source == "infrared" else "infrared"
    return Alone(file, f"no {other} picture has its name or its time", source=source)


# one folder


def pair_mixed(files: Sequence[Path], prefix: str = "") -> Found:
    """Pair the files of one folder that holds both sources.

    Args:
        files: Its pictures.
        prefix: Prefix of the names: the folder's path below the data set's, with "/" at its end.
    """
    words = {file: _words(file.stem) for file in files}
    blends = [file for file in files if set(words[file]) & {*_BLENDS}]
    named = {file: prefix + file.stem for file in files if file not in blends}
    rest = _Rest(dict(named), dict(named))
    rest.settle(_edges(rest.ir, rest.vis, _ir_marked, _vis_marked))
    unmarked = {f: n for f, n in rest.ir.items() if not _ir_marked(n) and not _vis_marked(n)}
    rest.settle(
        [
            *_edges(rest.ir, unmarked, _ir_marked, _plain),
            *_edges(unmarked, rest.vis, _plain, _vis_marked_long),
        ]
    )
    rest.settle(_mixed_by_time(rest.ir))
    alone = [Alone(file, "a blend of both sources (MSX)") for file in blends]
    for file, name in rest.ir.items():
        first, second = _ir_marked(name), _vis_marked(name)
        if first or second:
            alone.append(_lone(file, "infrared" if first else "visible"))
        else:
            alone.append(Alone(file, NO_SOURCE))
    return Found(rest.pairs, [*rest.doubtful, *alone])


# patterns


def pattern_pair(pattern: str | Sequence[str]) -> tuple[str, str]:
    """Check ``--pattern``: two patterns, each with one ``{}``.

    Raises:
        ValueError: It is something else.
    """
    parts = pattern.split(",") if isinstance(pattern, str) else pattern
    if not isinstance(parts, (tuple, list)) or not all(isinstance(p, str) for p in parts):
        raise TypeError(f"pattern is a {type(pattern).__name__}; expected a str or two of them")
    parts = [part.strip() for part in parts]
    if len(parts) != 2 or any(part.count("{}") != 1 for part in parts):
        raise ValueError(
            f"pattern is {pattern!r}; expected the infrared and the visible name with {{}} once in "
            'each for what they share, such as "{}_T.*,{}_V.*"'
        )
    return parts[0], parts[1]


def pair_by_pattern(
    ir: Mapping[str, Path], vis: Mapping[str, Path], pattern: str | Sequence[str]
) -> Found:
    """Pair files by two patterns; ``{}`` is what the names of a pair share, ``*`` and ``?`` vary.

    Args:
        ir: Path below the folder, with suffix → file, of the infrared files.
        vis: The same for the visible files; for one folder, both are all of its files.
        pattern: As `pattern_pair` takes it. Case does not count; folders above may be left out.

    Raises:
        ValueError: The patterns are not valid, or one file fits both.
    """
    texts = pattern_pair(pattern)
    first, second = (
        {file: found for path, file in files.items() if (found := _matched(expression, path))}
        for files, expression in zip((ir, vis), map(_expression, texts), strict=True)
    )
    if both := sorted(first.keys() & second.keys()):
        raise ValueError(f"pattern is {pattern!r}; {both[0].name} fits both; make them differ")
    others = sorted({*ir.values(), *vis.values()} - first.keys() - second.keys())
    rest = _Rest(first, second)
    rest.settle(_edges(rest.ir, rest.vis, _folded, _folded), whole=True)
    alone = [
        Alone(file, f"nothing of its name fits {text}", source=source)
        for files, text, source in (
            (rest.ir, texts[1], "infrared"),
            (rest.vis, texts[0], "visible"),
        )
        for file in files
    ]
    alone += [Alone(file, "fits neither pattern") for file in others]
    return Found(rest.pairs, [*rest.doubtful, *alone])


def _expression(pattern: str) -> re.Pattern[str]:
    wild = {"{}": "(?P<name>[^/]+)", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\{\}|\*|\?)", pattern)
    body = "".join(wild.get(part) or re.escape(part) for part in parts)
    return re.compile(f"(?P<above>(?:.*/)?){body}", re.IGNORECASE)


def _matched(expression: re.Pattern[str], path: str) -> str:
    found = expression.fullmatch(path)
    return found["above"] + found["name"] if found else ""


# the rules


class _Rest:
    """Files that have no partner yet, and what was found for the others."""

    def __init__(self, ir: dict[Path, str], vis: dict[Path, str]):
        self.ir, self.vis = ir, vis
        self.pairs: list[Match] = []
        self.doubtful: list[Alone] = []

    def settle(self, edges: Iterable[Edge], *, whole: bool = False) -> None:
        """Pair files that fit only one another; ``whole``: name the pair by the whole name."""
        partners: dict[Path, list[Path]] = defaultdict(list)
        edges = list(dict.fromkeys(edges))
        for first, second in edges:
            partners[first].append(second)
            partners[second].append(first)
        for first, second in edges:
            if partners[first] == [second] and partners[second] == [first]:
                stem = self.ir[first]
                self.pairs.append(Match(stem if whole else _shared(stem, first), first, second))
                del partners[first], partners[second]
                self._drop(first, second)
        for file, fitting in partners.items():
            self.doubtful.append(_doubt(file, sorted(fitting), partners))
            self._drop(file)

    def _drop(self, *files: Path) -> None:
        for file in files:
            self.ir.pop(file, None)
            self.vis.pop(file, None)


def _doubt(file: Path, fitting: list[Path], partners: Mapping[Path, list[Path]]) -> Alone:
    if len(fitting) > 1:
        return Alone(file, f"fits {_names(fitting)}", tuple(fitting))
    (partner,) = fitting
    rivals = sorted(set(partners[partner]) - {file})
    return Alone(file, f"fits {partner.name}, as {_names(rivals)} does", (partner, *rivals))


def _names(files: Sequence[Path]) -> str:
    """Return names, with their folders if the names alone do not differ."""
    same = len({file.name for file in files}) < len(files)
    return " and ".join(str(file) if same else file.name for file in files)


def _edges(
    ir: Mapping[Path, str],
    vis: Mapping[Path, str],
    ir_keys: Callable[[str], Iterable[object]],
    vis_keys: Callable[[str], Iterable[object]],
) -> Iterator[Edge]:
    """Yield every infrared and visible file that share a key."""
    by_key: dict[object, list[Path]] = defaultdict(list)
    for file, name in vis.items():
        for key in vis_keys(name):
            by_key[key].append(file)
    for first, name in ir.items():
        for key in ir_keys(name):
            for second in by_key.get(key, ()):
                if first != second:
                    yield first, second


def _plain(name: str) -> list[Words]:
    return [_words(name)]


def _folded(name: str) -> list[str]:
    """Make one key for names that differ only in case, or in how accents are encoded."""
    return [unicodedata.normalize("NFC", name).casefold()]


def _words(name: str) -> Words:
    return tuple(_WORD.findall(_folded(name)[0]))


def _without(name: str, marks: Sequence[str]) -> list[Words]:
    """Return the words of a name without each of its marks; folders above stay as they are."""
    folded = _folded(name)[0]
    found = list(_WORD.finditer(folded))
    words = tuple(match[0] for match in found)
    start = folded.rfind("/") + 1
    return [
        words[:n] + words[n + 1 :]
        for n, match in enumerate(found)
        if match.start() >= start and match[0] in marks and _stands_alone(folded, match)
    ]


def _stands_alone(text: str, match: re.Match[str]) -> bool:
    """Return whether a mark is meant: a letter beside a digit (T1, 4V) says nothing."""
    before, after = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 1]
    return len(match[0]) > 1 or not (before.isdigit() or after.isdigit())


def _ir_marked(name: str) -> list[Words]:
    return _without(name, IR_MARKS)


def _vis_marked(name: str) -> list[Words]:
    return _without(name, VIS_MARKS)


def _vis_marked_long(name: str) -> list[Words]:
    """Use only marks of several letters: v, w and z say little if the other file has no mark."""
    return _without(name, [mark for mark in VIS_MARKS if len(mark) > 1])


def _ir_keys(name: str) -> list[Words]:
    return [_words(name), *_ir_marked(name)]


def _vis_keys(name: str) -> list[Words]:
    return [_words(name), *_vis_marked(name)]


def _shared(name: str, file: Path) -> str:
    """Name a pair by its infrared file without the mark, or else by the folder."""
    above, _, stem = name.rpartition("/")
    for match in reversed(list(re.finditer(r"[^\W\d_]+", stem))):
        if match[0].casefold() in IR_MARKS and _stands_alone(stem, match):
            stem = f"{stem[: match.start()].rstrip('_-. ')}{stem[match.end() :]}".strip("_-. ")
            break
    return "/".join(filter(None, (above, stem))) or file.stem


# by time


def _mixed_by_time(files: Mapping[Path, str]) -> Iterator[Edge]:
    """Apply `_by_time` in one folder: a mark or the header tells which file is infrared."""
    marked = {file: (bool(_ir_marked(n)), bool(_vis_marked(n))) for file, n in files.items()}
    shots = {file: read_shot(file) for file in files}
    ir = {f: n for f, n in files.items() if marked[f] == (True, False)}
    ir |= {f: n for f, n in files.items() if marked[f] == (False, False) and shots[f].radiometric}
    vis = {f: n for f, n in files.items() if f not in ir and marked[f] != (True, True)}
    return _by_time(ir, vis, shots)


def _by_time(
    ir: Mapping[Path, str], vis: Mapping[Path, str], shots: Mapping[Path, Shot] | None = None
) -> Iterator[Edge]:
    """Pair files of the same second with near numbers, or any names if one is a FLIR picture."""
    if not ir or not vis:
        return
    if shots is None:
        shots = {file: read_shot(file) for file in (*ir, *vis)}
    by_second: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for file, name in vis.items():
        by_second[_folder(name), shots[file].second].append(file)
    for first, name in ir.items():
        shot = shots[first]
        near = [
            second
            for second in by_second.get((_folder(name), shot.second), ())
            if shot.second and _is_near(name, vis[second], shot)
        ]
        exact = [f for f in near if shot.fraction and shots[f].fraction == shot.fraction]
        yield from ((first, second) for second in (exact if len(exact) == 1 else near))
    yield from _edges(
        ir, vis, lambda n: _stamped(_ir_keys(n), 0), lambda n: _stamped(_vis_keys(n), 1)
    )


def _folder(name: str) -> str:
    return _folded(name)[0].rpartition("/")[0]


def _is_near(ir: str, vis: str, shot: Shot) -> bool:
    first, second = _numbered(_ir_keys(ir)[-1]), _numbered(_vis_keys(vis)[-1])
    if first is None or second is None or first[0] != second[0]:
        return shot.radiometric
    return 0 < abs(first[1] - second[1]) <= _NEAR


def _numbered(words: Words) -> tuple[Words, int] | None:
    """Return (what is around the last number, that number); None without one."""
    for n in range(len(words) - 1, -1, -1):
        if words[n].isdecimal():
            return (*words[:n], "#", *words[n + 1 :]), int(words[n])
    return None


def _stamped(names: Iterable[Words], seconds: int) -> Iterator[object]:
    """Yield keys of names with a time, within some seconds, by which a shot's files may differ."""
    for words in names:
        for n, word in enumerate(words):
            if len(word) != _STAMP or not word.isdecimal():
                continue
            try:
                time = datetime.strptime(word, "%Y%m%d%H%M%S")
            except ValueError:
                continue
            for shift in range(-seconds, seconds + 1):
                yield (*words[:n], time + timedelta(seconds=shift), *words[n + 1 :])


# by what all names of a folder share


def _by_affix(ir: Mapping[Path, str], vis: Mapping[Path, str]) -> list[Edge]:
    """Pair names that are equal without the words with which all in a folder begin or end."""
    first, second = _cores(ir), _cores(vis)
    edges = list(_edges(ir, vis, lambda name: first[name], lambda name: second[name]))
    return edges if len(edges) > 1 else []


def _cores(files: Mapping[Path, str]) -> dict[str, list[object]]:
    split = {name: (_folder(name), _words(name.rpartition("/")[2])) for name in files.values()}
    words = [found for _, found in split.values()]
    start = len(os.path.commonprefix(words))
    end = len(os.path.commonprefix([found[start:][::-1] for found in words]))
    cores = {name: (above, w[start : len(w) - end]) for name, (above, w) in split.items()}
    return {name: [core] if core[1] else [] for name, core in cores.items()}
