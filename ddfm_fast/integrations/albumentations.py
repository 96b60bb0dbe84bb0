"""A transform in the style of Albumentations: named arrays in, the same and a fused one out.

>>> from ddfm_fast.integrations.albumentations import FuseDDFM
>>> transform = FuseDDFM(("infrared", "image"), preset="instant")
>>> sample = transform(image=visible, infrared=infrared, label=3)
>>> sorted(sample), sample["image"].shape
(['image', 'infrared', 'label'], (48, 64, 3))

It needs no library. With Albumentations installed, it is one of its transforms and goes into a
``Compose``; put it before transforms that move pixels, or list the infrared image in
``additional_targets``.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..options import FuserOptions
from .samples import SampleFusion

if TYPE_CHECKING:
    from ..api import Fuser


def _basic_transform() -> Any:
    try:
        return import_module("albumentations").BasicTransform
    except ImportError:
        return object


_BasicTransform: Any = _basic_transform()


class FuseDDFM(SampleFusion, _BasicTransform):
    """Fuse the arrays under two keys: (H, W) or (H, W, C), uint8, uint16 or float.

    The result has the dtype and axes of the source that gives the color, as in
    ``ddfm_fast.fuse``, and takes the place of "image" unless ``output`` says otherwise. Other
    entries, boxes and masks among them, stay as they are, since no pixel moves.

    Args:
        keys: Keys of the infrared and the visible image.
        output: Key of the result.
        fuser: A ``Fuser``; None for one made from ``options`` when it is first needed, in each
            worker.
        value_range: As in a call of ``ddfm_fast.Fuser``.
        allow_missing_keys: Leave samples that lack a key as they are.
        p: Probability of fusing a sample.
        **options: Options of ``Fuser``, such as preset="instant".

    Raises:
        ValueError: There are not two keys, or ``p`` is not a probability.
        TypeError: An option is unknown.
    """

    def __init__(
        self,
        keys: Iterable[str] = ("infrared", "image"),
        output: str = "image",
        fuser: Fuser | None = None,
        *,
        value_range: Any = None,
        allow_missing_keys: bool = False,
        p: float = 1.0,
        **options: Any,
    ):
        if _BasicTransform is not object:
            _BasicTransform.__init__(self, p=p)
        if not 0 <= p <= 1:
            raise ValueError(f"p is {p!r}; expected a probability, 0 to 1")
        given: FuserOptions = options  # type: ignore[assignment]
        self.keys = self.prepare(keys, output, fuser, given, value_range)
        self.p, self.value_range = p, value_range
        self.allow_missing_keys = allow_missing_keys

    def __call__(self, *args: Any, force_apply: bool = False, **sample: Any) -> dict[str, Any]:
        """Return the sample with the result; KeyError for a key that is missing."""
        if args:
            raise KeyError("arrays are given by name, such as transform(image=…, infrared=…)")
        if not (force_apply or self._drawn() < self.p):
            return sample
        present = [key for key in self.keys if key in sample]
        if len(present) < 2 and not self.allow_missing_keys:
            missing = next(key for key in self.keys if key not in sample)
            raise KeyError(f"{missing!r} is missing in the sample; it has {', '.join(sample)}")
        return self.added(sample, present)

    def fused(self, sample: dict[Any, Any], ir: Any, vis: Any) -> Any:
        """Return the result of the images under two keys."""
        return self.fuser(sample[ir], sample[vis], value_range=self.value_range)

    @property
    def targets(self) -> dict[str, Any]:
        """What Albumentations applies by key: nothing, since a pair is fused at once."""
        return {}

    @property
    def available_keys(self) -> set[Any]:
        """Keys that a ``Compose`` passes to it."""
        return {*self.keys, self.output}

    def get_transform_init_args(self) -> dict[str, Any]:
        """Return what Albumentations prints and saves, from which it can remake the transform."""
        own = {
            "keys": self.keys,
            "output": self.output,
            "value_range": self.value_range,
            "allow_missing_keys": self.allow_missing_keys,
        }
        return own | self.fused_by

    def _drawn(self) -> float:
        """Return a number in [0, 1) from Albumentations' own generator, or from Python's."""
        return getattr(self, "py_random", random).random() if self.p < 1 else 0.0
