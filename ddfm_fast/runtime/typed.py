"""The result of a call, for type checkers: arrays for arrays, tensors for tensors, and so on.

The functions here are never called. Each lists the overloads of a public one, whose own signature
says Any, and :func:`typed_as` gives them to it. A checker then knows

    ====================================================  ===========================
    ir and vis                                            result
    ====================================================  ===========================
    NumPy arrays of uint8, uint16, float16, 32 or 64      a NumPy array of their dtype
    NumPy arrays of others                                a NumPy array
    PIL images                                            a PIL image
    torch tensors                                         a torch tensor
    lists or tuples of one of these                       a list of it
    two kinds of these, or other arrays (CuPy, JAX, …)    Any: of the source that gives the color
    ====================================================  ===========================

and refuses what is not an image, such as the name of a file, and unknown options. Arrays of two
dtypes give one of these: pyright says either, mypy any of the five. For arrays whose dtype is Any,
such as np.asarray(picture), mypy says Any, since more than one row fits them; pyright says an
array, and so does mypy of NDArray[np.uint8].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, TypeVar, overload

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor
    from typing_extensions import Unpack

    from ..options import FuserOptions, ReadingOptions
    from ..restore.sources import FusionReport
    from ..sampler import Callback
    from ..video.temporal import VideoPreset

    class Watching(TypedDict, total=False):
        """What follows a call."""

        callback: Callback | None
        report: list[FusionReport] | None

    class FuseOptions(FuserOptions, ReadingOptions, Watching, total=False):
        """Keywords of ``fuse``."""

    class CallOptions(ReadingOptions, Watching, total=False):
        """Keywords of the call of a ``Fuser``."""

        seed: int | None
        color: bool | str | None
        progress: bool | None
        align: object

    class StreamOptions(ReadingOptions, total=False):
        """Keywords of ``Fuser.stream``."""

        preset: str | VideoPreset
        color: bool | str | None


class HasArray(Protocol):
    """What NumPy can read."""

    def __array__(self) -> Any: ...


class HasInterface(Protocol):
    """What NumPy can read by attributes."""

    @property
    def __array_interface__(self) -> Any: ...


class HasDLPack(Protocol):
    """An array of another library."""

    def __dlpack__(self) -> Any: ...


Readable = HasArray | HasInterface | HasDLPack
"""any image or batch that a call takes"""
Kept = TypeVar("Kept", bound="np.uint8 | np.uint16 | np.float16 | np.float32 | np.float64")
"""dtypes that results keep from their sources"""
Pictures = TypeVar("Pictures", bound="Image")
OtherPictures = TypeVar("OtherPictures", bound="Image")
Typed = TypeVar("Typed", bound=Callable[..., Any])


def typed_as(example: Typed) -> Callable[[Callable[..., Any]], Typed]:
    """Make a decorator that gives a function the type of another and leaves it as it is."""
    del example
    return lambda function: function  # type: ignore[return-value]


@overload
def fuse(
    ir: NDArray[Kept], vis: NDArray[Kept], **options: Unpack[FuseOptions]
) -> NDArray[Kept]: ...
@overload
def fuse(ir: NDArray[Any], vis: NDArray[Any], **options: Unpack[FuseOptions]) -> NDArray[Any]: ...
@overload
def fuse(ir: Tensor, vis: Tensor, **options: Unpack[FuseOptions]) -> Tensor: ...
@overload
def fuse(ir: Image, vis: Image, **options: Unpack[FuseOptions]) -> Image: ...
@overload
def fuse(
    ir: list[NDArray[Kept]] | tuple[NDArray[Kept], ...],
    vis: list[NDArray[Kept]] | tuple[NDArray[Kept], ...],
    **options: Unpack[FuseOptions],
) -> list[NDArray[Kept]]: ...
@overload
def fuse(
    ir: list[NDArray[Any]] | tuple[NDArray[Any], ...],
    vis: list[NDArray[Any]] | tuple[NDArray[Any], ...],
    **options: Unpack[FuseOptions],
) -> list[NDArray[Any]]: ...
@overload
def fuse(
    ir: list[Tensor] | tuple[Tensor, ...],
    vis: list[Tensor] | tuple[Tensor, ...],
    **options: Unpack[FuseOptions],
) -> list[Tensor]: ...
@overload
def fuse(
    ir: list[Pictures] | tuple[Pictures, ...],
    vis: list[OtherPictures] | tuple[OtherPictures, ...],
    **options: Unpack[FuseOptions],
) -> list[Image]: ...
@overload
def fuse(
    ir: list[Any] | tuple[Any, ...],
    vis: list[Any] | tuple[Any, ...],
    **options: Unpack[FuseOptions],
) -> list[Any]: ...
@overload
def fuse(ir: Readable, vis: Readable, **options: Unpack[FuseOptions]) -> Any: ...
def fuse(ir: Any, vis: Any, **options: Any) -> Any:
    """``ddfm_fast.fuse``."""
    raise NotImplementedError


@overload
def call(
    self: Any, ir: NDArray[Kept], vis: NDArray[Kept], **options: Unpack[CallOptions]
) -> NDArray[Kept]: ...
@overload
def call(
    self: Any, ir: NDArray[Any], vis: NDArray[Any], **options: Unpack[CallOptions]
) -> NDArray[Any]: ...
@overload
def call(self: Any, ir: Tensor, vis: Tensor, **options: Unpack[CallOptions]) -> Tensor: ...
@overload
def call(self: Any, ir: Image, vis: Image, **options: Unpack[CallOptions]) -> Image: ...
@overload
def call(
    self: Any,
    ir: list[NDArray[Kept]] | tuple[NDArray[Kept], ...],
    vis: list[NDArray[Kept]] | tuple[NDArray[Kept], ...],
    **options: Unpack[CallOptions],
) -> list[NDArray[Kept]]: ...
@overload
def call(
    self: Any,
    ir: list[NDArray[Any]] | tuple[NDArray[Any], ...],
    vis: list[NDArray[Any]] | tuple[NDArray[Any], ...],
    **options: Unpack[CallOptions],
) -> list[NDArray[Any]]: ...
@overload
def call(
    self: Any,
    ir: list[Tensor] | tuple[Tensor, ...],
    vis: list[Tensor] | tuple[Tensor, ...],
    **options: Unpack[CallOptions],
) -> list[Tensor]: ...
@overload
def call(
    self: Any,
    ir: list[Pictures] | tuple[Pictures, ...],
    vis: list[OtherPictures] | tuple[OtherPictures, ...],
    **options: Unpack[CallOptions],
) -> list[Image]: ...
@overload
def call(
    self: Any,
    ir: list[Any] | tuple[Any, ...],
    vis: list[Any] | tuple[Any, ...],
    **options: Unpack[CallOptions],
) -> list[Any]: ...
@overload
def call(self: Any, ir: Readable, vis: Readable, **options: Unpack[CallOptions]) -> Any: ...
def call(self: Any, ir: Any, vis: Any, **options: Any) -> Any:
    """The call of a ``Fuser``."""
    raise NotImplementedError


@overload
def stream(
    self: Any,
    pairs: Iterable[tuple[NDArray[Kept], NDArray[Kept]]],
    **options: Unpack[StreamOptions],
) -> Iterator[NDArray[Kept]]: ...
@overload
def stream(
    self: Any,
    pairs: Iterable[tuple[NDArray[Any], NDArray[Any]]],
    **options: Unpack[StreamOptions],
) -> Iterator[NDArray[Any]]: ...
@overload
def stream(
    self: Any, pairs: Iterable[tuple[Tensor, Tensor]], **options: Unpack[StreamOptions]
) -> Iterator[Tensor]: ...
@overload
def stream(
    self: Any, pairs: Iterable[tuple[Image, Image]], **options: Unpack[StreamOptions]
) -> Iterator[Image]: ...
@overload
def stream(
    self: Any, pairs: Iterable[tuple[Readable, Readable]], **options: Unpack[StreamOptions]
) -> Iterator[Any]: ...
def stream(self: Any, pairs: Any, **options: Any) -> Any:
    """``Fuser.stream``."""
    raise NotImplementedError
