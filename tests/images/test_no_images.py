"""What is not an image, or of an unsupported kind, is refused by name, with a fix."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from odd_arrays import DTYPES, SHAPES, Foreign, Interface, Method
from PIL import Image
from properties import examples

from ddfm_fast.images.planes import to_planes

OTHER_MODES = {
    "1": "'L'", "LA": "'L'", "P": "'RGB'", "RGBA": "'RGB'", "CMYK": "'RGB'", "YCbCr": "'RGB'",
    "HSV": "'RGB'", "LAB": "'RGB'", "PA": "'RGB'", "RGBX": "'RGB'", "I": "asarray",
    "I;16B": "asarray",
}  # fmt: skip


@pytest.mark.parametrize("mode", OTHER_MODES)
def test_other_modes_of_pil_are_refused_with_a_fix(mode):
    with pytest.raises(TypeError, match=f"vis: PIL image of mode {mode}, .*{OTHER_MODES[mode]}"):
        to_planes(Image.new(mode, (20, 16)), "vis")


BAD_DTYPES = (
    "?", "i1", "i2", "i4", "i8", "u4", "u8", "c8", "c16", "g", "O", "M8[s]", "m8[ns]", "U3", "S2",
    "V4", "<i2", ">i4", ">c8", [("a", "u1")], [("r", "u1"), ("g", "u1"), ("b", "u1")],
)  # fmt: skip
IN_NUMPY = {
    "plain": np.copy,
    "masked": lambda a: np.ma.array(a, mask=np.ones(a.shape, bool)),
    "interface": Interface,
    "method": Method,
    "DLPack": Foreign,
}
FIXES = {"b": "turn it into uint8", "c": r"abs\(image\)"}


@examples(60)
@given(st.sampled_from(BAD_DTYPES), st.sampled_from(SHAPES), st.sampled_from(sorted(IN_NUMPY)))
def test_other_dtypes_of_numpy_are_refused_by_name(dtype, shape, way):
    image = IN_NUMPY[way](np.zeros(shape, dtype))
    fix = FIXES.get(np.dtype(dtype).kind, r"value_range=\(lo, hi\)")
    exported = "|Foreign cannot be read through DLPack" if way == "DLPack" else ""
    with pytest.raises(TypeError, match=f"^ir: (got dtype .*{fix}{exported})"):
        to_planes(image, "ir")


NOT_TAKEN = [
    d for d in sorted((d for d in vars(torch).values() if isinstance(d, torch.dtype)), key=str)
    if str(d)[6:] not in (*DTYPES, "bfloat16")
]  # fmt: skip


@pytest.mark.parametrize("dtype", dict.fromkeys(NOT_TAKEN), ids=lambda d: str(d)[6:])
def test_other_dtypes_of_torch_are_refused_by_name(dtype):
    scale = {"scale": 0.1, "zero_point": 0}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch 2.13 will drop some dtypes
            if str(dtype)[6:].startswith(("qint", "quint")):
                image = torch._empty_affine_quantized((16, 16), dtype=dtype, **scale)
            else:
                image = torch.empty(16, 16, dtype=dtype)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        pytest.skip(f"PyTorch makes none of these: {error}")
    with pytest.raises(TypeError, match=f"^ir: got dtype {str(dtype)[6:]}, expected uint8"):
        to_planes(image, "ir")


def truncated() -> Image.Image:
    written = io.BytesIO()
    Image.effect_noise((200, 200), 60).save(written, "PNG")
    return Image.open(io.BytesIO(written.getvalue()[:-3000]))


def fake() -> torch.Tensor:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        return torch.rand(32, 40)


def masked_tensor() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # masked tensors are a prototype
        return torch.masked.masked_tensor(torch.rand(32, 40), torch.rand(32, 40) > 0.5)


def freed() -> torch.Tensor:
    image = torch.rand(32, 40)
    image.untyped_storage().resize_(0)
    return image


class Raises:
    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("the file behind it is closed")


class NoArray:
    def __array__(self, dtype=None, copy=None):
        return 5


class NoCapsule:
    def __dlpack__(self, **options):
        return 5

    def __dlpack_device__(self):
        return (1, 0)


class NoDevice(NoCapsule):
    def __dlpack_device__(self):
        return None


class NoDescription:
    __array_interface__ = {"shape": (32, 40)}


class NoGpu:
    __cuda_array_interface__ = {"shape": (32, 40), "typestr": "|u1", "data": (0, False)}


GRAY = torch.rand(32, 40)
NO_IMAGES = {
    "meta": (lambda: GRAY.to("meta"), "got a meta tensor"),
    "nested": (lambda: torch.nested.nested_tensor([GRAY]), r"got a nested tensor.*unbind\(\)"),
    "jagged": (
        lambda: torch.nested.nested_tensor([GRAY, GRAY[:9]], layout=torch.jagged),
        "got a nested tensor",
    ),
    "sparse": (lambda: GRAY.to_sparse(), r"torch.sparse_coo tensor.*image.to_dense\(\)"),
    "sparse rows": (lambda: GRAY.to_sparse_csr(), r"torch.sparse_csr tensor.*image.to_dense\(\)"),
    "mkldnn": (lambda: GRAY.to_mkldnn(), r"torch._mkldnn tensor.*image.to_dense\(\)"),
    "fake": (fake, "got a FakeTensor without data"),
    "masked tensor": (masked_tensor, "got a MaskedTensor without data"),
    "freed": (freed, "got a Tensor without data"),
    "conjugate by DLPack": (
        lambda: Foreign(GRAY.cfloat().conj()),
        "Foreign cannot be read through DLPack",
    ),
    "gradient by DLPack": (lambda: Foreign(GRAY.clone().requires_grad_()), "detach"),
    "sparse by DLPack": (
        lambda: Foreign(GRAY.to_sparse()),
        "Foreign cannot be read through DLPack",
    ),
    "meta by DLPack": (lambda: Foreign(GRAY.to("meta")), "Foreign cannot be read through DLPack"),
    "bool by DLPack": (lambda: Foreign(GRAY > 0.5), "got dtype bool"),
    "big-endian by DLPack": (lambda: Foreign(np.zeros((16, 16), ">u2")), "byte order"),
    "no capsule": (NoCapsule, "NoCapsule cannot be read through DLPack"),
    "no device": (NoDevice, "NoDevice cannot be read through DLPack"),
    "no description": (NoDescription, "NoDescription cannot be turned into an array"),
    "no array": (NoArray, "NoArray cannot be turned into an array"),
    "no file": (Raises, r"Raises cannot be turned .*the file behind it is closed"),
    "a class": (lambda: np.ndarray, "got type"),
    "a class of tensors": (lambda: torch.Tensor, "got _TensorMeta"),
    "nothing": (lambda: None, "got NoneType"),
    "a name": (lambda: "picture.png", "got str.*read_image"),
    "bytes": (lambda: bytes(2000), "got bytes"),
    "memory": (lambda: memoryview(bytes(400)), "got memoryview"),
    "rows": (lambda: [[0.0] * 16] * 16, "got list"),
    "text": (lambda: np.full((16, 16), "a"), "got dtype <U1"),
}


SLOW = {"jagged": pytest.mark.slow}  # PyTorch loads its compiler for it


@pytest.mark.parametrize("name", [pytest.param(n, marks=SLOW.get(n, ())) for n in NO_IMAGES])
def test_what_is_no_image_is_refused_by_name(name):
    make, words = NO_IMAGES[name]
    with pytest.raises(TypeError, match=f"^ir: .*{words}"):
        to_planes(make(), "ir")


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_an_array_of_a_gpu_that_is_not_there():
    with pytest.raises(TypeError, match="^ir: NoGpu cannot be taken from a GPU"):
        to_planes(NoGpu(), "ir")


def test_a_tensor_inside_of_a_transform_is_refused():
    with pytest.raises(TypeError, match="^ir: got a Tensor without data .*torch.func"):
        torch.func.vmap(lambda t: to_planes(t, "ir")[0])(torch.rand(2, 32, 40))


def test_a_picture_that_ends_early_is_refused():
    with pytest.raises(ValueError, match="^ir: the picture cannot be decoded .*complete file"):
        to_planes(truncated(), "ir")
