"""What a user sees when something goes wrong: a line on stderr, and an exit code."""

from __future__ import annotations

import functools
import json
import re
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

from ..files.paths import emptied_on_failure
from ..images.doubts import DDFMWarning
from ..runtime import environment
from ..runtime.interrupts import by_exception
from ..storage.urls import without_password

OK, SOME_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
"""exit codes; the last is what shells give a program after Ctrl-C"""
JSON = "ddfm_fast.json"
"""key of a context's ``meta``: its command line has ``--json``"""

TOPICS = {
    "conventions": ("convention", "metrics"),
    "gpu": ("backend", "solver", "graph"),
    "inputs": (
        *("ir", "vis", "value_range", "ir_range", "vis_range", "out_range", "nodata", "layout"),
        *("align", "raw_size", "resize", "chroma", "compression", "quality"),
    ),
    "medical": ("colormap", "grid", "plane", "series", "slices", "window"),
    "method": ("variant", "sampler", "steps", "psi", "eta"),
    "metrics": ("fused",),
    "options": ("batch_size", "device", "seed", "tile"),
    "pictures": ("color", "denoise", "images", "stretch"),
    "precision": ("compile", "dtype"),
    "presets": ("preset",),
    "priors": ("config", "prior"),
    "scale": ("actors", "on", "token_file"),
    "video": ("codec", "frame"),
}
"""topic of ``ddfm-fast help`` → the arguments that it explains, by their names in Python"""
_TOPIC_OF = {argument: topic for topic, names in TOPICS.items() for argument in names}

_CONTEXT: Any = typer.Context.__mro__[1]
"""click's, of whichever click typer brings"""
_EXPECTED = (ValueError, TypeError, ImportError, OSError)


def friendly(command: Callable[..., None], *, loading: bool = False) -> Callable[..., None]:
    """Turn the errors of a command into a line or two on stderr and an exit code.

    ``DDFM_FAST_DEBUG=1`` shows the traceback. ``loading``: Ctrl-C still ends the process at
    once, as it must not meet the libraries that read the command line.
    """

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        if not loading:
            by_exception()
        try:
            with warnings.catch_warnings(), emptied_on_failure():
                warnings.showwarning = _shown_once()
                warnings.simplefilter("always", DDFMWarning)
                return command(*args, **kwargs)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if environment.is_on("DDFM_FAST_DEBUG"):
                raise
            if kwargs.get("as_json") or any(map(wants_json, args)):
                typer.echo(json.dumps({"ok": False, "error": message(error)}))
            echo_error(error)
            raise typer.Exit(BAD_INPUT if isinstance(error, _EXPECTED) else SOME_FAILED) from None

    return wrapper


def wants_json(context: Any) -> bool:
    """Whether an argument is the context of a command line that asks for an object on stdout."""
    if not isinstance(context, _CONTEXT):
        return False
    return context.meta.get(JSON, False) or bool(context.params.get("as_json"))


def echo_error(error: Exception) -> None:
    """Print an error on stderr, and the topic that explains its argument."""
    typer.echo(f"error: {message(error)}", err=True)
    if isinstance(error, _EXPECTED) and (topic := topic_of(str(error))):
        typer.echo(f"More: ddfm-fast help {topic}", err=True)


def message(error: Exception) -> str:
    """Return the text of an error, with its type and a hint where the error is not a user's."""
    text = without_password(str(error))
    if isinstance(error, _EXPECTED):
        return text or type(error).__name__
    return f"{type(error).__name__}: {text} (DDFM_FAST_DEBUG=1 shows where)"


def topic_of(text: str) -> str | None:
    """Find the topic that explains the argument or variable which an error begins with.

    >>> topic_of("--raw-size is '640'; expected a width and a height, such as 640x512")
    'inputs'
    """
    first = re.match(r"(?:--|\$)?([A-Za-z][\w-]*)", text)
    name = first[1].replace("-", "_") if first else ""
    return "environment" if name in environment.VARIABLES else _TOPIC_OF.get(name)


def _shown_once() -> Callable[..., None]:
    """Return what prints a warning on stderr, unless it has printed the same text before."""
    shown: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if (text := str(message)) not in shown:
            shown.add(text)
            typer.echo(f"warning: {text}", err=True)

    return show


@contextmanager
def termination_is_an_interrupt() -> Iterator[None]:
    """Inside, SIGTERM ends the output as properly as Ctrl-C does."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
