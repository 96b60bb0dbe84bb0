"""The server of the page: no telemetry, no public link, no file that stays."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..serve.logs import Log, told_apart
from ..serve.run import repeated_signals_ignored
from .gate import Gate
from .work import Limits, Work

if TYPE_CHECKING:
    from ..api import Fuser

MISSING = "pip install 'ddfm_fast[app]'"
_QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
    "GRADIO_SHARE": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
}
"""read by Gradio and its libraries when they are imported"""


def check_installed() -> None:
    """Raise ImportError, naming the extra, if a library of the page is missing."""
    for name in ("gradio", "uvicorn"):
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"the page needs {name}: {MISSING}")


def show(
    make: Callable[[], Fuser],
    address: socket.socket,
    *,
    limits: Limits | None = None,
    password: str | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Serve the page until SIGTERM or Ctrl-C; uploads and results are removed then.

    Args:
        make: Makes the fuser.
        address: From :func:`ddfm_fast.serve.run.bind`; closed at the end.
        limits: Limits for visitors.
        password: What browsers ask for.
        say: Called with the sentence that names the address.

    Raises:
        ImportError: The extra ``app`` is missing.
    """
    check_installed()
    log = Log()
    with (
        contextlib.closing(address),
        tempfile.TemporaryDirectory(prefix="ddfm-fast-app-", ignore_cleanup_errors=True) as root,
        told_apart(log),
    ):
        folder = Path(root).resolve()
        os.environ.update(**_QUIET, GRADIO_TEMP_DIR=str(folder / "uploads"))  # before the import
        results = folder / "results"
        results.mkdir()
        work = Work(make(), results, limits)
        server = _server(make_app(work, folder, log, password))
        host, port = address.getsockname()[:2]
        with repeated_signals_ignored():
            say(f"the page is at http://{f'[{host}]' if ':' in host else host}:{port}; "
                "Ctrl-C stops it")  # fmt: skip
            server.run(sockets=[address])


def make_app(work: Work, root: Path, log: Log, password: str | None = None) -> Gate:
    """Make the ASGI application.

    Args:
        work: Does the computing.
        root: The folder that no sentence may reveal.
        log: Takes faults of the program.
        password: What browsers ask for.
    """
    import gradio
    from fastapi import FastAPI

    from .layout import ASSETS, CSS, make_page, make_theme

    app = gradio.mount_gradio_app(
        FastAPI(openapi_url=None, docs_url=None, redoc_url=None),
        make_page(work, root, log),
        path="/",
        footer_links=[],
        run_history=False,
        mcp_server=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        show_error=False,
        allowed_paths=[str(work.root), str(ASSETS)],
        max_file_size=work.limits.max_bytes,
        theme=make_theme(),
        css=CSS,
    )
    return Gate(app, password)


def _server(app: Any) -> Any:
    import uvicorn

    config = uvicorn.Config(
        app,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=2,  # open pages hold a connection
    )
    return uvicorn.Server(config)
