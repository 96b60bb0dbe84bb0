"""What all commands share: options from a file, the origin of values, and reporting."""

from __future__ import annotations

import difflib
import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from ..files.texts import decoded
from ..options import OPTIONS
from ..runtime import environment
from ..storage.urls import as_url, without_password
from .errors import friendly

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIG = "DDFM_FAST_CONFIG"
NOT_IN_FILES = ("help", "config", "version")
FROM_ENVIRONMENT = {"backend": "DDFM_FAST_BACKEND", "graph": "DDFM_FAST_GRAPH"}
"""options that a variable stands for where they are not given"""


# Files of options


def take_config(context: typer.Context, given: Path | None) -> Path | None:
    """Let what the command line leaves out come from ``--config``, or the environment's file."""
    if not context.resilient_parsing:
        friendly(_take_config, loading=True)(context, given)
    return given


def _take_config(context: typer.Context, given: Path | None) -> None:
    named = environment.set_values().get(CONFIG)
    path = Path(named) if given is None and named is not None else given
    context.meta[CONFIG] = path
    if path is not None:
        context.default_map = values_for(read_config(path), path, context)


def read_config(path: Path) -> dict[str, Any]:
    """Read a TOML file; ValueError names the file and what is wrong with it.

    TOML is UTF-8, but Windows PowerShell writes UTF-16 by ``ddfm-fast config fuse > ddfm.toml``.
    """
    try:
        return tomllib.loads(decoded(path.read_bytes()).replace("\r\n", "\n"))
    except OSError as error:
        raise ValueError(
            f"{path}: the options file cannot be read ({error.strerror}); give another --config"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f'{path} is not TOML: {error}; write lines such as preset = "fast"'
        ) from None
    except RecursionError:
        raise ValueError(f"{path} has too many nested brackets; write one list") from None


def values_for(content: Mapping[str, Any], path: Path, context: typer.Context) -> dict[str, Any]:
    """Return what a file says for the command of a context: parameter → value.

    Keys at the top are options that mean the same for all commands, those of
    ``ddfm_fast.options``; the table of a command (``[fuse]``, ``[prior.train]``) has any of its
    options, and comes first.

    Raises:
        ValueError: A key that is no option or stands twice, a command's that is no table, or a
            value that an option does not take.
    """
    everywhere = commands(context.find_root().command) or {"bench": context.command}
    groups = {name.split()[0] for name in everywhere if " " in name}
    top = {key: value for key, value in content.items() if not _is_table(key, value, everywhere)}
    shared = {key for command in everywhere.values() for key in keys(command, shared=True)}
    for key in top.keys() - shared:
        if owners := [name for name, command in everywhere.items() if key in keys(command)]:
            owner = owners[0].replace(" ", ".")
            raise ValueError(
                f"{path}: {key} is not an option of every command; put it below [{owner}]"
            )
    _refuse_unknown(top, {*shared, *everywhere, *groups}, f"{path}: ")
    _refuse_twice(top, f"{path}: ")
    for name in sorted(top.keys() - shared):
        _refuse_no_table(name, top[name], path)
    tables = _tables(content, everywhere, groups, path)
    for name, table in tables.items():
        where = f"{path}, [{name.replace(' ', '.')}]: "
        _refuse_unknown(table, keys(everywhere[name]), where)
        _refuse_twice(table, where)
    own, of_all = keys(context.command), keys(context.command, shared=True)
    found = {of_all[key]: (key, value) for key, value in top.items() if key in of_all}
    mine = tables.get(name_of(context), {})
    found |= {own[key]: (key, value) for key, value in mine.items()}
    return {
        parameter.name: _value(parameter, key, value, path, context)
        for parameter, (key, value) in found.items()
    }


def _is_table(key: str, value: Any, everywhere: Mapping[str, Any]) -> bool:
    return isinstance(value, dict) and any(name.split()[0] == key for name in everywhere)


def _tables(
    content: Mapping[str, Any], everywhere: Mapping[str, Any], groups: set[str], path: Path
) -> dict[str, dict[str, Any]]:
    """Command → its table, with those of a group's commands under ``GROUP COMMAND``."""
    found = {}
    for key, value in content.items():
        if not _is_table(key, value, everywhere):
            continue
        if key not in groups:
            found[key] = value
            continue
        inner = [name.split()[1] for name in everywhere if name.startswith(f"{key} ")]
        _refuse_unknown(value, inner, f"{path}, [{key}]: ")
        for name, table in value.items():
            _refuse_no_table(f"{key}.{name}", table, path)
            found[f"{key} {name}"] = table
    return found


def _refuse_no_table(name: str, value: Any, path: Path) -> None:
    if not isinstance(value, dict):
        raise ValueError(
            f"{path}: {name} is {value!r}; {name} is a command, whose options go below [{name}]"
        )


def _refuse_twice(table: Mapping[str, Any], where: str) -> None:
    for key in table:
        if "_" in key and (other := key.replace("_", "-")) in table:
            raise ValueError(f"{where}{key} and {other} are the same option; leave out one of them")


def _refuse_unknown(names: Iterable[str], known: Iterable[str], where: str) -> None:
    known = sorted(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else "ddfm-fast config lists the options"
            raise ValueError(f"{where}{name!r} is not an option; {hint}")


def _value(parameter: Any, key: str, value: Any, path: Path, context: typer.Context) -> Any:
    """Return a value as the command line would have it: ``[7000, 9000]`` is ``7000,9000``."""
    if isinstance(value, dict) and parameter.name == "prior_config":
        value = json.dumps(value, default=str)
    elif isinstance(value, dict):
        value = ",".join(f"{name}={level}" for name, level in value.items())
    elif isinstance(value, list) and not parameter.multiple:
        value = ",".join(map(str, value))
    flag = getattr(parameter, "is_flag", False)
    taken = value if flag or isinstance(value, list) else str(value)
    try:
        if flag != isinstance(value, bool):
            raise ValueError("expected true or false" if flag else "it takes a value, not a bool")
        if taken in ("", []) or (isinstance(taken, list) and "" in taken):
            raise ValueError("leave it out, or give it a value")
        parameter.process_value(context, taken)
    except Exception as error:
        text = getattr(error, "message", None) or str(error)
        raise ValueError(f"{path}: {key} is {value!r}; {text}") from None
    return taken


def commands(group: Any, prefix: str = "") -> dict[str, Any]:
    """Return every command below a group by its name, such as ``fuse`` and ``prior train``."""
    found: dict[str, Any] = {}
    for name, command in getattr(group, "commands", {}).items():
        inner = hasattr(command, "commands")
        found |= commands(command, f"{prefix}{name} ") if inner else {prefix + name: command}
    return found


def keys(command: Any, *, shared: bool = False) -> dict[str, Any]:
    """Return the options of a command by their names in files: ``ir-range``, and ``ir_range``, too.

    ``shared``: only those that mean what they mean for ``Fuser`` (``video --preset`` does not).
    """
    found: dict[str, Any] = {}
    for parameter in command.params:
        if parameter.param_type_name != "option" or parameter.name in NOT_IN_FILES:
            continue
        listed = OPTIONS.get(parameter.name)
        if shared and (listed is None or listed.help != parameter.help):
            continue
        long = max(parameter.opts, key=len).lstrip("-")
        found |= {long: parameter, long.replace("-", "_"): parameter}
    return found


def name_of(context: typer.Context) -> str:
    """Return the command of a context, below the program: ``prior train``."""
    names: list[str] = []
    at: Any = context
    while at.parent is not None:
        names.insert(0, at.info_name)
        at = at.parent
    return " ".join(names) or "bench"  # which is a program, too


# Where values come from


def origins(context: typer.Context, path: Path | None) -> dict[str, tuple[Any, str]]:
    """Map every option of a command to its value and origin: ``command line``, a file and so on.

    Of one that has no value and that nothing sets the value is None.
    """
    found = {}
    for long, parameter in keys(context.command).items():
        if "_" in long:
            continue
        value = context.params.get(parameter.name)
        source = getattr(context.get_parameter_source(parameter.name), "name", "DEFAULT")
        origin = {"COMMANDLINE": "command line", "DEFAULT_MAP": str(path)}.get(source, "default")
        variable = FROM_ENVIRONMENT.get(parameter.name)
        if origin == "default" and variable in environment.set_values():
            value, origin = environment.get(variable), variable
        found[long] = (as_json(value), origin)
    return found


def as_json(value: Any) -> Any:
    """Return a value of an option as a JSON type."""
    value = getattr(value, "value", value)
    if isinstance(value, list | tuple):
        return [as_json(one) for one in value] or None
    return (as_url(value) or str(value)) if isinstance(value, Path) else value


def changed(found: Mapping[str, tuple[Any, str]]) -> dict[str, tuple[Any, str]]:
    """Return the options that are not defaults."""
    return {name: one for name, one in found.items() if one[1] != "default"}


def as_option(name: str, value: Any, origin: str) -> str:
    """Return an option as a command line has it, and where it comes from."""
    text = f"--{name}" if value is True else f"--{name} {value}"
    return without_password(f"{text}  ({origin})")


# Reporting


class _Teller(logging.Handler):
    """Prints what the library logs, above the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        with tqdm.external_write_mode():
            self.tell(record)

    def tell(self, record: logging.LogRecord) -> None:
        typer.echo(without_password(record.getMessage()), err=True)


class _Lines(_Teller):
    """Prints the facts of each item as a line of JSON."""

    def tell(self, record: logging.LogRecord) -> None:
        if (item := getattr(record, "item", None)) is not None:
            typer.echo(json.dumps(item, default=str))


@contextmanager
def telling(context: typer.Context, verbose: int, lines: bool, path: Path | None) -> Iterator[None]:
    """Report inside what ``-v`` and ``--jsonl`` request."""
    logger, started = logging.getLogger("ddfm_fast"), time.perf_counter()
    handlers = [*[_Teller()] * (verbose > 0), *[_Lines()] * lines]
    before = logger.level
    if handlers:
        logger.setLevel(logging.DEBUG if verbose > 1 else logging.INFO)
    for handler in handlers:
        logger.addHandler(handler)
    if verbose:
        for name, (value, origin) in changed(origins(context, path)).items():
            typer.echo(as_option(name, value, origin), err=True)
    try:
        yield
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
        logger.setLevel(before)
        if verbose:
            typer.echo(f"{time.perf_counter() - started:.1f} s in all", err=True)
