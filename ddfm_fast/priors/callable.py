"""Any module or callable eps(x, t) as a prior."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..images.containers import without_data
from ..images.doubts import warn
from .conditioning import Conditioning
from .prior import EPS_DTYPES, Prior, same_device
from .reuse import Kept, evaluator_of

_DROPS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class CallablePrior(Prior):
    """Any ``eps(x, t)``: x [N, 3, H, W], t [N] training timesteps (int64 unless rescaled).

    It returns [N, 3, H, W], or [N, 6, H, W] with the variance half, or an object with such a
    tensor as ``.sample`` (diffusers). ``multiple`` is the callable's attribute of that name,
    else 32. ``has_variance`` is its attribute, or ``out_channels == 6``, or is found by one
    evaluation on zeros on first use.
    """

    foreign = True

    def __init__(
        self,
        function: Callable,
        *,
        name: str | None = None,
        multiple: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        **keywords,
    ):
        parameter: Tensor | None = None
        if isinstance(function, nn.Module):
            parameter = next((p for p in function.parameters() if p.is_floating_point()), None)
        if parameter is not None:
            device, dtype = parameter.device, dtype or parameter.dtype
        if multiple is None:
            multiple = getattr(function, "multiple", None) or 32
        super().__init__(
            name=name or str(getattr(function, "__name__", type(function).__name__)),
            multiple=multiple,
            device=torch.device(device or "cpu"),
            dtype=dtype or torch.float32,
            **keywords,
        )
        self.function = function
        if isinstance(function, nn.Module) and any(map(_draws, function.modules())):
            warn(
                f"prior: {self.name!r} is in training mode with dropout or batch norm, so it "
                "answers differently at each call; call module.eval()"
            )

    @functools.cached_property
    def has_variance(self) -> bool:
        """Whether the callable returns 6 channels, by its attributes or an evaluation."""
        known = getattr(self.function, "has_variance", None)
        if known is None:
            # A module's own attribute; diffusers keeps it in .config and warns about the shortcut.
            holder = getattr(self.function, "config", self.function)
            channels = getattr(holder, "out_channels", None)
            known = None if channels is None else channels == 6
        if known is None:
            side = -(-64 // self.multiple) * self.multiple
            zeros = torch.zeros(1, 3, side, side, dtype=torch.float32, device=self.device)
            known = self.answer(zeros, self.conditioning(torch.tensor([0]))[0]).shape[1] == 6
        return bool(known)

    @property
    def reuses(self) -> bool:  # type: ignore[override]
        """Whether the callable's layers are known, as for a network of ours or of diffusers."""
        return evaluator_of(self.function) is not None

    def to(self, device: str | torch.device) -> CallablePrior:
        """Return this prior on a device; modules are copied, plain callables get x on it."""
        device = torch.device(device)
        if same_device(device, self.device):
            return self
        function = self.function
        if isinstance(function, nn.Module):
            function = copy.deepcopy(function).to(device)
        elif (moved := getattr(function, "on_device", None)) is not None:
            function = moved(device)
        prior = type(self)(function, device=device, dtype=self.dtype, **self.keywords())
        prior.origin = self.origin
        return prior

    def __getstate__(self) -> dict[str, Any]:
        function = self.function
        if self.device.type != "cpu" and isinstance(function, nn.Module):
            function = copy.deepcopy(function).cpu()
        return {**self.__dict__, "function": function}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.device.type != "cpu" and isinstance(self.function, nn.Module):
            self.function.to(self.device)

    def conditioning(self, timesteps: Tensor) -> Conditioning:
        timesteps = self.network_timesteps(timesteps)
        if not timesteps.is_floating_point():
            timesteps = timesteps.long()
        return Conditioning(timesteps[:, None], lambda row: row[0])

    @torch.no_grad()
    def eps(
        self, x: Tensor, cond: Any, *, variance: bool = False, kept: Kept | None = None
    ) -> Tensor:
        self.check_input(x, variance)
        out = self.answer(x, cond, kept)
        if variance and out.shape[1] != 6:
            raise ValueError("prior: the callable returned no variance half, expected 6 channels")
        out = out if variance else out[:, :3]
        return out if out.dtype in EPS_DTYPES else out.float()

    @torch.no_grad()
    def answer(self, x: Tensor, cond: Tensor, kept: Kept | None = None) -> Tensor:
        """Call the function on x at one timestep, and check what it returns."""
        # in inference mode the function could not take gradients of its own
        with torch.inference_mode(False), torch.no_grad():
            out = self._asked(x, cond, kept)
        if not isinstance(out, Tensor):
            out = getattr(out, "sample", out)
        _require_dense(out)
        n, channels, *size = x.shape
        expected = (n, channels, *size), (n, 2 * channels, *size)
        if tuple(out.shape) not in expected:
            raise ValueError(
                f"prior: eps(x, t) returned shape {tuple(out.shape)} for x {tuple(x.shape)}, "
                f"expected {expected[0]} or {expected[1]}"
            )
        if out.device != x.device:
            raise ValueError(
                f"prior: eps(x, t) returned a tensor on {out.device} for x on {x.device}; "
                "keep it on one device"
            )
        if (lacking := without_data(out)) is not None and without_data(x) is None:
            raise TypeError(f"prior: eps(x, t) returned {lacking}")
        return out

    def _asked(self, x: Tensor, cond: Tensor, kept: Kept | None) -> Any:
        """Call the function on a copy of x: what it does to the copy must not change ours."""
        own = x.to(self.dtype)
        if own is x:
            own = x.clone(memory_format=torch.preserve_format)
        times = cond.repeat(len(x))
        try:
            if kept is None or (evaluate := evaluator_of(self.function)) is None:
                return self.function(own, times)
            return evaluate(own, times, kept)
        except Exception as error:
            if hasattr(error, "add_note"):  # from Python 3.11 on
                error.add_note(
                    f"raised by prior {self.name!r}, called as eps(x, t) with x {tuple(x.shape)} "
                    f"of {self.dtype} and t {cond.item():g} for each image, without gradients "
                    "(torch.enable_grad() inside of it has them)"
                )
            raise


def _draws(module: nn.Module) -> bool:
    """Return whether a layer's output depends on chance or on its batch."""
    drops = isinstance(module, _DROPS) and module.p > 0
    return module.training and (drops or isinstance(module, _NORMS))


def _require_dense(out: Any) -> None:
    """Raise TypeError if a callable's result is not a tensor of floating-point numbers."""
    lacking = None
    if not isinstance(out, Tensor):
        lacking = type(out).__name__
    elif not out.is_floating_point():
        lacking = f"a tensor of {out.dtype}"
    elif out.is_nested or out.layout != torch.strided:
        lacking = f"a {'nested' if out.is_nested else out.layout} tensor"
    if lacking is not None:
        raise TypeError(
            f"prior: eps(x, t) returned {lacking}, expected a dense floating-point tensor "
            "[N, 3, H, W] or [N, 6, H, W]"
        )
