"""What Windows and macOS lack or do differently, simulated by removing it here."""

from __future__ import annotations

import ast
import errno
import importlib
import io
import os
import pathlib
import re
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT

from ddfm_fast.datasets.history import _lock_file
from ddfm_fast.datasets.items import PairItem
from ddfm_fast.datasets.jobs import plan_jobs
from ddfm_fast.datasets.pairs import find_pairs
from ddfm_fast.datasets.targets import checked_targets
from ddfm_fast.datasets.wildcards import files_of
from ddfm_fast.files.paths import ImageFileError, as_told_apart, atomic_write_bytes, reserved
from ddfm_fast.files.writing import write_image
from ddfm_fast.kernels.cpu import cache
from ddfm_fast.runtime import machine, memory, own_files, streams, threads
from ddfm_fast.video import outputs

POSIX_MODULES = {"fcntl", "grp", "pwd", "resource", "termios", "tty", "posix", "syslog", "curses"}
POSIX_NAMES = {
    "os": {
        *("fork", "getuid", "geteuid", "getgid", "getpgid", "killpg", "setsid", "nice", "uname"),
        *("sched_getaffinity", "sched_setaffinity", "sysconf", "statvfs", "mkfifo", "pread"),
        *("pwrite", "fchmod", "fchown", "chown", "lchown", "posix_fadvise", "posix_fallocate"),
        *("O_NOFOLLOW", "O_NONBLOCK", "O_DIRECTORY", "O_CLOEXEC", "O_SYNC", "getloadavg", "wait"),
        *("waitstatus_to_exitcode", "register_at_fork", "openpty", "ctermid", "sync", "writev"),
    },
    "signal": {
        *("SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGCHLD", "SIGQUIT"),
        *("alarm", "setitimer", "pthread_sigmask", "sigwait", "pause"),
    },
    "socket": {"AF_UNIX", "SO_REUSEPORT", "send_fds", "recv_fds"},
    "time": {"tzset", "clock_gettime", "CLOCK_MONOTONIC"},
}
"""what Python's documentation marks "Availability: Unix" """
GUARDED = {
    "ddfm_fast/video/opening.py:os.O_NONBLOCK",  # for named pipes, which Windows lacks
}


def guarded_lines(tree: ast.Module) -> set[int]:
    """Return the lines inside ``try`` with a handler for what is missing, or below ``hasattr``."""
    found: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Try):
            names = {n.id for h in node.handlers for n in ast.walk(h) if isinstance(n, ast.Name)}
            if names & {"ImportError", "AttributeError"}:
                found |= lines(*node.body)
        elif isinstance(node, (ast.If, ast.IfExp)) and "hasattr" in ast.unparse(node.test):
            found |= lines(node)
    return found


def lines(*nodes: ast.AST) -> set[int]:
    return {n.lineno for node in nodes for n in ast.walk(node) if hasattr(n, "lineno")}


def posix_only(path: pathlib.Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    safe, found = guarded_lines(tree), []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names if a.name in POSIX_MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module in {*POSIX_MODULES, *POSIX_NAMES}:
            some = POSIX_NAMES.get(node.module)
            names = [a.name for a in node.names if some is None or a.name in some]
        elif isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            names = [f"{owner}.{node.attr}"] * (node.attr in POSIX_NAMES.get(owner, ()))
        where = path.relative_to(ROOT).as_posix()
        found += [f"{where}:{name}" for name in names if node.lineno not in safe]
    return found


def test_no_call_of_posix_alone_without_another_way():
    places = [p for folder in ("ddfm_fast", "kernels") for p in (ROOT / folder).rglob("*.py")]
    assert len(places) > 100
    assert {one for path in places for one in posix_only(path)} == GUARDED


def test_the_search_finds_them(tmp_path):
    path = ROOT / "tests" / "runtime" / "test_other_systems.py"
    assert posix_only(path) == []
    bad = "import fcntl\nimport os\nfrom signal import SIGHUP\nos.fork()\n"
    (tmp_path / "bad.py").write_text(bad)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "ROOT", tmp_path)
        assert posix_only(tmp_path / "bad.py") == [
            "bad.py:fcntl", "bad.py:SIGHUP", "bad.py:os.fork",
        ]  # fmt: skip
        good = "import os\ntry:\n    os.fork()\nexcept AttributeError:\n    pass\n"
        (tmp_path / "good.py").write_text(good)
        assert posix_only(tmp_path / "good.py") == []


# Machine


def test_cores_and_memory_without_linux(monkeypatch):
    for name in ("sched_getaffinity", "sysconf"):
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert machine.usable_cores(pathlib.Path("none")) == 6
    assert machine.total_bytes() is None


def test_without_proc(monkeypatch):
    """Neither macOS nor Windows has it."""
    real = pathlib.Path.read_text

    def read_text(self, *args, **kwargs):
        if self.as_posix().startswith(("/proc", "/sys")):
            raise FileNotFoundError(errno.ENOENT, "No such file", str(self))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(pathlib.Path, "read_text", read_text)
    assert machine.cpu_model()
    assert machine.usable_cores() >= 1
    assert memory.free_host_bytes() is None
    assert threads.machine_is_busy() is False
    threads._limit.cache_clear()
    try:
        assert threads._limit() is None
    finally:
        threads._limit.cache_clear()


def test_doctor_without_numbers_of_users(monkeypatch, tmp_path):
    """Windows has none: an existing cache folder made ``doctor`` crash."""
    monkeypatch.setenv("DDFM_FAST_CACHE", str(tmp_path))
    (tmp_path / "cpu-1.so").write_bytes(b"12")
    monkeypatch.delattr(os, "getuid")
    assert "Linux only" in str(cache.describe()["refused"]) and cache.usable_folder() is None
    assert cache.clear() == [] and (tmp_path / "cpu-1.so").is_file()


# Files


def test_locks_without_fcntl(monkeypatch, tmp_path):
    """The work continues without locks."""
    monkeypatch.setitem(sys.modules, "fcntl", None)  # its import is an ImportError
    with (tmp_path / "history").open("wb") as file:
        assert _lock_file(file.fileno(), tmp_path) is None
    again = importlib.util.find_spec("ddfm_fast.video.outputs")
    fresh = importlib.util.module_from_spec(again)
    monkeypatch.setitem(sys.modules, "ddfm_fast.video._fresh", fresh)
    again.loader.exec_module(fresh)
    assert fresh.fcntl is None and outputs.fcntl is not None
    assert fresh._locked(tmp_path / "lock", tmp_path / "o.mp4") is None


def test_own_files_are_opened_binary(monkeypatch, tmp_path):
    """In text mode Windows changes line ends, and a history counts bytes."""
    flags = []
    real = os.open

    def opened(path, flag, mode=0o777):
        flags.append(flag)
        return real(path, flag & ~(1 << 40), mode)

    monkeypatch.setattr(os, "O_BINARY", 1 << 40, raising=False)
    for name in ("O_NOFOLLOW", "O_NONBLOCK"):
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setattr(own_files.os, "open", opened)
    os.close(own_files.open_own(tmp_path / "own"))
    assert flags == [os.O_RDWR | os.O_CREAT | 1 << 40]


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("NUL.png", "device"),
        ("con", "device"),
        ("Aux .tif", "device"),
        ("com1.png", "device"),
        ("LPT³.png", "device"),
        ("a:b.png", ":"),
        ("what?.png", "?"),
        ("a\tb.png", "no"),
        ("end.", "dot"),
        ("end ", "space"),
    ],
)
def test_names_that_windows_has_not(name, word):
    """As "Naming Files, Paths, and Namespaces" of Microsoft's documentation lists them."""
    assert word in reserved(name, windows=True)
    assert reserved(name, windows=False) == ""


@pytest.mark.parametrize("name", ["a.png", "nulls.png", "COM10.png", "a b.png", ".hidden", "ä.tif"])
def test_names_that_it_has(name):
    assert reserved(name, windows=True) == ""


def test_the_names_are_python_s_too():
    """An independent list: `PureWindowsPath` knows devices, and ``ntpath`` all of it from 3.13."""
    import ntpath

    names = ["NUL.png", "con", "com1.png", "LPT9.x", "a.png", "nulls", "COM10.png", "CONX", "ä"]
    if hasattr(ntpath, "isreserved"):
        names += ["ab:c", "w?.png", "end.", "end ", "a|b", "a b"]
        known = {name: ntpath.isreserved(name) for name in names}
    else:
        known = {name: pathlib.PureWindowsPath(name).is_reserved() for name in names}
    assert {name: bool(reserved(name, windows=True)) for name in names} == known


def test_writing_refuses_them(monkeypatch, tmp_path):
    monkeypatch.setattr(reserved, "__defaults__", (True,))
    with pytest.raises(ImageFileError, match="NUL.png: Windows reserves that name for a device"):
        atomic_write_bytes(tmp_path / "NUL.png", b"")
    with pytest.raises(ImageFileError, match="Windows has no ':'"):
        write_image(tmp_path / "a:b.png", np.zeros((16, 16), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_names_that_differ_in_case_alone(monkeypatch, tmp_path):
    """They are one file on Windows and macOS: the second result would replace the first."""
    monkeypatch.chdir(tmp_path)
    for folder in ("x", "y", "v"):
        (tmp_path / folder).mkdir()
    files = [Path("x/A.png"), Path("y/a.png")]
    for file in (*files, Path("v/1.png"), Path("v/2.png")):
        file.write_bytes(b"")
    (tmp_path / "ir.txt").write_text("x/A.png\ny/a.png\n")
    (tmp_path / "vis.txt").write_text("v/1.png\nv/2.png\n")
    lists = Path("@ir.txt"), Path("@vis.txt"), Path("out")
    one = Path("x/A.png"), Path("v/1.png"), Path("X/a.PNG")
    items = [PairItem(file.stem, file, file) for file in files]
    over = [PairItem("a", Path("out/A.png"), Path("v/1.png"))]
    table = tmp_path / "pairs.csv"
    table.write_text("ir,vis\nx/A.png,v/1.png\ny/a.png,v/2.png\n")
    assert [job.output.name for job in plan_jobs(*lists, make=False)] == ["A.png", "a.png"]
    assert len(find_pairs(table, check_sizes=False)) == 2
    for refused in (checked_targets, lambda *_: plan_jobs(*one, make=False)):
        refused(items, Path("out"), ".png")
    checked_targets(over, Path("OUT"), ".png")

    monkeypatch.setattr(as_told_apart, "__defaults__", (True,))
    assert as_told_apart("E\u0301.PNG") == as_told_apart("\u00e9.png") != as_told_apart("e.png")
    with pytest.raises(ValueError, match=r"output out/a.png would be written twice"):
        plan_jobs(*lists, make=False)
    with pytest.raises(ValueError, match=r"output X/a.PNG would replace an input"):
        plan_jobs(*one, make=False)
    with pytest.raises(ValueError, match="2 pairs have 1 names"):
        checked_targets(items, Path("out"), ".png")
    with pytest.raises(ValueError, match="would replace an input"):
        checked_targets(over, Path("OUT"), ".png")
    with pytest.raises(ImageFileError, match=r"1 names occur twice: a \(x/A.png and y/a.png\)"):
        find_pairs("pairs.csv", check_sizes=False)


def test_lists_of_windows_programs(tmp_path, monkeypatch):
    """Notepad begins UTF-8 with a mark, PowerShell's ``>`` writes UTF-16, with CR and LF."""
    monkeypatch.chdir(tmp_path)
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "list.txt").write_bytes("in\\ä.png\r\nb.png\r\n".encode(encoding))
        assert [str(one) for one in files_of("@list.txt")] == ["in\\ä.png", "b.png"]


def test_folders_that_cannot_be_synced(monkeypatch, tmp_path):
    """Windows cannot open folders."""
    real = os.open

    def refusing(path, *rest, **more):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *rest, **more)

    monkeypatch.setattr(os, "open", refusing)
    assert atomic_write_bytes(tmp_path / "a.png", b"12").read_bytes() == b"12"


# The program


def test_a_windows_console_is_left_alone(monkeypatch):
    monkeypatch.setattr(streams.os, "name", "nt")
    console = SimpleNamespace(isatty=lambda: True)
    assert streams._tolerant(console) == (None, console)


def test_names_that_a_console_has_not_are_escaped(tmp_path, monkeypatch):
    """cp1252, as many Windows consoles have it."""
    path = tmp_path / "out.txt"
    with path.open("w", encoding="cp1252") as file:
        raw, stream = streams._tolerant(file)
        stream.write("é ψ\n")
        stream.flush()
    assert path.read_bytes() == b"\xe9 \\u03c8\n" and isinstance(raw, io.FileIO)


def test_signals_that_windows_has():
    """SIGINT and SIGTERM are all that is used; of the rest Windows has SIGBREAK."""
    used = set()
    for path in (ROOT / "ddfm_fast").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "signal":
                used |= {node.attr} if re.match("SIG[A-Z]", node.attr) else set()
    assert used == {"SIGINT", "SIGTERM"} and hasattr(signal, "SIGTERM")
