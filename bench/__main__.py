"""``python -m bench``: the command ``ddfm-fast bench``, from a checkout."""

from ddfm_fast.cli.bench import main

if __name__ == "__main__":
    main("python -m bench")
