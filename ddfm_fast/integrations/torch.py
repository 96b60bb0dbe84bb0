"""A PyTorch module for networks and transforms: two tensors in, the fused one out.

>>> from ddfm_fast.integrations.torch import FuseModule
>>> import torch
>>> fuse = FuseModule(preset="instant")
>>> infrared = torch.linspace(0, 1, 64).expand(2, 1, 48, 64)
>>> visible = torch.linspace(0, 1, 48)[:, None].expand(2, 3, 48, 64)
>>> fuse(infrared, visible).shape
torch.Size([2, 3, 48, 64])

The conventions are those of kornia and of ``torchvision.transforms.v2``: float tensors
[..., C, H, W] in [0, 1] with any leading axes, in and out. Neither library is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..api import Fuser
from ..images.color import luma, with_luma
from ..images.pair import Pair
from ..images.stretch import stretch_limits, stretched
from ..method import Diffusion
from ..options import FuserOptions
from ..priors.checkpoint import build_unet
from ..priors.network import UNetPrior, optimized
from ..runtime.apart import apart
from ..target.choose import choose

if TYPE_CHECKING:
    from typing_extensions import Unpack

WEIGHTS = "prior."
"""prefix of the prior's weights in a ``state_dict``"""


class FuseModule(nn.Module):
    """Fuse float tensors [..., C, H, W] in [0, 1]: a :class:`ddfm_fast.Fuser` as a module.

    ``state_dict`` has the weights of the prior's network; it is empty for a callable prior.
    ``to(device)`` moves it; a change of dtype does not affect the arithmetic, which only the option
    ``dtype`` decides. Autocast has no effect inside, and results have the dtype of the source that
    gives the color. ``torch.compile`` and ``torch.export`` take a call as one node, see
    ``ddfm_fast.runtime.operators``: an exported program needs a module or fuser of the same options
    in the process that runs it.

    The closed form, ``preset="instant"``, is differentiable with respect to both sources; its
    salience counts whole gray levels and adds nothing to the derivative. Other settings evaluate
    the prior, estimate noise or align a source without autograd; then sources that require
    gradients are refused. An exported program has no gradients, and torch.compile breaks its graph
    for them.

    Args:
        fuser: The fuser; None for one made from ``options``.
        **options: Options of :class:`ddfm_fast.Fuser`, such as preset="instant" or device="cuda".

    Raises:
        ValueError: Both a fuser and options are given, or as in ``Fuser``.
        TypeError: ``fuser`` is not a ``Fuser``, or as in ``Fuser``.
    """

    def __init__(self, fuser: Fuser | None = None, **options: Unpack[FuserOptions]):
        super().__init__()
        if fuser is not None and options:
            raise ValueError(f"options {', '.join(options)} have no effect with fuser; give one")
        if fuser is not None and not isinstance(fuser, Fuser):
            raise TypeError(f"fuser is a {type(fuser).__name__}; expected a ddfm_fast.Fuser")
        self.fuser = Fuser(**options) if fuser is None else fuser
        self.place: Tensor
        self.register_buffer("place", torch.empty(0, device=self.fuser.device), persistent=False)

    if TYPE_CHECKING:  # PyTorch declares it as Any

        def __call__(self, ir: Tensor, vis: Tensor) -> Tensor: ...

    def forward(self, ir: Tensor, vis: Tensor) -> Tensor:
        """Fuse two tensors.

        Args:
            ir: [..., C, H, W] of a floating dtype in [0, 1], with C of 1 or 3, on any device.
            vis: Likewise, with the same leading axes, H and W.

        Returns:
            [..., C, H, W] in [0, 1], with the dtype and device of the source whose color it keeps,
            ``vis`` unless only ``ir`` has three channels; C is 3 if that source's is and ``color``
            is on.

        Raises:
            TypeError: A source is not a tensor of a floating dtype.
            ValueError: Shapes do not fit, values are outside of [0, 1], or gradients are required
                of something that has none.
            RuntimeError: ``torch.jit.trace`` records the call.
        """
        if torch.jit.is_tracing():  # a trace would apply this pair's decisions to all others
            raise RuntimeError(
                "torch.jit.trace cannot record a fusion, which depends on what the pair is; "
                "expected torch.export.export(module, (ir, vis)) or torch.compile(module)"
            )
        lead = _leading(ir, vis)
        a, b = (x.reshape(math.prod(x.shape[:-3]), *x.shape[-3:]) for x in (ir, vis))
        if torch.is_grad_enabled() and (a.requires_grad or b.requires_grad):
            fused = _with_gradients(self.fuser, a, b)
        else:
            fused = self.fuser(a, b, value_range=(0.0, 1.0), layout="NCHW")
        return fused.reshape(*lead, *fused.shape[-3:])

    @property
    def device(self) -> torch.device:
        """Where it fuses."""
        return self.fuser.device

    @property
    def dtype(self) -> torch.dtype:
        """That of the prior's weights."""
        return self.fuser.prior.dtype

    def extra_repr(self) -> str:
        """Return what ``print`` shows."""
        config = self.fuser.config
        return f"{config.summary or config}, prior={self.fuser.prior.name!r}"

    def __deepcopy__(self, memo: dict[int, Any]) -> FuseModule:
        """Share the fuser until one of the two modules is moved or gets other weights."""
        copied = type(self)(self.fuser)
        memo[id(self)] = copied
        return copied.train(self.training)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FuseModule:
        super()._apply(fn, recurse)
        if self.place.device != self.fuser.device and self.place.device.type != "meta":
            self.fuser = self.fuser.with_options(device=self.place.device)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, value in _weights(self.fuser).items():
            destination[f"{prefix}{WEIGHTS}{name}"] = value

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        del local_metadata, strict  # used by load_state_dict
        start = f"{prefix}{WEIGHTS}"
        given = {k[len(start) :]: v for k, v in state_dict.items() if k.startswith(start)}
        wanted = _weights(self.fuser)
        missing = [f"{start}{name}" for name in wanted if name not in given]
        missing_keys += missing
        unexpected_keys += [f"{start}{name}" for name in given if name not in wanted]
        if missing or not wanted:
            return
        prior = self.fuser.prior
        assert isinstance(prior, UNetPrior)  # it has weights
        try:
            unet = build_unet(prior.unet.config, {name: given[name] for name in wanted})
        except ValueError as error:
            error_msgs.append(f"prior: {error}")
            return
        unet = optimized(unet, prior.device, prior.dtype)
        loaded = UNetPrior(unet, tf32=prior.tf32, compiled=prior.compiled, **prior.keywords())
        self.fuser = self.fuser.with_options(prior=loaded, dtype="auto", compile=False)


def _weights(fuser: Fuser) -> dict[str, Tensor]:
    """Return the weights of the prior's network by name; none for a callable."""
    prior = fuser.prior
    return dict(prior.unet.state_dict()) if isinstance(prior, UNetPrior) else {}


def _leading(ir: Tensor, vis: Tensor) -> torch.Size:
    """Return the leading axes of both sources, checked."""
    for name, x in (("ir", ir), ("vis", vis)):
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(
                f"{name}: got {kind}, expected a float tensor [..., C, H, W] in [0, 1]; "
                "ddfm_fast.fuse takes other containers and dtypes"
            )
        if x.ndim < 3 or x.shape[-3] not in (1, 3):
            raise ValueError(
                f"{name}: shape {tuple(x.shape)}, expected [..., C, H, W] with C of 1 or 3"
            )
    if ir.shape[:-3] != vis.shape[:-3]:
        raise ValueError(
            f"ir has the leading axes {tuple(ir.shape[:-3])} and vis {tuple(vis.shape[:-3])}; "
            "expected the same"
        )
    return ir.shape[:-3]


def _has_gradients(fuser: Fuser) -> bool:
    """Return whether the fuser computes only the closed form of its sources."""
    levels = set(fuser.config.noise_levels.values())
    return isinstance(fuser.method, Diffusion) and not fuser.method.rows and levels == {"off"}


@torch.compiler.disable(reason="what a pair is decides how it is fused, and is read on the host")
def _with_gradients(fuser: Fuser, ir: Tensor, vis: Tensor) -> Tensor:
    """Do a fuser's call on [N, C, H, W] in operations that autograd can differentiate."""
    if not _has_gradients(fuser):
        name = "ir" if ir.requires_grad else "vis"
        raise ValueError(
            f"{name} requires gradients, which only the closed form without denoising has; "
            f'expected preset="instant", or a call under torch.no_grad() or with {name}.detach()'
        )
    if fuser.align not in ("check", "off"):
        raise ValueError(
            'a source requires gradients, which alignment does not have; expected align="off" and '
            "sources that are aligned, or a call under torch.no_grad()"
        )
    with apart(fuser.device):
        pair = fuser.read(ir.detach(), vis.detach(), value_range=(0.0, 1.0), layout="NCHW")
        return _closed_form(fuser, pair, ir, vis)


def _closed_form(fuser: Fuser, pair: Pair, ir: Tensor, vis: Tensor) -> Tensor:
    like = ir if pair.spec.device == ir.device and pair.spec.dtype == ir.dtype else vis
    exact = torch.float64 if torch.float64 in (ir.dtype, vis.dtype) else torch.float32
    planes = {name: x.to(fuser.device, exact).clamp(0, 1) for name, x in (("ir", ir), ("vis", vis))}
    a, b = luma(planes["ir"]), luma(planes["vis"])
    config = fuser.config
    y = choose(a, b, pair.are_functional(config.images))
    fused = stretched(y, stretch_limits(config.stretch, y, a, b))
    if pair.chroma is not None:
        colors = [planes[name][n].expand(3, -1, -1) for n, name in enumerate(pair.color_from)]
        fused = with_luma(fused, torch.stack(colors), dims=config.dims_chroma)
    return fused.to(like.device, like.dtype)
