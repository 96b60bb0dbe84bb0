"""The ``ddfm-fast`` command, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from ..runtime import environment
from . import (
    ablate,
    align,
    batch,
    bench,
    config,
    demo,
    doctor,
    dry_run,
    evaluate,
    fuse,
    help,
    page,
    presets,
    prior,
    prior_public,
    prior_train,
    serve,
    video,
    volume,
)  # fmt: skip
from .command import register

_ENVIRONMENT = "\n".join(
    f"- {name} ({row.default}): {row.meaning}" for name, row in environment.VARIABLES.items()
)

app = typer.Typer(
    name="ddfm-fast",
    help="Fuse infrared and visible (or two medical) images with a diffusion prior.\n\n"
    "Start with:  ddfm-fast demo\n\n"
    "Read about it:  ddfm-fast help",
    epilog=f"Environment variables (and defaults):\n\n{_ENVIRONMENT}",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
register(app, fuse.fuse, fuse.EPILOG, plan=dry_run.fuse, items=True)
register(app, batch.batch, batch.EPILOG, plan=dry_run.batch, items=True)
register(app, video.video, video.EPILOG, plan=dry_run.video, items=True)
register(app, volume.volume, volume.EPILOG, plan=dry_run.volume)
register(app, serve.serve, serve.EPILOG)
register(app, page.page, page.EPILOG, "app")
register(app, align.align, align.EPILOG)
register(app, presets.presets, presets.EPILOG)
register(app, config.config, config.EPILOG)
register(app, doctor.doctor, doctor.EPILOG)
register(app, demo.demo, demo.EPILOG)
register(app, evaluate.evaluate, evaluate.EPILOG)
register(app, ablate.ablate, ablate.EPILOG)
register(app, bench.bench, bench.EPILOG)
register(app, help.help_topic, help.EPILOG, "help")

prior_app = typer.Typer(help=prior.HELP, no_args_is_help=True)
register(prior_app, prior.info, prior.EPILOG_INFO)
register(prior_app, prior.check, prior.EPILOG_CHECK)
register(prior_app, prior.convert, prior.EPILOG_CONVERT)
register(prior_app, prior_public.list_priors, prior_public.EPILOG_LIST, "list")
register(prior_app, prior_public.download, prior_public.EPILOG_DOWNLOAD)
register(prior_app, prior_train.train, prior_train.EPILOG)
app.add_typer(prior_app, name="prior")


def main() -> None:
    """Entry point: exit code 0 ok, 1 something failed, 2 bad usage or input."""
    app(windows_expand_args=False)  # patterns are ours: `datasets.wildcards`


def _version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(f"ddfm-fast {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


if __name__ == "__main__":
    main()
