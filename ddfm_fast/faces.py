"""Faces of packages: names that are loaded from their home modules on first use (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from .runtime.collector import paused


def face(package: str, homes: dict[str, str]) -> tuple[Callable[[str], Any], Callable[[], list]]:
    """Make ``__getattr__`` and ``__dir__`` for the ``__init__`` of ``package``.

    Args:
        package: ``__name__`` of the package.
        homes: Public name to the module that defines it, relative to the package.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        with paused():
            value = getattr(import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return get, names
