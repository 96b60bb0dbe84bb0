"""``python -m bench``: the command ``ddfm-fast bench``, from a checkout.

It is found by name, not by an import: the command knows the benchmarks, never the other way round.
"""

from runpy import run_module

if __name__ == "__main__":
    run_module("ddfm_fast.cli.bench", run_name="__main__")
