"""Ray: datasets fused by FuseBatch, and batches on a cluster of two nodes that loses workers."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from clusters import pictures, slow_fuser, two_nodes, workers
from PIL import Image

from ddfm_fast.api import Fuser
from ddfm_fast.datasets.batch import REPORT, STAGING, run_batch
from ddfm_fast.datasets.history import HISTORY_FILE
from ddfm_fast.datasets.pairs import find_pairs
from ddfm_fast.files.reading import read_image
from ddfm_fast.files.writing import write_image
from ddfm_fast.integrations.ray import FuseBatch
from ddfm_fast.integrations.ray_pairs import RayPairs
from ddfm_fast.integrations.ray_pool import cpus_each

ray = pytest.importorskip("ray", reason="needs the extra ray")
pytestmark = [pytest.mark.extras, pytest.mark.timeout(300)]
PAIRS = 12
QUICK = {"preset": "fast"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Pairs of two sizes, gray and color."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for n in range(PAIRS):
        height, width = (64, 80) if n % 3 else (48, 64)
        y, x = np.mgrid[:height, :width]
        ir = 100 + 50 * np.sin(x / 9 + n) + rng.normal(0, 4, (height, width))
        vis = (120 + 60 * np.cos(y / 7 + n))[..., None] + rng.normal(0, 4, (height, width, 3))
        for name, image in (("ir", ir), ("vi", vis)):
            write_image(root / name / f"{n:02}.png", image.clip(0, 255).astype(np.uint8))
    return root


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one CPU each, as two machines would be."""
    with two_nodes() as nodes:
        yield nodes


def test_a_batch_on_two_nodes_is_that_of_one_machine(cluster, data, tmp_path):
    items, fuser = find_pairs(data), Fuser(**QUICK)
    one = run_batch(items, tmp_path / "one", fuser)
    with RayPairs(actors=2) as there:
        assert there.cpus == 1
        two = run_batch(items, tmp_path / "two", fuser, elsewhere=there)
        again = run_batch(items, tmp_path / "two", fuser, elsewhere=there)
        on_one = run_batch(items, tmp_path / "one", fuser, elsewhere=there)
    assert ray.is_initialized(), "a cluster that was there is left"
    assert two.ok and (two.count("done"), again.count("skipped")) == (PAIRS, PAIRS)
    assert on_one.count("skipped") == PAIRS, "what one machine did is done"
    assert pictures(tmp_path / "two") == pictures(tmp_path / "one") != {}
    assert two.settings == one.settings
    for a, b in zip(one.results, two.results, strict=True):
        for name in ("name", "status", "height", "width", "dtype", "report"):
            assert getattr(a, name) == getattr(b, name)
        assert Path(b.output).relative_to(tmp_path / "two") == Path(a.output).relative_to(
            tmp_path / "one"
        )
    assert not (tmp_path / "two" / STAGING).exists()
    assert json.loads((tmp_path / "two" / REPORT).read_text())["done"] == 0  # the last run's
    lines = [json.loads(line) for line in (tmp_path / "two" / HISTORY_FILE).open()]
    assert sorted(line["name"] for line in lines if "name" in line) == [i.name for i in items]


def test_a_worker_that_is_killed_is_replaced(cluster, data, tmp_path):
    items, fuser = find_pairs(data), slow_fuser()
    expected = run_batch(items, tmp_path / "one", fuser)
    killed: dict[str, int] = {}

    def kill_one():
        while len(workers()) < 2 or not list((tmp_path / "two").glob("*.png")):
            time.sleep(0.05)
        killed.update(workers())
        os.kill(next(iter(killed.values())), signal.SIGKILL)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    with RayPairs(actors=2) as there:
        report = run_batch(items, tmp_path / "two", fuser, elsewhere=there)
    killer.join(10)
    assert len(killed) == 2, "one on each node"
    assert report.ok and report.count("done") == PAIRS
    assert pictures(tmp_path / "two") == pictures(tmp_path / "one")
    lines = [json.loads(line) for line in (tmp_path / "two" / HISTORY_FILE).open()]
    assert len([line for line in lines if "name" in line]) == PAIRS, "nothing is committed twice"
    assert expected.ok


def test_pairs_that_fail_take_no_others_down(cluster, data, tmp_path):
    items = find_pairs(data)[:5]
    broken = tmp_path / "broken.png"
    broken.write_bytes(items[1].ir.read_bytes()[:200])
    items[1] = items[1].with_files(broken, items[1].vis)
    told = []
    with RayPairs() as there:
        report = run_batch(
            items, tmp_path / "two", Fuser(**QUICK), elsewhere=there, on_error=told.append
        )
    assert (report.count("done"), report.count("failed")) == (4, 1)
    assert [one.name for one in told] == [items[1].name]
    assert str(broken) in told[0].error


def test_errors_name_files_as_they_were_given(cluster, data, tmp_path, monkeypatch):
    """The paths are relative; workers, whose folder is another, are handed absolute ones."""
    monkeypatch.chdir(tmp_path)
    for folder in ("ir", "vi"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        for name in ("00.png", "01.png"):
            (tmp_path / "in" / folder / name).symlink_to(data / folder / name)
    (tmp_path / "in" / "vi" / "01.png").unlink()
    (tmp_path / "in" / "vi" / "01.png").write_bytes(b"no picture")
    items, fuser = find_pairs(Path("in"), check_sizes=False), Fuser(**QUICK)
    one = run_batch(items, Path("one"), fuser)
    with RayPairs(actors=2) as there:
        two = run_batch(items, Path("two"), fuser, elsewhere=there)
    assert [r.error for r in two.results] == [r.error for r in one.results]
    assert two.results[0].error is None and two.results[1].error.startswith("in/vi/01.png: not a")


def test_bad_entries_of_a_list_fail_with_their_sentences(cluster, data, tmp_path):
    whole = find_pairs(data)[:3]
    rows = [{"name": i.name, "ir": str(i.ir), "vis": str(i.vis)} for i in whole]
    rows[1]["vis"] = "gone.png"
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps([*rows, {"ir": "a.png"}]))
    items = find_pairs(None, manifest=listed, check_sizes=False, strict=False)
    with RayPairs() as there:
        report = run_batch(items, tmp_path / "two", Fuser(**QUICK), elsewhere=there)
    assert [one.status for one in report.results] == ["done", "failed", "done", "failed"]
    assert report.results[1].error == (
        f"{tmp_path / 'gone.png'} is not there; paths in the list are relative to {tmp_path}"
    )
    assert report.results[3].error == f"{listed}, pair 4: vis is None; expected a path"


class Deadly:
    """A prior that ends the process of an actor when it is evaluated."""

    __name__ = "deadly"

    def __call__(self, x, t):
        del t
        if ray.get_runtime_context().get_actor_id() is not None and x.shape[-1] > 64:
            os._exit(7)
        return x * 0.5


def test_a_pair_that_ends_its_workers_fails_alone(cluster, data, tmp_path):
    items = [find_pairs(data)[n] for n in (0, 3, 1)]
    fuser = Fuser(prior=Deadly(), steps=1)
    with RayPairs(actors=1) as there:
        report = run_batch(items, tmp_path / "two", fuser, elsewhere=there)
    assert [one.status for one in report.results] == ["done", "done", "failed"]
    assert "3 workers were lost while working on this pair" in report.results[2].error


def test_fuse_batch_fuses_paths_bytes_and_arrays(cluster, data, tmp_path):
    items, fuser = find_pairs(data), Fuser(**QUICK)
    run_batch(items, tmp_path / "one", fuser)
    expected = {item.name: read_image(tmp_path / "one" / f"{item.name}.png") for item in items}
    makers = {"paths": str, "bytes": lambda p: p.read_bytes(), "arrays": read_image}
    for kind, make in makers.items():
        rows = [{"name": item.name, "ir": make(item.ir), "vis": make(item.vis)} for item in items]
        found = fused_by_ray(rows, QUICK)
        assert [row["error"] for row in found] == [""] * PAIRS, kind
        for row in found:
            np.testing.assert_array_equal(row["fused"], expected[row["name"]], err_msg=kind)


def fused_by_ray(rows: list[dict], options: dict) -> list[dict]:
    return (
        ray.data.from_items(rows)
        .map_batches(
            FuseBatch,
            fn_constructor_kwargs=options,
            compute=ray.data.ActorPoolStrategy(size=1),
            batch_size=5,
        )
        .take_all()
    )


def test_fuse_batch_writes_files_and_marks_rows_that_fail(cluster, data, tmp_path):
    items = find_pairs(data)
    run_batch(items, tmp_path / "one", Fuser(**QUICK))
    rows = [{"ir": str(item.ir), "vis": str(item.vis)} for item in items]
    rows[2]["ir"] = str(tmp_path / "absent.png")
    rows[4]["vis"] = rows[3]["vis"]  # of another size
    found = fused_by_ray(rows, {**QUICK, "out": str(tmp_path / "two")})
    failed = {Path(row["ir"]).name: row for row in found if row["error"]}
    assert sorted(failed) == ["04.png", "absent.png"]
    assert "absent.png" in failed["absent.png"]["error"]
    assert "size" in failed["04.png"]["error"]
    assert all(row["fused"] is None for row in failed.values())
    one, two = pictures(tmp_path / "one"), pictures(tmp_path / "two")
    assert two == {name: one[name] for name in one if name not in ("02.png", "04.png")}
    written = sorted(Path(row["fused"]).name for row in found if not row["error"])
    assert written == sorted(two)


def encoded(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "png")
    return stream.getvalue()


def test_fuse_batch_by_itself(data):
    """There is no cluster: only a batch of mixed rows."""
    pair = [read_image(data / name / "01.png") for name in ("ir", "vi")]
    batch = {
        "a": np.array([encoded(pair[0]), b"nonsense", encoded(pair[0][:40])], object),
        "b": np.array([encoded(pair[1]), encoded(pair[1]), encoded(pair[1][:40])], object),
    }
    fuse = FuseBatch(ir="a", vis="b", fused="out", error="why", **QUICK)
    found = fuse(batch)
    fuser = Fuser(**QUICK)
    np.testing.assert_array_equal(found["out"][0], fuser(*pair))
    np.testing.assert_array_equal(found["out"][2], fuser(pair[0][:40], pair[1][:40]))
    assert found["out"][1] is None
    assert found["why"][1].startswith("the bytes of a picture: not a PNG")
    assert [found["why"][n] for n in (0, 2)] == ["", ""]
    with pytest.raises(ValueError, match="no column 'a'; expected one of c"):
        fuse({"c": batch["a"]})
    with pytest.raises(ValueError, match="format is 'gif'"):
        FuseBatch(format="gif")
    with pytest.raises(TypeError, match="'pressed' is not an option; did you mean 'preset'"):
        FuseBatch(pressed="fast")


def test_inputs_are_not_replaced(data, tmp_path):
    source = tmp_path / "01.png"
    source.write_bytes((data / "ir" / "01.png").read_bytes())
    before = source.read_bytes()
    rows = {"ir": np.array([str(source)]), "vis": np.array([str(data / "vi" / "01.png")])}
    found = FuseBatch(out=tmp_path, **QUICK)(rows)
    assert "would replace an input" in found["error"][0]
    assert source.read_bytes() == before


@pytest.mark.parametrize(
    "nodes, actors, expected", [([4, 4], 2, 4), ([3, 3], 3, 1), ([8, 2], 3, 2), ([16], 4, 4)]
)
def test_cpus_of_an_actor(nodes, actors, expected):
    assert cpus_each(nodes, actors) == expected
    assert sum(n // expected for n in nodes) >= actors


def command(data: Path, out: Path, *more: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "ddfm_fast", "batch", str(data), "-o", str(out), *more],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def test_the_command_is_killed_and_resumes(cluster, data, tmp_path):
    """Each run has a Ray of its own, and must know nothing of the cluster's workers."""
    slow = "--preset", "official", "--steps", "60"
    on_ray = *slow, "--on", "ray", "--actors", "1"
    one = command(data, tmp_path / "one", *slow)
    killed = command(data, tmp_path / "two", *on_ray)
    wait_for_pictures(tmp_path / "two", 2)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    there = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "two").glob("*.png")}
    assert 2 <= len(there) < PAIRS

    stopped = command(data, tmp_path / "two", *on_ray)
    wait_for_pictures(tmp_path / "two", len(there) + 1)
    os.killpg(stopped.pid, signal.SIGINT)  # as a terminal does, to all of the group
    said, _ = stopped.communicate(timeout=120)
    assert stopped.returncode == 130, said
    assert "run the same command again to resume" in said

    said, _ = (last := command(data, tmp_path / "two", *on_ray)).communicate(timeout=200)
    assert last.returncode == 0, said
    assert one.wait(200) == 0
    assert pictures(tmp_path / "two") == pictures(tmp_path / "one")
    for name, when in there.items():
        assert (tmp_path / "two" / name).stat().st_mtime_ns == when, "done twice"


def wait_for_pictures(folder: Path, count: int) -> None:
    start = time.monotonic()
    while len(list(folder.glob("*.png"))) < count:
        assert time.monotonic() - start < 120, "no pictures come"
        time.sleep(0.05)


@pytest.mark.parametrize(
    "options, words",
    [
        (["--actors", "2"], "--actors is for --on ray"),
        (["--on", "ray", "--address", "127.0.0.1:1"], "where no Ray cluster answers"),
        (["--on", "ray", "--num-gpus", "100"], "num_gpus is 100 and the cluster has"),
    ],
)
def test_bad_options_of_the_command(options, words, data, tmp_path):
    done = command(data, tmp_path / "out", *options)
    said, _ = done.communicate(timeout=120)
    assert done.returncode == 2, said
    assert words in said and "Traceback" not in said
    assert not list((tmp_path / "out").glob("*"))
