"""Text files that people and shells write: their encoding."""

from __future__ import annotations

import codecs


def encoding(start: bytes) -> str:
    """Name the encoding of a text by its first bytes: UTF-16 with its mark, else UTF-8.

    Windows PowerShell's ``>`` writes UTF-16, and editors on Windows put a mark before UTF-8.

    >>> encoding("a".encode("utf-16"))
    'utf-16'
    """
    marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return "utf-16" if start.startswith(marks) else "utf-8-sig"


def decoded(data: bytes) -> str:
    """Decode a text; UnicodeDecodeError if it is not one."""
    return data.decode(encoding(data))
