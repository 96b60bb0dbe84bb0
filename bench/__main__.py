"""``python -m bench``: time this machine against the reference path and record the result."""

from __future__ import annotations

import argparse
import json

import torch

from bench import cpu
from bench.timing import machine, save


def size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    return int(height), int(width)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Time ddfm_fast against a transcription of the authors' path, interleaved "
        "in one run. Refuses to report a speed-up when the two disagree.",
        epilog="example: python -m bench --size 512x640 --threads 2 --save",
    )
    parser.add_argument("--size", type=size, default=(512, 640), help="of the step (HxW)")
    parser.add_argument("--loop-size", type=size, default=(256, 320), help="of the loop (HxW)")
    parser.add_argument("--steps", type=int, default=10, help="steps of the loop")
    parser.add_argument("--repeats", type=int, default=30, help="rounds of the step benchmark")
    parser.add_argument("--loop-repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="CPU threads for PyTorch")
    parser.add_argument("--save", action="store_true", help="write bench/results/cpu-<date>.json")
    return parser.parse_args()


def table(results: list[dict]) -> str:
    lines = [
        "| benchmark | size | path | median ms | p20 | p80 | times faster |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for name, row in result["rows"].items():
            lines.append(
                f"| {result['name']}, {result['steps']} step(s) "
                f"| {result['height']}x{result['width']} | {name} | {row['median_ms']:.1f} "
                f"| {row['p20_ms']:.1f} | {row['p80_ms']:.1f} | {row['times_faster']:.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    results = [
        cpu.step(*args.size, args.repeats),
        cpu.loop(*args.loop_size, args.steps, args.loop_repeats),
    ]
    print(json.dumps(machine()))
    print(table(results))
    for result in results:
        print(f"{result['name']}: largest difference {result['largest_difference']:.1e}")
    if args.save:
        print(f"wrote {save('cpu', results).name}")


if __name__ == "__main__":
    main()
