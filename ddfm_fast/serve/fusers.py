"""The fuser of each set of options, all on one prior, and calls of it; used by one thread."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .logs import hearing
from .pictures import Pictures

if TYPE_CHECKING:
    from ..api import Fuser
    from ..restore.sources import FusionReport

KEPT = 8
"""most fusers for requests' options, besides the service's own"""
_INDEX = re.compile(r"\b(ir|vis)\[(\d+)\]")


class Result(NamedTuple):
    """A fused picture, what was done, and the sentences about it."""

    picture: np.ndarray
    report: dict[str, Any]
    evaluations: int
    warnings: list[str]


class Fusers:
    """Fusers by their options; ``with_options`` shares the prior and the graphs."""

    def __init__(self, fuser: Fuser):
        self.own = fuser
        self.kept: OrderedDict[str, tuple[Fuser, list[str]]] = OrderedDict()

    def get(self, options: dict[str, Any]) -> tuple[Fuser, list[str]]:
        """Return the fuser of these options, and the warnings about them.

        Raises:
            ValueError: An option is out of range.
            TypeError: An option has the wrong type.
        """
        if not options:
            return self.own, []
        key = json.dumps(options, sort_keys=True)
        if key not in self.kept:
            with hearing() as said:
                self.kept[key] = self.own.with_options(**options), said
        self.kept.move_to_end(key)
        while len(self.kept) > KEPT:
            self.kept.popitem(last=False)
        return self.kept[key]

    def warm_up(self) -> None:
        """Do the work of a first call."""
        with hearing():
            ramp = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
            self.own(ramp, ramp.T[::-1].copy(), value_range="dtype")

    def fuse(
        self,
        options: dict[str, Any],
        run: dict[str, Any],
        pairs: Sequence[Pictures],
        callback: Callable[[Any], None],
    ) -> list[Result]:
        """Fuse pairs of one kind with one set of options.

        Args:
            options: Of the fuser.
            run: ``seed`` and ``color``.
            pairs: With the same options of reading.
            callback: Called after each step; raising stops the fusion. On a GPU it would keep the
                loop from being one graph, and what it could stop is short: not called there.

        Raises:
            ValueError, TypeError, ImportError: As in ``Fuser``.
        """
        fuser, said = self.get(options)
        found: list[FusionReport] = []
        more = {**run, **pairs[0].reading, "report": found}
        if fuser.device.type == "cpu":
            more["callback"] = callback
        with hearing() as sentences:
            if len(pairs) == 1:
                fused = [fuser(pairs[0].ir, pairs[0].vis, **more)]
            else:
                fused = fuser([p.ir for p in pairs], [p.vis for p in pairs], **more)
        return [
            Result(
                pair.shown(picture),
                report.to_dict(),
                report.evaluations,
                [*said, *_about(n, len(pairs), sentences)],
            )
            for n, (pair, picture, report) in enumerate(zip(pairs, fused, found, strict=True))
        ]


def _about(n: int, count: int, sentences: list[str]) -> list[str]:
    """Return the sentences about one of several pairs; each client sees only its own."""
    if count == 1:
        return sentences
    mine = []
    for sentence in sentences:
        places = {int(found[2]) for found in _INDEX.finditer(sentence)}
        if n in places:
            mine.append(_INDEX.sub(r"\1", sentence))
        elif not places:
            mine.append(f"of {count} pairs fused together, one or more: {sentence}")
    return mine
