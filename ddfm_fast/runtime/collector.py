"""Python's garbage collector while modules load, which it would search in vain."""

from __future__ import annotations

import gc


class paused:  # noqa: N801  (contextlib takes longer to load than all of this)
    """Collect no garbage inside; what was made inside then counts as old.

    PyTorch and this package make some 170,000 objects that stay. The collector looks through
    them again and again while they grow in number, and finds nothing. If they stayed young, the
    next collections would look through all of them. Nothing becomes immortal: full collections see
    them. A collector that the program has turned off, or objects that it has frozen, stay so.
    """

    def __enter__(self) -> None:
        self._was_on = gc.isenabled()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        if not self._was_on:
            return
        if not gc.get_freeze_count():
            gc.freeze()
            gc.unfreeze()  # into the oldest generation, without looking at them
        gc.enable()
