"""Products by AMX, as compiled, with its instructions carried out by tests/kernels/tiles.cpp.

No processor with AMX has run them. There, these tests let the processor itself do it.
"""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import test_cpu_bfloat as low
import torch
from conftest import ROOT
from test_cpu_kernels import CASES, SIZES, make, needs_kernels, normal

from ddfm_fast.kernels import cpu
from ddfm_fast.kernels.cpu import build, layer, prebuilt
from ddfm_fast.runtime import environment

HERE = ROOT / "tests" / "kernels"
KNOWN = "-mamx-tile", "-mamx-bf16"
BY_TILES = "-DVL=16", *KNOWN, build.AMX_FLAG
"""without AVX-512, so that only the instructions of AMX are beyond a processor without it"""
SAPPHIRE_RAPIDS = "-march=sapphirerapids"
COMPILERS = [name for name in ("c++", "clang++") if shutil.which(name)]
UNTILED = ("direct of three", "direct of 12", "direct of 20 and 9", "direct, half residual",
           "direct halved")  # fmt: skip
"""cases whose depths are no multiples of a tile's"""
FAULTS = {
    "nothing": None, "palette": "a palette that there is not",
    "reserved": "a reserved byte that is not zero", "rows": "a tile that is too large",
    "bytes": "a tile that is too large", "ninth": "a ninth tile",
    "no_columns": "rows without columns, or the reverse",
    "released": "no tiles are configured", "absent": "a tile that is not configured",
    "twice": "a tile that has two parts in a product", "pair": "half a pair",
    "other_rows": "sums with other rows than the inputs",
    "other_columns": "sums with other columns than the weights", "depth": "depths that differ",
}  # fmt: skip


CPUINFO = Path("/proc/cpuinfo")
HAS_AMX = CPUINFO.is_file() and prebuilt.features(CPUINFO.read_text()) >= build.AMX_NEEDS


def knows_amx(compiler: str) -> bool:
    done = subprocess.run(
        [compiler, *KNOWN, "-E", "-x", "c++", "/dev/null"], capture_output=True, check=False
    )
    return done.returncode == 0


needs_amx = pytest.mark.skipif(
    platform.machine() != "x86_64" or not COMPILERS or not knows_amx(COMPILERS[0]),
    reason="no compiler here that knows AMX",
)
pytestmark = [needs_kernels, needs_amx]


class Tiled(NamedTuple):
    """Kernels that use AMX, and what carries out its instructions."""

    library: build.Library
    path: Path
    other: build.Library
    """the same without AMX"""
    model: ctypes.CDLL

    def fault(self) -> str | None:
        found = self.model.tiles_fault()
        return None if found is None else found.decode()


def compiled(folder: Path, name: str, *flags: str) -> ctypes.CDLL:
    """A file of this folder."""
    more = environment.set_values().get(build.MORE_FLAGS, "").split()
    made = folder / f"{name}.so"
    command = [prebuilt.compiler(), "-std=c++17", "-O2", "-fPIC", "-shared", "-march=native", *more]
    build.run([*command, *flags, str(HERE / f"{name}.cpp"), "-o", str(made)])
    return ctypes.CDLL(str(made))


@pytest.fixture(scope="module")
def made(patience, tmp_path_factory) -> Tiled:  # noqa: ARG001
    folder = tmp_path_factory.mktemp("tiles")
    model = compiled(folder, "tiles")
    model.tiles_fault.restype = ctypes.c_char_p
    model.tiles_products.restype = model.tiles_held.restype = ctypes.c_int64
    quick = () if build.MORE_FLAGS in environment.set_values() else ("-O1",)
    with pytest.MonkeyPatch.context() as patch:  # what the layers do not need takes longer
        names = ("layer", "attention", "team", "processor")
        patch.setattr(build, "SOURCES", [prebuilt.HERE / f"{name}.cpp" for name in names])
        path = build.build(folder, [*BY_TILES, *quick])
        other = build.build(folder, [*BY_TILES[:-1], *quick])
    model.tiles_begin()
    library = build.Library(ctypes.CDLL(str(path)))
    model.tiles_end()
    return Tiled(library, path, build.Library(ctypes.CDLL(str(other))), model)


@pytest.fixture
def tiled(made, monkeypatch) -> Iterator[Tiled]:
    """Layers are by AMX, asks for nothing that it refuses, and leave no tiles behind."""
    monkeypatch.setattr(build, "load", lambda: (made.library, None))
    made.library.shared.ddfm_team_starts(ctypes.cast(made.model.tiles_start, ctypes.c_void_p))
    made.model.tiles_begin()
    yield made
    made.model.tiles_end()
    assert made.fault() is None
    assert made.model.tiles_held() == 0


def assert_tiled(tiled: Tiled, yes: bool) -> None:
    assert (tiled.model.tiles_products() > 0) == (yes and not HAS_AMX)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_layer_is_its_twin(tiled, case, size):
    low.test_layer_is_its_twin(case, size)
    halved = CASES[case].get("resample") == "down" and min(size[1:]) < 2
    assert_tiled(tiled, case not in UNTILED and not halved)


@pytest.mark.usefixtures("tiled")
@pytest.mark.parametrize("case", ["winograd with skip of two", "direct, stride 2"])
def test_layer_does_not_depend_on_threads_or_neighbors(case, monkeypatch):
    low.test_layer_does_not_depend_on_threads_or_neighbors(case, monkeypatch)


@pytest.mark.usefixtures("tiled")
def test_float32_is_not_touched(tiled):
    built, arguments, exact = make(1, 17, 25, **CASES["winograd with skip of two"])
    assert (built(**arguments)[0] - exact).abs().max() < 6e-6 * exact.abs().max()
    assert_tiled(tiled, False)


def assert_same_but_for_rounding(got, other):
    """The sums' last bits may differ, so that a few results are rounded to the next bfloat16."""
    got, other = got.double(), other.double()
    assert got.isfinite().all()
    apart = (got - other).abs()
    assert (apart <= 2.0**-7 * other.abs() + 1e-5 * other.abs().max()).all()
    assert (apart > 0).double().mean() < 0.01


@pytest.mark.parametrize("case", [case for case in CASES if case not in UNTILED])
def test_results_are_those_of_the_other_loop(tiled, case, monkeypatch):
    results = []
    for library in (tiled.library, tiled.other):
        monkeypatch.setattr(build, "load", lambda library=library: (library, None))
        built, arguments, _ = make(3, 19, 27, **CASES[case], dtype=low.LOW)
        results.append(built(**arguments)[0])
    assert_same_but_for_rounding(*results)


def test_any_number_of_rows_and_depth(tiled, monkeypatch):
    """Blocks of 1 to 40 tiles of Winograd's filtering, and depths of 1 to 8 steps of AMX's."""
    monkeypatch.setattr(layer, "WINOGRAD_BLOCK", (4, 160))
    for count in range(1, 41):
        channels = 32 * (1 + count % 8)
        x = normal(1, channels, 3, 4 * count - 1, seed=count).to(low.LOW)
        weight = normal(35, channels, 3, 3, seed=1)
        results = []
        for library in (tiled.library, tiled.other):
            monkeypatch.setattr(build, "load", lambda library=library: (library, None))
            built = cpu.Layer(cpu.pack(weight, True, low.LOW), [x.shape])
            poisoned = torch.full(built.shape, torch.nan, dtype=low.LOW)
            poisoned = poisoned.contiguous(memory_format=torch.channels_last)
            results.append(built([(x, None)], out=poisoned)[0])
        assert_same_but_for_rounding(*results)


def test_infinity_and_nan_stay(tiled):
    x = normal(1, 32, 6, 20).to(low.LOW)
    x[0, 11, 3, 4], x[0, 7, 5, 19] = torch.nan, torch.inf
    identity = torch.eye(32)[:, :, None, None]
    got, _ = cpu.Layer(cpu.pack(identity, False, low.LOW), [x.shape])([(x, None)])
    exact = x.clone()
    exact[0, :, 3, 4] = torch.nan  # each output has a product with it
    exact[0, [c for c in range(32) if c != 7], 5, 19] = torch.nan
    torch.testing.assert_close(got, exact, rtol=0, atol=0, equal_nan=True)
    assert_tiled(tiled, True)


def test_a_processor_that_multiplies_wrongly_is_refused(tiled):
    assert tiled.library.tiles
    if HAS_AMX:
        pytest.skip("this processor runs AMX itself")
    tiled.model.tiles_err(1)
    with pytest.raises(RuntimeError, match="^AMX gave wrong products .*; unset DDFM_FAST_AMX$"):
        build.Library(ctypes.CDLL(str(tiled.path)))


@pytest.fixture(scope="module")
def faults(tmp_path_factory) -> ctypes.CDLL:
    if HAS_AMX:
        pytest.skip("this processor runs AMX itself")
    return compiled(tmp_path_factory.mktemp("faults"), "tile_faults", *KNOWN)


@pytest.mark.parametrize("name", FAULTS)
def test_the_model_refuses_what_a_processor_does(made, faults, name):
    made.model.tiles_begin()
    getattr(faults, f"fault_{name}")()
    faults.fault_end()
    made.model.tiles_end()
    assert made.fault() == FAULTS[name]


@pytest.mark.parametrize("compiler", COMPILERS)
def test_it_compiles_for_a_processor_that_has_it(tmp_path, compiler):
    """Into its instructions if it is switched on, and never otherwise."""
    if not knows_amx(compiler) or shutil.which("objdump") is None:
        pytest.skip(f"{compiler} knows no AMX, or objdump is absent")
    options = [flag for flag in prebuilt.FLAGS if flag != "-shared"]
    for flags, expected in (((build.AMX_FLAG,), True), ((), False)):
        for source in ("layer", "processor"):
            target = tmp_path / f"{source}.o"
            command = [compiler, *options, "-O0", SAPPHIRE_RAPIDS, *flags, "-c", "-o", str(target)]
            build.run([*command, str(prebuilt.HERE / f"{source}.cpp")])
        code = build.run(["objdump", "-d", str(tmp_path / "layer.o")])
        for name in ("tdpbf16ps", "ldtilecfg", "tilerelease"):
            assert (name in code) == expected
        assert "vdpbf16ps" in code


def test_what_this_processor_lacks_is_named(tmp_path):
    """By code for any processor of this kind, which is safe to call."""
    target = tmp_path / "processor.so"
    source = str(prebuilt.HERE / "processor.cpp")
    flags = "-march=x86-64", build.AMX_FLAG, "-fPIC", "-shared"
    build.run([prebuilt.compiler(), *flags, source, "-o", str(target)])
    lacks = ctypes.CDLL(str(target)).ddfm_lacks
    lacks.restype = ctypes.c_char_p
    assert lacks() == (None if HAS_AMX else b"amx")


@pytest.fixture
def capable(monkeypatch) -> None:
    """The processor says that it has AMX, and the user asks for it."""
    monkeypatch.setattr(build.prebuilt, "features", lambda _text: build.AMX_NEEDS)
    monkeypatch.setenv(build.PREBUILT, "0")
    monkeypatch.setenv(build.AMX, "1")


def compile_instead(monkeypatch, with_amx: Path) -> None:
    """Give this library for one with AMX, and that of this process otherwise."""
    usual = build.build
    monkeypatch.setattr(
        build, "build", lambda folder, flags=(): with_amx if flags else usual(folder)
    )


def test_a_processor_without_it_gets_the_usual_library(monkeypatch):
    if HAS_AMX:
        pytest.skip("this processor has AMX")
    monkeypatch.setenv(build.AMX, "1")
    found, reason = build.load_again()
    assert found is not None and reason is None and not found.tiles
    assert found.amx.startswith("not used: this processor lacks amx_bf16, amx_tile")


@pytest.mark.usefixtures("capable")
def test_it_is_off_unless_asked_for(monkeypatch):
    monkeypatch.delenv(build.AMX)
    found, _ = build.load_again()
    assert found is not None and not found.tiles
    assert found.amx == (
        "not used: nobody has run it yet; DDFM_FAST_AMX=1 turns it on, for bfloat16"
    )


@pytest.mark.usefixtures("capable")
def test_a_system_that_keeps_no_tiles_gets_the_usual_library(made, monkeypatch):
    if HAS_AMX:
        pytest.skip("this processor has AMX")
    compile_instead(monkeypatch, made.path)
    found, reason = build.load_again()
    assert found is not None and reason is None and not found.tiles
    words = "not used: compiled for amx, which this processor or its system lacks"
    assert found.amx.startswith(words)
    assert made.path.exists(), "another machine may share the cache"


@pytest.mark.usefixtures("capable")
def test_a_compiler_that_does_not_know_it(monkeypatch):
    compile_instead(monkeypatch, Path(build.library().shared._name))
    found, _ = build.load_again()
    assert found is not None and not found.tiles
    assert found.amx == "not used: the compiler does not know it, or was told not to use it"
    monkeypatch.setattr(build, "build", lambda _folder, _flags=(): 1 / 0)
    found, reason = build.load_again()
    assert found is None and reason == "division by zero"


@pytest.mark.usefixtures("capable")
def test_an_error_without_words_is_a_reason_as_well(monkeypatch):
    def refuse(_folder, _flags=()):
        raise MemoryError

    monkeypatch.setattr(build, "build", refuse)
    assert build.load_again() == (None, "MemoryError")


@pytest.mark.usefixtures("capable")
def test_it_is_used_where_all_is_well(tiled, monkeypatch):
    compile_instead(monkeypatch, tiled.path)
    monkeypatch.setattr(
        build, "_loaded", lambda path, made="": build.Library(ctypes.CDLL(str(path)), made)
    )
    found, reason = build.load_again()
    assert found is not None and reason is None and found.tiles
    assert found.amx == "used in bfloat16 (DDFM_FAST_AMX=1), where nobody has run it yet"
    if not HAS_AMX:
        tiled.model.tiles_err(1)
        found, _ = build.load_again()
        assert found is not None and not found.tiles
        assert found.amx.startswith("not used: AMX gave wrong products")


def test_libraries_with_and_without_it_have_different_names(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "_compile", lambda command, path: path.write_text(str(command)))
    with_amx, without = build.build(tmp_path, [build.AMX_FLAG]), build.build(tmp_path)
    assert with_amx.name.split("-")[1] != without.name.split("-")[1]
