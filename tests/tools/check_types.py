"""Check the types of ``ddfm_fast`` and ``kernels``; options are handed to mypy.

In a checkout ``kernels`` and ``bench`` lie beside the package, joined by an import hook that a type
checker does not run. Here they are joined by links in a scratch folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch) / "ddfm_fast"
        package.mkdir()
        for child in (ROOT / "ddfm_fast").iterdir():
            if child.name != "__pycache__":
                (package / child.name).symlink_to(child)
        for joined in ("kernels", "bench"):
            (package / joined).symlink_to(ROOT / joined)
        command = [
            sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"),
            "--cache-dir", str(ROOT / ".mypy_cache"), "-p", "ddfm_fast", *sys.argv[1:],
        ]  # fmt: skip
        environment = {**os.environ, "MYPYPATH": scratch}
        return subprocess.run(command, cwd=scratch, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
