"""``ddfm-fast app``: a page in the browser that fuses pairs, videos and folders."""

# ruff: noqa: ARG001  (read_settings takes the options of Fuser from the context, by name)

from __future__ import annotations

import typer

from . import options as opt
from .options import default
from .settings import read_settings

EPILOG = "Example:  `ddfm-fast app`, then open http://127.0.0.1:7860"


def page(
    context: typer.Context,
    *,
    prior: opt.Prior = default.prior,
    prior_config: opt.PriorConfig = None,
    host: opt.Host = "127.0.0.1",
    port: opt.Port = 7860,
    token_file: opt.TokenFile = None,
    insecure: opt.Insecure = False,
    device: opt.Device = default.device,
    dtype: opt.DType = default.dtype,
    backend: opt.Backend = default.backend,
    graph: opt.Graph = default.graph,
    tile: opt.Tile = default.tile,
    max_pixels: opt.MaxRequestPixels = 2**26,
    max_bytes: opt.MaxBytes = 2**30,
) -> None:
    """Show a page in the browser that fuses two files, two videos or a folder of pairs.

    Only this machine can reach it unless --host says otherwise; then browsers ask for the secret
    in --token-file, with any user name. Nothing is sent elsewhere, and files are removed at the
    end.
    """
    settings = read_settings(context)
    from ..page import run
    from ..page.work import Limits
    from ..serve.run import bind, check_address, read_token

    check_address(host, token_file, insecure)
    password = read_token(token_file)
    run.check_installed()
    limits = Limits(max_pixels=max_pixels, max_bytes=max_bytes)
    run.show(settings.fuser, bind(host, port), limits=limits, password=password, say=typer.echo)
