"""Containers as tensors, and tensors as the containers that came in; ``planes`` has the rules."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

INTEGER_MAX = {torch.uint8: 255, torch.uint16: 65535}
"""white of an integer image"""
_DTYPES = (*INTEGER_MAX, torch.float16, torch.bfloat16, torch.float32, torch.float64)
_NUMPY_DTYPES = {str(dtype).removeprefix("torch.") for dtype in _DTYPES} - {"bfloat16"}
_PROTOCOLS = ("__dlpack__", "__cuda_array_interface__", "__array_interface__", "__array__")
_DLPACK_CPU = 1
"""DLPack's number for memory of the host"""


def as_tensor(image: Any, name: str) -> tuple[Tensor, str]:
    """Return the image as a tensor that may share its memory, and the container to give back."""
    try:
        tensor, container = _taken(image, name)
    except AssertionError as error:  # from a FakeTensorMode; its message is a dump of the tensor
        raise _mode_is_on(name) from error
    if without_data(tensor) is not None:
        raise _mode_is_on(name)
    return tensor, container


def _mode_is_on(name: str) -> TypeError:
    return TypeError(
        f"{name}: became a tensor without data, since a FakeTensorMode or the like is on; "
        "call outside of it"
    )


def _taken(image: Any, name: str) -> tuple[Tensor, str]:
    pil = sys.modules.get("PIL.Image")
    if isinstance(image, Tensor):
        return _plain_tensor(image, name), "torch"
    if pil is not None and isinstance(image, pil.Image):
        if image.mode not in ("L", "RGB", "I;16", "F"):
            raise _mode_error(name, image.mode)
        return _numpy_tensor(image, name), "pil"
    if isinstance(image, np.ndarray):
        return _numpy_tensor(image, name), "numpy"
    speaks = () if isinstance(image, type) else _PROTOCOLS  # a class has them, too
    if any(hasattr(image, protocol) for protocol in speaks[:2]):
        return _foreign_tensor(image, name)
    if any(hasattr(image, protocol) for protocol in speaks[2:]):
        return _numpy_tensor(image, name), "numpy"
    raise TypeError(
        f"{name}: got {type(image).__name__}, expected an image as NumPy array, torch tensor, PIL "
        "image, CuPy array or anything with __dlpack__ or __array_interface__; read files with "
        "ddfm_fast.files.reading.read_image"
    )


def _plain_tensor(image: Tensor, name: str) -> Tensor:
    """Return a plain tensor, without gradient or subclass behavior, that shares the memory."""
    if image.is_nested or image.layout != torch.strided or image.dtype not in _DTYPES:
        raise _dtype_error(name, image)
    if (lacking := without_data(image)) is not None:
        raise TypeError(f"{name}: got {lacking}")
    return image.detach().as_subclass(Tensor)


def without_data(values: Tensor) -> str | None:
    """Describe a dense tensor without numbers, and what is expected; None for others."""
    if values.device.type == "meta":
        return "a meta tensor without data, expected one on a device"
    if type(values).__torch_dispatch__ is not Tensor.__torch_dispatch__ or not _has_data(values):
        return (
            f"a {type(values).__name__} without data of its own (masked, fake, distributed, "
            "inside of torch.func, or freed), expected a plain tensor"
        )
    return None


def _has_data(image: Tensor) -> bool:
    try:
        held = image.untyped_storage().nbytes()
    except (RuntimeError, NotImplementedError):
        return False
    reach = sum((n - 1) * step for n, step in zip(image.shape, image.stride(), strict=True))
    return not image.numel() or (image.storage_offset() + reach + 1) * image.element_size() <= held


def _mode_error(name: str, mode: str) -> TypeError:
    if mode.startswith("I"):  # convert() would clip it to 8 bits
        fix = "numpy.asarray(image)"
    else:
        fix = f"image.convert({'L' if mode in ('1', 'LA', 'La') else 'RGB'!r})"
    return TypeError(
        f"{name}: PIL image of mode {mode}, expected L, RGB, I;16 or F; convert it: {fix}"
    )


def _numpy_tensor(image: Any, name: str) -> Tensor:
    try:
        array = np.asarray(image)
    except OSError as error:  # a PIL image decodes only now
        raise ValueError(
            f"{name}: the picture cannot be decoded ({error}), expected a complete file"
        ) from None
    except Exception as error:  # an object's own methods may raise anything
        raise TypeError(
            f"{name}: {type(image).__name__} cannot be turned into an array "
            f"({_first_line(error)}), expected what numpy.asarray takes"
        ) from None
    if array.dtype.name not in _NUMPY_DTYPES:
        raise _dtype_error(name, array)
    masked = sys.modules.get("numpy.ma")  # NumPy loads it on first use, in 20 ms
    if masked and isinstance(image, masked.MaskedArray) and masked.is_masked(image):
        raise ValueError(f"{name}: the array has masked values; fill them: image.filled(0)")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if any(stride < 0 for stride in array.strides):  # of an axis of one: contiguous to NumPy
        array = array.copy()
    # torch shares only writable memory with ordinary strides; require() copies only what is not
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def _foreign_tensor(image: Any, name: str) -> tuple[Tensor, str]:
    if hasattr(image, "__dlpack__"):
        tensor = _from_dlpack(image, name)
    else:
        try:
            tensor = torch.as_tensor(image, device="cuda")
        except (RuntimeError, AssertionError, TypeError, ValueError) as error:
            raise TypeError(
                f"{name}: {type(image).__name__} cannot be taken from a GPU "
                f"({_first_line(error)}); give it as a NumPy array"
            ) from None
    if tensor.dtype not in _DTYPES:
        raise _dtype_error(name, tensor)
    fallback = "numpy" if tensor.device.type == "cpu" else "torch"
    return tensor.detach(), _home(image) or fallback


def _from_dlpack(image: Any, name: str) -> Tensor:
    """Take an array of another library by DLPack, sharing memory if its strides allow it.

    PyTorch aborts the process on negative strides; NumPy takes them, and a copy is made.
    """
    try:
        if _dlpack_device(image) == _DLPACK_CPU and not _only_torch_has(image):
            return _numpy_tensor(np.from_dlpack(image), name)
        if any(stride < 0 for stride in getattr(image, "strides", None) or ()):
            raise BufferError("negative strides")
        return torch.from_dlpack(image)
    except (BufferError, RuntimeError, OverflowError, TypeError, ValueError) as error:
        if str(error).startswith(f"{name}: "):
            raise
        raise TypeError(
            f"{name}: {type(image).__name__} cannot be read through DLPack ({_first_line(error)}); "
            "expected uint8, uint16 or float in native byte order and ordinary strides: copy it"
        ) from None


def _dlpack_device(image: Any) -> int:
    return int(image.__dlpack_device__()[0]) if hasattr(image, "__dlpack_device__") else _DLPACK_CPU


def _only_torch_has(image: Any) -> bool:
    """Return whether NumPy lacks the dtype."""
    return "bfloat16" in str(getattr(image, "dtype", ""))


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")


def _home(image: Any) -> str | None:
    """Return the module whose from_dlpack makes arrays of the image's kind, if there is one."""
    namespace = getattr(image, "__array_namespace__", None)
    names = [getattr(namespace(), "__name__", "")] if namespace is not None else []
    names.append(type(image).__module__.partition(".")[0])
    return next((n for n in names if hasattr(sys.modules.get(n), "from_dlpack")), None)


def _dtype_error(name: str, image: Any) -> TypeError:
    if getattr(image, "is_nested", False):
        return TypeError(f"{name}: got a nested tensor, expected a list of images: image.unbind()")
    if getattr(image, "layout", torch.strided) != torch.strided:
        return TypeError(
            f"{name}: got a {image.layout} tensor, expected a dense one: image.to_dense()"
        )
    kind = str(image.dtype).removeprefix("torch.")
    if kind == "bool":
        fix = "turn it into uint8: 0 where False, 255 where True"
    elif kind.startswith("complex") or getattr(image.dtype, "kind", "") == "c":
        fix = "take its magnitude: abs(image)"
    else:
        fix = "convert it to float32 and give its values of black and white: value_range=(lo, hi)"
    return TypeError(
        f"{name}: got dtype {kind}, expected uint8, uint16, float16, bfloat16, float32 or float64; "
        f"{fix}"
    )


def pack(values: Tensor, container: str) -> Any:
    if container == "torch":
        return values
    if container == "numpy":
        return values.numpy()
    if container == "pil":
        from PIL import Image

        array = values.numpy()
        return Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)
    return sys.modules[container].from_dlpack(values)
