"""Pairs a second of a service against the library's, in turn, on this machine.

Run ``python tests/tools/serve_throughput.py --help``. The library decodes, fuses and encodes the
same files one after the other in this process. Clients share the cores with the service, which
costs it what it would not on another machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

sys.path[:0] = [str(Path(__file__).resolve().parents[n]) for n in (1, 2)]

from serving import picture, png, serving  # noqa: E402

from ddfm_fast.api import Fuser  # noqa: E402
from ddfm_fast.serve.bodies import Call  # noqa: E402
from ddfm_fast.serve.pictures import decode, encode  # noqa: E402


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
        return encode(fuser(read.ir, read.vis, **read.reading), "png")

    with serving("--preset", given.preset) as server, ThreadPoolExecutor(given.clients) as pool:

        def asked(pair: tuple[bytes, bytes]) -> bytes:
            return server.fuse(*pair)[2]

        assert all(alone(pair) == asked(pair) for pair in pairs)
        seconds: dict[str, list[float]] = {"library": [], "service": []}
        for _ in range(given.repeats):
            start = time.perf_counter()
            for pair in work:
                alone(pair)
            middle = time.perf_counter()
            list(pool.map(asked, work))
            seconds["library"].append(middle - start)
            seconds["service"].append(time.perf_counter() - middle)
    rates = {name: given.pairs / median(times) for name, times in seconds.items()}
    for name, rate in rates.items():
        print(f"{name}: {rate:.1f} pairs a second of {given.size}, preset {given.preset}")
    print(f"service / library: {rates['service'] / rates['library']:.2f}")


if __name__ == "__main__":
    main()
