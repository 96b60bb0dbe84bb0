"""``ddfm-fast help``: the topics of the documentation, in the terminal."""

from __future__ import annotations

import os
import pydoc
import re
import sys

import typer

from . import options as opt
from . import reference

EPILOG = "Example:  `ddfm-fast help video`"
_PICTURE = re.compile(r"!\[([^\]]*)\]\([^)]*\)")
_LOCAL_LINK = re.compile(r"\[([^\]]*)\]\((?!https?:)[^)]*\)")


def help_topic(context: typer.Context, topic: opt.Topic = None) -> None:
    """Show a topic of the documentation or the options of a command, or list the topics."""
    from ..docs.topics import find, text, topics

    lists = {"Topics": topics(), "References, generated from the code": reference.summaries()}
    if topic:
        names = [name for known in lists.values() for name in known]
        wanted = " ".join(topic)
        if wanted not in names and _show_command(wanted, context):
            return
        name = find(wanted, names)
        is_topic = name in lists["Topics"]
        _show(text(name) if is_topic else reference.text(name, context.find_root().command))
        return
    width = max(len(name) for known in lists.values() for name in known)
    for head, known in lists.items():
        typer.echo(f"{head}:\n")
        for name, summary in known.items():
            typer.echo(f"  {name:{width}}  {summary}")
        typer.echo()
    typer.echo("Show one:  ddfm-fast help TOPIC\nOptions of a command:  ddfm-fast COMMAND --help")


def _show_command(name: str, context: typer.Context) -> bool:
    """Print what ``--help`` of a command prints; False if there is no such command."""
    inner = context.find_root()
    for word in name.split():
        command = getattr(inner.command, "commands", {}).get(word)
        if command is None:
            return False
        inner = typer.Context(command, inner, word)
    if text := inner.command.get_help(inner):  # with rich, printed by it
        typer.echo(text)
    return True


def _show(markdown: str) -> None:
    """Print Markdown: rendered and paged in a terminal, as it is elsewhere."""
    if not sys.stdout.isatty():
        typer.echo(markdown, nl=False)
        return
    try:
        from rich.console import Console
        from rich.markdown import Markdown
    except ImportError:  # Typer can be installed without it
        pydoc.pager(markdown)
        return
    os.environ.setdefault("LESS", "-RFX")  # keep colors, and leave short texts on the screen
    markdown = _PICTURE.sub(r"*Picture, in the repository: \1*", markdown)
    markdown = _LOCAL_LINK.sub(r"\1", markdown)  # a terminal has no page that it is relative to
    console = Console()
    with console.pager(styles=True):
        console.print(Markdown(markdown, hyperlinks=False))
