"""The norm kernels compiled ahead of time, with no GPU: registers, local memory, width of loads.

bench/results/norm_kernels_aot.md is what this prints:

    PYTHONPATH=tests/tools python tests/kernels/test_group_norm_aot.py
"""

import pytest

triton = pytest.importorskip("triton", reason="triton does not import here", exc_type=ImportError)
from aot import ARCHS, ONE_ARCH, Compiled, compiled_for  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

from ddfm_fast.kernels import checks, moments  # noqa: E402
from ddfm_fast.kernels import group_norm as gn  # noqa: E402

if checks.INTERPRETED:
    pytest.skip("TRITON_INTERPRET=1: nothing is compiled", allow_module_level=True)

ACTIVATIONS = ("a_ptr", "b_ptr", "x_ptr", "residual_ptr", "y_ptr", "pooled_ptr")
ROWS_OF_TABLES = ("bias_ptr", "weight_ptr", "shift_ptr")
SIZES = ("channels",)
"""divisible by 16; no other number is, so that a new size of an image compiles nothing"""
REGISTERS = 96
"""limit of the kernels that read activations: five blocks of four warps on an SM, each thread with
its loads of 128 bits in flight"""
MERGING_REGISTERS = 128
"""limit for a norm of 32 channels, each of them a group: 32 groups' moments are merged side by
side"""
SHARED_BYTES = 8192
"""limit of shared memory: the rows of a tile merged over four warps"""


def compiled(kernel, constants, arch, folder, dtype="bf16"):
    def typed(name):
        if name.endswith("_ptr"):
            return f"*{dtype}" if name in ACTIVATIONS else "*fp32"
        return "i32"

    pointers = [n for n in kernel.arg_names if n.endswith("_ptr") and n not in ROWS_OF_TABLES]
    aligned = [*pointers, *(name for name in kernel.arg_names if name in SIZES)]
    if isinstance(arch, GPUTarget):
        return compiled_for(kernel, constants, arch, typed=typed, aligned=aligned)
    return Compiled(kernel, constants, arch, folder, typed=typed, aligned=aligned)


def compile_moments(arch, folder, dtype="bf16", *, join=False, upsample=False, channels=256):
    block_r, block_c = gn.tile(gn.MOMENTS_ELEMENTS, channels)
    constants = dict(JOIN=join, UPSAMPLE=upsample, BLOCK_R=block_r, BLOCK_C=block_c)
    if not join:
        constants |= dict(bias_ptr=None, residual_ptr=None)
    return compiled(gn.moments_kernel, constants, arch, folder, dtype)


def compile_norm(arch, folder, dtype="bf16", *, resample="", channels=256, two=False, bias=True):
    block_r, block_c = gn.tile(gn.NORM_ELEMENTS, channels)
    block_r = block_r // 4 if resample == "down" else block_r
    group = (2 if two else 1) * channels // gn.GROUPS
    constants = dict(
        RESAMPLE=resample, SILU=True, BLOCK_R=block_r, BLOCK_C=block_c, BLOCK_S=moments.BLOCK_S,
        BLOCK_G=gn.reach(block_c, group),
    )  # fmt: skip
    constants |= {} if two else dict(b_ptr=None, moments_b_ptr=None)
    constants |= {} if bias else dict(bias_ptr=None)
    constants |= {} if resample == "down" else dict(pooled_ptr=None)
    return compiled(gn.norm_kernel, constants, arch, folder, dtype)


def compile_whole(arch, folder, dtype="bf16"):
    constants = dict(BLOCK_R=gn.NORM_ELEMENTS // gn.WHOLE_LANES, BLOCK_C=gn.WHOLE_LANES)
    return compiled(gn.whole_norm_kernel, constants, arch, folder, dtype)


FORMS = ["moments", "join", "join up", "norm", "norm of two", "norm up", "norm down", "whole"]


def compile_form(form, arch, folder, dtype="bf16"):
    if form == "whole":
        return compile_whole(arch, folder, dtype)
    if form.startswith("norm"):
        how, two = form.partition(" ")[2], form == "norm of two"
        return compile_norm(arch, folder, dtype, resample="" if two else how, two=two)
    join = form != "moments"
    return compile_moments(arch, folder, dtype, join=join, upsample=form == "join up")


@pytest.mark.parametrize("arch", ONE_ARCH)
@pytest.mark.parametrize("form", FORMS)
def test_activations_move_128_bits_at_a_time(form, arch, tmp_path):
    kernel, stores = compile_form(form, arch, tmp_path), form != "moments"
    kernel.assert_within(REGISTERS, SHARED_BYTES)
    assert kernel.wide("LDG") > 0 and kernel.narrow("LDG") == 0, kernel.opcodes
    assert (kernel.wide("STG") > 0) == stores and kernel.narrow("STG") == 0, kernel.opcodes


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("channels", [32, 96, 1024])
def test_other_dtypes_and_widths(dtype, channels, tmp_path):
    norm = compile_norm(90, tmp_path, dtype, channels=channels, bias=False)
    norm.assert_within(MERGING_REGISTERS if channels == 32 else REGISTERS, SHARED_BYTES)
    assert norm.wide("LDG") > 0 and norm.wide("STG") > 0
    join = compile_moments(90, tmp_path, dtype, join=True, channels=channels)
    join.assert_within(REGISTERS, SHARED_BYTES)
    assert join.wide("LDG") > 0 and join.wide("STG") > 0


@pytest.mark.parametrize("target", [("gfx942", 64), ("gfx1100", 32)], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_compiled_for_amd(form, target, tmp_path):
    kernel = compile_form(form, GPUTarget("hip", *target), tmp_path, "fp16")
    assert ".vgpr_spill_count: 0" in kernel.asm["amdgcn"]
    assert kernel.metadata.shared <= 64 * 1024


def report():
    """Return registers, spills, shared memory and 128-bit accesses of every form, as Markdown."""
    import tempfile
    from pathlib import Path

    folder = Path(tempfile.mkdtemp())
    lines = [
        "| kernel, form | dtype | target | registers | local | shared | 128-bit loads | stores |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for form in FORMS:
        for dtype in ("bf16", "fp32"):
            for arch in ARCHS:
                kernel = compile_form(form, arch, folder, dtype)
                used = kernel.resources()
                lines.append(
                    f"| {form} | {dtype} | sm_{arch} | {used['REG']} | {used['LOCAL']} "
                    f"| {kernel.shared} | {kernel.wide('LDG')} | {kernel.wide('STG')} |"
                )
    return lines


if __name__ == "__main__":
    print("# The norm kernels compiled ahead of time, 256 channels\n")
    print("\n".join(report()))
