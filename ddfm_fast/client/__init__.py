"""Ask a ``ddfm-fast serve`` somewhere to fuse a pair; needs the standard library alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..faces import face

if TYPE_CHECKING:
    from .calls import ServiceError, fuse

__all__ = ["ServiceError", "fuse"]

__getattr__, __dir__ = face(__name__, {"fuse": "calls", "ServiceError": "calls"})
