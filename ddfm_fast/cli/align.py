"""``ddfm-fast align``: how two fixed cameras see each other, found from pictures of both."""

from __future__ import annotations

import json

import typer

from . import options as opt
from .settings import levels, pixel_limit

EPILOG = (
    "Example:  `ddfm-fast align ir1.png vis1.png ir2.png vis2.png -o calibration.json`, then  "
    "`ddfm-fast fuse ir/ visible/ -o fused/ --align calibration.json`"
)


def align(
    pictures: opt.Pictures,
    *,
    ir_range: opt.IrRange = None,
    vis_range: opt.VisRange = None,
    nodata: opt.Nodata = None,
    raw_size: opt.RawSize = None,
    ir_camera: opt.IrCamera = None,
    vis_camera: opt.VisCamera = None,
    model: opt.Model = opt.MapModel.homography,
    out: opt.OutCalibration,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
    max_pixels: opt.MaxPixels = None,
) -> None:
    """Find the map between two fixed cameras, from one pair of pictures or several.

    The sizes may differ. Pairs without a certain map do not count. Exit code: 0 written, 2 bad
    input, or no pair has a certain map.
    """
    from ..align.calibration import write_calibration
    from ..align.cameras import read_camera
    from ..align.files import calibrate_files
    from ..datasets.wildcards import in_turn

    cameras = [None if path is None else read_camera(path) for path in (ir_camera, vis_camera)]
    meant = levels(ir_range, vis_range, nodata, raw_size)
    found = calibrate_files(
        in_turn(pictures),
        model.value,
        out=out,
        kept=[path for path in (ir_camera, vis_camera) if path is not None],
        cameras=(cameras[0], cameras[1]),
        levels=meant,
        max_pixels=pixel_limit(max_pixels),
    )
    write_calibration(out, found)
    if as_json:
        typer.echo(json.dumps({"ok": True, "out": str(out), **found.to_dict()}))
    elif not quiet:
        typer.echo(
            f"{out}  {model.value} from {found.pairs} pairs, confidence "
            f"{found.alignment.confidence:.1f} (reliable from 1 on)"
        )
