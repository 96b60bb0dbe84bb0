"""The layer kernel compiled ahead of time, with no GPU: registers, memory, tensor cores, AMD.

bench/results/conv_kernels_aot.md is what this prints:

    PYTHONPATH=tests/tools:tests:. python tests/kernels/test_conv_aot.py
"""

import pytest

triton = pytest.importorskip("triton", reason="triton does not import here", exc_type=ImportError)
from aot import ARCHS, ONE_ARCH, Compiled, compiled_for  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

from ddfm_fast.kernels import checks, conv, conv_kernels  # noqa: E402
from ddfm_fast.kernels import moments as moments_of  # noqa: E402

if checks.INTERPRETED:
    pytest.skip("TRITON_INTERPRET=1: nothing is compiled", allow_module_level=True)

MAPS = ("a_ptr", "b_ptr", "weight_ptr", "skip_a_ptr", "skip_b_ptr", "skip_weight_ptr",
        "residual_ptr", "y_ptr")  # fmt: skip
NORMS = ("moments_a_ptr", "norm_weight_ptr", "norm_bias_ptr")
NARROW = dict(outs=64, norm=True)
FORMS = {
    "first, 12 to 32": dict(outs=32, thin=12),
    "32 to 32": dict(outs=32, norm=True),
    "32 and 32 to 32": dict(outs=32, norm=True, two=True),
    "32 to 32 with residual": dict(outs=32, norm=True, residual=""),
    "32 to 32 with skip of two": dict(outs=32, norm=True, skip=2),
    "64 to 64": NARROW,
    "64 and 64 to 64": NARROW | dict(two=True),
    "64 to 64 with residual": NARROW | dict(residual=""),
    "64 to 64 with skip of two": NARROW | dict(skip=2),
    "up, then 64 to 64": dict(outs=64, resample="up"),
    "strided 64 to 64": dict(outs=64, stride=2),
    "last, 32 to 12": dict(outs=12, norm=True, moments=False),
    "qkv of 64": dict(outs=192, norm=True, silu=False, side=1, moments=False),
    "256 to 256 with residual": dict(outs=256, residual="", wide=True),
    "skip of two, 256": dict(outs=256, two=True, residual="", side=1, wide=True),
}
SPILLED = {("64 and 64 to 64", 100): 40, ("up, then 64 to 64", 100): 16}
"""bytes of local memory that a form may have, by form and architecture"""
REGISTERS = 255
"""limit: a program of eight warps per SM, as many as there are sets for a large GPU"""
SHARED_BYTES = 99 * 1024
"""limit of a block on sm_120"""
AMD = {"gfx942": 64, "gfx1100": 32}


def arguments(outs, *, norm=False, two=False, residual=None, skip=0, thin=0, side=3, stride=1,
              silu=True, resample="", moments=True, wide=False, dtype="bf16"):  # fmt: skip
    """Find the kernel's constants, the types and alignment of the others, and its options."""
    block_m, block_n = moments_of.blocks(outs)
    missing = [] if two else ["b_ptr", "moments_b_ptr"]
    missing += [] if norm else [*NORMS, "moments_b_ptr"]
    missing += ["skip_b_ptr"] if skip < 2 else []
    missing += ["skip_a_ptr", "skip_weight_ptr"] if skip < 1 else []
    missing += ["residual_ptr"] if residual is None else []
    missing += [] if moments else ["moments_ptr"]
    constants = dict(
        SIDE=side, STRIDE=stride, ROWS=side == 3 and stride == 1 and not wide, NORM=norm,
        SILU=silu and norm, RESAMPLE=resample, RESIDUAL=residual or "", THIN=thin,
        THIN_OUT=outs if outs < block_n else 0, PRECISION="ieee", WIDEN=False, BLOCK_M=block_m,
        BLOCK_N=block_n, BLOCK_K=64 if wide else conv.SLICE, BLOCK_S=moments_of.BLOCK_S,
    ) | dict.fromkeys(missing)  # fmt: skip
    names = conv_kernels.layer_kernel.arg_names

    def typed(name):
        if name.endswith("_ptr"):
            return f"*{dtype}" if name in MAPS else "*fp32"
        return "i32"

    pointers = [n for n in names if n.endswith("_ptr") and n not in conv_kernels.VECTORS]
    options = dict(num_warps=conv.WARPS, num_stages=conv.stages(wide))
    return constants, dict(typed=typed, aligned=pointers, options=options)


def compile_form(form, arch, folder, dtype="bf16"):
    constants, rest = arguments(**FORMS[form], dtype=dtype)
    return Compiled(conv_kernels.layer_kernel, constants, arch, folder, **rest)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ONE_ARCH)
@pytest.mark.parametrize("form", FORMS)
def test_compiled_within_budgets(form, arch, tmp_path):
    kernel = compile_form(form, arch, tmp_path)
    used = kernel.resources()
    assert used["LOCAL"] == 0 and used["STACK"] <= SPILLED.get((form, arch), 0), used
    assert used["REG"] <= REGISTERS and kernel.shared <= SHARED_BYTES
    assert any("MMA" in name for name in kernel.opcodes), "without the tensor cores"
    assert kernel.narrow("STG") == 0 or form.startswith("last"), kernel.opcodes
    assert kernel.narrow("LDG") == 0 or form.startswith("first"), kernel.opcodes


@pytest.mark.slow
@pytest.mark.parametrize("target", AMD)
@pytest.mark.parametrize("form", ["32 to 32", "64 to 64 with skip of two", "strided 64 to 64"])
def test_compiled_for_amd(form, target):
    constants, rest = arguments(**FORMS[form], dtype="fp16")
    kernel = compiled_for(
        conv_kernels.layer_kernel, constants, GPUTarget("hip", target, AMD[target]), **rest
    )
    assert "mfma" in kernel.asm["amdgcn"] or "wmma" in kernel.asm["amdgcn"]
    assert kernel.metadata.shared <= 64 * 1024


def report():
    """Yield registers, local memory, shared memory and instructions of every form, as Markdown."""
    import tempfile
    from pathlib import Path

    folder = Path(tempfile.mkdtemp())
    yield "| layer | target | registers | stack | shared | instructions | of tensor cores |"
    yield "|---|---|---|---|---|---|---|"
    for form in FORMS:
        for arch in ARCHS:
            kernel = compile_form(form, arch, folder)
            used, codes = kernel.resources(), kernel.opcodes
            products = sum(n for name, n in codes.items() if "MMA" in name)
            yield (
                f"| {form} | sm_{arch} | {used['REG']} | {used['STACK']} | {kernel.shared} "
                f"| {codes.total()} | {products} |"
            )
    yield "\n| layer | AMD target | vector registers | spilled | shared | of matrix cores |"
    yield "|---|---|---|---|---|---|"
    for form in FORMS:
        for target, lanes in AMD.items():
            constants, rest = arguments(**FORMS[form], dtype="fp16")
            found = compiled_for(
                conv_kernels.layer_kernel, constants, GPUTarget("hip", target, lanes), **rest
            )
            text = found.asm["amdgcn"]
            used, spilled = (int(text.split(key)[1].split()[0]) for key in AMD_KEYS)
            products = text.count("v_mfma") + text.count("v_wmma")
            yield (
                f"| {form} | {target} | {used} | {spilled} | {found.metadata.shared} | {products} |"
            )


AMD_KEYS = (".vgpr_count:", ".vgpr_spill_count:")

if __name__ == "__main__":
    print("# A layer in one launch, compiled ahead of time\n")
    print(f"Triton {triton.__version__}; bfloat16 on NVIDIA, float16 on AMD.\n")
    for line in report():
        print(line, flush=True)
