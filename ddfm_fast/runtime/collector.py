"""Python's garbage collector while modules load, which it would search in vain."""

from __future__ import annotations

import gc


class paused:  # noqa: N801  (contextlib takes longer to load than all of this)
    """Collect no garbage inside; what was made inside then counts as old.

    PyTorch and this package make 270,000 objects that stay. While their number grows, the
    collector looks through them again and again. If they counted as young afterwards, the next
    collections would look through all of them once more. Full collections still see them. A
    collector that the program has turned off, or objects that it has frozen, stay so.

    ``for_good``: exempt all objects that exist at the end from full collections, too. This is for
    a process of our own, such as that of the command.
    """

    def __init__(self, *, for_good: bool = False):
        self._for_good = for_good

    def __enter__(self) -> None:
        self._was_on = gc.isenabled()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        if not self._was_on:
            return
        if self._for_good:
            gc.freeze()
        elif not gc.get_freeze_count():
            gc.freeze()
            gc.unfreeze()  # into the oldest generation, without looking at them
        gc.enable()
