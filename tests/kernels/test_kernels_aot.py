"""Every kernel compiled ahead of time, with no GPU: registers, local memory, width of loads.

What is compiled is what a launch on 512×640 planes would compile: pointers and sizes divisible by
16 said to be so, a unit stride a constant. Nothing runs here; test_kernels.py does that.
"""

import os
import re
import subprocess
from collections import Counter
from functools import cached_property
from pathlib import Path
from shutil import which

import pytest

triton = pytest.importorskip("triton", reason="triton does not import here", exc_type=ImportError)
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from ddfm_fast.kernels import ksolve, tile  # noqa: E402
from ddfm_fast.kernels import step as rectify  # noqa: E402
from ddfm_fast.rectify import VARIANTS  # noqa: E402

if ksolve.INTERPRETED:
    pytest.skip("TRITON_INTERPRET=1: nothing is compiled", allow_module_level=True)

BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
FLOATS = ("ratio", "target_weight", "eta", "scale")
NOT_DIVISIBLE = ("tiles", "steps")
REGISTERS = 64
"""limit of the two rectification kernels: 8 blocks of 4 warps on an SM, half of what it can hold,
each thread with its loads of 128 bits in flight"""
ODD_REGISTERS = 96
"""limit of both where rows are not aligned: an address for each element, 5 blocks on an SM"""
INSTRUCTIONS = {"rhs": 580, "update": 940}
"""limit of SASS instructions of the two rectification kernels on sm_90, any variant"""
SMALL_REGISTERS = 40
"""limit of the spectral scale"""
FULL_REGISTERS = 72
"""limit of the update with noise, f̂₀ and the step before: 15 loads in flight, 7 blocks on an SM"""
NOISE_REGISTERS = 96
"""limit of the update with noise: 5 blocks on an SM, whose ten rounds are all arithmetic"""
SHARED_BYTES = 2048
"""limit of shared memory: the sums of 4 warps, and the noise of a tile on its way to other lanes"""
TILE_REGISTERS = 128
"""limit of the one-launch kernel: 2 blocks of 8 warps on an SM"""
TILE_SHARED_BYTES = 48 * 1024
"""limit of its shared memory: operands of the transforms"""


@pytest.fixture(scope="module", autouse=True)
def compile_afresh(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def tool(name):
    """The path of a CUDA binary tool, from Triton's wheel or the PATH; skips without one."""
    bundled = BIN / name
    found = str(bundled) if os.access(bundled, os.X_OK) else which(name)
    if not found:
        pytest.skip(f"{name} is neither in triton's wheel nor on the PATH")
    return found


def signature(kernel, constants, eps, divisible):
    """What ASTSource wants to know of each argument: its type, and its divisibility by 16."""
    types, attributes = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            types[name] = "constexpr"
        elif name in FLOATS:
            types[name] = "fp32"
        else:
            pointers = {"eps_ptr": f"*{eps}", "seeds_ptr": "*i64", "step_ptr": "*i32"}
            pointers["step_next_ptr"] = "*i32"
            types[name] = pointers.get(name, "*fp32") if name.endswith("_ptr") else "i32"
            if name not in NOT_DIVISIBLE and (divisible or name.endswith("_ptr")):
                attributes[(index,)] = [["tt.divisibility", 16]]
    return types, attributes


class Compiled:
    """A kernel's cubin for one architecture, and what the CUDA tools say of it."""

    def __init__(self, kernel, constants, arch, folder, *, eps="fp32", divisible=True, **options):
        types, attributes = signature(kernel, constants, eps, divisible)
        source = ASTSource(kernel, types, constants, attributes)
        target = GPUTarget("cuda", arch, 32)
        compiled = triton.compile(source, target=target, options=options or None)
        self.shared = compiled.metadata.shared
        self.cubin = folder / "kernel.cubin"
        self.cubin.write_bytes(compiled.asm["cubin"])

    def resources(self):
        """REG, STACK and LOCAL of the kernel."""
        command = [tool("cuobjdump"), "--dump-resource-usage", str(self.cubin)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return {name: int(n) for name, n in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", output)}

    @cached_property
    def opcodes(self):
        """How often each opcode of the SASS occurs, with its modifiers: {"LDG.E.128": 9, …}."""
        command = [tool("nvdisasm"), "-c", str(self.cubin)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        pattern = r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]+)"
        return Counter(re.findall(pattern, output, re.MULTILINE))

    def assert_within(self, registers, shared=None):
        resources = self.resources()
        assert resources["STACK"] == 0 and resources["LOCAL"] == 0, resources
        assert 0 < resources["REG"] <= registers, resources
        assert self.opcodes["LDL"] == self.opcodes["STL"] == 0
        assert self.shared <= (SHARED_BYTES if shared is None else shared)


def tile_of(module):
    return dict(BLOCK_H=module.BLOCK_H, BLOCK_W=module.BLOCK_W)


def compile_rectify(
    stage, variant, arch, folder, *, layout="nchw", full=False, noise="none", in_place=False,
    **options,
):  # fmt: skip
    """The kernel before ("rhs") or after ("update") the solve, or the one ("tile") for both;
    ``full``: with f̂₀ and the step before."""
    constants = dict(VARIANT=variant, LUMA=rectify.luma_constants(VARIANTS[variant]))
    constants["eps_w_stride" if layout == "nchw" else "eps_c_stride"] = 1
    constants["UPDATE_SCALES"] = variant != "gradient"
    if variant != "gradient" and stage != "update":
        constants["target_ptr"] = None
    if stage == "rhs":
        constants |= tile_of(rectify)
        return Compiled(rectify._rectify_rhs_kernel, constants, arch, folder, **options)
    constants.update(NOISE=noise, KEEP_X0=full, MULTISTEP=full, SUM_BLOCK=rectify.SUM_BLOCK)
    if not full:
        constants["x0_ptr"] = None
    if stage == "update":
        constants |= tile_of(rectify)
        if in_place:
            constants["k_next_ptr"] = None
        return Compiled(rectify._rectify_update_kernel, constants, arch, folder, **options)
    constants.update(REGION=tile.REGION, HALO=tile.HALO, INNER=tile.INNER)
    constants["CHUNK"] = options.pop("chunk", tile.CHUNK)
    constants.setdefault("PRECISION", options.pop("precision", tile.PRECISION))
    options = {"num_warps": tile.WARPS, "num_stages": 1, **options}
    return Compiled(tile._rectify_tile_kernel, constants, arch, folder, **options)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("stage, loads, stores", [("rhs", 11, 1), ("update", 9, 4)])
def test_every_variant_moves_its_planes_128_bits_at_a_time(stage, loads, stores, variant, tmp_path):
    """Before the solve: x_t, ε, v, y (or the target) and k in three rows; after it: x_t, ε, v, y
    and k, which is stored again, for the next step. Only k's left and right neighbours, the
    scalars and the first tile's sums are loaded singly."""
    compiled = compile_rectify(stage, variant, 90, tmp_path)
    compiled.assert_within(REGISTERS)
    assert compiled.opcodes["LDG.E.128"] == loads
    assert compiled.opcodes["STG.E.128"] == stores
    limits = [opcode for opcode in compiled.opcodes if opcode.startswith("FMNMX")]
    assert limits and all(opcode.startswith("FMNMX.NAN") for opcode in limits), "NaN must survive"
    neighbours, scalars, sums = 8, 7, 2 * rectify.SUM_BLOCK // 128
    singles = scalars + (neighbours if stage == "rhs" else sums)
    assert compiled.opcodes["LDG.E"] <= singles


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("stage", ["rhs", "update"])
def test_instructions_of_the_two_kernels(stage, variant, tmp_path):
    """What no clock is needed for: SASS instructions, a tenth above the pinned Triton's."""
    compiled = compile_rectify(stage, variant, 90, tmp_path)
    instructions = sum(compiled.opcodes.values())
    assert 100 < instructions <= INSTRUCTIONS[stage], instructions


def test_a_solver_that_writes_k_in_place_saves_the_store(tmp_path):
    compiled = compile_rectify("update", "official", 90, tmp_path, in_place=True)
    assert compiled.opcodes["STG.E.128"] == 3


@pytest.mark.parametrize("stage, planes", [("rhs", 8), ("update", 6)])
@pytest.mark.parametrize(
    "eps, layout, opcode, times",
    [
        ("fp32", "channels_last", "LDG.E.128", 0),
        ("bf16", "nchw", "LDG.E.64", 3),
        ("fp16", "nchw", "LDG.E.64", 3),
        ("bf16", "channels_last", "LDG.E.U16", 12),
    ],
)
def test_eps_is_read_as_it_comes(eps, layout, opcode, times, stage, planes, tmp_path):
    compiled = compile_rectify(stage, "official", 90, tmp_path, layout=layout, eps=eps)
    compiled.assert_within(REGISTERS)
    assert compiled.opcodes["LDG.E.128"] == planes
    if times:
        assert compiled.opcodes[opcode] == times


@pytest.mark.parametrize("noise, loads", [("none", 12), ("fixed", 12), ("learned", 15)])
def test_update_with_noise_and_the_step_before(noise, loads, tmp_path):
    """Three more planes of the step before in and out, and three of the prior's variance half."""
    compiled = compile_rectify("update", "official", 90, tmp_path, full=True, noise=noise)
    compiled.assert_within(FULL_REGISTERS if noise == "none" else NOISE_REGISTERS)
    assert (compiled.opcodes["LDG.E.128"], compiled.opcodes["STG.E.128"]) == (loads, 7)


@pytest.mark.parametrize("arch", [80, 90, 100, 120])
@pytest.mark.parametrize("variant", ["official", "gradient"])
def test_one_launch_fits_an_sm_twice(variant, arch, tmp_path):
    compiled = compile_rectify("tile", variant, arch, tmp_path)
    compiled.assert_within(TILE_REGISTERS, TILE_SHARED_BYTES)
    assert compiled.opcodes["STG.E.128"] == 4


@pytest.mark.parametrize(
    "options",
    [dict(noise="learned", full=True), dict(divisible=False), dict(eps="bf16", layout="last")],
)
def test_one_launch_with_all_that_it_can_do(options, tmp_path):
    compiled = compile_rectify("tile", "official", 90, tmp_path, **options)
    compiled.assert_within(TILE_REGISTERS, TILE_SHARED_BYTES)


@pytest.mark.parametrize("arch", [80, 90, 100, 120])
def test_one_launch_on_tensor_cores(arch, tmp_path):
    """The other precision, for measurement: once on an SM, and nothing spilled."""
    compiled = compile_rectify("tile", "official", arch, tmp_path, precision="tf32x3")
    compiled.assert_within(255, TILE_SHARED_BYTES)
    assert any(opcode.startswith(("HMMA", "HGMMA", "UTCHMMA")) for opcode in compiled.opcodes)


@pytest.mark.parametrize("stage", ["rhs", "update"])
def test_odd_sizes_need_no_local_memory(stage, tmp_path):
    compile_rectify(stage, "official", 90, tmp_path, divisible=False).assert_within(ODD_REGISTERS)


@pytest.mark.parametrize("stage", ["rhs", "update"])
@pytest.mark.parametrize("arch", [80, 100, 120])
def test_rectification_compiles_for(arch, stage, tmp_path):
    """On sm_120, whose multiprocessor holds 48 warps and not 64, with a few registers more."""
    limit = FULL_REGISTERS if arch == 120 else REGISTERS
    compile_rectify(stage, "official", arch, tmp_path).assert_within(limit)


@pytest.mark.parametrize("arch", [80, 90, 100, 120])
def test_spectral_scale_compiles_for(arch, tmp_path):
    scale = Compiled(ksolve._spectral_scale_kernel, tile_of(ksolve), arch, tmp_path)
    scale.assert_within(SMALL_REGISTERS)
    assert scale.opcodes["LDG.E.64"] + scale.opcodes["LDG.E.128"] > 0
