"""What the sampler knows of a prior: an unconditional noise predictor eps(x_t, t)."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..images.integers import as_count, as_int
from ..runtime import threads
from ..schedule import LEAST_LINEAR, check_alphas, make_betas, make_schedule
from .conditioning import Conditioning
from .origin import Origin, Sent, arrive
from .reuse import Kept

EPS_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""dtypes that a prior may answer in"""

NOISE_SCHEDULES = ("linear", "cosine")

PRIOR_KEYWORDS = (
    "noise_schedule", "num_train_timesteps", "rescale_timesteps", "multiple", "alphas",
)  # fmt: skip
"""keywords of ``config=`` that describe the prior, not its network"""
PREDICTION_KEYWORDS = ("prediction", "sigmas", "value_range", "time")
"""those that say what it predicts, see :func:`.wrapped.wrap`"""


LARGEST = {"num_train_timesteps": 1_000_000, "multiple": 4096}


class Prior:
    """A noise predictor as the sampler sees it.

    ``prior(x, t)`` returns the output of its network. A sampler uses a faster way: it computes
    everything that depends on the timestep once for all steps (``conditioning``), then ``eps`` per
    step.

    Attributes:
        name: A name for reports.
        multiple: Height and width of inputs must be multiples of it.
        num_train_timesteps: Number of its training timesteps, which start from 0.
        noise_schedule: "linear" or "cosine" betas of its training.
        alphas: ᾱ of every timestep, float64, for a process without such a name; or None.
        rescale_timesteps: Whether the network takes t * 1000 / num_train_timesteps, not t.
        device: Where the weights are.
        dtype: That of the weights.
        tf32: Whether float32 matrix products are rounded to TF32 on CUDA.
        compiled: Whether it runs through torch.compile.
        channels: Channels of its images: 3, or 1 for a gray prior.
        reproducible: Whether ``eps`` has the same bytes for any number of threads and of images at
            once, on one machine and build.
        origin: The name or path that it was loaded from, by which it is pickled; else None.
        reuses: Whether ``eps`` can reuse its deep layers (``reuse``).
        foreign: Whether ``eps`` runs foreign code, which a CUDA graph may not repeat faithfully.
    """

    tf32: bool = False
    compiled: bool = False
    channels: int = 3
    reproducible: bool = False
    origin: Origin | None = None
    foreign: bool = False
    reuses: bool = False

    def __init__(
        self,
        *,
        name: str,
        multiple: int,
        device: torch.device,
        dtype: torch.dtype,
        noise_schedule: str = "linear",
        num_train_timesteps: int = 1000,
        rescale_timesteps: bool = False,
        alphas: Any = None,
    ):
        if alphas is not None:
            alphas = check_alphas(alphas)
            num_train_timesteps = len(alphas)
        if noise_schedule not in NOISE_SCHEDULES:
            raise ValueError(
                f"config: noise_schedule={noise_schedule!r}, expected one of "
                f"{', '.join(NOISE_SCHEDULES)}"
            )
        for key, value in (("num_train_timesteps", num_train_timesteps), ("multiple", multiple)):
            most = LARGEST[key]  # it may come from a file, and decides how much memory is taken
            if as_count(value, 1, most) is None:
                raise ValueError(f"config: {key}={value!r}, expected an integer, 1 to {most}")
        if alphas is None and num_train_timesteps < LEAST_LINEAR:
            make_betas(noise_schedule, num_train_timesteps)  # raises the error if one is impossible
        if not isinstance(rescale_timesteps, bool):
            raise ValueError(f"config: rescale_timesteps={rescale_timesteps!r}, expected a bool")
        self.name, self.multiple = name, int(multiple)
        self.noise_schedule, self.num_train_timesteps = noise_schedule, int(num_train_timesteps)
        self.rescale_timesteps = rescale_timesteps
        self.device, self.dtype = device, dtype
        self.alphas: np.ndarray | None = alphas

    @functools.cached_property
    def fingerprint(self) -> str:
        """The sha256 of the weights, "" for callables."""
        return ""

    @functools.cached_property
    def noise_levels(self) -> Tensor:
        """√((1 − ᾱ)/ᾱ) of every training timestep, float64 on the host."""
        process = make_schedule(
            self.num_train_timesteps,
            noise_schedule=self.noise_schedule,
            num_train_timesteps=self.num_train_timesteps,
            alphas=self.alphas,
        )
        return torch.from_numpy(1 / process.alphas_cumprod - 1).sqrt()

    @functools.cached_property
    def tilings(self) -> dict[str, dict]:
        """What :class:`.tiled.TiledPrior` remembers of sizes at which it evaluated this one."""
        return {}

    @functools.cached_property
    def has_variance(self) -> bool:
        """Whether the network also predicts the half for the learned range of variances."""
        return False

    @property
    def precision(self) -> str:
        """The name of the arithmetic: "tf32", or that of ``dtype``."""
        return "tf32" if self.tf32 else str(self.dtype).removeprefix("torch.")

    def activation_bytes(self, n: int, height: int, width: int) -> int | None:
        """Find the most bytes of activations during ``eps`` of n such images; None if unknown."""
        del n, height, width  # for subclasses, which may know
        return None

    def kept_bytes(self, n: int, height: int, width: int) -> int:
        """Count the bytes that a loop with deep layers to reuse keeps for n images, or 0."""
        del n, height, width  # for subclasses, which may know
        return 0

    def tile_at(self, height: int, width: int) -> int:
        """Return the side of the tiles that such a picture is evaluated in, 0 for whole."""
        del height, width  # for TiledPrior
        return 0

    def to(self, device: str | torch.device) -> Prior:
        """Return this prior on a device: itself if it is there, else a new one."""
        raise NotImplementedError

    def conditioning(self, timesteps: Tensor) -> Conditioning:
        """Make one item for each of the training timesteps [S], to hand to ``eps``."""
        raise NotImplementedError

    def eps(
        self, x: Tensor, cond: Any, *, variance: bool = False, kept: Kept | None = None
    ) -> Tensor:
        """Predict the noise [N, 3, H, W] of x [N, 3, H, W] float32, without autograd.

        Args:
            x: Noisy images x_t, on the prior's device.
            cond: An item of ``conditioning``.
            variance: Return [N, 6, H, W]; the second half is the learned-range interpolation
                weight v in [-1, 1] (Nichol and Dhariwal 2021, eq. 15).
            kept: Results of the deep layers that a loop keeps; given only if ``reuses``.

        Returns:
            The prediction as the network leaves it, in any memory format, in float32, bfloat16
            or float16; compute with it in float32.
        """
        raise NotImplementedError

    def __call__(self, x: Tensor, t: int | Tensor) -> Tensor:
        """Evaluate the network at training timesteps t, each image at its own.

        Images are evaluated in groups of equal t.

        Args:
            x: Noisy images x_t [N, 3, H, W], a floating dtype; H and W multiples of ``multiple``.
            t: Training timesteps, 0 to ``num_train_timesteps`` - 1: an int or an integer tensor
                [] for all images, or an integer tensor [N]. They are read on the host.

        Returns:
            eps [N, 3, H, W], or [N, 6, H, W] with the variance half if the prior has one
            (``has_variance``); float32, on the prior's device, without autograd.

        Raises:
            TypeError: x is not a floating-point tensor, or t neither an int nor an integer tensor.
            ValueError: x or t has another shape, or t is outside of the training timesteps.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"x: got {_kind(x)}, expected a floating-point tensor [N, 3, H, W]")
        self.check_input(x, False)
        steps = self._timestep_list(t, len(x))
        x = x.to(self.device, torch.float32)
        with threads.where_busy(self.reproducible):
            if len(distinct := sorted(set(steps))) == 1:
                return self._eps_at(x, distinct[0])
            channels = self.channels * (2 if self.has_variance else 1)
            out = x.new_empty(len(x), channels, *x.shape[2:])
            for step in distinct:
                rows = [row for row, own in enumerate(steps) if own == step]
                out[rows] = self._eps_at(x[rows], step)
            return out

    def _eps_at(self, x: Tensor, step: int) -> Tensor:
        item = self.conditioning(torch.tensor([step]))[0]
        return self.eps(x, item, variance=self.has_variance).float()

    def _timestep_list(self, t: int | Tensor, n: int) -> list[int]:
        """Return the timesteps of n images, checked."""
        if isinstance(t, Tensor):
            if t.is_floating_point() or t.is_complex() or t.dtype == torch.bool:
                raise TypeError(f"t: got {_kind(t)}, expected an integer tensor, [] or [N]")
            if t.shape not in ((), (n,)):
                raise ValueError(
                    f"t: shape {tuple(t.shape)}, expected [] or [{n}], one timestep per image of x"
                )
            steps = t.expand(n).tolist()
        elif (step := as_int(t)) is not None:
            steps = [step] * n
        else:
            raise TypeError(f"t: got {_kind(t)}, expected an int or an integer tensor, [] or [N]")
        last = self.num_train_timesteps - 1
        if outside := [one for one in steps if not 0 <= one <= last]:
            raise ValueError(
                f"t: {outside[0]}, expected training timesteps from 0 to {last}, not rescaled"
            )
        return steps

    def network_timesteps(self, timesteps: Tensor) -> Tensor:
        """Return what the network takes for training timesteps, on its device."""
        timesteps = torch.as_tensor(timesteps, device=self.device)
        if self.rescale_timesteps:
            return timesteps.float() * (1000.0 / self.num_train_timesteps)
        return timesteps

    def check_input(self, x: Tensor, variance: bool) -> None:
        """Raise a ValueError for arguments that ``eps`` cannot take."""
        multiple = self.multiple
        channels = self.channels
        if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % multiple or x.shape[3] % multiple:
            raise ValueError(
                f"x: shape {tuple(x.shape)}, expected [N, {channels}, H, W] with H and W multiples "
                f"of {multiple} for prior {self.name!r}; pad it"
            )
        if variance and not self.has_variance:
            raise ValueError(
                f"variance: prior {self.name!r} predicts no variance; "
                "use a sampler with a fixed one"
            )

    def check_reuse(self, every: int) -> None:
        """Raise ValueError if deep layers are to be reused but are not known."""
        if every == 1 or self.reuses:
            return
        if self.compiled:
            why = "runs through torch.compile, which evaluates all of it; leave out compile"
        else:
            why = (
                "is code whose layers are not known; expected 1, or a UNet of ddfm_fast, "
                "guided-diffusion or diffusers (UNet2DModel of two levels or more)"
            )
        raise ValueError(f"reuse is {every}, but prior {self.name!r} {why}")

    def keywords(self) -> dict[str, Any]:
        """Return the name and the ``PRIOR_KEYWORDS``, to make another like this one."""
        return {k: getattr(self, k) for k in ("name", *PRIOR_KEYWORDS)}

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle by name or path, and with the weights only if there is neither."""
        if self.origin is None:
            return super().__reduce_ex__(protocol)
        return arrive, (self.sent(),)

    def sent(self) -> Sent:
        """Describe a prior that has an origin, so that another process can load it.

        Raises:
            ValueError: Its files have changed since.
        """
        assert self.origin is not None
        return Sent(self.origin.leaving(), str(self.device), self.precision, self.compiled)

    def __deepcopy__(self, memo: dict[int, Any]) -> Prior:
        """Share weights from files, which nobody changes; copy those of the user's modules."""
        if self.origin is not None:
            return self
        recipe: Any = super().__reduce_ex__(4)
        made, arguments, state = recipe[:3]
        result = memo[id(self)] = made(*arguments)
        own = copy.deepcopy(state, memo)
        restore = getattr(result, "__setstate__", result.__dict__.update)
        restore(own)
        return result

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.dtype}, device={str(self.device)!r})"


def same_device(a: torch.device, b: torch.device) -> bool:
    """Return whether two devices are the same; every index of a CPU is."""
    return a.type == b.type and (a.index == b.index or a.type == "cpu")


def _kind(value: Any) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
