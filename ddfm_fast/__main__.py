"""``python -m ddfm_fast`` and the command ``ddfm-fast``: Ctrl-C while loading is no traceback."""

import sys

INTERRUPTED = 130


def main() -> None:
    """Load the command and run it: exit code 0 ok, 1 something failed, 2 bad usage or input."""
    try:
        from ddfm_fast.runtime.interrupts import ending_at_once
        from ddfm_fast.runtime.streams import guarded

        with guarded(), ending_at_once():
            from ddfm_fast.cli.app import main as run

            run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
