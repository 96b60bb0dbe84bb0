"""The range of a source over a stream follows slowly, jumps at cuts, and is reported once."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch
from clips import texture

from ddfm_fast import DDFMWarning
from ddfm_fast.images.ranges import Window
from ddfm_fast.images.steady import FOLLOW, SteadyRanges

PICTURE, OTHER = texture(48, 64, 1), texture(48, 64, 2)


def counts(low: int, step: int = 8) -> np.ndarray:
    return (low + PICTURE.astype(np.uint16) * step).astype(np.uint16)


def ranges_of(frames: list, cuts: tuple = (), *, setting=None, nodata=None):
    """Return the infrared ranges of a stream, and the warnings."""
    steady = SteadyRanges()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", DDFMWarning)
        found = [
            steady(frame, OTHER, setting, nodata, cut=n in cuts)["ir"]
            for n, frame in enumerate(frames)
        ]
    return found, [str(w.message) for w in said]


def test_a_drift_is_followed_slowly_and_said_once():
    """By the equation, each step is a fiftieth of what is left."""
    frames = [counts(7000 + 2 * n) for n in range(300)]
    found, said = ranges_of(frames)
    low = 7000.0
    for n, (a, b) in enumerate(found):
        low += (7000 + 2 * n - low) / 50 if n else 0
        assert a == pytest.approx(low) and b - a == pytest.approx(2040)
    steps = np.diff([a for a, _ in found])
    assert steps.min() > 0 and steps.max() < 2
    assert 7598 - 101 < found[-1][0] < 7598 - 90  # a lag of 50 frames, less what is still to come
    assert len(said) == 1 and "7000 to 9040" in said[0]


def test_noise_at_the_ends_hardly_moves_it():
    rng = np.random.default_rng(0)
    frames = [counts(7000) + rng.integers(0, 40, PICTURE.shape).astype(np.uint16) for _ in "x" * 60]
    alone = [ranges_of([f])[0][0] for f in frames]
    found, _ = ranges_of(frames)
    moves = np.abs(np.diff([a for a, _ in found])).max()
    assert moves < 1 < np.abs(np.diff([a for a, _ in alone])).max()


def test_it_jumps_at_a_cut_and_without_one_follows():
    frames = [counts(7000)] * 3 + [counts(7400, 12)] * 3
    cut, _ = ranges_of(frames, (0, 3))
    assert cut == [(7000, 9040)] * 3 + [(7400, 10460)] * 3
    followed, _ = ranges_of(frames, (0,))
    assert followed[3] == (7000 + 400 * FOLLOW, 9040 + 1420 * FOLLOW)


def test_it_jumps_where_the_camera_changes_its_gain():
    frames = [counts(7000)] * 3 + [counts(2000, 2)] * 3
    found, said = ranges_of(frames)
    assert found == [(7000, 9040)] * 3 + [(2000, 2510)] * 3 and len(said) == 1


def test_a_hot_target_does_not_make_the_rest_dark():
    hot = counts(7000)
    hot[:16, :16] = 15000
    found, _ = ranges_of([counts(7000), hot, hot])
    assert found[1][1] == 9040 + (15000 - 9040) * FOLLOW and found[1][0] == 7000
    hot[:16, :16] = 20000  # so much of 65535 that the frame alone would seem to use it all
    assert ranges_of([hot])[0] == ["dtype"]
    found, _ = ranges_of([counts(7000), hot, hot])
    assert found[1] == (7000, 9040 + (20000 - 9040) * FOLLOW)


def test_it_jumps_to_all_of_sixteen_bits_where_nothing_is_shared():
    found, _ = ranges_of([counts(7000)] * 2 + [counts(20000, 170)] * 2)
    assert found == [(7000, 9040)] * 2 + ["dtype"] * 2


def test_a_closed_shutter_changes_nothing():
    shut = np.full(PICTURE.shape, 8000, np.uint16)
    found, said = ranges_of([shut, counts(7000), shut, counts(7000)], (0, 2))
    assert found == ["dtype", (7000, 9040), (7000, 9040), (7000, 9040)] and len(said) == 1


def test_sixteen_bits_that_are_used_stay_so_in_the_dark():
    found, said = ranges_of([counts(0, 257), counts(100), counts(100)], (0, 2))
    assert found == ["dtype"] * 3 and not said


def test_a_window_grows_to_all_of_sixteen_bits():
    frames = [counts(0, 16)] + [counts(0, 250)] * 2
    followed, _ = ranges_of(frames)
    assert followed[1] == (0, 4080 + (63750 - 4080) * FOLLOW)
    assert ranges_of(frames, (0, 1))[0][1] == "dtype"


def test_eight_bits_and_what_is_given_stay():
    for setting in ("dtype", {"ir": (0, 65535)}):
        found, said = ranges_of([counts(7000), counts(2000)], setting=setting)
        assert set(found) == {"dtype" if setting == "dtype" else (0, 65535)} and not said
    found, said = ranges_of([PICTURE, PICTURE // 2 + 90])
    assert found == ["dtype"] * 2 and not said
    signed = counts(7000).astype(np.int16)
    assert ranges_of([signed], setting="dtype")[0] == [(-32768, 32767)]


def test_floats_in_the_unit_may_overshoot_later():
    unit = (PICTURE / 255).astype(np.float32)
    found, _ = ranges_of([unit, unit * 1.05, unit])
    assert found == [Window((0.0, 1.0)), Window((0.0, 1.0)), "dtype"]
    warm = unit * 40 + 10
    found, said = ranges_of([unit, warm, warm])
    assert found[1:] == [(10, 50)] * 2 and len(said) == 1


@pytest.mark.parametrize("kind", ["numpy", "torch", "float16"])
def test_degrees_of_any_container(kind):
    warm = PICTURE / 255 * 40 + 10
    image = torch.from_numpy(warm) if kind == "torch" else warm.astype(kind.replace("numpy", "f8"))
    found, said = ranges_of([image, image])
    assert found[1] == pytest.approx((10, 50)) and len(said) == 1


def test_no_data_is_left_out():
    holed = counts(7000)
    holed[:5] = 0
    assert ranges_of([holed], nodata={"ir": 0})[0] == [(holed[5:].min(), holed.max())]


def test_it_travels_to_another_process():
    steady = SteadyRanges(told=False)
    steady(counts(7000), OTHER)
    there = pickle.loads(pickle.dumps(steady))
    assert there(counts(7100), OTHER) == steady(counts(7100), OTHER)
