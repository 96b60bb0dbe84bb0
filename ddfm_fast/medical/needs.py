"""The libraries of the extra ``medical``, loaded when they are first needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def need(module: str, what: str) -> Any:
    """Import a library of the extra.

    Args:
        module: Name to import, such as "pydicom.pixels".
        what: What it is needed for, for the error.

    Raises:
        ImportError: The library is missing; the message names the extra.
    """
    try:
        return import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise ImportError(
            f"{what} needs {library}, which cannot be imported ({error}); "
            "pip install 'ddfm_fast[medical]'"
        ) from error
