"""Builds of a module of ``kernels/cpu`` beside the one that is used here, for its tests."""

from __future__ import annotations

import ctypes
import os
import shutil
from types import ModuleType
from typing import Any

import emulated
import pytest
import torch

from ddfm_fast.kernels.cpu import build, prebuilt


def fixtures(module: ModuleType) -> tuple[Any, Any]:
    """Make the fixtures ``narrow`` and ``kernels`` of a module that has a SOURCE and a Library.

    Under ``kernels`` a test runs on this processor's build, on one for vectors of four, and on
    other processors' by an emulator; what a function does not write holds NaN.
    """

    @pytest.fixture(scope="module")
    def narrow(tmp_path_factory):
        compiler = shutil.which(os.environ.get("CXX", "c++")) or pytest.skip("no C++ compiler")
        path = tmp_path_factory.mktemp("narrow") / "narrow.so"
        flags = *prebuilt.FLAGS, build.this_processor(), "-DVL=4"
        build.run([compiler, *flags, str(module.SOURCE), "-o", str(path)])
        return module.Library(ctypes.CDLL(str(path)), build.library().team)

    @pytest.fixture(params=["native", "narrow", *emulated.PARAMS])
    def kernels(request, monkeypatch):
        if request.param in emulated.TARGETS:
            shared = request.getfixturevalue("foreign")(request.param)
            shared.watch(monkeypatch)
            library = module.Library(shared, 0)
            monkeypatch.setattr(module, "load", lambda: (library, None))
        elif request.param == "narrow":
            library = request.getfixturevalue("narrow")
            monkeypatch.setattr(module, "load", lambda: (library, None))
        empty = torch.empty

        def poisoned(*args, **options):
            x = empty(*args, **options)
            return x.fill_(float("nan")) if x.is_floating_point() else x

        monkeypatch.setattr(torch, "empty", poisoned)

    return narrow, kernels


@pytest.fixture
def threads():
    """Sets how many threads PyTorch uses, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
