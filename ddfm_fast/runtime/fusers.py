"""The living fusers by name, for graphs that call them; see ``operators``."""

from __future__ import annotations

import hashlib
import itertools
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

_keys = itertools.count()
_fusers: weakref.WeakValueDictionary[str, InGraphs] = weakref.WeakValueDictionary()
"""every living fuser by its key"""


class InGraphs:
    """What a fuser has so that a graph can call it: two names."""

    key: str
    """names this fuser, as it is configured now, in this process"""

    def registered(self) -> None:
        """Take a new key, by which it is found, in place of the previous one."""
        _fusers.pop(self.__dict__.get("key", ""), None)
        self.key = f"fuser {next(_keys)}"
        _fusers[self.key] = self

    def digest(self: Any) -> str:
        """Name everything that decides results except a call's options; the key if unknown."""
        with ThreadPoolExecutor(1) as outside:  # outside the modes of the thread that traces
            return outside.submit(self._digest).result()

    def _digest(self: Any) -> str:
        prior, method = self.prior, self.method
        if not prior.fingerprint or type(method).__module__ != "ddfm_fast.method":
            return self.key
        keywords = {name: str(value) for name, value in prior.keywords().items() if name != "name"}
        decides = (
            prior.fingerprint, sorted(keywords.items()), prior.precision,
            getattr(prior, "compiled", False), repr(replace(self.config, summary="")),
            type(method).__name__, method.part, self.device.type, self.backend[:2],
            *([] if self.align in ("check", "off") else [repr(self.align), self.align_field]),
            str(getattr(self.tiled, "tile", "off")),
        )  # fmt: skip
        return f"fuser {hashlib.sha256(repr(decides).encode()).hexdigest()[:16]}"


def find(name: str) -> Any:
    """Find a fuser of this process by its key or digest; RuntimeError if there is none."""
    found = _fusers.get(name)
    if found is None:
        found = next((f for f in list(_fusers.values()) if f.digest() == name), None)
    if found is None:
        raise RuntimeError(
            f"this graph calls {name!r}, which is not in this process; expected a ddfm_fast.Fuser "
            "with the prior, options and device of the trace: build it first, and keep it"
        )
    return found
