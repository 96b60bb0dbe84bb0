"""A diffusers pipeline around a fuser: loaded, called and watched in the style of diffusers.

>>> from ddfm_fast.integrations.diffusers import DDFMPipeline                # doctest: +SKIP
>>> pipe = DDFMPipeline.from_pretrained("google/ddpm-celebahq-256")          # doctest: +SKIP
>>> image = pipe(infrared, visible, num_inference_steps=25).images[0]        # doctest: +SKIP

The module imports without diffusers; making a pipeline then raises an error that says what to
install.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..api import Fuser
from ..images.pair import as_items
from ..images.planes import to_planes
from ..images.ranges import by_source
from ..options import FuserOptions, check_names
from ..priors.load import ASSETS, load_prior
from ..sampler import StepInfo
from .torch import FuseModule

if TYPE_CHECKING:
    from ..runtime.typed import CallOptions

OUTPUTS = ("pil", "np", "pt")
TENSORS = ("latents", "pred_original_sample")
"""what a callback may request: x_t after the step, and the rectified prediction f̂₀"""
HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token", "variant")
"""keywords of ``from_pretrained`` that control how a repository is downloaded"""


def _pipeline() -> Any:
    try:
        return import_module("diffusers").DiffusionPipeline
    except ImportError:
        return object


_Pipeline: Any = _pipeline()


class FusionInterrupted(RuntimeError):
    """A callback has set ``_interrupt``; a fusion stopped halfway is not a picture."""


class DDFMPipeline(_Pipeline):
    """Fuse pairs by DDFM as a ``DiffusionPipeline``.

    Args:
        fusion: Does the fusion; :meth:`from_pretrained` makes it.

    Raises:
        ImportError: diffusers is missing.
    """

    model_cpu_offload_seq = "fusion"
    _callback_tensor_inputs = list(TENSORS)

    def __init__(self, fusion: FuseModule):
        _require()
        super().__init__()
        self.register_modules(fusion=fusion)
        self._interrupt = False

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        torch_dtype: torch.dtype | str | None = None,
        prior_config: dict[str, Any] | None = None,
        **options: Any,
    ) -> DDFMPipeline:
        """Load a prior and make the pipeline.

        Args:
            pretrained_model_name_or_path: What ``ddfm_fast.load_prior`` takes: "embedded", the
                folder of an unconditional pipeline or UNet2DModel, or a checkpoint; or the name of
                such a pipeline on the Hub, which diffusers downloads.
            torch_dtype: Arithmetic of the prior; None and "auto" choose by device and preset.
            prior_config: ``config`` of ``ddfm_fast.load_prior``.
            **options: Of ``ddfm_fast.Fuser``, such as preset="official" and device="cuda"; and of
                the download: cache_dir, force_download, local_files_only, proxies, revision, token
                and variant.

        Raises:
            ValueError: There is no such prior, or an option is out of range.
            TypeError: An option is unknown.
            ImportError: diffusers is missing.
        """
        _require()
        hub = {name: options.pop(name) for name in HUB if name in options}
        check_names(options, [*FuserOptions.__annotations__, *HUB])
        spec = pretrained_model_name_or_path
        if _is_on_the_hub(spec):
            spec = cls.download(str(spec), **hub)
        if torch_dtype is not None:
            options["dtype"] = torch_dtype
        if prior_config:
            prior: Any = load_prior(
                spec, prior_config, device=options.get("device"), dtype=options.get("dtype")
            )
            return cls(FuseModule(Fuser(**{**options, "prior": prior, "dtype": "auto"})))
        return cls(FuseModule(Fuser(**{**options, "prior": spec})))

    def save_pretrained(self, *_args: Any, **_options: Any) -> None:
        """Refuse to save: ``from_pretrained`` takes the prior's own file or folder."""
        raise ValueError(
            "save_pretrained: a DDFMPipeline has nothing of its own to save; expected the file or "
            "folder of its prior to be kept, and given to from_pretrained with the same options"
        )

    @property
    def fuser(self) -> Fuser:
        """The fuser, with the options of :meth:`from_pretrained`."""
        return self.fusion.fuser

    @property
    def interrupt(self) -> bool:
        """Whether a callback has asked to stop."""
        return self._interrupt

    @torch.no_grad()
    def __call__(
        self,
        ir: Any,
        vis: Any,
        num_inference_steps: int | None = None,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        *,
        color: bool | str | None = None,
        value_range: Any = None,
        layout: str | None = None,
    ) -> Any:
        """Fuse pairs.

        Args:
            ir: An image, a batch or a list, as ``ddfm_fast.fuse`` takes them.
            vis: The other source, aligned, of the same size.
            num_inference_steps: Reverse steps; None uses those of the options.
            generator: The seed is drawn from it; without one it is the fuser's own, and two calls
                give the same result.
            output_type: "pil" for 8-bit images, "np" for float [N, H, W, C], "pt" for float
                [N, C, H, W], both in [0, 1].
            return_dict: Whether to return an ``ImagePipelineOutput`` or a tuple.
            callback_on_step_end: Called as (pipeline, step from 0, timestep, tensors) after each
                step. The tensors are copies and cannot be replaced; setting ``_interrupt`` of the
                pipeline stops it.
            callback_on_step_end_tensor_inputs: Which tensors: "latents" and
                "pred_original_sample", [N, C, H, W] in about [−1, 1].
            color: As in the call of ``ddfm_fast.Fuser``, as are ``value_range`` and ``layout``.
            value_range: See ``color``.
            layout: See ``color``.

        Returns:
            ``ImagePipelineOutput(images=…)``: a list of PIL images, an array or a tensor.

        Raises:
            FusionInterrupted: The callback set ``_interrupt``.
            ValueError, TypeError: An argument is wrong; the message names it.
        """
        if output_type not in OUTPUTS:
            raise ValueError(
                f"output_type is {output_type!r}; expected one of {', '.join(OUTPUTS)}"
            )
        callback = self._watching(callback_on_step_end, callback_on_step_end_tensor_inputs)
        seed = None if generator is None else _drawn(generator)
        sources = _sources(ir, vis, value_range, layout)
        run: CallOptions = {"seed": seed, "color": color, "callback": callback}
        images = _given(self._fused(sources, num_inference_steps, run), output_type)
        if not return_dict:
            return (images,)
        return import_module("diffusers").ImagePipelineOutput(images=images)

    def _fused(
        self, sources: list[list[Tensor]], steps: int | None, run: CallOptions
    ) -> list[Tensor]:
        """Fuse planes; return results [N, C, H, W] in [0, 1]."""
        self._interrupt = False
        fuser = self.fuser if steps is None else self.fuser.with_options(steps=steps)
        run["progress"] = not getattr(self, "_progress_bar_config", {}).get("disable", False)
        run.update({"value_range": (0.0, 1.0), "layout": "NCHW"})
        fused = fuser(sources[0], sources[1], **run)
        self.maybe_free_model_hooks()
        return fused

    def _watching(
        self, watch: Callable[..., Any] | None, names: Sequence[str]
    ) -> Callable[[StepInfo], None] | None:
        """Wrap a diffusers callback as one of ours."""
        if watch is None:
            return None
        if unknown := [name for name in names if name not in TENSORS]:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs has {unknown[0]!r}; expected some of "
                f"{', '.join(TENSORS)}"
            )

        def each(info: StepInfo) -> None:
            tensors = {"latents": info.x_t, "pred_original_sample": info.x0}
            handed = {name: tensors[name].clone() for name in names}
            changed = watch(self, info.step - 1, info.timestep, dict(handed)) or {}
            for name, value in changed.items():
                if name not in handed or not torch.equal(value, tensors[name]):
                    raise ValueError(
                        f"callback_on_step_end changed {name!r}; expected them unchanged, "
                        "since EM's state belongs to them"
                    )
            if self._interrupt:
                raise FusionInterrupted(
                    f"a callback stopped the fusion after step {info.step} of {info.steps}"
                )

        return each


def _require() -> None:
    if _Pipeline is object:
        raise ImportError(
            "DDFMPipeline needs diffusers, which is missing; pip install 'ddfm_fast[diffusers]'"
        )


def _is_on_the_hub(spec: Any) -> bool:
    """Return whether it names a repository, and nothing on this machine."""
    if not isinstance(spec, str) or spec in ASSETS or Path(spec).exists():
        return False
    name = re.fullmatch(r"[\w.-]+/[\w.-]+", spec) is not None
    return name and Path(spec).suffix not in (".pt", ".pth", ".safetensors")


def _drawn(generator: torch.Generator) -> int:
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator is a {type(generator).__name__}; expected one torch.Generator, as every "
            "image of a call has the same seed"
        )
    high = 2**63 - 1
    return int(torch.randint(high, (1,), generator=generator, device=generator.device))


def _sources(ir: Any, vis: Any, value_range: Any, layout: str | None) -> list[list[Tensor]]:
    """Return planes [N, C, H, W] float32 in [0, 1] of each item of both sources."""
    many, items = as_items(ir, vis)
    ranges = by_source(value_range)
    made: list[list[Tensor]] = [[], []]
    for n, item in enumerate(items):
        for name, image, planes in zip(("ir", "vis"), item, made, strict=True):
            planes.append(
                to_planes(
                    image,
                    f"{name}[{n}]" if many else name,
                    value_range="auto" if ranges[name] is None else ranges[name],
                    layout=layout,
                )[0]
            )
    return made


def _given(fused: list[Tensor], output_type: str) -> Any:
    """Convert results [N, C, H, W] in [0, 1] to an output type of diffusers."""
    if output_type == "pil":
        from PIL import Image

        levels = [(x * 255).round().to(torch.uint8).cpu().numpy() for some in fused for x in some]
        return [Image.fromarray(x[0] if len(x) == 1 else np.moveaxis(x, 0, -1)) for x in levels]
    if len({x.shape[1:] for x in fused}) > 1:
        raise ValueError(
            f"output_type is {output_type!r} and the results have different sizes or channels; "
            'expected output_type="pil", or images of one size'
        )
    together = torch.cat(fused)
    return together if output_type == "pt" else together.permute(0, 2, 3, 1).cpu().numpy()
