"""The pool of actors alone, with a stand-in for Ray whose actors end on request."""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import pytest

from ddfm_fast.integrations.ray_pool import Pool


class Lost(Exception):
    pass


class Piece(NamedTuple):
    name: str


class Handle:
    """An actor that a piece called "deadly" ends, with whatever else it was handed."""

    def __init__(self):
        self.is_lost = False
        self.ready = SimpleNamespace(remote=lambda: Call(self, None))


class Call:
    def __init__(self, handle, pieces):
        self.handle, self.pieces = handle, pieces

    def get(self):
        if self.handle.is_lost or Piece("deadly") in (self.pieces or ()):
            self.handle.is_lost = True
            raise Lost
        return 1


class Recording(Pool):
    def __init__(self, actors: int):
        exceptions = SimpleNamespace(RayActorError=Lost)
        ray = SimpleNamespace(
            exceptions=exceptions,
            wait=lambda calls, **_: (calls[:1], calls[1:]),
            kill=lambda _handle: None,
        )
        cluster = SimpleNamespace(ray=ray, actors=actors, get=Call.get)
        super().__init__(cluster, Handle, Call)
        self.done: list[str] = []
        self.failed: list[str] = []

    def take(self, pieces, found, seconds):
        del found, seconds
        self.done += [piece.name for piece in pieces]

    def give_up(self, piece, why):
        assert "3 workers were lost" in why
        self.failed.append(piece.name)


@pytest.mark.parametrize("actors", [1, 2, 3])
@pytest.mark.parametrize("place", [0, 1, 2, 4])
def test_a_piece_that_ends_its_workers_takes_no_neighbor_down(actors, place):
    names = [*"abcd"]
    names.insert(place, "deadly")
    pool = Recording(actors)
    pool.run(map(Piece, names), len(names))
    assert pool.failed == ["deadly"] and sorted(pool.done) == [*"abcd"]
