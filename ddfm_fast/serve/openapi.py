"""What ``/openapi.json`` and ``/docs`` show, made from the list of options."""

from __future__ import annotations

import html
from typing import Any

from .. import __version__
from ..options import OPTIONS as ROWS
from .bodies import OPTIONS
from .limits import Limits
from .pictures import FORMATS

_TYPES: dict[str, Any] = {
    "steps": ["integer", "string"], "psi": "number", "eta": "number", "seed": "integer",
    "color": ["boolean", "string"], "denoise": ["number", "string", "object"],
    "value_range": ["array", "string", "object"], "nodata": ["number", "object"],
}  # fmt: skip
_OF_FILES: dict[str, Any] = {
    "resize": {
        "type": "string", "enum": ["ir", "vis"], "description": "The source whose size both get.",
    },
    "quality": {"type": "integer", "description": "JPEG quality, 1 to 100.", "default": 95},
    "chroma": {
        "type": "string", "enum": ["444", "422", "420"], "description": "JPEG chroma subsampling.",
    },
    "compression": {
        "type": ["string", "integer"],
        "description": "TIFF: none, lzw, deflate or zstd; PNG: 0 to 9.",
    },
    "out_range": {
        "type": ["string", "array"], "default": "full",
        "description": "LO,HI, ir or vis: values of black and white, in place of the full range.",
    },
    "keep_thermal": {
        "type": "boolean", "default": False,
        "description": "The infrared values as a second page of a TIFF.",
    },
    "metadata": {
        "type": "boolean", "default": True, "description": "Keep EXIF, color profile and location.",
    },
}  # fmt: skip
"""of requests with image files"""
ERRORS = {
    400: "The library refuses the input; the message says why.",
    401: "No token, or a wrong one.",
    406: "An unknown format.",
    408: "The body came too slowly.",
    413: "A body or a picture above the limit.",
    415: "Neither a form nor JSON, or a kind of picture that is not accepted.",
    429: "The queue is full: Retry-After says when to try again.",
    500: "An error of the service, which its log describes.",
    503: "The service is stopping, loading, or out of memory for now.",
    504: "No result in time.",
}


def document(limits: Limits, token: bool) -> dict[str, Any]:
    """Make the OpenAPI 3.1 document."""
    taken = ", ".join(name.upper() for name in limits.formats)
    picture = {"type": "string", "description": f"One of {taken}, by content."}
    options: dict[str, Any] = {name: _schema(name) for name in OPTIONS} | _OF_FILES
    options["format"] = {
        "type": "string", "enum": list(FORMATS), "description": "By default as Accept says.",
    }  # fmt: skip

    def body(**kind: str) -> dict[str, Any]:
        one = {**picture, **kind}
        return {
            "schema": {
                "type": "object", "required": ["ir", "vis"], "additionalProperties": False,
                "properties": {"ir": one, "vis": one, **options},
            }
        }  # fmt: skip

    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    answers: dict[str, Any] = {
        str(status): {"description": text, "content": error} for status, text in ERRORS.items()
    }
    binary = {"schema": {"type": "string", "format": "binary"}}
    answers["200"] = {
        "description": "The fused picture; within JSON, in base64 with its report, where Accept "
        "is application/json.",
        "content": {
            **dict.fromkeys(FORMATS.values(), binary),
            "application/json": {"schema": {"type": "object"}},
        },
    }
    fuse: dict[str, Any] = {
        "summary": "Fuse an infrared and a visible picture (or any two aligned modalities).",
        "description": f"At most {limits.max_bytes} bytes a request, {limits.max_pixels} pixels a "
        f"picture and {limits.timeout:g} seconds.",
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": body(format="binary"),
                "application/json": body(contentEncoding="base64"),
            },
        },
        "responses": dict(sorted(answers.items())),
    }
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "ddfm-fast", "version": __version__},
        "paths": {"/fuse": {"post": fuse}, **_others()},
        "components": {"schemas": {"Error": _ERROR}},
    }
    if token:
        found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        fuse["security"] = [{"token": []}]
    return found


_ERROR = {
    "type": "object",
    "properties": {"error": {"type": "string"}, "request": {"type": "string"}},
    "required": ["error"],
}


def _schema(name: str) -> dict[str, Any]:
    row = ROWS[name]
    return {
        "type": _TYPES.get(name, "string"),
        "description": f"{row.help} {row.more}".strip(),
        **({} if row.default is None else {"default": row.default}),
    }


def _others() -> dict[str, Any]:
    texts = {
        "/health": "Whether the process answers.",
        "/ready": "Whether it can fuse: 503 while it loads or stops.",
        "/metrics": "Counters for Prometheus.",
    }
    return {
        path: {"get": {"summary": text, "responses": {"200": {"description": "Yes."}}}}
        for path, text in texts.items()
    }


def page(found: dict[str, Any]) -> str:
    """Show the document as a page that needs no other host."""
    fuse = found["paths"]["/fuse"]["post"]
    schema = fuse["requestBody"]["content"]["multipart/form-data"]["schema"]
    fields = [(name, one["description"]) for name, one in schema["properties"].items()]
    answers = [(status, one["description"]) for status, one in fuse["responses"].items()]
    paths = [
        (f"{method.upper()} {path}", one["summary"])
        for path, methods in found["paths"].items()
        for method, one in methods.items()
    ]
    tables = "".join(
        f"<h2>{title}</h2>{_table(rows)}"
        for title, rows in (("Paths", paths), ("Fields of /fuse", fields), ("Answers", answers))
    )
    title = f"{found['info']['title']} {found['info']['version']}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        "<style>body{font:16px sans-serif;max-width:60em;margin:2em auto}td{"
        "padding:.3em 1em .3em 0;vertical-align:top}</style>"
        f"<h1>{title}</h1><p>{html.escape(fuse['description'])} "
        '<a href="/openapi.json">OpenAPI document</a></p>'
        "<pre>curl -F ir=@ir.png -F vis=@vis.png -F preset=fast -o fused.png HOST/fuse</pre>"
        f"{tables}</html>"
    )


def _table(rows: list[tuple[str, str]]) -> str:
    cells = "".join(
        f"<tr><td><code>{html.escape(name)}</code></td><td>{html.escape(text)}</td></tr>"
        for name, text in rows
    )
    return f"<table>{cells}</table>"
