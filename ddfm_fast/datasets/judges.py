"""Names that put results where benchmarks' repositories look for them.

ivif-zoo        IVIF/DATASET/METHOD/IMAGE           github.com/RollingPlain/IVIF_ZOO
vif-benchmark   Results/METHOD/IMAGE                github.com/Linfeng-Tang/VIF-Benchmark
vifb            output/fused_images/IMAGE_METHOD    github.com/xingchenzhang/VIFB, .jpg alone
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from .items import PairItem

METHOD = "DDFM"


class Judge(NamedTuple):
    """Where a benchmark looks for the result of an image."""

    name: str
    """with {image}, {method} and maybe {dataset}"""
    format: str | None = None
    """the only format that it reads"""


JUDGES = {
    "ivif-zoo": Judge("IVIF/{dataset}/{method}/{image}"),
    "vif-benchmark": Judge("Results/{method}/{image}"),
    "vifb": Judge("output/fused_images/{image}_{method}", "jpg"),
}


def arranged(
    items: Sequence[PairItem], layout: str, format: str | None = None
) -> tuple[list[PairItem], str]:
    """Rename pairs as a benchmark names their results; also return the format of the files.

    Args:
        items: Pairs; the last part of a name is the image's.
        layout: A name of ``JUDGES``, then the data set's if the benchmark has several, then maybe
            the method's: "ivif-zoo:M3FD", "vifb", "ivif-zoo:M3FD:DDFM-fast".
        format: The requested format; None for the benchmark's, or PNG.

    Raises:
        ValueError: There is no such layout, it does not read the format, or two images share a
            name.
    """
    name, *words = layout.split(":")
    if name not in JUDGES:
        raise ValueError(f"layout-out is {layout!r}; expected one of {', '.join(JUDGES)}")
    judge = JUDGES[name]
    named = "{dataset}" in judge.name
    if not named < len(words) + 1 <= named + 2 or not all(map(_is_name, words)):
        wanted = f"{name}:DATASET or {name}:DATASET:METHOD" if named else f"{name} or {name}:METHOD"
        raise ValueError(f"layout-out is {layout!r}; expected {wanted}")
    if judge.format is not None and format not in (None, judge.format):
        raise ValueError(
            f"format is {format!r}, and {name} reads {judge.format} alone; leave it out"
        )
    dataset, method = words[0] if named else "", (words[named:] or [METHOD])[0]
    images = [item.name.rpartition("/")[2] for item in items if not item.error]
    if twice := [image for image, count in Counter(images).items() if count > 1]:
        raise ValueError(
            f"items: {twice[0]!r} is the name of two images, and {name} has one folder; fuse one "
            "part of the data set at a time"
        )
    names = (judge.name.format(image=image, method=method, dataset=dataset) for image in images)
    renamed = [item if item.error else item.with_name(next(names)) for item in items]
    return renamed, judge.format or format or "png"


def _is_name(word: str) -> bool:
    return bool(word) and word not in (".", "..") and not set(word) & set("/\\{}")
