"""A step's kernels compiled ahead of time, with no GPU: registers, local memory, width of loads.

What is compiled is what a launch on 512×640 planes would compile: pointers divisible by 16 said to
be so, and rows of whole vectors. Nothing runs here: see test_step_kernels.py.

    PYTHONPATH=tests/tools:tests python tests/kernels/test_step_aot.py

prints the table of ``bench/results/step_kernels_aot.md``.
"""

import re
import tempfile
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="triton does not import here", exc_type=ImportError)
from aot import ARCHS, ONE_ARCH, Compiled, compiled_for  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

from ddfm_fast.kernels import checks, ksolve, local, step  # noqa: E402
from ddfm_fast.rectify import VARIANTS  # noqa: E402

if checks.INTERPRETED:
    pytest.skip("TRITON_INTERPRET=1: nothing is compiled", allow_module_level=True)

FLOATS = ("ratio", "target_weight", "eta", "scale")
POINTERS = {"seeds_ptr": "*i64", "step_ptr": "*i32", "basis_ptr": "*fp16"}
"""pointers to other types than float32"""
REGISTERS = 64
"""limit of the two rectification kernels: 8 blocks of 4 warps on an SM, half of what it can hold,
each thread with its loads of 128 bits in flight"""
ODD_REGISTERS = 96
"""limit of those two where rows are not aligned: an address for each element, 5 blocks on an SM"""
INSTRUCTIONS = {"rhs": 580, "update": 940}
"""limit of SASS instructions of the two rectification kernels on sm_90, any variant"""
SMALL_REGISTERS = 40
"""limit of the spectral scale"""
FULL_REGISTERS = 72
"""limit of the update with f̂₀ and the previous step but no noise: 12 loads in flight, 7 blocks on
an SM"""
NOISE_REGISTERS = 96
"""limit of the update with noise: 5 blocks on an SM, whose ten rounds are all arithmetic"""
SHARED_BYTES = 2048
"""limit of shared memory: the sums of 4 warps, and the noise of a tile on its way to other lanes"""
LOCAL_REGISTERS = 168
"""limit of the kernel that solves: 3 blocks of 4 warps on an SM, so that one wave holds 512×640"""
LOCAL_ODD_REGISTERS = 200
"""limit of that kernel where rows are not aligned, with all that it can do: 2 blocks"""
LOCAL_SHARED_BYTES = 32 * 1024
"""limit of that kernel's shared memory: the halves of C and of what is transformed"""
LOCAL_INSTRUCTIONS = {80: 2600, 90: 2530, 100: 3280, 120: 2750}
"""limit of that kernel's SASS instructions, a tenth above the pinned Triton's"""

AMD_LOCAL_SPILLS = {"gfx1100": 40}
"""limit of the vector registers that the kernel that solves spills there; AMD gets this kernel only
if solver="local" is set"""


def compiled(kernel, constants, arch, folder, *, eps="fp32", **options):
    """Compile what a launch on planes of such sizes would compile."""

    def typed(name):
        if name in FLOATS:
            return "fp32"
        if not name.endswith("_ptr"):
            return "i32"
        return POINTERS.get(name, "*fp32") if name != "eps_ptr" else f"*{eps}"

    aligned = [name for name in kernel.arg_names if name not in (*FLOATS, *step.SIZES)]
    rest = dict(typed=typed, aligned=aligned, options=options or None)
    if isinstance(arch, GPUTarget):
        return compiled_for(kernel, constants, arch, **rest)
    return Compiled(kernel, constants, arch, folder, **rest)


def tile_of(module):
    return dict(BLOCK_H=module.BLOCK_H, BLOCK_W=module.BLOCK_W)


def compile_rectify(
    stage, variant, arch, folder, *, layout="nchw", full=False, noise="none", in_place=False,
    divisible=True, **options,
):  # fmt: skip
    """Compile the kernel before ("rhs") or after ("update") the solve, or that solves ("local").

    ``full``: with f̂₀ and the previous step.
    """
    constants = dict(VARIANT=variant, LUMA=step.luma_constants(VARIANTS[variant]))
    constants.update(ALIGNED=divisible, EPS_ALIGNED=divisible and layout == "nchw")
    constants["UPDATE_SCALES"] = variant != "gradient"
    if variant != "gradient" and stage == "rhs":
        constants["target_ptr"] = None
    if stage == "rhs":
        constants |= tile_of(step)
        return compiled(step.rectify_rhs_kernel, constants, arch, folder, **options)
    constants.update(NOISE=noise, KEEP_X0=full, MULTISTEP=full, SUM_BLOCK=step.SUM_BLOCK)
    if not full:
        constants["x0_ptr"] = None
    if stage == "update":
        constants |= tile_of(step)
        if in_place:
            constants["k_next_ptr"] = None
        return compiled(step.rectify_update_kernel, constants, arch, folder, **options)
    constants.update(REGION=local.REGION, HALO=local.HALO, INNER=local.INNER)
    constants["ROWS"] = local.LEARNED_ROWS if noise == "learned" else local.ROWS
    options = {"num_warps": local.WARPS, "num_stages": 1, **options}
    return compiled(local.rectify_local_kernel, constants, arch, folder, **options)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("stage, loads, stores", [("rhs", 11, 1), ("update", 9, 4)])
def test_every_variant_moves_its_planes_128_bits_at_a_time(stage, loads, stores, variant, tmp_path):
    """Only k's left and right neighbors, the scalars and the first tile's sums are loaded singly.

    Before the solve the planes are x_t, ε, v, y (or the target) and k in three rows; after it x_t,
    ε, v, y and k, which is stored again, for the next step.
    """
    kernel = compile_rectify(stage, variant, 90, tmp_path)
    kernel.assert_within(REGISTERS, SHARED_BYTES)
    assert kernel.opcodes["LDG.E.128"] == loads
    assert kernel.opcodes["STG.E.128"] == stores
    limits = [opcode for opcode in kernel.opcodes if opcode.startswith("FMNMX")]
    assert limits and all(opcode.startswith("FMNMX.NAN") for opcode in limits), "NaN must survive"
    neighbors, scalars, sums = 8, 7, 2 * step.SUM_BLOCK // 128
    singles = scalars + (neighbors if stage == "rhs" else sums)
    assert kernel.opcodes["LDG.E"] <= singles


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("stage", ["rhs", "update"])
def test_instructions_of_the_two_kernels(stage, variant, tmp_path):
    """These need no clock: SASS instructions, at most a tenth above the pinned Triton's."""
    kernel = compile_rectify(stage, variant, 90, tmp_path)
    instructions = sum(kernel.opcodes.values())
    assert 100 < instructions <= INSTRUCTIONS[stage], instructions


def test_a_solver_that_writes_k_in_place_saves_the_store(tmp_path):
    kernel = compile_rectify("update", "official", 90, tmp_path, in_place=True)
    assert kernel.opcodes["STG.E.128"] == 3


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
    kernel = compile_rectify(stage, "official", 90, tmp_path, layout=layout, eps=eps)
    kernel.assert_within(REGISTERS, SHARED_BYTES)
    assert kernel.opcodes["LDG.E.128"] == planes
    if times:
        assert kernel.opcodes[opcode] == times


@pytest.mark.parametrize("noise, loads", [("none", 12), ("fixed", 12), ("learned", 15)])
def test_update_with_noise_and_the_step_before(noise, loads, tmp_path):
    """Three planes of the previous step go in and out; three of the prior's variance half go in."""
    kernel = compile_rectify("update", "official", 90, tmp_path, full=True, noise=noise)
    kernel.assert_within(FULL_REGISTERS if noise == "none" else NOISE_REGISTERS, SHARED_BYTES)
    assert (kernel.opcodes["LDG.E.128"], kernel.opcodes["STG.E.128"]) == (loads, 7)


@pytest.mark.parametrize("arch", ONE_ARCH)
@pytest.mark.parametrize("variant", ["official", "gradient"])
def test_the_solve_fits_an_sm_three_times_and_uses_tensor_cores(variant, arch, tmp_path):
    kernel = compile_rectify("local", variant, arch, tmp_path)
    kernel.assert_within(LOCAL_REGISTERS, LOCAL_SHARED_BYTES)
    assert any(opcode.startswith(("HMMA", "HGMMA", "UTCHMMA")) for opcode in kernel.opcodes)
    assert kernel.opcodes["STG.E.128"] == 5, "k and x of the inside, four elements at a time"
    assert 1000 < sum(kernel.opcodes.values()) <= LOCAL_INSTRUCTIONS[arch]


@pytest.mark.parametrize("arch", ONE_ARCH)
@pytest.mark.parametrize("noise", ["fixed", "learned"])
def test_the_solve_with_noise_and_the_step_before(noise, arch, tmp_path):
    kernel = compile_rectify("local", "official", arch, tmp_path, full=True, noise=noise)
    kernel.assert_within(LOCAL_REGISTERS, LOCAL_SHARED_BYTES)


@pytest.mark.parametrize("arch", ONE_ARCH)
@pytest.mark.parametrize(
    "options",
    [
        dict(divisible=False, noise="learned", full=True),
        dict(eps="bf16", layout="channels_last"),
        dict(eps="fp16"),
    ],
)
def test_the_solve_with_all_that_it_can_do(options, arch, tmp_path):
    kernel = compile_rectify("local", "official", arch, tmp_path, **options)
    kernel.assert_within(LOCAL_ODD_REGISTERS, LOCAL_SHARED_BYTES)


@pytest.mark.parametrize(
    "kernel",
    [
        *(step.rectify_rhs_kernel, step.rectify_update_kernel),
        *(local.rectify_local_kernel, ksolve.spectral_scale_kernel),
    ],
)
def test_no_size_has_a_binary_of_its_own(kernel):
    """Triton compiles again for an integer that is 1 or divisible by 16, unless told not to."""
    floats = {"ratio", "target_weight", "eta", "scale"}
    for parameter in kernel.params:
        name = parameter.name
        other = parameter.is_constexpr or name.endswith("_ptr") or name in floats
        assert other or parameter.do_not_specialize, name


@pytest.mark.parametrize("stage", ["rhs", "update"])
def test_odd_sizes_need_no_local_memory(stage, tmp_path):
    compile_rectify(stage, "official", 90, tmp_path, divisible=False).assert_within(
        ODD_REGISTERS, SHARED_BYTES
    )


@pytest.mark.parametrize("stage", ["rhs", "update"])
@pytest.mark.parametrize("arch", [80, 100, 120])
def test_rectification_compiles_for(arch, stage, tmp_path):
    """On sm_120, whose multiprocessor holds 48 warps and not 64, with a few registers more."""
    limit = FULL_REGISTERS if arch == 120 else REGISTERS
    compile_rectify(stage, "official", arch, tmp_path).assert_within(limit, SHARED_BYTES)


@pytest.mark.parametrize("arch", ARCHS)
def test_spectral_scale_compiles_for(arch, tmp_path):
    scale = compiled(ksolve.spectral_scale_kernel, tile_of(ksolve), arch, tmp_path)
    scale.assert_within(SMALL_REGISTERS, SHARED_BYTES)
    assert scale.opcodes["LDG.E.64"] + scale.opcodes["LDG.E.128"] > 0


@pytest.mark.parametrize("target", [("gfx942", 64), ("gfx1100", 32)], ids=str)
@pytest.mark.parametrize("noise", ["none", "fixed"])
@pytest.mark.parametrize("stage", ["rhs", "update", "local"])
def test_compiled_for_amd(stage, noise, target, tmp_path):
    kernel = compile_rectify(stage, "official", GPUTarget("hip", *target), tmp_path, noise=noise)
    spills = int(re.search(r"\.vgpr_spill_count: (\d+)", kernel.asm["amdgcn"])[1])
    assert spills <= AMD_LOCAL_SPILLS.get(target[0], 0) * (stage == "local")
    assert kernel.metadata.shared <= 64 * 1024


def table() -> str:
    """Return the kernels' registers, shared memory, instructions and wide accesses, in Markdown."""
    lines = [
        "# A step's kernels compiled ahead of time, variant official, rows of whole vectors",
        "",
        "| kernel | form | target | registers | local | shared | instructions | 128-bit loads "
        "| stores |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    forms = {
        "no noise": {},
        "learned noise, f̂₀ kept": dict(noise="learned", full=True),
        "no noise, odd rows": dict(divisible=False),
    }
    for stage in ("rhs", "update", "local"):
        for form, options in forms.items():
            if stage == "rhs" and "noise" in options:
                continue
            for arch in ARCHS:
                with tempfile.TemporaryDirectory() as folder:
                    made = compile_rectify(stage, "official", arch, Path(folder), **options)
                    resources, opcodes = made.resources(), made.opcodes
                row = (
                    stage, form, f"sm_{arch}", resources["REG"],
                    resources["LOCAL"] + resources["STACK"], made.shared, sum(opcodes.values()),
                    opcodes["LDG.E.128"], opcodes["STG.E.128"],
                )  # fmt: skip
                lines.append("| " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
