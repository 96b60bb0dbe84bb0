"""What is measured in a fresh interpreter: this file as a script (``timing.in_fresh_process``).

It prints one JSON object, and imports only the standard library at the top: imports are timed here.
"""

from __future__ import annotations

import json
import sys
import time


def startup(device: str, side: str) -> dict[str, float]:
    """Time each part, one after the other, in seconds."""
    found, last = {}, [time.perf_counter()]

    def note(name: str) -> None:
        found[name] = time.perf_counter() - last[0]
        last[0] = time.perf_counter()

    import ddfm_fast  # noqa: F401

    note("import ddfm_fast")
    import torch

    note("import torch")
    from ddfm_fast import Fuser

    note("import Fuser")
    fuser = Fuser(preset="fast", device=device)
    note("Fuser(): load the prior")
    from ddfm_fast.bench.data import pair

    ir, vis = pair(int(side))
    last[0] = time.perf_counter()
    fuser(ir, vis)
    note("first call")
    fuser(ir, vis)
    note("second call (on a GPU: the capture)")
    fuser(ir, vis)
    note("third call")
    shape = (int(side), 2 * int(side))
    fuser.warmup([shape])
    note("warm-up of another size")
    if torch.cuda.is_available() and device.startswith("cuda"):
        found |= {f"capture {g['mode']}": g["seconds"] for g in fuser.loops.summary()[-1:]}
    found["all, to the first picture"] = sum(list(found.values())[:5])
    return found


def first(preset: str, side: str) -> dict[str, float]:
    """Time a first picture from arrays, without PyTorch's own import, in seconds."""
    times = [time.perf_counter()]
    import torch

    times.append(time.perf_counter())
    from ddfm_fast import fuse

    times.append(time.perf_counter())
    fuse(*torch.arange(2 * int(side) ** 2).view(2, int(side), -1).byte(), preset=preset)
    times.append(time.perf_counter())
    parts = "import torch", "import fuse", "first picture"
    return {f"{preset}: {p}": b - a for p, a, b in zip(parts, times, times[1:], strict=False)}


def memory(device: str, row: str, side: str, steps: str) -> dict[str, int | None]:
    """Measure the peak bytes, above the start, of a row of the waterfall."""
    import torch

    from ddfm_fast.bench.memory import peak_of
    from ddfm_fast.bench.sections.waterfall import work_of

    work = work_of(row, torch.device(device), int(side), int(steps))
    return {"bytes": peak_of(work, torch.device(device))}


if __name__ == "__main__":
    jobs = {"startup": startup, "first": first, "memory": memory}
    print(json.dumps(jobs[sys.argv[1]](*sys.argv[2:])))
