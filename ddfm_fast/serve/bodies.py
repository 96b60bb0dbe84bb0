"""From the body of a request to a call: a multipart form, or a JSON object with base64."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ..align.call import SETTINGS as ALIGNMENTS
from ..datasets.output import Output
from ..options import FuserOptions, ReadingOptions, check_names
from .limits import Refused

AT_START = (
    "prior", "device", "backend", "solver", "graph", "dtype", "compile", "batch_size", "tile",
    "progress",
)  # fmt: skip
"""options of ``Fuser`` that are the service's own: a request names no file of the server's"""
OPTIONS = tuple(
    name
    for name in (*FuserOptions.__annotations__, *ReadingOptions.__annotations__)
    if name not in AT_START
)
"""options that a request may have"""
OF_RESULT = tuple(one.name for one in fields(Output) if one.name != "panel")
"""options that say how a result is written"""
OF_FILES = ("resize", *OF_RESULT)
ELSEWHERE = {
    "panel": "`ddfm-fast fuse --panel` draws one",
    "raw_size": "send bare numbers as NPY",
}
"""options of the command that a request lacks, and what replaces them"""
PICTURES = ("ir", "vis")
_PER_CALL = ("seed", "color")
_WORDS = {"null": None, "true": True, "false": False, "nan": float("nan")}


@dataclass
class Call:
    """What a request wants."""

    ir: bytes
    vis: bytes
    options: dict[str, Any]
    """of the fuser"""
    run: dict[str, Any]
    """``seed`` and ``color``"""
    reading: dict[str, Any]
    format: str | None = None
    resize: str | None = None
    """the source whose size both get"""
    output: Output = field(default_factory=Output)
    """how the result is written"""

    @property
    def settings(self) -> str:
        """The same text for calls that can be fused together."""
        return json.dumps([self.options, self.run], sort_keys=True)


def from_fields(fields: Mapping[str, Any]) -> Call:
    """Sort the fields of a request; pictures are bytes.

    Raises:
        Refused: A picture is missing, or an option is unknown.
    """
    for name in PICTURES:
        if name not in fields:
            raise Refused(
                400, f"{name} is missing; expected a picture: a file of a form (-F {name}=@FILE), "
                "or base64 in JSON",
            )  # fmt: skip
    given = {name: value for name, value in fields.items() if name not in (*PICTURES, "format")}
    for name in given:
        if name in AT_START:
            raise Refused(
                400, f"{name!r} is not an option of a request; it is chosen when the service starts"
            )
        if name in ELSEWHERE:
            raise Refused(400, f"{name!r} is not an option of a request; {ELSEWHERE[name]}")
    try:
        check_names(given, (*OPTIONS, *OF_FILES))
        resize = _resize(given.pop("resize", None))
        output = _output({name: given.pop(name) for name in OF_RESULT if name in given})
    except (TypeError, ValueError) as error:
        raise Refused(400, str(error)) from None
    _check_align(given.get("align"))
    reading = {n: _ranges(given.pop(n)) for n in ReadingOptions.__annotations__ if n in given}
    run = {name: given.pop(name) for name in _PER_CALL if given.get(name) is not None}
    options = {name: value for name, value in given.items() if value is not None}
    form = fields.get("format")
    if form is not None and not isinstance(form, str):
        raise Refused(400, f"format is {form!r}; expected a word such as 'png'")
    return Call(fields["ir"], fields["vis"], options, run, reading, form, resize, output)


def _resize(value: Any) -> str | None:
    if value is not None and value not in PICTURES:
        raise ValueError(f"resize is {value!r}; expected ir or vis, whose size both get")
    return None if value is None else str(value)


def _output(given: dict[str, Any]) -> Output:
    """Return how a result is written; ValueError or TypeError if that is impossible."""
    words = {name: _ranges(value) for name, value in given.items() if value is not None}
    if isinstance(words.get("chroma"), int):
        words["chroma"] = str(words["chroma"])
    return Output(**words)


def _check_align(value: Any) -> None:
    """Refuse names of files, which would be on the server."""
    if value is not None and (not isinstance(value, str) or value not in ALIGNMENTS):
        raise Refused(
            400,
            f"align is {value!r}; expected one of {', '.join(ALIGNMENTS)}: a calibration is "
            "chosen when the service starts (--align)",
        )


def from_json(body: bytes) -> Call:
    """Read a JSON object: ``ir`` and ``vis`` in base64, options beside them; Refused otherwise."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise Refused(400, f"the body holds a JSON {type(fields).__name__}; expected an object")
    for name in PICTURES:
        if name in fields:
            fields[name] = _decoded(fields[name], name)
    return from_fields(fields)


def _decoded(text: Any, name: str) -> bytes:
    if not isinstance(text, str):
        raise Refused(400, f"{name} is a JSON {type(text).__name__}; expected a file in base64")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(400, f"{name} is not base64 ({error}); encode the file again") from None


async def from_form(body: bytes, headers: Any) -> Call:
    """Read a multipart form: files ``ir`` and ``vis``, a field for each option.

    Raises:
        Refused: The body is not such a form.
    """
    from starlette.formparsers import MultiPartParser

    class InMemory(MultiPartParser):
        """Keeps files in memory, which the limit of a body bounds; no picture lands on a disk."""

        spool_max_size = 2**62

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body
        yield b""

    try:
        form = await InMemory(
            headers, stream(), max_files=len(PICTURES), max_fields=len(OPTIONS) + len(OF_FILES) + 8,
            max_part_size=2**14,
        ).parse()  # fmt: skip
    except Exception as error:  # damaged forms fail in every possible way
        reason = getattr(error, "message", None) or str(error)
        raise Refused(400, f"the form cannot be read ({reason}); send it again") from None
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if name in fields:
            raise Refused(400, f"{name!r} is given twice; give it once")
        if isinstance(value, str):
            if name in PICTURES:
                raise Refused(400, f"{name} is text; expected a file: -F {name}=@FILE")
            fields[name] = from_text(name, value)
        else:
            if name not in PICTURES:
                raise Refused(400, f"{name!r} is a file; expected files ir and vis, else text")
            fields[name] = value.file.read()
    return from_fields(fields)


def from_text(name: str, text: str) -> Any:
    """Return the value of a form's field: JSON where it is that, LO,HI for a range, else text."""
    if name == "format":
        return text
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if name in ("value_range", "out_range") and text.count(",") == 1 and text[:1] not in "[{":
        text = f"[{text}]"
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _ranges(value: Any) -> Any:
    """Turn lists into tuples, which JSON lacks."""
    if isinstance(value, dict):
        return {name: _ranges(one) for name, one in value.items()}
    return tuple(value) if isinstance(value, list) else value
