"""The thin convolution compiled ahead of time, with no GPU: registers, memory, tensor cores."""

import pytest

triton = pytest.importorskip("triton", reason="triton does not import here", exc_type=ImportError)
from aot import ARCHS, Compiled  # noqa: E402

from ddfm_fast.kernels import checks, thin_conv  # noqa: E402

if checks.INTERPRETED:
    pytest.skip("TRITON_INTERPRET=1: nothing is compiled", allow_module_level=True)

FORMS = {"first": (3, 256), "last": (256, 3)}
REGISTERS = 168
"""limit: three blocks of four warps on an SM"""
SHARED_BYTES = 56 * 1024
"""limit: four blocks in the 227 KiB of an SM of sm_90, two in the 99 KiB of sm_120"""


def compile_form(form, arch, folder, dtype="bf16"):
    channels, outs = FORMS[form]
    block_m, block_n, block_k = thin_conv.tiles(channels, outs)
    constants = dict(
        CHANNELS=channels, PRECISION="ieee", WIDEN=False,
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k,
    )  # fmt: skip
    if form == "first":
        constants["bias_ptr"] = None

    def typed(name):
        if name.endswith("_ptr"):
            return "*fp32" if name == "bias_ptr" else f"*{dtype}"
        return "i32"

    kernel = thin_conv.thin_conv_kernel
    aligned = [name for name in kernel.arg_names if name.endswith("_ptr")]
    if outs % 16 == 0:
        aligned.append("outs")
    return Compiled(kernel, constants, arch, folder, typed=typed, aligned=aligned)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("form", FORMS)
def test_compiled_within_budgets(form, arch, tmp_path):
    kernel = compile_form(form, arch, tmp_path)
    kernel.assert_within(REGISTERS, SHARED_BYTES)
    products = [name for name in kernel.opcodes if "MMA" in name or "GMMA" in name]
    assert products, "without the tensor cores"
