"""From what typer has parsed to the options of ``Fuser``, and to the pairs of a data set."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer
from typing_extensions import Unpack

from ..options import FuserOptions
from ..runtime.collector import paused
from ..runtime.interrupts import OWN_PROCESS
from ..runtime.words import parse_denoise, parse_range, parse_steps

if TYPE_CHECKING:
    import torch

    from ..api import Fuser
    from ..config import FuseConfig
    from ..datasets.items import PairItem
    from ..datasets.output import Output
    from ..files.depth import Levels
    from ..priors.prior import Prior
    from ..storage.staging import Stage

OUTPUT_OPTIONS = (
    "quality", "chroma", "compression", "out_range", "keep_thermal", "no_metadata", "panel",
)  # fmt: skip
"""parameters of commands that say how results are written"""
_OVERRIDES = ("steps", "reuse", "psi", "eta", "denoise", "images")


@dataclass(frozen=True)
class Settings:
    """Options of ``Fuser`` from a command line, checked; the prior is not loaded yet."""

    options: FuserOptions
    prior_config: dict[str, Any] | None

    def prior(self) -> str | Prior:
        """The prior as ``Fuser`` takes it: a name, or a loaded one if it needs a configuration."""
        if self.prior_config is None:
            return cast("str | Prior", self.options["prior"])
        return self.load_prior(self.options.get("dtype"))

    @property
    def device(self) -> torch.device:
        """The device that ``--device`` means; ValueError if it is not here."""
        from ..runtime.dispatch import resolve_device

        return resolve_device(self.options["device"])

    def load_prior(self, dtype: Any) -> Prior:
        """Load the prior on the device."""
        from ..priors.load import load_prior

        name = self.options["prior"]
        return load_prior(name, self.prior_config, device=self.device, dtype=dtype)

    def fuser(self, **changed: Unpack[FuserOptions]) -> Fuser:
        """Make the fuser, with some options changed."""
        with paused(for_good=OWN_PROCESS):
            from ..api import Fuser

        options: FuserOptions = {**self.options, "prior": self.prior(), **changed}
        return Fuser(**options)

    @property
    def preset(self) -> str | FuseConfig:
        """The preset that was named, or the default of such options."""
        from ..config import default_preset

        return self.options.get("preset") or default_preset(self.options)

    def config(self) -> FuseConfig:
        """Return the preset, with the overrides that `ablate` takes."""
        from ..config import FuseConfig

        config = FuseConfig.from_preset(self.preset)
        return config.with_overrides(**{name: self.options.get(name) for name in _OVERRIDES})


def read_settings(context: typer.Context) -> Settings:
    """Take every parameter of the command that is an option of ``Fuser``, by its name.

    ``--gray`` and ``--color-from`` become ``color``; ``--prior-config`` is read.

    Raises:
        ValueError: Options that exclude each other, or a configuration that is no JSON object.
    """
    given = context.params
    options = picked(context, FuserOptions.__annotations__)
    if "steps" in options:
        options["steps"] = parse_steps(options["steps"])
    if "denoise" in options:
        options["denoise"] = parse_denoise(options["denoise"], "--denoise")
    if "gray" in given:
        options["color"] = _color(given["gray"], plain(given["color_from"]))
    config = json_object(given.get("prior_config"), "--prior-config")
    return Settings(cast(FuserOptions, options), config)


def picked(context: typer.Context, names: Iterable[str]) -> dict[str, Any]:
    """Return those parameters of the command that have one of the names."""
    return {name: plain(context.params[name]) for name in names if name in context.params}


def plain(value: Any) -> Any:
    """Return the text of a choice; anything else as it is."""
    return getattr(value, "value", value)


def levels(
    ir_range: str | None, vis_range: str | None, nodata: str | None, raw_size: str | None = None
) -> Levels:
    """Return the ranges, ``--nodata`` and ``--raw-size`` as the library takes them."""
    from ..files.depth import Levels

    ranges = {
        name: found
        for name, text in (("ir", ir_range), ("vis", vis_range))
        if (found := parse_range(text, f"--{name}-range")) is not None
    }
    return Levels(ranges or None, parse_nodata(nodata), parse_raw_size(raw_size))


def parse_raw_size(text: str | None) -> tuple[int, int] | None:
    """``WxH``; ValueError otherwise."""
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise ValueError(f"--raw-size is {text!r}; expected a width and a height, such as 640x512")
    return int(width), int(height)


def output(context: typer.Context) -> Output:
    """Read how results are written: ``--quality``, ``--chroma`` and so on, by their names.

    Raises:
        ValueError: One of them is not what it can be.
    """
    with paused(for_good=OWN_PROCESS):  # PyTorch is among it
        from ..datasets.output import RANGES, Output

    given = picked(context, OUTPUT_OPTIONS)
    given["metadata"] = not given.pop("no_metadata")
    if (given["compression"] or "").isdecimal():
        given["compression"] = int(given["compression"])
    given["out_range"] = parse_range(given["out_range"], "--out-range", RANGES)
    return Output(**given)


def parse_nodata(text: str | None) -> float | dict[str, float] | None:
    """Return a number, ``nan``, or ir=…,vis=… as a dict; ValueError otherwise."""
    if text is None:
        return None
    try:
        if "=" not in text:
            return float(text)
        given = [part.split("=") for part in text.split(",")]
        parts = {name.strip(): value for name, value in given}
        if set(parts) <= {"ir", "vis"} and len(parts) == len(given):
            return {name: float(value) for name, value in parts.items()}
    except ValueError:
        pass
    raise ValueError(
        f"--nodata is {text!r}; expected a number, nan, or both, such as ir=-9999,vis=0"
    )


def _color(gray: bool, color_from: str) -> bool | str:
    if gray and color_from != "auto":
        raise ValueError(f"--gray and --color-from {color_from} exclude each other")
    if gray:
        return False
    return True if color_from == "auto" else color_from


def json_object(text: str | None, option: str) -> dict[str, Any] | None:
    """Read a JSON object from the text of an option, or from the file that it names.

    Raises:
        ValueError: Neither is the case.
    """
    if text is None:
        return None
    if not text.lstrip().startswith("{"):
        path = Path(text)
        if not path.is_file():
            raise ValueError(
                f"{option} is {text!r}; expected a JSON object such as "
                "'{\"num_head_channels\": 64}' or the path of a file that holds one"
            )
        text = _text(path, option)
    try:
        found = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{option} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{option} holds a JSON {type(found).__name__}; expected an object")
    return found


def _text(path: Path, option: str) -> str:
    from ..files.texts import decoded

    try:
        return decoded(path.read_bytes())
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{option} is {str(path)!r}, which is not text in UTF-8 or UTF-16 ({error}); expected "
            "a file that holds a JSON object"
        ) from None


def find_items(
    root: Path,
    vis: Path | None,
    *,
    layout: str | None,
    manifest: Path | None,
    pattern: str | None = None,
    stage: Stage | None = None,
    strict: bool = True,
) -> list[PairItem]:
    """Find the pairs that ``ROOT [VIS]`` means; sizes are left to whoever decodes the files.

    With a stage, of `stage_for`, places may be URLs; ``strict`` as for `find_pairs`.

    Raises:
        ValueError: It is unclear or incomplete.
    """
    from ..datasets.pairs import find_pairs

    source = data_source(root, vis, manifest)
    if stage is not None:
        from ..datasets.remote import find_remote_pairs

        return find_remote_pairs(
            stage, source, layout=layout, manifest=manifest, pattern=pattern, strict=strict
        )
    return find_pairs(
        source, layout=layout, manifest=manifest, pattern=pattern, check_sizes=False, strict=strict
    )


def stage_for(
    context: typer.Context, root: Path, vis: Path | None, manifest: Path | None, out: Path | None
) -> Stage | None:
    """Return the stage of files that stand for objects; None if no place is a URL."""
    from ..datasets.lists import names_urls
    from ..storage.staging import Stage, any_url

    if any_url(root, vis, manifest, out) or names_urls(root if manifest is None else manifest):
        return context.with_resource(Stage())
    return None


def data_source(root: Path, vis: Path | None, manifest: Path | None) -> Path | tuple[Path, Path]:
    """Return what ``ROOT [VIS]`` is for ``find_pairs``; ValueError if a list is given, too."""
    if vis is not None and manifest is not None:
        raise ValueError(f"VIS is {vis} and --manifest {manifest}; leave out one of them")
    return root if vis is None else (root, vis)


def elsewhere(
    on: Any,
    address: str | None,
    actors: int | None,
    num_gpus: float | None,
    *,
    work: str = "pairs",
) -> AbstractContextManager[Any]:
    """Return what does the work in other processes, connected inside; None for this one."""
    given: dict[str, Any] = {"address": address, "actors": actors, "num_gpus": num_gpus}
    if plain(on) != "ray":
        if alone := [name for name, value in given.items() if value is not None]:
            option = f"--{alone[0].replace('_', '-')}"
            raise ValueError(f"{option} is for --on ray; add that, or leave it out")
        return nullcontext()
    if work == "videos":
        from ..integrations.ray_videos import RayVideos

        return RayVideos(**given)
    if work == "requests":
        from ..integrations.ray_serve import RayReplicas

        return RayReplicas(**given)
    from ..integrations.ray_pairs import RayPairs

    return RayPairs(**given)


def pixel_limit(max_pixels: int | None) -> int:
    """``--max-pixels``, or the library's limit."""
    from ..files.reading import DEFAULT_MAX_PIXELS

    return max_pixels or DEFAULT_MAX_PIXELS


def show_progress(quiet: bool) -> bool:
    """Return whether to draw bars: on a terminal, unless ``--quiet``."""
    return not quiet and sys.stderr.isatty()
