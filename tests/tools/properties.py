"""How many examples property tests draw: a few, always the same; many where FUZZ_SECONDS is set."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

FUZZ = os.environ.get("FUZZ_SECONDS")


def examples(few: int, **more) -> settings:
    """Return settings for `make test`; `make fuzz` draws more examples, others each time."""
    return settings(
        max_examples=few if FUZZ is None else max(few, round(few * float(FUZZ) / 5)),
        derandomize=FUZZ is None,
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        **more,
    )
