"""Data sets of very many pairs, made of links; and what a million of them take.

    python tests/tools/many_pairs.py [PAIRS [FOLDERS]]

Lists them from folders and from a CSV file, and resumes a batch whose pairs are all done, each in
a process of its own: seconds by the clock and of the processor, and the peak of memory.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from batches import make_fuser, picture

from ddfm_fast import Fuser
from ddfm_fast.datasets.batch import run_batch
from ddfm_fast.datasets.history import HISTORY_FILE
from ddfm_fast.datasets.items import PairItem
from ddfm_fast.datasets.pairs import find_pairs
from ddfm_fast.files.writing import write_image

OLD = 1_600_000_000
"""when the files were changed last, in seconds since 1970"""
LISTING = """
import sys
from ddfm_fast.datasets.pairs import find_pairs
root, table = sys.argv[1:]
given = {"root": root, "manifest": f"{root}/list.csv"} if table else {"root": f"{root}/in"}
print(len(find_pairs(**given, check_sizes=False)))
"""


def links(folder: Path, one: Path, files: int) -> None:
    """Make links to one copy per folder, since file systems limit the links of a file."""
    folder.mkdir(parents=True)
    (folder / "00000.png").write_bytes(one.read_bytes())
    os.utime(folder / "00000.png", (OLD, OLD))
    for n in range(1, files):
        os.link(folder / "00000.png", folder / f"{n:05}.png")


def tree(root: Path, files: int, folders: int) -> Path:
    """Make so many folders of so many pairs, and their list."""
    write_image(root / "ir.png", picture(1, 16, 16))
    write_image(root / "vi.png", picture(2, 16, 16, 3))
    with (root / "list.csv").open("w") as table:
        table.write("name,ir,vis\n")
        for f in range(folders):
            for role in ("ir", "vi"):
                links(root / "in" / role / f"{f:02}", root / f"{role}.png", files)
            for n in range(files):
                table.write(f"{f:02}/{n:05},in/ir/{f:02}/{n:05}.png,in/vi/{f:02}/{n:05}.png\n")
    return root


def finished(root: Path, folders: int, fuser: Fuser | None = None) -> list[PairItem]:
    """Make the output of a run over all pairs without the run: its pictures are links, too."""
    items = find_pairs(root / "in", check_sizes=False)
    run_batch(items[:1], root / "one", fuser or make_fuser())
    head, line = (root / "one" / HISTORY_FILE).read_text().splitlines()
    record = json.loads(line)
    for f in range(folders):
        links(root / "out" / f"{f:02}", root / "one" / "00" / "00000.png", len(items) // folders)
    with (root / "out" / HISTORY_FILE).open("w") as file:
        file.write(head + "\n")
        for item in items:
            ir, vis = (os.stat(path) for path in item.files)
            out = os.stat(root / "out" / f"{item.name}.png")
            states = [[s.st_size, s.st_mtime_ns, s.st_ctime_ns] for s in (ir, vis)]
            state = [out.st_size, out.st_mtime_ns, out.st_ino]
            more = {"name": item.name, "states": states, "state": state}
            file.write(json.dumps({**record, **more}) + "\n")
    return items


def taken(what: str, *arguments: str, pairs: int) -> str:
    """Run Python and return a line of what it took; the program prints the count of pairs."""
    started = time.monotonic()
    program = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert program.stdout is not None
    said = program.stdout.read()
    _, status, used = os.wait4(program.pid, 0)
    seconds = time.monotonic() - started
    program.returncode = os.waitstatus_to_exitcode(status)
    assert program.returncode == 0 and re.search(rf"\b{pairs}\b", said), said[-300:]
    processor, peak = used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e6
    return f"{what}: {seconds:.1f} s, {processor:.1f} s of the processor, {peak:.0f} MB at most"


def main(pairs: int = 10**6, folders: int = 1000) -> None:
    """Make the data set in a temporary folder, and print a line for each way."""
    with tempfile.TemporaryDirectory(prefix="ddfm_fast-") as folder:
        root = tree(Path(folder), pairs // folders, folders)
        assert len(finished(root, folders, Fuser(preset="instant", device="cpu"))) == pairs
        print(f"{pairs:,} pairs in {folders:,} folders; load {os.getloadavg()[0]:.1f}")
        for what, table in (("listing folders", ""), ("listing a CSV file", "csv")):
            print(taken(what, "-c", LISTING, folder, table, pairs=pairs), flush=True)
        command = ["batch", f"{folder}/in", "-o", f"{folder}/out", "--preset", "instant"]
        command = ["-m", "ddfm_fast", *command, "--device", "cpu"]
        print(taken("the command, all done before", *command, pairs=pairs), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
