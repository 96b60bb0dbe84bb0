"""The references of ``ddfm-fast help``: Markdown made from the code that they describe.

No text of theirs is kept anywhere, so none can go stale. The site shows the same pages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from typer.core import TyperArgument

from ..options import OPTIONS, FuserOptions
from ..runtime import environment
from .errors import BAD_INPUT, INTERRUPTED, OK, SOME_FAILED, TOPICS

WARNED_BY = {
    "align": "inputs",
    "datasets": "scale",
    "files": "inputs",
    "graphs": "gpu",
    "images": "inputs",
    "integrations": "integrations",
    "medical": "medical",
    "method": "method",
    "priors": "priors",
    "restore": "pictures",
    "runtime": "gpu",
    "serve": "scale",
    "storage": "scale",
    "video": "video",
}
"""room whose modules warn → the topic that explains what they warn of"""


def summaries() -> dict[str, str]:
    """Return every reference's name with its summary."""
    return {name: made.__doc__.rstrip(".") for name, made in PAGES.items() if made.__doc__}


def text(name: str, command: Any) -> str:
    """Return a reference as Markdown; ``command`` is the whole program, as Click has it."""
    return f"# {name}: {summaries()[name]}\n\n" + "\n".join(PAGES[name](command)) + "\n"


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    """Return the lines of a Markdown table."""
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    head = list(head)
    return [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *cells]]


def _options(command: Any) -> Iterator[str]:
    """Options that fuse, Fuser and the commands share."""
    flags = {p.name: name for p, _, name in _parameters(command) if name.startswith("--")}
    yield "The first column is the keyword of `fuse` and `Fuser`, the second the commands' option."
    for group in dict.fromkeys(option.group for option in OPTIONS.values()):
        rows = []
        for name, option in OPTIONS.items():
            if option.group == group:
                keyword = f"`{name}`" if name in FuserOptions.__annotations__ else f"`{name}` †"
                flag = f"`{flags[name]}`" if name in flags else ""
                words = f"{option.help} {option.more}".strip()
                rows.append((keyword, flag, f"`{option.default!r}`", words))
        yield from ("", f"## {group}", "")
        yield from table(("keyword", "option", "default", "what it does"), rows)
    yield from ("", "† An option of a call, not of a `Fuser`. For the options that only some")
    yield "commands have, see `ddfm-fast help commands`."


def _commands(command: Any) -> Iterator[str]:
    """The commands, and every option that only some of them take."""
    yield from table(
        ("command", "what it does"),
        ((f"`{name}`", _first_line(inner.help)) for name, inner in commands(command).items()),
    )
    found: dict[tuple, list[str]] = {}
    count = len(commands(command))
    for parameter, name, flag in _parameters(command):
        shared = OPTIONS.get(parameter.name)
        if flag.startswith("--") and (shared is None or shared.help != parameter.help):
            default = getattr(parameter.default, "value", parameter.default)
            shown = "required" if parameter.required else "" if default is None else f"`{default}`"
            found.setdefault((flag, parameter.help, shown), []).append(name)
    yield from ("", "Options beyond those of `ddfm-fast help options`:", "")
    yield from table(
        ("option", "of", "default", "what it does"),
        (
            (f"`{row[0]}`", "all" if len(names) == count else ", ".join(names), row[2], row[1])
            for row, names in sorted(found.items())
        ),
    )


def _presets(_: Any) -> Iterator[str]:
    """What each preset sets."""
    from ..config import DEFAULT_PRESET, LOOP_OPTIONS, LOOP_PRESET, PRESETS
    from ..video.temporal import VIDEO_PRESETS, VideoPreset

    given = ", ".join(f"`{name}`" for name in LOOP_OPTIONS)
    yield f"`{DEFAULT_PRESET}` is the default, or `{LOOP_PRESET}` if one of {given} is given."
    yield from ("`ddfm-fast presets` also prints the cost and the scores of each.", "")
    yield from table(("preset", "what it is"), ((f"`{n}`", c.summary) for n, c in PRESETS.items()))
    named = {repr(config): f"preset `{name}`" for name, config in PRESETS.items()}
    settings = {name: dataclasses.asdict(config) for name, config in PRESETS.items()}
    keys = [key for key in next(iter(settings.values())) if key != "summary"]
    yield from ("", "## Settings", "")
    yield from table(
        ("setting", *settings), ([f"`{key}`", *(s[key] for s in settings.values())] for key in keys)
    )
    rows = []
    for setting in dataclasses.fields(VideoPreset):
        values = [getattr(preset, setting.name) for preset in VIDEO_PRESETS.values()]
        rows.append([f"`{setting.name}`", *(named.get(repr(value), value) for value in values)])
    yield from (
        "",
        "## Video presets",
        "",
        "Where `config` is None, each frame is fused by the preset of the call.",
        "",
    )
    yield from table(("setting", *VIDEO_PRESETS), rows)


def _conventions(_: Any) -> Iterator[str]:
    """How each toolbox scores, metric by metric."""
    from ..metrics.conventions import CONVENTIONS, DEFAULT, NAMES

    yield "Scores of two conventions cannot be compared. `--metrics` names one; F is the fused"
    yield f"picture. The default is `{DEFAULT}`."
    for name, convention in CONVENTIONS.items():
        yield from ("", f"## {name}", "", f"{_capital(convention.summary)}.", "")
        rows = ((metric, convention.definitions[metric]) for metric in NAMES)
        yield from table(("metric", "definition"), rows)


def _environment(_: Any) -> Iterator[str]:
    """The environment variables that are read."""
    rows = ((f"`{n}`", f"`{row.default}`", row.meaning) for n, row in environment.VARIABLES.items())
    yield from table(("variable", "default", "what it decides"), rows)
    yield from (
        "",
        "An empty variable counts as unset. An option of a call or command takes precedence",
    )
    yield "over the variable of the same meaning; `ddfm-fast doctor` lists those that are set."


def _errors(_: Any) -> Iterator[str]:
    """Kinds of errors and warnings, exit codes, and where each is explained."""
    yield "An error names the argument, what came, what is expected and the fix. A command prints"
    yield "it on stderr, and below it the topic that explains the argument. `DDFM_FAST_DEBUG=1`"
    yield from ("shows the traceback.", "")
    yield from table(
        ("exception", "what it means", "exit code"),
        (
            ("`ValueError`", "an argument or a file that cannot be used", BAD_INPUT),
            ("`TypeError`", "an argument of the wrong type, or an unknown name", BAD_INPUT),
            (
                "`ImportError`",
                "a package is missing; the fix names the extra that has it",
                BAD_INPUT,
            ),
            ("`OSError`", "a file or address that cannot be read or written", BAD_INPUT),
            ("any other", "not your fault: please report it", SOME_FAILED),
        ),
    )
    yield from ("", f"{OK} is success. {SOME_FAILED} can also mean that some of many pairs failed.")
    yield f"{INTERRUPTED} means that the command was interrupted."
    yield from ("", "## Where an argument is explained", "")
    rows = ((f"`{t}`", ", ".join(f"`{name}`" for name in names)) for t, names in TOPICS.items())
    yield from table(("topic", "errors about"), rows)
    yield from ("", "`environment` explains errors about a variable `DDFM_FAST_…`.")
    yield from ("", "## Warnings", "")
    yield "Input that is legal but probably a mistake gets one warning, of the class"
    yield from ("`ddfm_fast.DDFMWarning`, so that one filter of `warnings` covers them all.", "")
    rows = ((f"`ddfm_fast.{room}`", f"`{topic}`") for room, topic in WARNED_BY.items())
    yield from table(("warned by", "topic"), rows)


PAGES: dict[str, Callable[[Any], Iterator[str]]] = {
    "options": _options,
    "commands": _commands,
    "presets": _presets,
    "conventions": _conventions,
    "environment": _environment,
    "errors": _errors,
}
"""name → what yields its lines; the docstring is its summary"""


def commands(group: Any, prefix: str = "") -> dict[str, Any]:
    """Return every command of a group with its name, those of groups within it too."""
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found |= commands(command, f"{prefix}{name} ")
        else:
            found[prefix + name] = command
    return found


def _parameters(command: Any) -> Iterator[tuple[Any, str, str]]:
    """Yield every parameter with its command's name and its own longest name."""
    for name, inner in commands(command).items():
        for parameter in inner.get_params(inner.context_class(inner)):
            if not isinstance(parameter, TyperArgument) and parameter.name != "help":
                yield parameter, name, max(parameter.opts, key=len)


def _first_line(help: str) -> str:
    return help.partition("\n")[0]


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
