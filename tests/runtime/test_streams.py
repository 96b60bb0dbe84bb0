"""Programs whose stdout or stderr is full, closed, or has no letters for a name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

FULL = Path("/dev/full")
pytestmark = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
GUARDED = "from ddfm_fast.runtime.streams import guarded\nwith guarded():\n "


def run(*arguments: str, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        stdout=stdout,
        stderr=stderr,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    "line", ["--version", "--help", "fuse --help", "presets", "presets --json", "doctor --json"]
)
def test_a_full_device_is_one_sentence(line):
    with FULL.open("w") as full:
        done = run("-m", "ddfm_fast", *line.split(), stdout=full)
    assert done.returncode == 1
    assert done.stderr == (
        "error: stdout cannot be written (No space left on device); send it to a place that has "
        "room\n"
    )


def test_bad_input_stays_bad_input_on_a_full_device():
    line = ("-m", "ddfm_fast", "fuse", "no.png", "none.png", "-o", "o.png", "--json")
    with FULL.open("w") as full:
        done = run(*line, stdout=full)
        quiet = run(*line, stdout=full, stderr=full)
    assert done.returncode == quiet.returncode == 2
    assert [text.partition(":")[0] for text in done.stderr.splitlines()] == ["error", "error"]


@pytest.mark.parametrize("line", ["--help", "presets", "presets --json"])
def test_a_reader_that_went_away_is_no_failure(line):
    reading, writing = os.pipe()
    os.close(reading)
    done = run("-m", "ddfm_fast", *line.split(), stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_work_goes_on_when_nothing_can_be_printed(tmp_path):
    code = GUARDED + (
        "import sys\n for n in range(9): print('x' * 99999), print('y' * 99999, file=sys.stderr)\n"
        f" open({str(tmp_path / 'done')!r}, 'w').close()"
    )
    with FULL.open("w") as full:
        assert run("-c", code, stdout=full, stderr=full).returncode == 1
    assert (tmp_path / "done").exists()


def test_the_exit_code_of_the_work_is_kept():
    with FULL.open("w") as full:
        assert run("-c", GUARDED + "print(1); raise SystemExit(130)", stdout=full).returncode == 130
        assert run("-c", GUARDED + "print(1)", stdout=full).returncode == 1
        assert run("-c", GUARDED + "raise SystemExit(0)", stdout=full).returncode == 0


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path):
    """What a library prints to descriptor 2 would otherwise be in the file."""
    path = str(tmp_path / "file")
    code = GUARDED + f"import os; f = open({path!r}, 'wb', 0); os.write(2, b'noise'); f.write(b'1')"
    line = 'exec "$0" -c "$1" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", line, sys.executable, code], cwd=ROOT)
    assert done.returncode == 0 and Path(path).read_bytes() == b"1"


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_names_that_the_encoding_has_not_are_escaped(encoding):
    code = GUARDED + r"print('x\udc80\ud800'); import typer; typer.echo('ä\udc80')"
    done = run("-c", code, PYTHONIOENCODING=encoding)
    assert done.returncode == 0 and r"x\udc80\ud800" in done.stdout


def test_the_streams_are_as_before():
    code = (
        "import sys\na = sys.stdout, sys.stderr\n"
        + GUARDED
        + "pass\n"
        + ("assert a == (sys.stdout, sys.stderr); print('still')")
    )
    assert run("-c", code).stdout == "still\n"


def test_ctrl_c_ends_a_program_that_loads():
    code = (
        "from ddfm_fast.runtime.interrupts import ending_at_once, by_exception\nimport time\n"
        "with ending_at_once():\n print('loading', flush=True)\n"
        " try: time.sleep(60)\n except BaseException: time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=-1, stderr=-1, text=True, cwd=ROOT
    )
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, "interrupted\n")


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot interrupt itself there")
@pytest.mark.parametrize(
    "words, ended",
    [
        (["-m", "ddfm_fast"], True),
        (["ddfm-fast", "fuse"], True),
        (["-m", "other"], False),
        (["other.py", "-m", "ddfm_fast"], False),
    ],
    ids=["module", "script", "another module", "another script"],
)
def test_ctrl_c_ends_the_command_from_its_first_import_on(tmp_path, words, ended):
    """Ctrl-C comes while a module loads; a program that imports this package is unaffected."""
    (tmp_path / "typing.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nsignal.pause()\n"
    )
    for name in ("ddfm-fast", "other.py"):
        (tmp_path / name).write_text("import ddfm_fast\n")
    done = subprocess.run(
        [sys.executable, "-S", *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        timeout=60,
    )
    assert (done.stderr == "interrupted\n") == (done.returncode == 130) == ended
    assert ended or "KeyboardInterrupt" in done.stderr


def test_unbuffered_lines_come_in_the_order_they_were_printed(tmp_path):
    """As in a container: PYTHONUNBUFFERED=1, and both streams in one log."""
    code = GUARDED + (
        "import sys; print('first', file=sys.stderr); print('second'); print('third', end='')\n"
        " sys.stderr.write('fourth' * 20000); print('fifth')\n"
    )
    with (tmp_path / "log").open("w") as log:
        done = run("-c", code, stdout=log, stderr=log, PYTHONUNBUFFERED="1")
    assert done.returncode == 0
    wanted = "first\nsecond\nthird" + "fourth" * 20000 + "fifth\n"
    assert (tmp_path / "log").read_text() == wanted


def test_ctrl_c_is_an_exception_once_work_begins(monkeypatch):
    from ddfm_fast.runtime import interrupts

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), interrupts.ending_at_once():
            interrupts.by_exception()
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with interrupts.ending_at_once():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
