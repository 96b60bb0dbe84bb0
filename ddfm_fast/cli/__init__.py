"""The ``ddfm-fast`` command: a module per command. Heavy imports happen inside the commands."""

from .app import main

__all__ = ["main"]
