"""What every test file shares: test data beside the checkout, the ``gpu`` marker, threads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Read when torch loads: threads that sleep while they wait, not spin, where other programs run too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ROOT = Path(__file__).resolve().parent.parent


def shared(path: str) -> Path:
    """The file or folder ``path`` of the test data beside the checkout; skips where it is absent.

    The data lies in ``../shared`` or in ``$DDFM_FAST_SHARED``; not all of it may be
    redistributed, so most people do not have it.
    """
    found = Path(os.environ.get("DDFM_FAST_SHARED") or ROOT.parent / "shared") / path
    if not found.exists():
        pytest.skip(f"test data {path} is absent (set DDFM_FAST_SHARED to the folder that has it)")
    return found


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, and torch finds none here")
    for item in gpu_items:
        item.add_marker(skip)
