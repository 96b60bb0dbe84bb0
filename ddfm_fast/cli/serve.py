"""``ddfm-fast serve``: fuse the pictures of requests over HTTP."""

# ruff: noqa: ARG001  (read_settings takes the options of Fuser from the context, by name)

from __future__ import annotations

import typer

from . import options as opt
from . import serve_options as serving
from .options import default
from .settings import elsewhere, read_settings

EPILOG = "Example:  `ddfm-fast serve --port 8000`, then "
EPILOG += "`curl -F ir=@ir.png -F vis=@vis.png -o fused.png http://127.0.0.1:8000/fuse`"


def serve(
    context: typer.Context,
    *,
    align: opt.Align = default.align,
    formats: serving.Formats = "png,jpeg,tiff,npy",
    preset: opt.Preset = default.preset,
    denoise: opt.Denoise = default.denoise,
    images: opt.Images = default.images,
    reuse: opt.Reuse = default.reuse,
    prior: opt.Prior = default.prior,
    prior_config: opt.PriorConfig = None,
    host: opt.Host = "127.0.0.1",
    port: opt.Port = 8000,
    token_file: opt.TokenFile = None,
    insecure: opt.Insecure = False,
    tls_cert: serving.TlsCert = None,
    tls_key: serving.TlsKey = None,
    on: opt.On = opt.Place.here,
    address: opt.Address = None,
    actors: opt.Actors = None,
    num_gpus: opt.NumGpus = None,
    device: opt.Device = default.device,
    tile: opt.Tile = default.tile,
    dtype: opt.DType = default.dtype,
    backend: opt.Backend = default.backend,
    graph: opt.Graph = default.graph,
    max_pixels: opt.MaxRequestPixels = 2**24,
    max_bytes: opt.MaxBytes = 2**26,
    max_batch: opt.MaxBatch = None,
    max_queue: opt.MaxQueue = 256,
    wait: opt.Wait = 5.0,
    timeout: opt.Timeout = 60.0,
) -> None:
    """Fuse the pictures of requests: POST /fuse, as a form or JSON; GET /docs describes it.

    It also answers /health, /ready and /metrics. Requests may set the options of `fuse`, which
    override the service's own. SIGTERM and Ctrl-C let requests finish. The log is JSON on stderr.
    """
    settings = read_settings(context)
    from ..serve import run
    from ..serve.formats import parse_formats
    from ..serve.limits import Limits

    run.check_address(host, token_file, insecure)
    token, tls = run.read_token(token_file), run.read_tls(tls_cert, tls_key)
    taken = parse_formats(formats)
    run.check_installed()
    limits = Limits(
        max_bytes=max_bytes, max_pixels=max_pixels, max_queue=max_queue, max_batch=max_batch,
        wait=wait / 1000, timeout=timeout, max_held=max(2**30, max_bytes),
        formats=taken,
    )  # fmt: skip
    there = elsewhere(on, address, actors, num_gpus, work="requests")
    run.serve(
        settings.fuser, run.bind(host, port), limits=limits, token=token, tls=tls, there=there
    )
