"""Text files that people and shells write: their encoding."""

from __future__ import annotations

import codecs


def encoding(start: bytes) -> str:
    """Name the encoding of a text by its first bytes: UTF-16 with its mark, else UTF-8.

    Windows PowerShell writes UTF-16 by ``>``, and editors there put a mark before UTF-8.

    >>> encoding("a".encode("utf-16"))
    'utf-16'
    """
    marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return "utf-16" if start.startswith(marks) else "utf-8-sig"


def decoded(data: bytes) -> str:
    """Decode a text; UnicodeDecodeError where it is none."""
    return data.decode(encoding(data))
