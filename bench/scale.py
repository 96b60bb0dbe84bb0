"""``python -m bench.scale``: what a pair costs beside its fusion, as batches grow; and on paper.

A batch of 64×64 pairs is fused by one process with one and with two threads that read and write,
and by Ray with one node and with two, which are processes of this one machine. Each way has a
process of its own, and notes when it has done how many pairs and what memory it and its workers
held then; start-up is the time before the first pair. A line is fitted to time over pairs. From
parts measured here and stated floors, a table estimates a million pairs on clusters nobody ran.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from ddfm_fast.api import Fuser
from ddfm_fast.datasets.batch import Run, run_batch
from ddfm_fast.datasets.pairs import find_pairs
from ddfm_fast.files.depth import Levels, read_sources
from ddfm_fast.files.paths import atomic_write_bytes
from ddfm_fast.files.writing import write_image
from ddfm_fast.runtime.machine import usable_cores

from .data import pair
from .machine import RESULTS, machine
from .model import markdown_table
from .results import Candidate, Measurement, Report, save
from .table import card_lines

COMMAND = "python -m bench.scale"
SIZES, QUICK = (10, 30, 100, 300, 1000, 3000, 10000), (10, 15, 20, 30, 40, 60)
SIDE, PRESET = 64, "instant"
LINKS = 50
"""number of different pairs; the others are further names of these"""
WAYS = {
    "1 process": "run_batch, a thread that reads and one that writes",
    "2 workers": "run_batch, two threads that read and two that write",
    "Ray, 1 node": "one actor on one node of one CPU, on this machine",
    "Ray, 2 nodes": "two actors on two nodes of one CPU each, both on this machine",
}
PAIRS, HEIGHT, WIDTH = 10**6, 480, 640
NETWORK, STORE = 10e9 / 8, 40e9 / 8
"""bytes per second: of a node's network (10 Gbit/s) and of the store that all nodes share
(40 Gbit/s); assumed"""
GPU_CORES, CPU_CORES = 16, 64
"""CPU cores of a node with a GPU and of one without; assumed"""
GPU_SECONDS = {
    "fast": 0.003 * HEIGHT * WIDTH / (512 * 640),
    "official": 1.43 * HEIGHT * WIDTH / (512 * 640),
}
"""seconds of an H100 per pair. From DESIGN: a `fast` call is 15 ms, 12 of them the host's, on
paper; 100 forwards of the official network are 1.43 s, its floor at 512×640 by products in
bfloat16"""
HOST_SECONDS = 0.012
"""seconds of a core beside a GPU per call, on paper"""
app = typer.Typer(add_completion=False)


class Line(NamedTuple):
    """Seconds = start + pairs · each, by least squares."""

    start: float
    each: float
    worst: float
    """largest distance of a point from the line, over the largest value"""


def fitted(pairs: list[int], seconds: list[float]) -> Line:
    """Fit a line to at least six sizes, with errors that grow like a random walk's."""
    if len({*pairs}) < 6:
        raise ValueError(f"{len({*pairs})} sizes; expected at least 6 to fit a line to")
    x, y = np.array(pairs, float), np.array(seconds, float)
    weight = 1 / np.sqrt(x)
    start, each = np.linalg.lstsq(np.stack([weight, x * weight], 1), y * weight, rcond=None)[0]
    worst = np.abs(start + each * x - y).max() / y.max()
    return Line(float(start), float(each), float(worst))


def write_pairs(root: Path, count: int) -> None:
    """Write pairs of 64×64: some different ones, and links to them."""
    ir, vis = pair(SIDE)
    for n in range(count):
        for folder, image in (("ir", ir), ("vi", vis)):
            path = root / folder / f"{n:06}.png"
            if n < LINKS:
                write_image(path, np.roll(image, n, 1))
            else:
                os.link(root / folder / f"{n % LINKS:06}.png", path)


def memory(pid: int | str = "self") -> int:
    """Return the bytes that a process holds."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


@contextmanager
def elsewhere(way: str) -> Iterator[tuple[Any, Callable[[], list[int]]]]:
    """Yield what fuses the pairs in a way, and what lists its workers' processes."""
    if not way.startswith("Ray"):
        yield None, list
        return
    import ray
    from ray._private.state import actors
    from ray.cluster_utils import Cluster

    from ddfm_fast.integrations.ray_pairs import RayPairs

    count = int(way.split()[1])
    small = {"num_cpus": 1, "object_store_memory": 80 << 20}
    nodes = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    for _ in range(count - 1):
        nodes.add_node(**small)
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    ray.init(
        address=nodes.address, logging_level="ERROR", log_to_driver=False,
        runtime_env={"env_vars": path},
    )  # fmt: skip
    try:
        with RayPairs(actors=count) as there:
            yield there, lambda: [a["Pid"] for a in actors().values() if a["State"] == "ALIVE"]
    finally:
        ray.shutdown()
        nodes.shutdown()


@contextmanager
def marked(sizes: list[int], pids: Callable[[], list[int]]) -> Iterator[list[dict[str, Any]]]:
    """Note when the first pair and given numbers are done inside, and what processes then hold."""
    rows: list[dict[str, Any]] = []
    record, wanted, seen = Run.record, {1, *sizes}, [0]

    def look(run: Run, result: Any) -> None:
        record(run, result)
        seen[0] += 1
        if seen[0] in wanted:
            clocks = {"at": time.perf_counter(), "driver_cpu": time.process_time()}
            held = {"driver": memory(), "worker": max([0, *map(memory, pids())])}
            rows.append({"pairs": seen[0], **clocks, **held})

    Run.record = look  # type: ignore[method-assign]
    try:
        yield rows
    finally:
        Run.record = record  # type: ignore[method-assign]


def child(way: str, root: Path, sizes: list[int]) -> list[dict[str, Any]]:
    """Fuse a batch of the largest size in this process; return what each size took."""
    began = time.perf_counter()
    fuser = Fuser(preset=PRESET, device="cpu")
    items = find_pairs(root / "in", check_sizes=False)
    threads = 2 if way == "2 workers" else 1
    with elsewhere(way) as (there, pids), tempfile.TemporaryDirectory(dir=root) as out:
        with marked(sizes, pids) as rows:
            report = run_batch(items, out, fuser, elsewhere=there, workers=threads, batch_size=1)
        assert report.count("done") == len(items) == max(sizes), report.results[0]
    first = rows[0]
    startup = first["at"] - began
    for row in rows:
        row["seconds"] = row.pop("at") - (began + startup)
        row["driver_cpu"] -= first["driver_cpu"] if row is not first else 0
    return [{"startup": startup}, *rows[1:]]


def run_child(way: str, root: Path, sizes: list[int]) -> list[dict[str, Any]]:
    """Return the same in a fresh process."""
    command = [sys.executable, "-m", "ddfm_fast.bench.scale", "--child", way, "--out", str(root)]
    done = subprocess.run(
        [*command, "--sizes", ",".join(map(str, sizes))],
        stdout=subprocess.PIPE, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{way}: the process ended with {done.returncode}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def measured(way: str, rows: list[dict[str, Any]], fusion: float) -> Measurement:
    """Return a way's rows, and the lines through them."""
    startup, rows = rows[0]["startup"], rows[1:]
    pairs = [row["pairs"] for row in rows]
    wall = fitted(pairs, [row["seconds"] for row in rows])
    driver = fitted(pairs, [row["driver_cpu"] for row in rows])
    facts: dict[str, Any] = {
        "way": WAYS[way], "startup": startup, "line": wall._asdict(), "rows": rows,
        "overhead": wall.each - fusion, "driver_cpu": driver._asdict(),
        "driver_grows": (rows[-1]["driver"] - rows[0]["driver"]) / (pairs[-1] - pairs[0]),
        "worker_grows": (rows[-1]["worker"] - rows[0]["worker"]) / (pairs[-1] - pairs[0]),
    }  # fmt: skip
    found = Candidate([row["seconds"] for row in rows], memory=rows[-1]["driver"], about=WAYS[way])
    return Measurement("scale", way, f"{SIDE}x{SIDE}", COMMAND, None, [], {way: found}, [], facts)


def timed(work: Callable[[], Any], seconds: float = 1.0) -> float:
    """Return a call's median CPU seconds, measured for about so long, after a warm-up call."""
    work()
    taken, end = [], time.perf_counter() + seconds
    while len(taken) < 3 or time.perf_counter() < end:
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return float(np.median(taken))


def parts(folder: Path) -> dict[str, float]:
    """Return a core's time to read, fuse and write a pair of 640×480, and its bytes."""
    rng = np.random.default_rng(0)
    room = [(0, HEIGHT - 256), (0, WIDTH - 256), (0, 0)]
    wide = [np.pad(np.asarray(x), room[: x.ndim], "symmetric") for x in pair(256)]
    noisy = [(x + rng.normal(0, 2, x.shape)).clip(0, 255).astype(np.uint8) for x in wide]
    paths = [folder / "ir.png", folder / "vis.png"]
    for path, image in zip(paths, noisy, strict=True):
        write_image(path, image)
    fuser = Fuser(preset="fast", device="cpu")
    fused = fuser(*noisy)
    out = folder / "fused.png"
    found = {
        "decode": timed(lambda: read_sources(paths[0], paths[1], Levels(), 10**8)),
        "write": timed(lambda: write_image(out, fused)),
        "fuse": timed(lambda: fuser(*noisy), 3.0),
    }
    sizes = {"bytes_in": sum(p.stat().st_size for p in paths), "bytes_out": out.stat().st_size}
    return {**found, **{name: float(size) for name, size in sizes.items()}}


def on_paper(found: dict[str, float], coordination: float) -> list[list[str]]:
    """Return rows: a million pairs on nodes, by the part that limits them."""
    rows = [["nodes", "preset", "decode + write", "fusion", "network", "store", "driver",
             "hours", "limit"]]  # fmt: skip
    moved = PAIRS * (found["bytes_in"] + found["bytes_out"])
    files = PAIRS * (found["decode"] + found["write"])
    for kind, cores in (("H100", GPU_CORES), ("CPU", CPU_CORES)):
        for nodes in (1, 8, 64) if kind == "H100" else (64,):
            for preset in ("fast", "official") if kind == "H100" else ("fast",):
                busy = nodes * cores
                if kind == "H100":
                    fusion = PAIRS * GPU_SECONDS[preset] / nodes
                    host = (files + PAIRS * HOST_SECONDS) / busy
                else:
                    fusion = host = (files + PAIRS * found["fuse"]) / busy
                seconds = {
                    "decoding and writing": host, "fusion": fusion,
                    "network": moved / (nodes * NETWORK), "store": moved / STORE,
                    "driver": PAIRS * coordination,
                }  # fmt: skip
                limit = max(seconds, key=lambda name: seconds[name])
                limit = "fusion" if kind == "CPU" and limit.startswith("decoding") else limit
                cells = [f"{value / 3600:.2f}" for value in seconds.values()]
                longest = f"{max(seconds.values()) / 3600:.2f}"
                rows.append([f"{nodes} × {kind}", preset, *cells, longest, limit])
    return rows


def markdown(report: Report, found: dict[str, float], paper: list[list[str]]) -> str:
    """Return the page."""
    quick = report.settings["quick"]
    head = ["way", "start-up, s", "fixed, s", "ms a pair", "of it beside fusion", "driver's CPU",
            "fit, worst", "driver, MB", "+ B a pair", "a worker, MB", "+ B a pair"]  # fmt: skip
    rows = [head]
    loaded = (report.machine.get("load") or 0) > usable_cores()
    for one in report.measurements:
        f, last = one.facts, one.facts["rows"][-1]
        worker = [f"{last['worker'] / 1e6:.0f}", f"{f['worker_grows']:.0f}"]
        rows.append([
            one.name, f"{f['startup']:.1f}", f"{f['line']['start']:.2f}",
            f"{1e3 * f['line']['each']:.2f}", "–" if loaded else f"{1e3 * f['overhead']:.2f}",
            f"{1e3 * f['driver_cpu']['each']:.2f}", f"{100 * f['line']['worst']:.0f} %",
            f"{last['driver'] / 1e6:.0f}", f"{f['driver_grows']:.0f}",
            *(worker if last["worker"] else ("–", "–")),
        ])  # fmt: skip
    sizes = [row["pairs"] for row in report.measurements[0].facts["rows"]]
    lines = [
        "# How cost grows",
        "",
        *(["**A quick look (`--quick`): small sizes, no figures to rely on.**", ""] * quick),
        *card_lines(report),
        "",
        f"`{report.settings['command']}`. A batch of pairs of {SIDE}×"
        f"{SIDE} (preset `{PRESET}`, {1e3 * report.settings['fusion']:.2f} ms a pair by the fuser "
        "alone, one thread), noted after "
        + ", ".join(map(str, sizes))
        + " pairs. All ways run on this one "
        f"machine with {usable_cores()} cores: two nodes of Ray share them, and the load above.",
        "",
        *markdown_table(rows),
        "",
        "Start-up: until the first pair is done, with the cluster where there is one, without the "
        "import of Python's packages. Fixed and ms a pair: the line through wall time. The "
        "driver's CPU, ms a pair, has the fusion's in it where it fuses; it hardly depends on what "
        "else runs.",
        "",
        f"## A million pairs of {WIDTH}×{HEIGHT}, on paper",
        "",
        "Nobody ran this. Measured here, a core's time for a pair: decoding "
        f"{1e3 * found['decode']:.1f} ms, encoding and writing {1e3 * found['write']:.1f} ms, "
        "fusion by `fast` on a core "
        f"{1e3 * found['fuse']:.0f} ms; {found['bytes_in'] / 1e6:.2f} MB in, "
        f"{found['bytes_out'] / 1e6:.2f} MB out; the driver's CPU of Ray with two nodes. Assumed: "
        f"nodes with {GPU_CORES} cores and an H100, or {CPU_CORES} cores; 10 Gbit/s a node, 40 "
        "Gbit/s of the store that all share. Floors of the design: `fast` takes an H100 3 ms and "
        "a core beside it 12 ms at 512×640, 100 forwards of the official network 1.43 s. Hours of "
        "each part alone; they overlap, so the largest is the least that a run takes.",
        "",
        *markdown_table(paper),
        "",
    ]
    return "\n".join(lines)


@app.command()
def main(
    sizes: Annotated[str | None, typer.Option(help="Pairs, at least six, with commas.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes: does it work?")] = False,
    ways: Annotated[str, typer.Option(help="With semicolons.")] = ";".join(WAYS),
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the results.")] = RESULTS,
    child_of: Annotated[str | None, typer.Option("--child", hidden=True)] = None,
) -> None:
    """Measure what pairs cost as batches grow."""
    counts = [int(n) for n in sizes.split(",")] if sizes else [*(QUICK if quick else SIZES)]
    if child_of is not None:
        for row in child(child_of, out, counts):
            print(json.dumps(row), flush=True)
        return
    command = COMMAND + (f" --sizes {sizes}" if sizes else "") + (" --quick" if quick else "")
    settings: dict[str, Any] = {"sections": ["scale"], "quick": quick, "command": command}
    report = Report(machine("cpu"), {}, settings)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_pairs(root / "in", max(counts))
        fuser = Fuser(preset=PRESET, device="cpu")
        settings["fusion"] = timed(lambda: fuser(*pair(SIDE)))
        for way in ways.split(";"):
            report.measurements.append(
                measured(way, run_child(way, root, counts), settings["fusion"])
            )
            typer.echo(f"{way}: {report.measurements[-1].facts['line']}")
        found = parts(root)
    settings["parts"] = found
    driver = report.measurements[-1].facts["driver_cpu"]["each"]
    paper = on_paper(found, driver)
    settings["paper"] = paper
    path = save(report, out / f"scale-{report.date[:10]}{'-quick' * quick}.json")
    atomic_write_bytes(path.with_suffix(".md"), markdown(report, found, paper).encode())
    typer.echo(f"wrote {path} and {path.with_suffix('.md').name}")


if __name__ == "__main__":
    app(prog_name=COMMAND)
