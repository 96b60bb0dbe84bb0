"""The site of ``make docs``: README, topics, records and references, with an API reference.

Every page is a Markdown file of the repository, or made from the code. Links that leave the pages
lead to the package's API, or to a page that shows the file.
"""

from __future__ import annotations

import ast
import logging
import os
import re
import shutil
import sys
from pathlib import Path

import griffe
import typer
import yaml
from mkdocs.commands.build import build
from mkdocs.config import load_config

from ddfm_fast.cli import reference
from ddfm_fast.cli.app import app
from ddfm_fast.docs.topics import topics
from ddfm_fast.options import OPTIONS, FuserOptions, ReadingOptions

ROOT = Path(__file__).resolve().parents[2]
WORK, SITE = ROOT / "out" / "site-work", ROOT / "out" / "site"
PAGES = WORK / "pages"
PACKAGE = ROOT / "ddfm_fast"
ROOMS = (
    *("align", "client", "datasets", "files", "images", "integrations", "medical"),
    *("metrics", "priors", "restore", "storage", "video"),
)
"""packages that others import from"""
COPIED = {".png", ".webp", ".svg", ".json", ".html", ".npz"}
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
MARK = re.compile(r"^( *)(OPTIONS|READING)$", re.M)
ROLE = re.compile(r":(?:attr|class|func|meth|mod):`~?([^`]+)`")
EXAMPLE = re.compile(r"(?<!```pycon\n)^(>>> .*?)(?=\n\n|\Z)", re.M | re.S)
FENCE = re.compile(r"(^```.*?^```$)", re.M | re.S)


class Docstrings(griffe.Extension):
    """Inserts the lists of options, fences examples, and shows roles of Sphinx as code."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring is not None:
            text = MARK.sub(listed, obj.docstring.value)
            text = EXAMPLE.sub(r"```pycon\n\1\n```", text)
            obj.docstring.value = ROLE.sub(r"`\1`", text)

    def on_module(self, *, mod: griffe.Module, **_: object) -> None:
        self.on_object(obj=mod)


def listed(mark: re.Match) -> str:
    """Return the options that a line of a docstring stands for, as ``options.documented`` does."""
    kinds = {"OPTIONS": FuserOptions, "READING": ReadingOptions}
    lines = [""]
    for name in kinds[mark[2]].__annotations__:
        option = OPTIONS[name]
        words = f"{option.help} {option.more}".strip()
        lines.append(f"{mark[1]}- `{name}`: {words} Default: `{option.default!r}`.")
    return "\n".join(lines)


class Stage:
    """Copies pages below `PAGES` at their paths in the repository, and what they link to."""

    def __init__(self) -> None:
        self.waiting: list[Path] = []
        self.done: set[Path] = set()

    def add(self, path: Path) -> None:
        """Copy a file, and all that it and its links lead to."""
        self.waiting.append(path)
        while self.waiting:
            page = self.waiting.pop()
            if page not in self.done:
                self.done.add(page)
                self._copy(page)

    def _copy(self, path: Path) -> None:
        source = ROOT / path
        if path.suffix in COPIED:
            (PAGES / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, PAGES / path)
        elif source.is_dir():
            write(self._at(path), listing(path))
        elif path.suffix == ".md":
            write(path, self._linked(path, source.read_text(encoding="utf-8")))
        else:
            language = {".py": "python", ".cpp": "cpp"}.get(path.suffix, "text")
            text = source.read_text(encoding="utf-8")
            write(self._at(path), f"# {path}\n\n````{language}\n{text}````\n")

    def _linked(self, path: Path, text: str) -> str:
        def moved(found: re.Match) -> str:
            link, _, anchor = found[2].partition("#")
            if not link or re.match(r"[a-z]+:", link):
                return found[0]
            target = Path(os.path.relpath((ROOT / path.parent / link).resolve(), ROOT))
            if not (ROOT / target).exists():
                raise FileNotFoundError(f"{path}: no {found[2]}")
            self.waiting.append(target)
            new = os.path.relpath(self._at(target), path.parent)
            return f"{found[1]}{new}{'#' + anchor if anchor else ''}{found[3]}"

        parts = FENCE.split(text)
        return "".join(part if i % 2 else LINK.sub(moved, part) for i, part in enumerate(parts))

    @staticmethod
    def _at(path: Path) -> Path:
        """Return where the page of a path is."""
        if path.parent == Path("ddfm_fast") and path.name in ROOMS:
            return Path("api", f"{path.name}.md")
        if (ROOT / path).is_dir():
            return path / "folder.md"
        return path if path.suffix in {*COPIED, ".md"} else path.with_name(f"{path.name}.md")


def listing(folder: Path) -> str:
    """Return a page of a folder: its modules and what each is for."""
    lines = [f"# {folder}/", ""]
    for path in sorted((ROOT / folder).glob("*.py")):
        said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        lines.append(f"- `{path.name}`: {said.partition(chr(10))[0]}")
    others = [p.name for p in sorted((ROOT / folder).iterdir()) if p.suffix in (".cpp", ".h")]
    return "\n".join([*lines, *(f"- `{name}`" for name in others)]) + "\n"


def write(path: Path, text: str) -> None:
    (PAGES / path).parent.mkdir(parents=True, exist_ok=True)
    (PAGES / path).write_text(text, encoding="utf-8")


def public(package: Path) -> list[str]:
    """Return the names in a package's ``__all__``, [] where it has none."""
    for node in ast.parse((package / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


def api_page(name: str) -> str:
    """Return the page of a package: its docstring and each public name, from their homes."""
    lines = [
        f"# {name}",
        "",
        f"::: {name}",
        "    options: {members: false, show_root_heading: false}",
        "",
    ]
    package = ROOT / Path(*name.split("."))
    names = public(package) or [
        path.stem for path in sorted(package.glob("*.py")) if not path.stem.startswith("_")
    ]
    for member in names:
        if not member.startswith("__"):
            lines += [f"::: {name}.{member}", ""]
    return "\n".join(lines)


def config(pages: dict[str, str]) -> dict:
    """Return the settings of MkDocs; ``pages`` are the references by name."""
    inspected = {
        "extensions": [f"{Path(__file__).resolve()}:Docstrings"],
        "docstring_style": "google",
        "heading_level": 2,
        "show_root_heading": True,
        "show_root_full_path": False,
        "show_source": False,
        "separate_signature": True,
        "show_signature_annotations": True,
        "members_order": "source",
        "filters": ["!^_"],
        "docstring_options": {"warnings": False},
    }
    handler = {"paths": [str(ROOT)], "options": inspected}
    return {
        "site_name": "ddfm_fast",
        "docs_dir": str(PAGES),
        "site_dir": str(SITE),
        "use_directory_urls": False,
        "strict": True,
        "theme": {
            "name": "material",
            "font": False,
            "features": ["navigation.tabs", "navigation.top", "content.code.copy"],
            "palette": {"primary": "blue grey", "accent": "teal"},
        },
        "plugins": [
            "search",
            {"mkdocstrings": {"handlers": {"python": handler}, "enable_inventory": False}},
        ],
        "markdown_extensions": ["tables", "fenced_code", "pymdownx.superfences", "toc"],
        "validation": {
            "nav": {"omitted_files": "ignore", "not_found": "warn"},
            "links": {"not_found": "warn", "anchors": "warn", "unrecognized_links": "warn"},
        },
        "nav": [
            {"Start": "README.md"},
            {"Topics": [{name: f"ddfm_fast/docs/{name}.md"} for name in topics()]},
            {"References": [{name: f"reference/{name}.md"} for name in pages]},
            {"Python": [{"ddfm_fast": "api/ddfm_fast.md"}, *({r: f"api/{r}.md"} for r in ROOMS)]},
            {"Records": "bench/results/README.md"},
            {"Changes": "CHANGELOG.md"},
            {"Contributing": "CONTRIBUTING.md"},
        ],
    }


def main() -> None:
    """Write the site to ``out/site``; any broken link or name ends it with an error."""
    logging.basicConfig(level=logging.WARNING, format="docs: %(message)s")
    shutil.rmtree(WORK, ignore_errors=True)
    shutil.rmtree(SITE, ignore_errors=True)
    stage, program = Stage(), typer.main.get_command(app)
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "bench/results/README.md"):
        stage.add(Path(name))
    for name in topics():
        stage.add(Path("ddfm_fast", "docs", f"{name}.md"))
    for name in reference.PAGES:
        write(Path("reference", f"{name}.md"), reference.text(name, program))
    for name in ("ddfm_fast", *(f"ddfm_fast.{room}" for room in ROOMS)):
        write(Path("api", f"{name.rpartition('.')[2]}.md"), api_page(name))
    settings = WORK / "mkdocs.yml"
    settings.write_text(yaml.safe_dump(config(reference.summaries()), sort_keys=False))
    build(load_config(str(settings)))
    print(f"docs: {len(list(SITE.rglob('*.html')))} pages, from {SITE / 'index.html'} on")


if __name__ == "__main__":
    sys.exit(main())
