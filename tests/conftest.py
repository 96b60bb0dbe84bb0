"""What every test file shares: test data beside the checkout, markers, threads."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# OpenMP reads this when torch loads: threads that wait sleep and do not spin, since other programs
# run too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job: tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
if not hasattr(ctypes.CDLL(None), "fake_launch_count"):
    collect_ignore = ["fakecuda"]  # its conftest would take this one's name


def shared(path: str) -> Path:
    """Return the file or folder ``path`` of the test data beside the checkout; skips without it.

    The data lies in ``../shared`` or in ``$DDFM_FAST_SHARED``; not all of it may be
    redistributed, so most people do not have it.
    """
    found = Path(os.environ.get("DDFM_FAST_SHARED") or ROOT.parent / "shared") / path
    if not found.exists():
        pytest.skip(f"test data {path} is absent (set DDFM_FAST_SHARED to the folder that has it)")
    return found


@pytest.fixture
def assert_interpreted(request: pytest.FixtureRequest) -> Callable[[], None]:
    """Run pytest, in a process of its own, with the arguments of the test's ``interpreted`` marker.

    Whether Triton interprets is settled when it is first imported.
    """
    pytest.importorskip("triton", reason="triton does not import here", exc_type=ImportError)
    arguments = request.node.get_closest_marker("interpreted").args

    def check() -> None:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        output = run.stdout + run.stderr
        assert run.returncode == 0 and " passed" in output, output[-20000:]

    return check


@pytest.fixture(scope="session")
def patience() -> Iterator[None]:
    """Let the compiler take longer than a user should wait: other programs run beside tests."""
    from ddfm_fast.kernels.cpu import build, prebuilt

    with pytest.MonkeyPatch.context() as patch:
        for module in (build, prebuilt):
            patch.setattr(module, "COMPILE_SECONDS", 1800)
        yield


@pytest.fixture(scope="session")
def libraries(patience: None, tmp_path_factory: pytest.TempPathFactory) -> Callable:  # noqa: ARG001
    """A function from floats per vector (None: this processor's) to the kernels compiled for it."""
    from ddfm_fast.kernels.cpu import build

    folder, found = tmp_path_factory.mktemp("kernels"), {}

    def library(width: int | None) -> build.Library:
        if width not in found:
            flags = () if width is None else (f"-DVL={width}",)
            if width is not None and 2 * width == library(None).group:
                found[width] = found[None]
            else:
                found[width] = build.Library(ctypes.CDLL(str(build.build(folder, flags))))
        return found[width]

    library.folder = folder
    return library


@pytest.fixture(scope="session")
def foreign(patience: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable]:  # noqa: ARG001
    """A function from a target of ``emulated.TARGETS`` to its library; skips without the tools."""
    import emulated

    folder, made = tmp_path_factory.mktemp("foreign"), {}

    def library(target: str) -> emulated.Emulated:
        if target not in made:
            made[target] = emulated.Emulated(emulated.compiled(folder, target))
        return made[target]

    yield library
    for found in made.values():
        found.close()


SLOW = (
    "bench/", "cli/", "fuzz/", "kernels/", "house/test_package.py",
    "datasets/test_batch_command.py", "datasets/test_demo.py", "method/test_graphs.py",
    "method/test_fuser_properties.py",
    "metrics/test_ablate.py", "metrics/test_evaluate.py",
    "images/test_files_written.py::test_readers", "medical/", "metrics/test_metrics.py",
    "priors/test_engine.py", "priors/test_precision.py", "priors/test_prior_evaluate.py",
    "priors/test_priors.py::test_diffusers", "priors/test_priors.py::test_dtype",
    "priors/test_train.py", "priors/test_unet.py::test_shared_cond",
    "runtime/test_doctor.py", "runtime/test_environment.py", "runtime/test_memory.py",
    "runtime/test_neighbor.py::test_children", "runtime/test_streams.py", "serve/",
    "video/test_video_faults.py", "video/test_video_outputs.py", "video/test_video_pipeline.py",
    "video/test_video_temporal.py",
)  # fmt: skip
"""what `make check` leaves out, below tests/"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.removeprefix("tests/").startswith(SLOW):
            item.add_marker("slow")
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, and torch finds none here")
    for item in gpu_items:
        item.add_marker(skip)
