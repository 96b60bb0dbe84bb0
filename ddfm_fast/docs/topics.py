"""Find the topics, their one-line summaries and their texts."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib.resources import files

_FOLDER = "docs"


def topics() -> dict[str, str]:
    """Return every topic's name with its summary, sorted by name.

    A file opens with ``# name: summary``.
    """
    found = {}
    for entry in (files("ddfm_fast") / _FOLDER).iterdir():
        if entry.name.endswith(".md"):
            title = entry.read_text(encoding="utf-8").partition("\n")[0]
            found[entry.name[: -len(".md")]] = title.partition(": ")[2]
    return dict(sorted(found.items()))


def text(name: str) -> str:
    """Return the Markdown text of a topic, by its name in :func:`topics`."""
    return (files("ddfm_fast") / _FOLDER / f"{name}.md").read_text(encoding="utf-8")


def find(topic: str, known: Iterable[str]) -> str:
    """Return the one of ``known`` that a reader's word means, in lower case or not.

    Raises:
        ValueError: There is none; the message names the nearest ones.
    """
    known = list(known)
    name = topic.strip().lower()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=2, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(known)}"
        raise ValueError(f"there is no help topic {topic!r}; {hint}")
    return name
