"""The norm kernels compiled ahead of time, with no GPU: registers, local memory, width of loads.

``python tests/kernels/test_group_norm_aot.py`` prints bench/results/norm_kernels_aot.md.
"""

import pytest

triton = pytest.importorskip("triton", reason="triton does not import here", exc_type=ImportError)
import test_kernels_aot as aot  # noqa: E402
from test_kernels_aot import compile_afresh  # noqa: E402, F401
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from ddfm_fast.kernels import group_norm as gn  # noqa: E402

ARCHS = (80, 90, 100, 120)
ACTIVATIONS = ("x_ptr", "residual_ptr", "y_ptr", "pooled_ptr")
SIZES = ("rows", "channels", "channels_y", "channels_a", "first", "chunk")
"""divisible by 16 in the networks that there are; W and the number of chunks need not be"""
REGISTERS = 96
"""limit of the kernels that read activations: five blocks of four warps on an SM, each thread with
its loads of 128 bits in flight"""
FINISH_REGISTERS = 64
SHARED_BYTES = 8192
"""limit of shared memory: the rows of a tile merged over four warps"""


class Compiled(aot.Compiled):
    def __init__(self, kernel, constants, arch, folder, dtype="bf16"):
        types, attributes = {}, {}
        for index, name in enumerate(kernel.arg_names):
            if name in constants:
                types[name] = "constexpr"
            elif name.endswith("_ptr"):
                types[name] = f"*{dtype}" if name in ACTIVATIONS else "*fp32"
            else:
                types[name] = "fp32" if name == "eps" else "i32"
            if types[name] != "constexpr" and (name.endswith("_ptr") or name in SIZES):
                attributes[(index,)] = [["tt.divisibility", 16]]
        source = ASTSource(kernel, types, constants, attributes)
        compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32))
        self.shared = compiled.metadata.shared
        self.cubin = folder / "kernel.cubin"
        self.cubin.write_bytes(compiled.asm["cubin"])

    def assert_within(self, registers):
        resources = self.resources()
        assert resources["STACK"] == 0 and resources["LOCAL"] == 0, resources
        assert 0 < resources["REG"] <= registers, resources
        assert self.shared <= SHARED_BYTES, self.shared
        assert self.opcodes["LDL"] == self.opcodes["STL"] == 0

    def wide(self, opcode):
        return sum(
            n for name, n in self.opcodes.items() if name.startswith(opcode) and "128" in name
        )

    def narrow(self, opcode):
        """Loads or stores of 8 and 16 bits: activations that are moved one by one."""
        return sum(
            n
            for name, n in self.opcodes.items()
            if name.startswith(opcode) and any(w in name for w in (".U8", ".S8", ".U16", ".S16"))
        )


def compile_moments(arch, folder, dtype="bf16", *, join=False, upsample=False, channels=256):
    block_r, block_c = gn.tile(gn.MOMENTS_ELEMENTS, channels)
    constants = dict(JOIN=join, UPSAMPLE=upsample, BLOCK_R=block_r, BLOCK_C=block_c)
    if not join:
        constants |= dict(bias_ptr=None, residual_ptr=None)
    return Compiled(gn._moments_kernel, constants, arch, folder, dtype)


def compile_apply(arch, folder, dtype="bf16", *, resample="", channels=256):
    block_r, block_c = gn.tile(gn.APPLY_ELEMENTS, channels)
    block_r = block_r // 4 if resample == "down" else block_r
    constants = dict(RESAMPLE=resample, SILU=True, BLOCK_R=block_r, BLOCK_C=block_c)
    if resample != "down":
        constants["pooled_ptr"] = None
    return Compiled(gn._apply_kernel, constants, arch, folder, dtype)


def compile_finish(arch, folder, channels=512, two=True, bias=True):
    group = channels // gn.GROUPS
    block_g = triton.next_power_of_2(group)
    constants = dict(GROUP=group, BLOCK_S=max(gn.FINISH_ELEMENTS // block_g, 1), BLOCK_G=block_g)
    constants |= {} if two else dict(b_ptr=None)
    constants |= {} if bias else dict(bias_ptr=None)
    return Compiled(gn._finish_kernel, constants, arch, folder)


FORMS = ["moments", "join", "join up", "apply", "apply up", "apply down"]


def compile_form(form, arch, folder, dtype="bf16"):
    if form.startswith("apply"):
        return compile_apply(arch, folder, dtype, resample=form.partition(" ")[2])
    join = form != "moments"
    return compile_moments(arch, folder, dtype, join=join, upsample=form == "join up")


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("form", FORMS)
def test_activations_move_128_bits_at_a_time(form, arch, tmp_path):
    compiled, stores = compile_form(form, arch, tmp_path), form != "moments"
    compiled.assert_within(REGISTERS)
    assert compiled.wide("LDG") > 0 and compiled.narrow("LDG") == 0, compiled.opcodes
    assert (compiled.wide("STG") > 0) == stores and compiled.narrow("STG") == 0, compiled.opcodes


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("channels", [32, 96, 1024])
def test_other_dtypes_and_widths(dtype, channels, tmp_path):
    apply = compile_apply(90, tmp_path, dtype, channels=channels)
    apply.assert_within(REGISTERS)
    assert apply.wide("LDG") > 0 and apply.wide("STG") > 0
    join = compile_moments(90, tmp_path, dtype, join=True, channels=channels)
    join.assert_within(REGISTERS)
    assert join.wide("LDG") > 0 and join.wide("STG") > 0


@pytest.mark.parametrize("arch", ARCHS)
def test_finish(arch, tmp_path):
    compile_finish(arch, tmp_path).assert_within(FINISH_REGISTERS)


def test_finish_of_other_widths(tmp_path):
    compile_finish(90, tmp_path, 1536, two=True, bias=False).assert_within(FINISH_REGISTERS)
    compile_finish(90, tmp_path, 96, two=False).assert_within(FINISH_REGISTERS)


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
            compiled = compile_finish(arch, folder)
        else:
            compiled = compile_form(form, arch, folder, dtype)
        used = compiled.resources()
        lines.append(
            f"| {form} | {dtype} | sm_{arch} | {used['REG']} | {used['LOCAL']} "
            f"| {compiled.shared} | {compiled.wide('LDG')} | {compiled.wide('STG')} |"
        )
    return lines


if __name__ == "__main__":
    print("# The norm kernels compiled ahead of time, 256 channels (512 for finish)\n")
    print("\n".join(report()))
