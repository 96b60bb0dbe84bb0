"""The norm kernels compiled ahead of time, with no GPU: registers, local memory, width of loads.

bench/results/norm_kernels_aot.md is what this prints:

    PYTHONPATH=tests/tools python tests/kernels/test_group_norm_aot.py
"""

import pytest

triton = pytest.importorskip("triton", reason="triton does not import here", exc_type=ImportError)
from aot import ARCHS, Compiled  # noqa: E402

from ddfm_fast.kernels import checks  # noqa: E402
from ddfm_fast.kernels import group_norm as gn  # noqa: E402

if checks.INTERPRETED:
    pytest.skip("TRITON_INTERPRET=1: nothing is compiled", allow_module_level=True)

ACTIVATIONS = ("x_ptr", "residual_ptr", "y_ptr", "pooled_ptr")
SIZES = ("rows", "channels", "channels_y", "channels_a", "first", "chunk")
"""divisible by 16 in the networks that there are; W and the number of chunks need not be"""
REGISTERS = 96
"""limit of the kernels that read activations: five blocks of four warps on an SM, each thread with
its loads of 128 bits in flight"""
FINISH_REGISTERS = 64
SHARED_BYTES = 8192
"""limit of shared memory: the rows of a tile merged over four warps"""


def compiled(kernel, constants, arch, folder, dtype="bf16"):
    def typed(name):
        if name.endswith("_ptr"):
            return f"*{dtype}" if name in ACTIVATIONS else "*fp32"
        return "fp32" if name == "eps" else "i32"

    aligned = [name for name in kernel.arg_names if name.endswith("_ptr") or name in SIZES]
    return Compiled(kernel, constants, arch, folder, typed=typed, aligned=aligned)


def compile_moments(arch, folder, dtype="bf16", *, join=False, upsample=False, channels=256):
    block_r, block_c = gn.tile(gn.MOMENTS_ELEMENTS, channels)
    constants = dict(JOIN=join, UPSAMPLE=upsample, BLOCK_R=block_r, BLOCK_C=block_c)
    if not join:
        constants |= dict(bias_ptr=None, residual_ptr=None)
    return compiled(gn.moments_kernel, constants, arch, folder, dtype)


def compile_apply(arch, folder, dtype="bf16", *, resample="", channels=256):
    block_r, block_c = gn.tile(gn.APPLY_ELEMENTS, channels)
    block_r = block_r // 4 if resample == "down" else block_r
    constants = dict(RESAMPLE=resample, SILU=True, BLOCK_R=block_r, BLOCK_C=block_c)
    if resample != "down":
        constants["pooled_ptr"] = None
    return compiled(gn.apply_kernel, constants, arch, folder, dtype)


def compile_finish(arch, folder, channels=512, two=True, bias=True):
    group = channels // gn.GROUPS
    block_g = triton.next_power_of_2(group)
    constants = dict(GROUP=group, BLOCK_S=max(gn.FINISH_ELEMENTS // block_g, 1), BLOCK_G=block_g)
    constants |= {} if two else dict(b_ptr=None)
    constants |= {} if bias else dict(bias_ptr=None)
    return compiled(gn.finish_kernel, constants, arch, folder)


FORMS = ["moments", "join", "join up", "apply", "apply up", "apply down"]


def compile_form(form, arch, folder, dtype="bf16"):
    if form.startswith("apply"):
        return compile_apply(arch, folder, dtype, resample=form.partition(" ")[2])
    join = form != "moments"
    return compile_moments(arch, folder, dtype, join=join, upsample=form == "join up")


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("form", FORMS)
def test_activations_move_128_bits_at_a_time(form, arch, tmp_path):
    kernel, stores = compile_form(form, arch, tmp_path), form != "moments"
    kernel.assert_within(REGISTERS, SHARED_BYTES)
    assert kernel.wide("LDG") > 0 and kernel.narrow("LDG") == 0, kernel.opcodes
    assert (kernel.wide("STG") > 0) == stores and kernel.narrow("STG") == 0, kernel.opcodes


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("channels", [32, 96, 1024])
def test_other_dtypes_and_widths(dtype, channels, tmp_path):
    apply = compile_apply(90, tmp_path, dtype, channels=channels)
    apply.assert_within(REGISTERS, SHARED_BYTES)
    assert apply.wide("LDG") > 0 and apply.wide("STG") > 0
    join = compile_moments(90, tmp_path, dtype, join=True, channels=channels)
    join.assert_within(REGISTERS, SHARED_BYTES)
    assert join.wide("LDG") > 0 and join.wide("STG") > 0


@pytest.mark.parametrize("arch", ARCHS)
def test_finish(arch, tmp_path):
    compile_finish(arch, tmp_path).assert_within(FINISH_REGISTERS, SHARED_BYTES)


def test_finish_of_other_widths(tmp_path):
    compile_finish(90, tmp_path, 1536, two=True, bias=False).assert_within(
        FINISH_REGISTERS, SHARED_BYTES
    )
    compile_finish(90, tmp_path, 96, two=False).assert_within(FINISH_REGISTERS, SHARED_BYTES)


def report():
    """Registers, spills, shared memory and 128-bit accesses of every form, as Markdown."""
    import tempfile
    from pathlib import Path

    folder = Path(tempfile.mkdtemp())
    lines = [
        "| kernel, form | dtype | target | registers | local | shared | 128-bit loads | stores |",
        "|---|---|---|---|---|---|---|---|",
    ]
    kernels = [
        (form, dtype, arch) for form in FORMS for dtype in ("bf16", "fp32") for arch in ARCHS
    ]
    for form, dtype, arch in [*kernels, *(("finish", "fp32", arch) for arch in ARCHS)]:
        if form == "finish":  # sees float32 alone
            kernel = compile_finish(arch, folder)
        else:
            kernel = compile_form(form, arch, folder, dtype)
        used = kernel.resources()
        lines.append(
            f"| {form} | {dtype} | sm_{arch} | {used['REG']} | {used['LOCAL']} "
            f"| {kernel.shared} | {kernel.wide('LDG')} | {kernel.wide('STG')} |"
        )
    return lines


if __name__ == "__main__":
    print("# The norm kernels compiled ahead of time, 256 channels (512 for finish)\n")
    print("\n".join(report()))
