"""``python -m ddfm_fast``: the same as the ``ddfm-fast`` command."""

from ddfm_fast.cli.app import main

if __name__ == "__main__":
    main()
