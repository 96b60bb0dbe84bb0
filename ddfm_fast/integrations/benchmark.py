"""A method of github.com/appleiphonedddd/Infrared-and-visible-image-fusion-benchmark.

In a file of its folder ``method``, which ``method/__init__.py`` imports::

    from base.base_method import BaseMethod, register_method
    from ddfm_fast.integrations.benchmark import fusion_method

    DDFM = register_method("DDFM")(fusion_method(BaseMethod, preset="balanced"))

and ``python main.py eval --method DDFM --checkpoint embedded …`` runs it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .torch import FuseModule

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Unpack

    from ..options import FuserOptions

EMBEDDED = "embedded"


def fusion_method(base: type, **options: Unpack[FuserOptions]) -> type:
    """Make the class of a method, a subclass of the benchmark's ``BaseMethod``.

    Its ``load_checkpoint``, which the benchmark always calls, takes "embedded" (or None) for the
    package's prior, and the file of another prior.

    Args:
        base: ``base.base_method.BaseMethod``.
        **options: Options of ``Fuser``; the device is the benchmark's.

    Raises:
        ValueError: ``device`` is given.
    """
    if "device" in options:
        raise ValueError("device is the benchmark's to choose (--device); leave it out")

    class DDFM(base):
        """DDFM by ddfm_fast."""

        model: FuseModule

        def _build_model(self) -> FuseModule:
            given: FuserOptions = {**options, "device": self.device}
            return FuseModule(**given)

        def _fuse(self, ir: Tensor, vi: Tensor) -> Tensor:
            return self.model(ir, vi)

        def load_checkpoint(self, path: str | os.PathLike[str] | None) -> None:
            """Load another prior; raise ValueError if the file is not one."""
            if path is None or os.fspath(path) == EMBEDDED:
                return
            other = self.model.fuser.with_options(prior=os.fspath(path))
            self.model = FuseModule(other).eval()

        @property
        def name(self) -> str:
            """The name in tables."""
            return "DDFM"

    return DDFM
