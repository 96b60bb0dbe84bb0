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

_ABOUT = "Fuse infrared and visible (or two medical) images with a diffusion prior."
START = f"""{_ABOUT}

  ddfm-fast demo                                            three example pairs, into out/
  ddfm-fast fuse ir.png visible.png -o fused.png --panel    two pictures, or two folders
  ddfm-fast batch DATASET -o fused/                         a data set; rerun to resume
  ddfm-fast video thermal.mp4 visible.mp4 -o fused.mp4      files, cameras, streams
  ddfm-fast help                                            the topics to read

All commands:  ddfm-fast --help
Options of one:  ddfm-fast COMMAND --help
"""
"""what the program prints when it is called without arguments"""

app = typer.Typer(
    name="ddfm-fast",
    help=f"{_ABOUT}\n\nStart with:  ddfm-fast demo\n\nRead about it:  ddfm-fast help",
    epilog=f"Environment variables (and defaults):\n\n{_ENVIRONMENT}",
    invoke_without_command=True,
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
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None and not version:
        typer.echo(START, nl=False)


if __name__ == "__main__":
    main()
