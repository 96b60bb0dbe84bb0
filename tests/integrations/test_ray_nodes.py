"""Ray: a node that is lost in the middle of a batch, or of videos."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from clips import pan, write_clip
from clusters import pictures, slow_fuser, two_nodes, workers

from ddfm_fast.datasets.batch import STAGING, run_batch
from ddfm_fast.datasets.history import HISTORY_FILE
from ddfm_fast.datasets.pairs import find_pairs
from ddfm_fast.files.writing import write_image
from ddfm_fast.video.tasks import plan, run_tasks

pytest.importorskip("ray", reason="needs the extra ray")
pytestmark = [pytest.mark.extras, pytest.mark.timeout(300)]
PAIRS = 12
SOON = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 3000,
    "health_check_failure_threshold": 3,
}
"""settings by which the cluster notices within seconds that a node is gone, not in half a minute"""


@pytest.fixture
def cluster():
    with two_nodes(**SOON) as nodes:
        yield nodes


def lose_a_node(cluster, kind: str, begun) -> threading.Thread:
    """Kill the second node, without a word, once both have an actor and work has ``begun``."""

    def remove():
        while len(workers(kind)) < 2 or not begun():
            time.sleep(0.05)
        cluster.remove_node(cluster.second, allow_graceful=False)

    thread = threading.Thread(target=remove, daemon=True)
    thread.start()
    return thread


def test_a_batch_survives_the_loss_of_a_node(cluster, tmp_path):
    from ddfm_fast.integrations.ray_pairs import RayPairs

    rng = np.random.default_rng(0)
    for n in range(PAIRS):
        for folder, shape in (("ir", (48, 64)), ("vi", (48, 64, 3))):
            write_image(
                tmp_path / "in" / folder / f"{n:02}.png", rng.integers(0, 256, shape, np.uint8)
            )
    items, fuser, out = find_pairs(tmp_path / "in"), slow_fuser(), tmp_path / "two"
    run_batch(items, tmp_path / "one", fuser)
    there: dict[Path, int] = {}

    def begun() -> bool:
        there.update((path, path.stat().st_mtime_ns) for path in out.glob("*.png"))
        return len(there) >= 2

    removal = lose_a_node(cluster, "Worker", begun)
    with RayPairs(actors=2) as ray_pairs:
        report = run_batch(items, out, fuser, elsewhere=ray_pairs)
    removal.join(30)
    assert not removal.is_alive() and 2 <= len(there) < PAIRS
    assert report.ok and report.count("done") == PAIRS
    assert pictures(out) == pictures(tmp_path / "one") != {}
    assert {path: path.stat().st_mtime_ns for path in there} == there, "nothing is done twice"
    lines = [json.loads(line) for line in (out / HISTORY_FILE).open()]
    assert sorted(line["name"] for line in lines if "name" in line) == [i.name for i in items]
    assert not (out / STAGING).exists()


def test_videos_survive_the_loss_of_a_node(cluster, tmp_path):
    from ddfm_fast.integrations.ray_videos import RayVideos

    (tmp_path / "in").mkdir()
    for n in range(5):
        write_clip(tmp_path / "in" / f"{n}_T.mp4", pan(6, n, size=32))
        write_clip(tmp_path / "in" / f"{n}_RGB.mp4", pan(6, 9 - n, size=32, channels=3))
    fuser, out = slow_fuser(0.15), tmp_path / "two"
    options = {"preset": "exact"}

    def tasks(folder: Path):
        return plan(tmp_path / "in", None, folder)

    one = run_tasks(tasks(tmp_path / "one"), fuser=fuser, **options)
    removal = lose_a_node(cluster, "VideoWorker", lambda: list(out.glob("?.mp4")))
    with RayVideos(actors=2) as videos:
        two = run_tasks(tasks(out), fuser=fuser, elsewhere=videos, **options)
    removal.join(30)
    assert not removal.is_alive()
    assert [r.ok for r in two] == [True] * 5
    assert [r.task.name for r in two] == [r.task.name for r in one]
    for n in range(5):
        assert (out / f"{n}.mp4").read_bytes() == (tmp_path / "one" / f"{n}.mp4").read_bytes()
