"""The cache of compiled kernels: nothing foreign, cut short or open to others is loaded."""

from __future__ import annotations

import mmap
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from ddfm_fast.kernels.cpu import build, cache

needs_kernels = pytest.mark.skipif(
    build.status() is not None, reason=f"no CPU kernels here: {build.status()}"
)
STEM = "cpu-0123"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "own"))
    found = cache.usable_folder()
    assert found is not None
    return found


def kept(folder: Path, content: bytes = b"library") -> Path:
    partial = folder / "partial.tmp"
    partial.write_bytes(content)
    return cache.keep(partial, STEM)


def test_the_folder_is_the_users_alone(folder):
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o755)
    assert cache.usable_folder() == folder and stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_an_open_linked_or_foreign_folder_is_refused(folder, tmp_path, monkeypatch):
    folder.chmod(0o777)
    assert cache.usable_folder() is None and "chmod 700" in str(cache.refusal(folder))
    folder.chmod(0o700)
    link = tmp_path / "link"
    link.symlink_to(folder)
    monkeypatch.setenv(cache.VARIABLE, str(link))
    assert cache.usable_folder() is None and "is a link" in str(cache.describe()["refused"])
    monkeypatch.setenv(cache.VARIABLE, str(folder))
    monkeypatch.setattr(cache.os, "getuid", lambda: os.geteuid() + 1)
    assert cache.usable_folder() is None and "another user" in str(cache.refusal(folder))
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "file" / "below"))
    (tmp_path / "file").touch()
    assert cache.usable_folder() is None


@pytest.mark.parametrize(
    "mode, fine", [(0o777, False), (0o775, False), (0o1777, True), (0o755, True)]
)
def test_a_folder_that_others_could_exchange_is_refused(tmp_path, monkeypatch, mode, fine):
    shared = tmp_path / "shared"
    own = shared / "deep" / "own"
    own.mkdir(parents=True)
    (tmp_path / "link").symlink_to(shared / "deep")
    shared.chmod(mode)
    for path in (own, tmp_path / "link" / "own", tmp_path / "link" / ".." / "deep" / "own"):
        monkeypatch.setenv(cache.VARIABLE, str(path))
        assert (cache.usable_folder() == path) == fine
        words = f"lies in {shared}, which can be written to by others: choose another"
        assert fine or words in str(cache.describe()["refused"])
    monkeypatch.chdir(own)
    monkeypatch.setenv(cache.VARIABLE, ".")
    assert (cache.usable_folder() is not None) == fine


def test_a_folder_above_that_is_anothers_is_refused(folder, monkeypatch):
    real = Path.lstat

    def foreign(path: Path) -> os.stat_result:
        found = list(real(path))
        found[4] += 1000 * (path == folder.parent)
        return os.stat_result(found)

    monkeypatch.setattr(Path, "lstat", foreign)
    assert cache.usable_folder() is None
    assert f"lies in {folder.parent}, which belongs to another user" in str(cache.refusal(folder))


@pytest.mark.parametrize("content", [b"lib", b"", b"another"])
def test_what_was_cut_short_or_exchanged_goes(folder, content):
    library = kept(folder)
    assert cache.find(folder, STEM) == library
    library.write_bytes(content)
    assert cache.find(folder, STEM) is None and not library.exists()


def test_a_link_in_the_folder_is_not_followed(folder, tmp_path):
    library = kept(folder)
    elsewhere = tmp_path / "elsewhere.so"
    shutil.move(library, elsewhere)
    library.symlink_to(elsewhere)
    assert cache.find(folder, STEM) is None and elsewhere.exists()


def test_clearing_removes_what_is_ours(folder):
    library, other = kept(folder), folder / "notes.txt"
    other.touch()
    assert cache.describe()["files"] == 1
    assert cache.clear() == [library] and other.exists() and cache.clear() == []


def test_a_folder_without_room_is_known_before_compiling(folder):
    """It is tested in a process that may write no more than 64 KiB to a file."""
    code = (
        "import resource, sys; from pathlib import Path; from ddfm_fast.kernels.cpu import cache\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))\n"
        "try: cache.need_room(Path(sys.argv[1]))\n"
        "except OSError: print('no room')"
    )
    command = [sys.executable, "-c", code, str(folder / "partial.tmp")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "no room", done.stderr
    cache.need_room(folder / "partial.tmp")
    assert not list(folder.iterdir())


def test_a_folder_from_which_no_code_may_run_is_refused(folder, monkeypatch):
    class NoExecution:
        f_flag = os.ST_NOEXEC

    monkeypatch.setattr(cache.os, "statvfs", lambda _path: NoExecution)
    assert cache.usable_folder() is None and "noexec" in str(cache.describe()["refused"])


def test_a_folder_that_cannot_be_looked_at_is_described(folder, monkeypatch):
    def closed(_path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", closed)
    refused = f"{folder} cannot be looked at: Permission denied"
    assert cache.describe()["refused"] == refused and cache.clear() == []
    monkeypatch.undo()
    monkeypatch.setenv(cache.VARIABLE, "~no-such-user/kernels")
    assert "~no-such-user/kernels is no folder" in str(cache.describe()["refused"])
    assert cache.usable_folder() is None and cache.clear() == []


@needs_kernels
def test_a_damaged_library_is_compiled_again(folder):
    """It runs in separate processes, since loading a damaged library ends the process."""
    code = "from ddfm_fast.kernels.cpu import build; print(build.status())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run() -> str:
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    native = build.build(Path(cache.folder()))  # compiled once, or found
    whole = native.read_bytes()
    native.write_bytes(whole[: len(whole) // 2])
    assert run() == "None" and native.read_bytes() == whole


@needs_kernels
def test_the_command_shows_and_empties_it(folder):
    kept(folder)
    command = [sys.executable, "-m", "ddfm_fast", "doctor", "--clear-cache"]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0 and "1 files removed" in done.stdout
    assert not list(folder.iterdir())


def test_a_mapped_file_whose_name_is_no_text_does_not_turn_the_kernels_off(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff.bin"
    with open(path, "w+b") as file:
        file.write(b"x" * 4096)
        file.flush()
        with mmap.mmap(file.fileno(), 4096):
            assert build.load_again()[1] == build.status()
