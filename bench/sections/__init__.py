"""The sections of the benchmark, one module each.

Each has ``ABOUT``, a line for ``--list``, and ``tasks(place)``, what this machine can measure of
it. A task checks that our code and the baseline agree, times them in turn, and returns a result.
"""

from importlib import import_module

NAMES = ("kernels", "step", "prior", "official", "loop", "waterfall", "throughput", "video")
NAMES += ("host", "scaling", "startup", "metrics")
SECTIONS = {name: import_module(f".{name}", __name__) for name in NAMES}
