"""Download public priors, resuming where a download broke off, and check them."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ..runtime import environment
from .catalog import Known
from .state_dict import file_sha256, read_tensors

TRIES = 4
"""tries in a row that may bring nothing"""
TIMEOUT = 30.0
"""seconds without a byte"""
_BLOCK = 1 << 20
_MOST = 1 << 35
Progress = Callable[[int, int | None], None]


class Downloaded(NamedTuple):
    """Where a prior is now."""

    path: Path
    """a file, or a folder of diffusers"""
    sha256: dict[str, str]
    """of its files of weights, by name"""
    checked: str
    """what they were compared with"""
    fresh: bool
    """whether anything was fetched"""


def cache_folder() -> Path:
    """Return where files are kept: priors/ in $DDFM_FAST_CACHE, else in ~/.cache/ddfm_fast."""
    if chosen := environment.set_values().get("DDFM_FAST_CACHE"):
        return Path(chosen).expanduser() / "priors"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ddfm_fast" / "priors"


def download(
    row: Known,
    folder: Path | None = None,
    *,
    url: str | None = None,
    sha256: str | None = None,
    progress: Progress | None = None,
) -> Downloaded:
    """Download a prior, or the parts of it that are missing.

    Args:
        row: A row of the catalog.
        folder: Where to put it (default: :func:`cache_folder`, or the Hub's own cache).
        url: Another address for the file, such as a mirror's.
        sha256: The expected hash of the file.
        progress: Called with the bytes that are here and the total, None if unknown.

    Raises:
        ValueError: It must be downloaded by hand, has another hash, or is not a checkpoint.
        ConnectionError: There is no network, or it broke off; what arrived is kept.
        ImportError: huggingface_hub is needed and missing.
    """
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise ValueError(f"--sha256 {sha256[:80]!r}, expected 64 hexadecimal digits")
    if not row.where and not url:
        raise ValueError(
            f"prior download: {row.name!r} has no address that is known to last; get "
            f"{row.by_hand}, and give the file by its path"
        )
    if row.on_hub and not url:
        if sha256 is not None:
            raise ValueError(f"--sha256: {row.name!r} is a folder of files; leave it out")
        return _from_hub(row, folder)
    address = url or row.where
    if urllib.parse.urlsplit(address).scheme not in ("https", "http"):
        raise ValueError(f"--url {address[:200]!r}, expected an address of https")
    name = (row.where or address).rpartition("/")[2].partition("?")[0]
    folder = folder or cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return fetch(address, folder / name, sha256=sha256 or row.sha256 or None, progress=progress)


def fetch(
    url: str, target: Path, *, sha256: str | None = None, progress: Progress | None = None
) -> Downloaded:
    """Fetch a file, continuing what an earlier call left beside it; see :func:`download`."""
    fresh = not target.is_file()
    part = target.with_name("partial." + target.name)
    note = part.with_name(part.name + ".json")
    checks: list[str] = []
    if fresh:
        checks = _complete(url, part, note, progress)
    file = part if fresh else target
    found = file_sha256(file)
    if sha256 and found != sha256.lower():
        if fresh:
            _remove(part, note)
        raise ValueError(
            f"prior download: {target.name!r} has sha256 {found}, expected {sha256.lower()}; "
            + ("it was discarded, try again" if fresh else f"remove {str(target)!r}, try again")
        )
    if fresh:
        try:
            read_tensors(part)
        except ValueError as error:
            _remove(part, note)
            raise ValueError(f"prior download: {url} is no checkpoint; {error}") from None
        os.replace(part, target)
        _remove(note)
    checks += ["sha256"] if sha256 else []
    return Downloaded(target, {target.name: found}, ", ".join(checks), fresh)


def _complete(url: str, part: Path, note: Path, progress: Progress | None) -> list[str]:
    """Fetch until the file is complete; return what its bytes were compared with."""
    left, failure = TRIES, ""
    while left:
        before = part.stat().st_size if part.is_file() else 0
        try:
            said = _continue(url, part, note, progress)
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                raise ConnectionError(
                    f"prior download: {url} answered {error.code} {error.reason}; the file may "
                    "have moved: give its new address by --url"
                ) from None
            if not isinstance(error, urllib.error.URLError) and getattr(error, "filename", None):
                raise  # a failure of the disk, not of the network
            failure = str(getattr(error, "reason", error)) or type(error).__name__
            now = part.stat().st_size if part.is_file() else 0
            left = TRIES if now > before else left - 1
            time.sleep(0.2 * (TRIES - left))
            continue
        return _compared(part, note, said)
    raise ConnectionError(_broken_off(url, part, failure))


def _broken_off(url: str, part: Path, failure: str) -> str:
    have = part.stat().st_size if part.is_file() else 0
    if have:
        return (
            f"prior download: {url} broke off after {have:,} bytes ({failure}), which are kept in "
            f"{str(part)!r}; the same command resumes there"
        )
    return (
        f"prior download: {url} cannot be reached ({failure}); offline, fetch it on another "
        f"machine and put it in {str(part.parent)!r}, or give its path as --prior"
    )


class _Said(NamedTuple):
    """What a server says about a file."""

    total: int | None
    md5: str


def _continue(url: str, part: Path, note: Path, progress: Progress | None) -> _Said:
    """Request the rest of a file, and append it; start over if the file has changed."""
    have, tag, md5 = _here(url, part, note)
    headers = {"User-Agent": "ddfm-fast", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": tag}
    try:
        answer = urllib.request.urlopen(  # noqa: S310 - the scheme was checked
            urllib.request.Request(url, headers=headers),
            timeout=TIMEOUT,  # noqa: S310
        )
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:
            if error.headers.get("Content-Range") == f"bytes */{have}":
                return _Said(have, md5)  # all of it is here
            _remove(part, note)
            raise ConnectionResetError("what was kept did not fit the file") from None
        raise
    with answer:
        whole = answer.status == 200
        start, total = _place(answer)
        if not whole and start != have:
            raise ConnectionResetError(f"the server continued at {start}, not at {have}")
        if total is not None:
            _check_room(part, total - start)
        said = _Said(total, (answer.headers.get("Content-MD5") or "") if whole else md5)
        tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        note.write_text(json.dumps({"url": url, "tag": tag, "md5": said.md5}), encoding="utf-8")
        with part.open("wb" if whole else "ab") as file:
            _pour(answer, file, start, total, progress)
    if total is not None and part.stat().st_size < total:
        raise ConnectionResetError(f"{part.stat().st_size:,} of {total:,} bytes came")
    return said


def _pour(answer: Any, file: Any, have: int, total: int | None, progress: Progress | None) -> None:
    while block := answer.read(_BLOCK):
        file.write(block)
        have += len(block)
        if have > (_MOST if total is None else total):
            raise ValueError(f"prior download: {file.name!r} gets too many bytes; try again")
        if progress:
            progress(have, total)


def _here(url: str, part: Path, note: Path) -> tuple[int, str, str]:
    """Return the bytes of the same file that are here, the server's tag of it, and its MD5."""
    try:
        said = json.loads(note.read_text(encoding="utf-8"))
        size = part.stat().st_size
    except (OSError, ValueError):
        return 0, "", ""
    tag = said.get("tag") if isinstance(said, dict) else None
    if not isinstance(tag, str) or not tag or tag.startswith("W/") or said.get("url") != url:
        return 0, "", ""  # nothing tells whether the file is still that one
    return size, tag, str(said.get("md5", ""))


def _place(answer: Any) -> tuple[int, int | None]:
    """Return where an answer begins, and how long the file is."""
    if answer.status == 200:
        length = answer.headers.get("Content-Length")
        return 0, int(length) if length and length.isdigit() else None
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
    if answer.status != 206 or found is None:
        raise ConnectionResetError(f"the server answered {answer.status} to a request for a part")
    return int(found[1]), int(found[2]) if found[2] != "*" else None


def _check_room(part: Path, needed: int) -> None:
    if needed > (free := shutil.disk_usage(part.parent).free):
        raise ValueError(
            f"prior download: {needed:,} bytes are missing and {str(part.parent)!r} has room for "
            f"{free:,}; make room, or choose another folder by --out"
        )


def _compared(part: Path, note: Path, said: _Said) -> list[str]:
    """Compare what arrived with what the server says about it."""
    checks = ["length"] if said.total is not None else []
    if said.md5:
        import base64

        digest = hashlib.md5(usedforsecurity=False)
        with part.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        if base64.b64encode(digest.digest()).decode() != said.md5:
            _remove(part, note)
            raise ValueError("prior download: the MD5 of the download is not the server's; "
                             "it was discarded, try again")  # fmt: skip
        checks.append("the server's MD5")
    return checks


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


# the Hugging Face Hub


def _from_hub(row: Known, folder: Path | None) -> Downloaded:
    """Fetch the files of a diffusers folder, by the Hub's own library and into its cache."""
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError as error:
        raise ImportError(
            f"prior download: {row.name!r} needs huggingface_hub, which comes with diffusers; "
            "install it with pip install 'ddfm_fast[diffusers]'"
        ) from error
    place = None if folder is None else folder / row.name
    try:
        files = HfApi().model_info(row.where, files_metadata=True).siblings or []
        wanted = _wanted([file.rfilename for file in files])
        path = Path(snapshot_download(row.where, allow_patterns=wanted, local_dir=place))
    except Exception as error:  # from whichever library the Hub's own one uses
        return _kept(row, place, error)
    hashes, checks = {}, set()
    for file in files:
        if file.rfilename in wanted and file.rfilename.endswith((".safetensors", ".bin")):
            hashes[file.rfilename] = found = file_sha256(path / file.rfilename)
            if file.lfs is not None:
                checks.add("the Hub's sha256")
                if found != file.lfs.sha256:
                    raise ValueError(
                        f"prior download: {file.rfilename!r} of {row.where} has sha256 {found}, "
                        f"expected {file.lfs.sha256}; remove {str(path)!r} and try again"
                    )
    return Downloaded(path, hashes, ", ".join(sorted(checks)), True)


def _kept(row: Known, place: Path | None, error: Exception) -> Downloaded:
    """Return what an earlier download left; ConnectionError if there is nothing."""
    from huggingface_hub import snapshot_download

    path, files = Path(), []
    for kind in ("*.safetensors", "*.bin"):  # since the other kind was never requested
        try:
            path = Path(
                snapshot_download(
                    row.where,
                    local_dir=place,
                    local_files_only=True,
                    allow_patterns=["*.json", "README.md", kind],
                )
            )
        except Exception:  # nothing, or a part
            continue
        if files := [p for p in sorted(path.rglob(kind)) if p.is_file()]:
            break
    if not files:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise ConnectionError(
            f"prior download: {row.where} the Hugging Face Hub did not give it ({reason}); "
            "what arrived is kept, and the same command resumes; offline, copy the folder from "
            "another machine and give its path as --prior"
        ) from error
    hashes = {p.relative_to(path).as_posix(): file_sha256(p) for p in files}
    return Downloaded(path, hashes, "", False)


def _wanted(names: list[str]) -> list[str]:
    """Choose configurations, the card, and one set of weights: safetensors if there are any."""
    weights = [n for n in names if n.endswith(".safetensors")]
    weights = weights or [n for n in names if n.endswith(".bin")]
    return [n for n in names if n.endswith(".json") or n == "README.md"] + weights
