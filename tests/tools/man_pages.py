"""Manual pages of the commands, from their own help: ``make man`` writes them to ``out/man``.

``python tests/tools/man_pages.py FOLDER`` makes ``FOLDER/man1/ddfm-fast.1`` and a page for each
command; ``man -M FOLDER ddfm-fast-fuse`` shows one.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import typer

from ddfm_fast import __version__
from ddfm_fast.cli.app import app
from ddfm_fast.cli.manners import commands
from ddfm_fast.files.paths import atomic_write_bytes
from ddfm_fast.runtime import environment

PROGRAM = "ddfm-fast"
STATUS = "0: all is well. 1: something failed. 2: wrong usage or input. 130: interrupted."


def escaped(text: str) -> str:
    """Escape text for roff: no dash becomes a hyphen, no line begins a request."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...").replace("·", "|")
    return re.sub(r"^([.'])", r"\\&\1", text.strip(), flags=re.MULTILINE)


def marked(text: str) -> str:
    """Make `words in backticks` bold."""
    return re.sub(r"`([^`]*)`", r"\\fB\1\\fR", escaped(text))


def entry(name: str, meaning: str) -> str:
    """Return a name in bold and what it means."""
    return f".TP\n\\fB{escaped(name)}\\fR\n{marked(meaning)}\n"


def option(parameter: Any) -> str:
    """Return an option or argument and what it does."""
    if parameter.param_type_name == "argument":
        names = f"\\fI{escaped(parameter.metavar or parameter.name.upper())}\\fR"
    else:
        flags = ", ".join(f"\\fB{escaped(one)}\\fR" for one in sorted(parameter.opts, key=len))
        taken = not (parameter.is_flag or parameter.count)
        value = parameter.metavar or parameter.name.upper()
        names = f"{flags} \\fI{escaped(value)}\\fR" if taken else flags
    return f".TP\n{names}\n{marked(parameter.help or '')}\n"


def page(name: str, command: Any) -> str:
    """Return the page of a command, or of the program."""
    title = f"{PROGRAM} {name}".strip()
    context = command.context_class(command, info_name=title)
    usage = re.sub(r"[{}]", "", " ".join(command.collect_usage_pieces(context)))
    summary, _, rest = (command.help or "").partition("\n\n")
    parts = [
        f'.TH "{title.replace(" ", "-").upper()}" "1" "" "{PROGRAM} {__version__}"\n',
        f".SH NAME\n{escaped(title.replace(' ', '-'))} \\- {marked(summary)}\n",
        f".SH SYNOPSIS\n\\fB{escaped(title)}\\fR {escaped(usage)}\n",
    ]
    if rest:
        parts.append(f".SH DESCRIPTION\n{marked(rest)}\n")
    panels: dict[str, list[str]] = {}
    for parameter in command.get_params(context):
        panel = getattr(parameter, "rich_help_panel", None) or "Options"
        panels.setdefault(panel, []).append(option(parameter))
    for panel, entries in panels.items():
        parts.append(f".SH {panel.upper()}\n{''.join(entries)}")
    if not name:
        rows = [
            entry(f"{PROGRAM} {one}", (inner.help or "").partition("\n")[0])
            for one, inner in commands(command).items()
        ]
        parts.append(f".SH COMMANDS\n{''.join(rows)}")
        rows = [
            entry(one, f"{row.meaning} ({row.default})")
            for one, row in environment.VARIABLES.items()
        ]
        parts.append(f".SH ENVIRONMENT\n{''.join(rows)}")
    elif command.epilog:
        parts.append(f".SH EXAMPLES\n{marked(re.sub('^Examples?: *', '', command.epilog))}\n")
    parts.append(f".SH EXIT STATUS\n{escaped(STATUS)}\n")
    return "".join(parts)


def pages() -> dict[str, str]:
    """Return every page by the name of its file."""
    root = typer.main.get_command(app)
    found = {f"{PROGRAM}.1": page("", root)}
    for name, command in commands(root).items():
        found[f"{PROGRAM}-{name.replace(' ', '-')}.1"] = page(name, command)
    return found


def main(folder: Path) -> None:
    for name, text in pages().items():
        print(atomic_write_bytes(folder / "man1" / name, text.encode()))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/man"))
