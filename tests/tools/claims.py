"""The numbers of README and topics, where each comes from, and a run that repeats some.

    python tests/tools/claims.py            repeat what fits ten minutes: `make claims`
    python tests/tools/claims.py --write    write the table of `bench/results/README.md`

A claim is words of a page. The rows of generated tables come from the recorded results; others are
listed in `STATED`, and a test finds numbers that are in neither.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from ddfm_fast.bench import machine, readme, results, runner  # noqa: E402
from ddfm_fast.bench.model import markdown_table  # noqa: E402
from ddfm_fast.files.paths import atomic_write_bytes  # noqa: E402

FOLDER = ROOT / "bench" / "results"
PAGE = FOLDER / "README.md"
START, END = "<!-- claims: python tests/tools/claims.py --write -->", "<!-- end of claims -->"
GENERATED = re.compile(r"<!-- (figures|presets).*?<!-- end of \1 -->", re.S)
NUMBER = re.compile(
    r"(?<![\w.])\d[\d.,]*(?:(?: to | and |, )\d[\d.]*)? ?"
    r"(?:ms|s|dB|MB|GB|%|times|gray levels)(?!\w)"
)
"""a measured number: one with a unit"""
BY_HAND = "timed by hand, no samples kept"
NOT_KEPT = "not kept"
WIDEST = 3.0
"""times the lower bound of a measured ratio: the upper one is beyond where other programs run"""


class Claim(NamedTuple):
    """Words of a page, and where they come from."""

    page: str
    """README, or the topic's name"""
    words: str
    """as the page has them but for line breaks; "first … last" for all between"""
    command: str
    record: str = ""
    """file of `bench/results`; "" where none was kept"""


QUALITY, PEERS = "python -m bench.quality", "python -m bench.peers"
STATED = (
    Claim("README", "fares worse is 17 % below version 0.2.0 on clean pairs", QUALITY,
          "quality-2026-11-28.json"),
    Claim("pictures", "| infrared-visible: `balanced` … 0.593 | 0.608 |", QUALITY,
          "quality-2026-11-28.json"),
    Claim("pictures", "SCD reaches 0.931 where the target is 0.975", f"{QUALITY} --view corner",
          "quality-corner-2026-11-28.json"),
    Claim("pictures", "| `balanced` | 0.017 clean … 0.249 | 0.346 |", PEERS,
          "peers-2026-11-28.json"),
    Claim("pictures", "falls by 17 % on clean", QUALITY, "quality-2026-11-28.json"),
    Claim("pictures", "keep 24 of 39 gray levels", "pytest tests/target/test_choose.py"),
    Claim("medical", "keep 24 of 39 gray levels", "pytest tests/target/test_choose.py"),
    Claim("video", "| image preset `official`, frame … 0.587 | 1.339 |", "python -m bench video",
          "cpu-2026-11-28.json"),
    Claim("video", "have 1.6 times its contrast", NOT_KEPT),
    Claim("video", "by 0.8 gray levels. A camera", "python -m bench video", "cpu-2026-11-28.json"),
    Claim("video", "by 0.1 at 25 and 52 times the speed", "python -m bench.video, 0.1.0",
          "video.json"),
    Claim("video", "flickers by 0.8 gray levels with", "python -m bench video",
          "cpu-2026-11-28.json"),
    Claim("metrics", "take 106 ms, against 2.17 s", "python -m bench metrics",
          "cpu-2026-11-28.json"),
    Claim("metrics", "FMI takes 1.3 s of processor time", BY_HAND),
    Claim("performance", "from 5.7 to 6.2 % down to … for 3 to 6 % more time", NOT_KEPT,
          "bfloat16-2026-11-29.md"),
    Claim("priors", "1.5 times the time of `\"embedded\"`", NOT_KEPT, "reuse-loop-2026-11-29.md"),
    Claim("priors", "one evaluation is 0.2 to 0.3 dB better", NOT_KEPT),
    Claim("priors", "is 1.7 gray levels off on average", NOT_KEPT, "reuse-loop-2026-11-29.md"),
    Claim("priors", "1.8 times that of the whole image", NOT_KEPT),
    Claim("priors", "is 3.4 gray levels off on average … keep it below half a gray level",
          "python -m pytest tests/priors/test_tiled.py -k seams", "tiles-2026-11-29.md"),
    Claim("priors", "96 channels take 1.9 times … whether either gains 0.2 dB is not known",
          NOT_KEPT, "gray-width-2026-11-29.md"),
    Claim("scale", "memory, about 290 MB … 52 s | 485 MB",
          "python tests/tools/many_pairs.py"),
    Claim("scale", "pairs: 10.8 ms per pair in one process … Ray needs 28 s",
          "python -m bench.scale", "scale-2026-11-29.json"),
    Claim("performance", "is 3.97 times as fast", NOT_KEPT, "zen3-2026-11-30.md"),
    Claim("performance", "| embedded | 1.56 … 2.34 | – |", "python -m bench.engines",
          "engines-zen3-2026-11-29.json"),
    Claim("performance", "which cost 0.46 to 0.74 dB … 1.16 to 1.81 times",
          "python -m bench.engines", "engines-zen3-2026-11-29.json"),
    Claim("performance", "is 1.41 times (128x128) and 1.80 times (256x320)",
          "python -m bench.engines", "engines-epyc-2026-11-29.json"),
    Claim("performance", "1.13 times as fast at 64x64 … 1.87 at 512x640",
          "python tests/tools/scaling.py", "zen3-2026-11-29.md"),
    Claim("performance", "took 0.89 to 1.14 times as long as one", "python tests/tools/busy.py",
          "busy-2026-11-30.md"),
    Claim("performance", "is 0.3e-5 against 8e-5 at 256x320 … 85e-5 at 1088x1920", NOT_KEPT,
          "native-zen3-2026-11-29.md"),
    Claim("performance", "7 to 20 s of processor time", "python tests/tools/native.py",
          "native-zen3-2026-11-29.md"),
    Claim("performance", "takes 1.8 to 2.6 times as long", NOT_KEPT, "native-zen3-2026-11-29.md"),
    Claim("performance", "1.5 times at 256x320", "python tests/tools/roofline.py 256x320 10",
          "zen3-2026-11-29.md"),
    Claim("performance", "2.5 times this bound … 3.5 times in bfloat16",
          "python tests/tools/roofline.py", "roofline-2026-11-29.md"),
    Claim("performance", "took 2.5 s (64x64, `fast` or `instant`)",
          "python -m bench startup", "cpu-2026-11-29.json"),
    Claim("performance", "1.4 s ([640x480, `instant`]", NOT_KEPT, "startup-2026-11-29.md"),
    Claim("performance", "1.01 to 1.05 times … 1.09 to 1.21", NOT_KEPT, "startup-2026-11-30.md"),
    Claim("performance", "takes 41 ms, or 93 ms with", BY_HAND),
    Claim("performance", "| embedded, 64x64 | 2.99 … 14.19 | 5.95 |", "python -m bench prior",
          "prior-2026-11-25.json"),
    Claim("performance", "from `make wheel` (8.5 MB)", "make wheel"),
    Claim("performance", "6 to 8 s per forward pass at 256x256 … after 16 s", BY_HAND),
    Claim("method", "takes 41 ms, or 93 ms with", BY_HAND),
    Claim("method", "change it by 0.004 gray levels", NOT_KEPT),
    Claim("method", "steps would change 0.004 gray levels", NOT_KEPT),
    Claim("precision", "| official (3) | 61.9 … under 0.02 % |", "python -m bench.precision, 0.1.0",
          "precision.json"),
    Claim("precision", "bfloat16 takes 4 to 8 times as long", BY_HAND, "dtype.md"),
    Claim("precision", "in 0.6 to 0.7 of the time … for a default was 0.1", BY_HAND,
          "bfloat16-2026-11-29.md"),
    Claim("precision", "64x64: 13.0 ms against 6.3 ms … 123 ms against 49 ms",
          "python -m bench.prior --compile, 0.1.0", "prior_compile.md"),
    Claim("priors", "cost 8 % of VIF", f"{QUALITY} --prior", "quality-prior-2026-11-28.json"),
    Claim("priors", "is 0.05 to 0.07 dB better than BM3D and takes 1.5 times as long", NOT_KEPT),
    Claim("priors", "takes 6 to 8 s per forward pass", BY_HAND),
    Claim("inputs", "files takes 2.8 ms of processor time … and 3.6 ms with",
          "python tests/tools/reading_time.py"),
    Claim("gpu", "23.1 GB of memory traffic instead of 27.0 GB … instead of 20.0 ms",
          "calculated from counts", "prior-paper-2026-11-28.md"),
)  # fmt: skip
GIVEN = (
    ("inputs", "99.8 % of the pixels"),
    ("inputs", "within 2 gray levels"),
    ("metrics", "95 % intervals"),
    ("performance", "machine of 24 GB"),
    ("pictures", "about 1.2 gray levels"),
    ("gpu", "targets were 18 GB and 16.5 ms"),
    ("gpu", "16.5 ms per forward pass of the official network, and 1.25 times the speed"),
    ("precision", "0.02 dB and 0.1 gray levels"),
    ("precision", "20 dB nearer"),
    ("priors", "3.7 MB"),
    ("priors", "the target was 0.3 dB in the same time"),
)
"""definitions, targets, sizes and limits that tests hold: no measurements"""


def page_path(page: str) -> Path:
    topic = ROOT / "ddfm_fast" / "docs" / f"{page}.md"
    return ROOT / "README.md" if page == "README" else topic


def prose(page: str) -> str:
    """Return a page without its generated tables, on one line."""
    return " ".join(GENERATED.sub("", page_path(page).read_text(encoding="utf-8")).split())


def span(text: str, words: str) -> tuple[int, int] | None:
    """Return where the words of a claim begin and end in a page, None where they are not."""
    first, _, last = words.partition(" … ")
    start = text.find(first)
    end = text.find(last, start + len(first)) if last else start
    return None if min(start, end) < 0 else (start, end + len(last or first))


def shown() -> Iterator[tuple[Path, results.Report, results.Measurement, str]]:
    """Every row of the generated tables, with its record."""
    for path, report in results.latest(FOLDER).values():
        for measurement, candidate in readme.shown(report):
            yield path, report, measurement, candidate


def table() -> str:
    """Return the claims and their records as Markdown."""
    rows = [["claim", "page", "command", "record"]]
    for path, _, m, candidate in shown():
        what = f"{readme.label(m, candidate)}: {m.times_faster(candidate):.2f} times faster"
        rows.append([what, "README, performance", f"`{m.command}`", path.name])
    rows.append(["the presets' seconds", "README", f"`{PEERS}`", "peers-2026-11-28.json"])
    for claim in STATED:
        words = claim.words.replace("|", "\\|")
        command, _, version = claim.command.partition(", ")
        command = f"`{command}`" if re.match(r"python|pytest|make", command) else command
        command += f", {version}" if version else ""
        record = f"[{claim.record}]({claim.record})" if claim.record else "none kept"
        rows.append([f"“{words}”", claim.page, command, record])
    files = dict.fromkeys(row[3].strip("[").partition("]")[0] for row in rows[1:])
    records = [["record", "machine", "date", "versions"]]
    records += [_record(name) for name in files if name.endswith(".json")]
    return "\n".join(
        [
            *markdown_table(rows),
            "\nThese are the machines of the records in JSON; other records name theirs inside:\n",
            *markdown_table(records),
        ]
    )


def _record(name: str) -> list[str]:
    report = results.load(FOLDER / name)
    card = report.machine
    versions = f"PyTorch {card['torch']}, Python {card['python']}, commit {card['commit']}"
    threads = f"{card['threads']} thread{'s' * (card['threads'] != 1)}"
    return [f"[{name}]({name})", f"{threads}, {card['cpu']}", report.date[:10], versions]


def updated(text: str) -> str:
    """Return the page with the table of now between its marks."""
    before, found, rest = text.partition(START)
    _, ended, after = rest.partition(END)
    if not (found and ended):
        raise ValueError(f"{PAGE} has no lines {START!r} and {END!r}; put them back")
    return f"{before}{START}\n{table()}\n{END}{after}"


def bounds(m: results.Measurement, candidate: str) -> tuple[float, float]:
    """Return the least and the most that a ratio is by the middle three fifths of its samples."""
    base, ours = m.candidates[m.baseline or ""], m.candidates[candidate]
    return base.p20 / ours.p80, base.p80 / ours.p20


def compare(claimed: results.Measurement, measured: results.Measurement, candidate: str) -> str:
    """Return a line: the claimed ratio beside the measured one, each with its spread."""
    said, found = claimed.times_faster(candidate), measured.times_faster(candidate)
    label = readme.label(claimed, candidate)
    if said is None or found is None:
        return f"{label}: claimed {said:.2f}, not measured: {measured.failed or 'checks are red'}"
    (low, high), (least, most) = bounds(claimed, candidate), bounds(measured, candidate)
    verdict = "agree" if least <= high and low <= most else "differ"
    if most > WIDEST * least:
        verdict = "too wide to say, other programs run"
    return (
        f"{label}: claimed {said:.2f} ({low:.2f} to {high:.2f}), "
        f"measured {found:.2f} ({least:.2f} to {most:.2f}): {verdict}"
    )


def repeat(minutes: float, seconds: float) -> int:
    """Measure the generated tables' rows again, and print what was claimed beside what came."""
    path, recorded = results.latest(FOLDER)["CPU"]
    claims = [(m, candidate) for m, candidate in readme.shown(recorded)]
    keys = {m.key for m, _ in claims}
    card, here = recorded.machine, machine.machine(runner.make_place(runner.Options()).device)
    print(f"claimed:  {path.name}, {card['threads']} threads of {card['cpu']}")
    print(f"measured: here, {here['threads']} threads of {here['cpu']}, load {here['load']}")
    print("Times faster than the reference; in brackets by the samples' 20th and 80th percentiles.")
    sections = tuple(dict.fromkeys(m.section for m, _ in claims))
    done = set()

    def keep(report: results.Report) -> None:
        new = report.measurements[-1]
        for m, candidate in claims:
            if m.key == new.key:
                done.add(m.key)
                print(compare(m, new, candidate), flush=True)

    report = runner.run(
        runner.Options(sections=sections, device="cpu", seconds=seconds),
        progress=sys.stderr.isatty(),
        keep=keep,
        order=lambda tasks: [t for t in tasks if (t.section, t.name, t.size) in keys],
        within=60 * minutes,
    )
    for m, candidate in claims:
        if m.key not in done:
            print(f"{readme.label(m, candidate)}: no time left")
    print("Other processors have other ratios: what counts is that none is far below.")
    return 0 if report.green else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table and stop")
    parser.add_argument("--minutes", type=float, default=8.0, help="start nothing later")
    parser.add_argument("--seconds", type=float, default=8.0, help="for each measurement")
    options = parser.parse_args()
    if options.write:
        atomic_write_bytes(PAGE, updated(PAGE.read_text(encoding="utf-8")).encode())
        return 0
    return repeat(options.minutes, options.seconds)


if __name__ == "__main__":
    sys.exit(main())
