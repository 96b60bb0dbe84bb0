"""The common part of sample transforms: two keys, the result's key, and a fuser per worker."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..images.ranges import by_source
from ..options import FuserOptions, check_names

if TYPE_CHECKING:
    from ..api import Fuser


class SampleFusion:
    """A transform of dictionaries: fuses the images under two keys into a third.

    A subclass calls :meth:`prepare` and :meth:`added`, and implements in :meth:`fused` how two
    images of its library become one. The fuser is made when it is first needed, so that a worker,
    which gets the transform by pickle, makes its own; a given fuser is pickled as it is.
    """

    output: Hashable
    _kept: Fuser | None
    _own: bool
    _options: FuserOptions

    def prepare(
        self,
        keys: Iterable[Hashable],
        output: Hashable,
        fuser: Fuser | None,
        options: FuserOptions,
        value_range: Any = None,
    ) -> tuple[Hashable, Hashable]:
        """Check and keep the transform's arguments; return the two keys.

        Args:
            keys: Keys of the first and the second image.
            output: Key of the result.
            fuser: A ``Fuser``, or None for one made from ``options``.
            options: Options of ``Fuser``.
            value_range: As in a call of ``Fuser``, checked only.

        Raises:
            ValueError: There are not two keys, or options have no effect.
            TypeError: An option is unknown.
        """
        both = (keys,) if isinstance(keys, str) else tuple(keys)
        if len(both) != 2 or both[0] == both[1]:
            raise ValueError(f"keys is {keys!r}; expected two, for the first and the second image")
        if fuser is not None and options:
            raise ValueError(f"options {', '.join(options)} have no effect with fuser; give one")
        check_names(options, FuserOptions.__annotations__)
        by_source(value_range)
        self.output = output
        self._kept, self._own, self._options = fuser, fuser is None, options
        return both[0], both[1]

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for workers, which make fusers of their own."""
        state = self.__dict__.copy()
        if self._own:
            state["_kept"] = None
        return state

    @property
    def fuser(self) -> Fuser:
        """The fuser: the given one, or this process's own."""
        if self._kept is None:
            from ..api import Fuser

            self._kept = Fuser(**self._options)
        return self._kept

    @property
    def fused_by(self) -> dict[str, Any]:
        """The given options or fuser; no fuser is made for this."""
        return dict(self._options) if self._own else {"fuser": self._kept}

    def added(self, sample: Mapping[Any, Any], present: Iterable[Hashable]) -> dict[Any, Any]:
        """Copy the sample and add the result, unless fewer than two keys are there."""
        copied, both = dict(sample), list(present)
        if len(both) == 2:
            copied[self.output] = self.fused(copied, both[0], both[1])
        return copied

    def fused(self, sample: dict[Any, Any], ir: Hashable, vis: Hashable) -> Any:
        """Return the result of the images under two keys."""
        raise NotImplementedError
