"""``python -m bench.variants``: the picture of the variants in the README."""

from __future__ import annotations

from pathlib import Path

from ddfm_fast import Fuser
from ddfm_fast.config import VARIANT_NAMES
from ddfm_fast.datasets.demo import asset
from ddfm_fast.images.files import write_image
from ddfm_fast.images.panel import draw_panel

OUT = Path(__file__).resolve().parent / "results" / "variants.png"


def main() -> None:
    ir, vis = asset("sentinel2_nir.png"), asset("sentinel2_visible.png")
    row = []
    for variant in VARIANT_NAMES:
        preset = {"official": "official", "gradient": "balanced"}.get(variant, "paper")
        fused = Fuser(preset=preset, variant=variant, progress=True)(ir, vis)
        row.append((f"{variant} (preset {preset})", fused))
    print(write_image(OUT, draw_panel([row], height=300)))


if __name__ == "__main__":
    main()
