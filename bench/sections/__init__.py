"""The sections of the benchmark, a module each.

Each has ``ABOUT``, a line for ``--list``, and ``tasks(place)``, what this machine can measure of
it. A task checks that ours and the baseline agree, times them in turn, and returns a measurement.
"""

from . import (
    kernels,
    loop,
    metrics,
    official,
    prior,
    scaling,
    startup,
    step,
    throughput,
    video,
    waterfall,
)  # fmt: skip

SECTIONS = {
    module.__name__.rpartition(".")[2]: module
    for module in (
        kernels, step, prior, official, loop, waterfall, throughput, video, scaling, startup,
        metrics,
    )
}  # fmt: skip
