"""Two streams paired by time."""

from __future__ import annotations

from fractions import Fraction

import pytest

from ddfm_fast.video.frames import Frame
from ddfm_fast.video.pairing import Timeline, align
from ddfm_fast.video.sources import ArraySource


def stream(times, name="x"):
    return [Frame(name, Fraction(t).limit_denominator(1000), n) for n, t in enumerate(times)]


def paired(ir, vis, period=Fraction(1, 10), **kwargs) -> list[tuple[int, int]]:
    found = align(iter(stream(ir)), iter(stream(vis)), period=period, **kwargs)
    return [(pair.ir.number, pair.vis.number) for pair in found]


def test_equal_rates_pair_one_to_one():
    times = [n / 30 for n in range(5)]
    assert paired(times, times) == [(n, n) for n in range(5)]


def test_slower_infrared_is_used_again_and_faster_is_thinned():
    slow, fast = [n / 10 for n in range(4)], [n / 30 for n in range(10)]
    assert paired(slow, fast) == [(round(n / 3), n) for n in range(10)]
    assert paired(fast, slow) == [(3 * n, n) for n in range(4)]


def test_of_two_equally_near_the_earlier_is_taken():
    assert paired([0, 0.2, 0.4], [0, 0.1, 0.2, 0.3]) == [(0, 0), (0, 1), (1, 2), (1, 3)]


def test_offset_shifts_the_infrared_stream():
    times = [n / 10 for n in range(6)]
    assert paired(times, times, offset=Fraction(2, 10)) == [
        (0, 1),  # one period before the first infrared frame still has it as partner
        (0, 2),
        (1, 3),
        (2, 4),
        (3, 5),
    ]
    assert paired(times, times, offset=Fraction(-2, 10))[:2] == [(2, 0), (3, 1)]


def test_output_is_the_common_time():
    ten = [n / 10 for n in range(10)]
    assert paired(ten[:4], ten) == [(0, 0), (1, 1), (2, 2), (3, 3), (3, 4)]
    assert paired(ten, ten[:3]) == [(0, 0), (1, 1), (2, 2)]
    assert paired([], ten) == [] and paired(ten, []) == []
    assert paired(ten, ten, offset=Fraction(50)) == []


def test_gap_in_the_infrared_stream_is_bridged():
    ten = [n / 10 for n in range(10)]
    gap = [t for t in ten if not 0.25 < t < 0.75]
    found = dict((v, gap[i]) for i, v in paired(gap, ten))
    for v, t in found.items():
        assert abs(t - ten[v]) == pytest.approx(min(abs(g - ten[v]) for g in gap))


def test_audio_of_frames_without_partner_goes_on_with_the_next():
    vis = [frame._replace(packets=(frame.number,)) for frame in stream([0, 0.1, 0.2, 0.3])]
    found = list(align(stream([0]), vis, offset=Fraction(3, 10), period=Fraction(1, 10)))
    assert [pair.vis.packets for pair in found] == [(0, 1, 2), (3,)]


def test_times_are_exact_over_hours():
    source = ArraySource([], "x", Fraction(30000, 1001))
    assert source.time_base * 30000 * 3600 == 1001 * 3600


def timeline(ir=10, vis=10, *, offset=0.0, start=0.0, end=None) -> Timeline:
    sources = (ArraySource(range(n), "x", Fraction(10)) for n in (ir, vis))
    return Timeline.of(*sources, offset=offset, start=start, end=end)


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ({}, range(10)),
        ({"start": 0.3, "end": 0.6}, range(3, 6)),
        ({"ir": 5}, range(6)),
        ({"offset": 0.4}, range(3, 10)),
        ({"end": float("inf")}, range(10)),
    ],
)
def test_timeline(options, numbers):
    assert [pair.vis.number for pair in timeline(**options).pairs()] == list(numbers)


def test_timeline_expects_about_as_many_pairs_as_come():
    assert timeline().expected() == 10 and timeline(ir=5).expected() == 5
    assert timeline(start=0.3, end=0.6).expected() == 3 and timeline(start=2).expected() == 0
    unknown = ArraySource(iter(()), "x", Fraction(10))
    assert Timeline.of(unknown, unknown, offset=0, start=0, end=None).expected() is None


def test_timeline_refuses_impossible_times():
    for start in (-1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="start is"):
            timeline(start=start)
    with pytest.raises(ValueError, match="expected end after start"):
        timeline(start=2, end=2)
