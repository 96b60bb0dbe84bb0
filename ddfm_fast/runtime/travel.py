"""Send a fuser as settings and a reference to its prior; it is built on first use.

This serves pickle, ``copy``, multiprocessing and cloudpickle. Graphs, locks and handles stay
behind.
"""

from __future__ import annotations

import copy
import os
from typing import Any, NamedTuple

import torch

from ..priors.origin import Origin, Sent
from ..priors.prior import Prior
from .dispatch import resolve_device
from .locks import ForkLock


class Packed(NamedTuple):
    """A fuser on its way."""

    options: dict[str, Any]
    """those of ``Fuser``; the prior as an ``Origin`` or ``Sent`` where it has one"""
    method: Any
    """what makes its method"""
    config: Any
    """assigned to it; None if it is that of the options"""
    wanted: dict[str, Any] | None = None
    """by which name and dtype its prior was asked for, if the prior itself goes along"""

    def build(self, kind: type) -> Any:
        """Make the fuser.

        Raises:
            ValueError: Its prior, or something else that it needs, is not here.
        """
        options = dict(self.options)
        prior = options["prior"]
        if isinstance(prior, Origin):
            options["prior"] = prior.found()
        elif isinstance(prior, Sent):
            options["prior"] = prior.arrive(resolve_device(options["device"]))
        fuser = kind(method=self.method, **options)
        if self.wanted is not None:
            fuser._wanted = self.wanted
        if self.config is not None:
            fuser.config = self.config
        return fuser


class Travels:
    """What a fuser has so that it can travel; see the module."""

    _options: dict[str, Any]
    _make_method: Any
    _config: Any
    _named: Any
    _waiting: tuple[ForkLock, Packed]

    def __reduce__(self) -> tuple[Any, ...]:
        return arrived, (type(self), packed(self))

    def __copy__(self) -> Any:
        return arrived(type(self), packed(self, self.prior))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        waiting = self.__dict__.get("_waiting")
        bag = waiting[1] if waiting else packed(self, self.prior)
        return arrived(type(self), copy.deepcopy(bag, memo))

    def __getattr__(self, name: str) -> Any:
        # called only for missing attributes: of a fuser that has arrived but was not used yet, all
        waiting = self.__dict__.get("_waiting")
        if waiting is None or name.startswith("__"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        lock, bag = waiting
        with lock:
            if "_waiting" in self.__dict__:
                assigned = {**self.__dict__}
                self.__dict__.update({**bag.build(type(self)).__dict__, **assigned})
                self.registered()
                del self.__dict__["_waiting"]
        return getattr(self, name)


def packed(fuser: Travels, prior: Any = None) -> Packed:
    """Pack a fuser; ``prior`` goes along in place of a reference to its own."""
    waiting = fuser.__dict__.get("_waiting")
    if waiting is not None:
        return waiting[1]
    own: Any = fuser
    options = dict(fuser._options)
    options |= {name: getattr(own, name) for name in ("seed", "color", "progress")}
    if not own.automatic_batch:
        options["batch_size"] = own.batch_size
    if prior is None:
        prior = _reference(options["prior"], own.prior)
    options["prior"] = prior
    config = None if fuser._config is fuser._named else fuser._config
    named = isinstance(own._wanted["prior"], str | os.PathLike)
    wanted = own._wanted if named and not isinstance(prior, Origin) else None
    return Packed(options, fuser._make_method, config, wanted)


def _reference(asked: Any, prior: Prior) -> Any:
    """Return what goes along for a prior: a name or path and a hash, or what it was made of."""
    if prior.origin is None:
        return asked
    # a prior named by a name takes the precision of the device at which it arrives, as it did here
    named = isinstance(asked, str | os.PathLike)
    return prior.origin.leaving() if named else prior.sent()


def arrived(kind: type, bag: Packed) -> Any:
    """Make a fuser that builds itself when it is first used."""
    fuser: Any = object.__new__(kind)
    fuser.__dict__["_waiting"] = ForkLock(), bag
    return fuser


def sent_to(fuser: Any, device: torch.device | str) -> Any:
    """Make a fuser like this one for a device, maybe another machine's; it is not built yet."""
    bag = packed(fuser)
    return arrived(type(fuser), bag._replace(options={**bag.options, "device": device}))
