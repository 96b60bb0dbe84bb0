"""The package as it is installed: what it carries, what importing it costs, where kernels are."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ddfm_fast

PYTHONS = [f"3.{minor}" for minor in range(10, 15)]
IGNORED = shutil.ignore_patterns(".*", "build", "dist", "out", "*.egg-info", "__pycache__")
PROBE = """
import sys
import ddfm_fast.kernels
print(ddfm_fast.__file__)
print(ddfm_fast.kernels.__file__)
print("kernels" in sys.modules or "torch" in sys.modules)
"""


def python(code: str, *flags: str) -> list[str]:
    """Return the lines that ``code`` prints in a fresh interpreter, far from the checkout."""
    done = subprocess.run(
        [sys.executable, *flags, "-c", code], capture_output=True, text=True, cwd=ROOT.anchor
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def probe(path: Path, before: str = "") -> list[str]:
    """Return where the package and its kernels come from if only ``path`` leads to them."""
    return python(f"import sys; sys.path.insert(0, {str(path)!r}); {before}{PROBE}", "-I", "-S")


def pip(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", *arguments, "--no-deps", "--no-build-isolation", "--quiet"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def checkout(tmp_path_factory) -> Path:
    """A copy of the checkout, so that building leaves nothing behind in the real one."""
    copy = tmp_path_factory.mktemp("package") / "checkout"
    shutil.copytree(ROOT, copy, ignore=IGNORED)
    return copy


@pytest.fixture(scope="session")
def wheel(checkout, tmp_path_factory) -> Path:
    """The wheel, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", str(checkout), "--wheel-dir", str(folder))
    (built,) = folder.glob("*.whl")
    unpacked = folder / "unpacked"
    with zipfile.ZipFile(built) as archive:
        archive.extractall(unpacked)
    return unpacked


@pytest.fixture(scope="session")
def metadata(wheel):
    (info,) = wheel.glob("*.dist-info")
    return Parser().parsestr((info / "METADATA").read_text(encoding="utf-8"))


def test_import_is_quick_and_light():
    code = (
        "import sys, time; t = time.perf_counter(); import ddfm_fast; "
        "print(time.perf_counter() - t); "
        "print({'torch', 'numpy', 'typer', 'PIL', 'cv2', 'triton', 'cupy'} & set(sys.modules))"
    )
    runs = [python(code) for _ in range(5)]
    assert {loaded for _, loaded in runs} == {"set()"}
    assert min(float(seconds) for seconds, _ in runs) < 0.3


def test_public_names_load_on_first_use():
    assert set(ddfm_fast.__all__) <= set(dir(ddfm_fast))
    for name in ddfm_fast.__all__:
        assert getattr(ddfm_fast, name) is not None
    assert ddfm_fast.PRESETS["official"] == ddfm_fast.FuseConfig()
    with pytest.raises(AttributeError, match="no attribute 'fusee'"):
        ddfm_fast.fusee  # noqa: B018


def test_kernels_from_the_bare_checkout():
    package, kernels, stray = probe(ROOT)
    assert package == str(ROOT / "ddfm_fast" / "__init__.py")
    assert kernels == str(ROOT / "kernels" / "__init__.py")
    assert stray == "False"


def test_kernels_from_a_wheel(wheel):
    package, kernels, stray = probe(wheel)
    assert package == str(wheel / "ddfm_fast" / "__init__.py")
    assert kernels == str(wheel / "ddfm_fast" / "kernels" / "__init__.py")
    assert stray == "False"


def test_kernels_from_an_editable_install(checkout, tmp_path):
    pip("install", "--prefix", str(tmp_path), "--ignore-installed", "--editable", str(checkout))
    (site,) = tmp_path.rglob("site-packages")
    # the .pth file of the editable install is only read from a folder that site knows
    package, kernels, stray = probe(tmp_path, f"import site; site.addsitedir({str(site)!r})\n")
    assert package == str(checkout / "ddfm_fast" / "__init__.py")
    assert kernels == str(checkout / "kernels" / "__init__.py")
    assert stray == "False"


def test_kernels_of_this_checkout_win_over_an_editable_install(checkout, tmp_path):
    pip("install", "--prefix", str(tmp_path), "--ignore-installed", "--editable", str(checkout))
    (site,) = tmp_path.rglob("site-packages")
    package, kernels, _ = probe(ROOT, f"import site; site.addsitedir({str(site)!r})\n")
    assert package == str(ROOT / "ddfm_fast" / "__init__.py")
    assert kernels == str(ROOT / "kernels" / "__init__.py")


def test_the_benchmark_comes_from_where_the_package_does(wheel):
    """It is found without being imported: its dependencies are an extra."""
    look = "import importlib.util as u; print(u.find_spec('ddfm_fast.bench.runner').origin)"
    for home, folder in ((ROOT, ROOT / "bench"), (wheel, wheel / "ddfm_fast" / "bench")):
        (found,) = python(f"import sys; sys.path.insert(0, {str(home)!r}); {look}", "-I", "-S")
        assert found == str(folder / "runner.py")
    assert (wheel / "ddfm_fast" / "bench" / "sections" / "waterfall.py").is_file()
    assert not list((wheel / "ddfm_fast" / "bench").rglob("*.png")), "results stay at home"


def test_kernels_say_what_is_available():
    from ddfm_fast.kernels import available

    found = available()
    assert set(found) == {"triton", "cupy", "cuda"}
    for entry in found.values():
        assert set(entry) == {"version", "reason"}
        assert (entry["version"] is None) != (entry["reason"] is None)


def test_wheel_carries_data_and_nothing_stray(wheel):
    package = wheel / "ddfm_fast"
    for name in (
        "py.typed",
        "assets/sentinel2_nir.png",
        "assets/ATTRIBUTION.md",
        "priors/embedded.safetensors",
        "priors/MODEL_CARD.md",
        "docs/video.md",
        "docs/tour.ipynb",
    ):
        assert (package / name).is_file(), name
    (info,) = wheel.glob("*.dist-info")
    assert {path.name for path in wheel.iterdir()} == {"ddfm_fast", info.name}
    assert {path.name for path in info.rglob("*")} >= {"LICENSE", "NOTICE"}
    size = sum(path.stat().st_size for path in wheel.rglob("*") if path.is_file())
    assert size < 12e6, (
        "unpacked; the two networks are 7.1e6 of it, the code of page and hosts .4e6"
    )


def test_metadata(metadata):
    assert metadata["Version"] == ddfm_fast.__version__
    assert metadata["Requires-Python"] == f">={PYTHONS[0]}"
    classifiers = metadata.get_all("Classifier")
    assert [line.rpartition(" ")[2] for line in classifiers if ":: 3." in line] == PYTHONS
    extras = set(metadata.get_all("Provides-Extra"))
    libraries = {"cuda12", "cuda13", "diffusers", "video", "medical", "files", "engines", "serve"}
    for_tests = {"app-test", "storage-test", "test", "bench"}
    assert extras == libraries | for_tests | {
        *(
            "app",
            "az",
            "detect",
            "docs",
            "gs",
            "metrics",
            "notebook",
            "ray",
            "ray-serve",
            "storage",
        ),
    }


def pins(python: str) -> list[str]:
    """Return the names that constraints.txt pins for this Python, one per line that applies."""
    names = []
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            assert re.fullmatch(
                r"[a-z0-9-]+==[\w.]+(; python_version (<|>=) '3\.1[1-4]')?", line
            ), line
            pin = Requirement(line)
            if pin.marker is None or pin.marker.evaluate({"python_version": python}):
                names.append(pin.name)
    return names


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_pin_all_that_make_venv_asks_for(metadata, python):
    pinned = pins(python)
    wanted = [
        requirement
        for requirement in map(Requirement, metadata.get_all("Requires-Dist"))
        if not re.search(r"extra == .(cuda12|cuda13)", str(requirement.marker))
        and (requirement.name != "tomli" or python == "3.10")
    ]
    names = {canonicalize_name(requirement.name) for requirement in wanted}
    assert {"torch", "numpy", "pytest", "diffusers"} <= names <= set(pinned)
    assert len(pinned) == len(set(pinned)), "two pins of one package"


def test_a_mac_is_asked_for_nothing_that_serves_an_nvidia_gpu(metadata):
    asked = {}
    for system in ("Darwin", "Linux"):
        asked[system] = {
            requirement.name
            for requirement in map(Requirement, metadata.get_all("Requires-Dist"))
            for extra in ("", *metadata.get_all("Provides-Extra"))
            if requirement.marker is None
            or requirement.marker.evaluate({"platform_system": system, "extra": extra})
        }
    gpu = {"cupy-cuda12x", "cupy-cuda13x", "nvtx", "triton"}
    assert asked["Linux"] - asked["Darwin"] == gpu


def test_command_is_installed(wheel):
    (entry,) = wheel.glob("*.dist-info/entry_points.txt")
    assert "ddfm-fast = ddfm_fast.__main__:main" in entry.read_text()
