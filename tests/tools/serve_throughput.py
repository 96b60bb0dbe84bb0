"""Pairs a second of a service against the library's, in turn, on this machine.

Run ``python tests/tools/serve_throughput.py --help``. The library decodes, fuses and encodes the
same files one after the other in this process. Clients share the cores with the service, which
costs it what it would not on another machine.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

sys.path[:0] = [str(Path(__file__).resolve().parents[n]) for n in (1, 2)]

from serving import Server, picture, png, serving  # noqa: E402

from ddfm_fast.api import Fuser  # noqa: E402
from ddfm_fast.serve.bodies import Call  # noqa: E402
from ddfm_fast.serve.pictures import decode  # noqa: E402


def spent(server: Server) -> float:
    """Return the seconds of the processors that the process of a service has taken."""
    page = server.request("GET", "/metrics")[2].decode()
    line = next(one for one in page.splitlines() if one.startswith("process_cpu_seconds_total"))
    return float(line.split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--size", default="480x640", help="HEIGHTxWIDTH")
    parser.add_argument("--preset", default="instant")
    given = parser.parse_args()
    size = [int(n) for n in given.size.split("x")]
    pairs = [tuple(png(picture(2 * n + k, *size)) for k in (0, 1)) for n in range(8)]
    work = [pairs[n % len(pairs)] for n in range(given.pairs)]
    fuser = Fuser(preset=given.preset)

    def alone(pair: tuple[bytes, bytes]) -> bytes:
        read = decode(Call(*pair, {}, {}, {}), 2**28)
        fused = read.shown(fuser(read.ir, read.vis, **read.reading))
        return read.encoded(fused, "png", True)[0]

    threads = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))
    server_ = serving("--preset", given.preset, OMP_NUM_THREADS=threads)  # as many as here
    with server_ as server, ThreadPoolExecutor(given.clients) as pool:

        def asked(pair: tuple[bytes, bytes]) -> bytes:
            return server.fuse(*pair)[2]

        assert all(alone(pair) == asked(pair) for pair in pairs)
        runs: dict[str, Callable[[], object]] = {
            "library": lambda: [alone(pair) for pair in work],
            "service": lambda: list(pool.map(asked, work)),
        }
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        computed = {"library": 0.0, "service": 0.0}
        clocks = {"library": time.process_time, "service": lambda: spent(server)}
        before = os.getloadavg()
        for n in range(given.repeats):
            for name in sorted(runs, reverse=bool(n % 2)):  # who is first changes
                start, used = time.perf_counter(), clocks[name]()
                runs[name]()
                seconds[name].append(time.perf_counter() - start)
                computed[name] += clocks[name]() - used
    rates = {name: given.pairs / median(times) for name, times in seconds.items()}
    for name, rate in rates.items():
        print(f"{name}: {rate:.1f} pairs a second of {given.size}, preset {given.preset}")
    ratios = [a / b for a, b in zip(seconds["library"], seconds["service"], strict=True)]
    print(f"service / library: {median(ratios):.2f}, of {' '.join(f'{r:.2f}' for r in ratios)}")
    costs = {name: 1000 * used / given.pairs / given.repeats for name, used in computed.items()}
    text = ", ".join(f"{name} {cost:.1f}" for name, cost in costs.items())
    print(f"processor time in ms a pair: {text}, which other load hardly changes")
    loads = [" ".join(f"{n:.1f}" for n in load) for load in (before, os.getloadavg())]
    print(f"load of the machine: {loads[0]} before, {loads[1]} after; {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
