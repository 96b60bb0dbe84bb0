"""Fuse a pair on a ``ddfm-fast serve`` elsewhere; needs only the standard library."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..faces import face

if TYPE_CHECKING:
    from .calls import ServiceError, fuse

__all__ = ["ServiceError", "fuse"]

__getattr__, __dir__ = face(__name__, {"fuse": "calls", "ServiceError": "calls"})
