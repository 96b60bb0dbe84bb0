"""The values of the controls, as options of the library and as arguments of the same command."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any, cast

from ..config import DEFAULT_PRESET, DEFAULT_SEED
from ..files.depth import Levels
from ..options import FuserOptions
from ..runtime.words import parse_range

PRESET_DECIDES = "as the preset"
COLORS = ("auto", "ir", "vis", "gray")
SIZES = ("as they are", "ir", "vis")
FORMATS = ("png", "tif")


@dataclass(frozen=True)
class Controls:
    """The controls of a pair; folders and videos have some of them."""

    preset: str = DEFAULT_PRESET
    denoise: str = PRESET_DECIDES
    """that, "auto", "off" or a number"""
    align: str = "check"
    resize: str = SIZES[0]
    ir_range: str = "auto"
    """a name of ``images.ranges`` or LO,HI, like ``vis_range``"""
    vis_range: str = "auto"
    color: str = "auto"
    steps: str = ""
    """empty: as the preset has it"""
    seed: float | None = DEFAULT_SEED
    format: str = "png"

    def options(self) -> FuserOptions:
        """Options of ``Fuser``.

        Raises:
            ValueError: A text should be a number but is not.
        """
        found: dict[str, Any] = {"preset": self.preset, "align": self.align, "seed": self._seed}
        if self.denoise != PRESET_DECIDES:
            found["denoise"] = _number(self.denoise, float)
        if self.steps.strip():
            found["steps"] = _number(self.steps.strip(), int)
        if self.color != "auto":
            found["color"] = False if self.color == "gray" else self.color
        return cast(FuserOptions, found)

    @property
    def size_of(self) -> str | None:
        """The source whose size both get, or None."""
        return None if self.resize == SIZES[0] else self.resize

    def ranges(self) -> dict[str, tuple[float, float] | str]:
        """Return the given ranges, by source; ValueError if a text is not a range."""
        found = {}
        for name, text in (("ir", self.ir_range), ("vis", self.vis_range)):
            value = parse_range(text.strip() or None, f"range of {name}")
            if value is not None and value != "auto":
                found[name] = value
        return found

    def levels(self) -> Levels:
        """Return what the values of the files mean."""
        return Levels(self.ranges() or None)

    def arguments(self) -> list[str]:
        """Return the options of ``ddfm-fast fuse`` that do the same; defaults are left out."""
        given = {
            "--preset": (self.preset, DEFAULT_PRESET),
            "--denoise": (self.denoise, PRESET_DECIDES),
            "--align": (self.align, "check"),
            "--resize": (self.resize, SIZES[0]),
            "--ir-range": (self.ir_range.strip(), "auto"),
            "--vis-range": (self.vis_range.strip(), "auto"),
            "--steps": (self.steps.strip(), ""),
            "--seed": (str(self._seed), str(DEFAULT_SEED)),
        }
        found = [f"{name}={value}" for name, (value, usual) in given.items() if value != usual]
        if "--preset" not in found and self.steps.strip():
            found.insert(0, f"--preset={self.preset}")  # else the command takes that of the loop
        if self.color == "gray":
            found.append("--gray")
        elif self.color != "auto":
            found.append(f"--color-from={self.color}")
        return found

    @property
    def _seed(self) -> int:
        if self.seed is None or self.seed != int(self.seed):
            raise ValueError(f"seed is {self.seed}; expected a whole number from 0")
        return int(self.seed)


def command(ir: str, vis: str, out: str, controls: Controls) -> str:
    """Return the command line that fuses these files in the same way."""
    return shlex.join(["ddfm-fast", "fuse", ir, vis, "-o", out, *controls.arguments()])


def _number(text: str, kind: type) -> Any:
    """Return a number if the text is one; else the text, which its receiver checks."""
    try:
        return kind(text)
    except ValueError:
        return text
