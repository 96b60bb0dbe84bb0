"""GStreamer: where the element ``ddfmfuse`` is, as lines for a shell.

``eval "$(python -m ddfm_fast.integrations.gstreamer)"`` and ``gst-inspect-1.0 ddfmfuse`` shows it.
GStreamer runs the Python with which its loader of Python plugins was built, the system's. So
ddfm_fast and PyTorch must be installed for that version of Python: in its own packages, or in a
virtual environment of the same version, whose folders these lines name.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

PLUGINS = Path(__file__).resolve().parent / "gst"
"""a folder for GST_PLUGIN_PATH; the loader looks into its folder ``python``"""
_NEEDED = ("ddfm_fast", "torch", "numpy", "cv2", "typing_extensions")


def python_folders() -> list[str]:
    """Return the folders for PYTHONPATH, from which this Python imports what is needed."""
    found: list[str] = []
    for name in _NEEDED:
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            continue
        origin = Path(spec.origin)
        folder = str(origin.parent.parent if origin.name == "__init__.py" else origin.parent)
        if folder not in found:
            found.append(folder)
    return found


def loader_version() -> str | None:
    """Return the version of the Python that GStreamer's loader runs; None without a loader.

    It is read from the names of the libraries that the loader needs.
    """
    inspect = shutil.which("gst-inspect-1.0")
    if inspect is None:
        return None
    said = subprocess.run([inspect, "python"], capture_output=True, text=True).stdout
    file = re.search(r"^\s*Filename\s+(\S.*)$", said, re.M)
    if file is None:
        return None
    name = re.search(rb"libpython(3\.\d+)", Path(file[1]).read_bytes())
    return name[1].decode() if name else None


def trouble(version: str | None) -> str | None:
    """Return what keeps the element from being found, as a sentence; None if all fits."""
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    if version is None:
        return (
            "no loader of Python plugins is found; on Debian and Ubuntu: apt-get install "
            "gstreamer1.0-tools gstreamer1.0-python3-plugin-loader python3-gi "
            "gir1.2-gst-plugins-base-1.0"
        )
    if version != own:
        return (
            f"GStreamer's loader runs Python {version}, and this is Python {own}; install "
            f"ddfm_fast for Python {version} and use that one"
        )
    return None


def main() -> int:
    """Print the lines; a sentence on stderr, and 1, if they would not work."""
    for name, folders in (("GST_PLUGIN_PATH", [str(PLUGINS)]), ("PYTHONPATH", python_folders())):
        joined = shlex.quote(":".join(folders))
        print(f'export {name}={joined}"${{{name}:+:${name}}}"')
    if (sentence := trouble(loader_version())) is not None:
        print(f"ddfm_fast: {sentence}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
