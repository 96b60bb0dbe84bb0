"""A fuzzing campaign: attempts by seed until time is up, and a table of what became of them.

An attempt returns a word for what happened ("taken", "refused") or raises; what it raises is a
fault, and its seed is all that repeats it: ``FUZZ_SEED=123 pytest tests/fuzz/test_fuzz_api.py``.
It is given a generator of random numbers, or an example of a strategy of hypothesis, which makes
those that fail small.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
from hypothesis import HealthCheck, Phase, strategies

ROOT = Path(__file__).resolve().parent.parent.parent
Attempt = Callable[[Any], str]
SECONDS = float(os.environ.get("FUZZ_SECONDS", "20"))
"""seconds for each fuzzer; `make fuzz MINUTES=…` sets it"""
SEED = os.environ.get("FUZZ_SEED")
MOST_FAULTS = 20
TABLE = ROOT / "out" / "fuzz" / "table.jsonl"


class Campaign:
    """Runs an attempt again and again; ``name`` is that of its line in the table."""

    def __init__(
        self, name: str, attempt: Attempt, examples: strategies.SearchStrategy | None = None
    ):
        self.name, self.attempt, self.examples = name, attempt, examples
        self.outcomes: Counter[str] = Counter()
        self.faults: list[dict[str, str | int]] = []

    def run(self, seconds: float = SECONDS, first: int = 0) -> Campaign:
        """Try seeds from ``first`` until time is up, or only that in FUZZ_SEED if it is set."""
        until = time.monotonic() + seconds
        seed = first if SEED is None else int(SEED)
        while time.monotonic() < until and len(self.faults) < MOST_FAULTS:
            self._try(seed)
            seed += 1
            if SEED is not None:
                break
        self._note(seconds)
        return self

    def _try(self, seed: int) -> None:
        try:
            if self.examples is not None:
                self._explore(seed)
            else:
                self.outcomes[self.attempt(np.random.default_rng(seed))] += 1
        except Exception as error:
            notes = " ".join(getattr(error, "__notes__", ()))
            text = f"{type(error).__name__}: {error} {notes}".strip()
            where = traceback.format_exc().strip().splitlines()[-3:]
            self.faults.append({"seed": seed, "error": text[:400], "where": " ".join(where)[:400]})

    def _explore(self, seed: int) -> None:
        """Try examples by a seed; what fails is made small and raised."""

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=100,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @hypothesis.given(self.examples)
        def attempt(example):
            self.outcomes[self.attempt(example)] += 1

        attempt()

    def _note(self, seconds: float) -> None:
        """Add a line to the table, and print it."""
        tried = sum(self.outcomes.values()) + len(self.faults)
        line = {
            "fuzzer": self.name,
            "tried": tried,
            **self.outcomes,
            "faults": self.faults,
            "seconds": seconds,
        }
        TABLE.parent.mkdir(parents=True, exist_ok=True)
        with TABLE.open("a") as file:
            file.write(json.dumps(line) + "\n")
        counts = ", ".join(f"{n} {word}" for word, n in self.outcomes.most_common())
        print(f"{self.name}: {tried} tried: {counts}, {len(self.faults)} faults")

    def check(self, least: int = 1) -> None:
        """Fail on any fault, or if hardly anything was tried."""
        tried = sum(self.outcomes.values())
        assert not self.faults, f"{self.name}: {json.dumps(self.faults[:5], indent=1)}"
        assert SEED is not None or tried >= least, f"{self.name}: only {tried} attempts"


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip, cut, repeat, remove or insert a few bytes."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        if not out:
            break
        at, length = int(rng.integers(len(out))), int(rng.integers(1, 40))
        kind = rng.integers(6)
        if kind <= 1:
            out[at] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            del out[at : at + length]
        elif kind == 4:
            out[at:at] = rng.integers(0, 256, length, np.uint8).tobytes()
        else:
            out[at : at + length] = bytes([int(rng.choice([0, 255, 127]))]) * length
    return bytes(out)


def pick(rng: np.random.Generator, *choices):
    """Return one of the choices, as it is."""
    return choices[int(rng.integers(len(choices)))]


def to_markdown() -> str:
    """Write the table for people: `python tests/tools/campaign.py` prints it."""
    rows = ["| fuzzer | seconds | tried | what became of it | faults |", "|---|---|---|---|---|"]
    for line in map(json.loads, TABLE.read_text().splitlines()):
        known = {"fuzzer", "tried", "faults", "seconds"}
        outcomes = ", ".join(f"{n} {word}" for word, n in line.items() if word not in known)
        cells = line["fuzzer"], f"{line['seconds']:.0f}", line["tried"], outcomes
        rows.append("| " + " | ".join(map(str, (*cells, len(line["faults"])))) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(to_markdown())
