"""``python -m bench``: the command ``ddfm-fast bench``, from a checkout.

By its name, not by an import: the command knows the benchmarks, and never the other way.
"""

from runpy import run_module

if __name__ == "__main__":
    run_module("ddfm_fast.cli.bench", run_name="__main__")
