"""What a first call costs: imports, the prior, the first fusion, a warm-up, a capture.

Each round is a fresh interpreter that times itself, so only the files are warm.
"""

from __future__ import annotations

from ..place import Place, Task, named
from ..results import Candidate, Measurement
from ..timing import in_fresh_process

ABOUT = "import, first call, warm-up, capture, each in a fresh interpreter"
SIDE = 64


def tasks(place: Place) -> list[Task]:
    """Return one task: from nothing to a fused picture."""
    name = "from nothing to a fused picture, preset fast"
    return [Task("startup", name, named(SIDE, SIDE), lambda: measure(place))]


def measure(place: Place) -> Measurement:
    """Time each part, by a process that measures itself."""
    rounds = 1 if place.rehearse else 3 if place.quick or place.device.type == "cuda" else 7
    found, fixed = Measurement(), place.fixed_work()
    fixed()
    for _ in range(rounds):
        place.yardstick.append(place.wall(fixed))
        seconds_of = in_fresh_process("startup", str(place.device), SIDE)
        if place.device.type == "cpu":
            seconds_of |= in_fresh_process("first", "instant", 512)
        for name, seconds in seconds_of.items():
            found.candidates.setdefault(name, Candidate()).samples.append(seconds)
        place.tick()
    return found
