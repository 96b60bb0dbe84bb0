"""Every option of every command: that none is lost, where help shows it, what it is made from."""

from __future__ import annotations

import ast
import inspect
import re
import types
import typing
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from ddfm_fast.bench.sections import SECTIONS
from ddfm_fast.cli import app as home
from ddfm_fast.cli.app import app
from ddfm_fast.cli.settings import OUTPUT_OPTIONS
from ddfm_fast.options import OPTIONS, FuserOptions, ReadingOptions

SCREEN = 40
RECORD = {
    "fuse": """
        --align: str, 'check'
        --backend: str, None
        --chroma: 444|422|420, None
        --color-from: auto|ir|vis, 'auto'
        --compression: str, None
        --denoise: str, None
        --device: str, None
        --dtype: auto|float32|tf32|bfloat16|float16, 'auto'
        --eta: float, None
        --format: str, None
        --graph: str, None
        --gray: bool, False
        --images: auto|photographic|functional, None
        --ir-range: str, None
        --json: bool, False
        --keep-thermal: bool, False
        --max-pixels: int min=1, None
        --no-metadata: bool, False
        --nodata: str, None
        --out-range: str, 'full'
        --panel: bool, False
        --preset: str, None
        --prior-config: str, None
        --prior: str, 'embedded'
        --psi: float, None
        --quality: int min=1 max=100, None
        --raw-size: str, None
        --resize: ir|vis, None
        --sampler: str, None
        --seed: int, 3407
        --skip-existing: bool, False
        --steps: str, None
        --stretch: none|minmax|percentile|sources, None
        --variant: str, None
        --vis-range: str, None
        -o --out: Path, required
        -q --quiet: bool, False
        ir: Path, required
        vis: Path, required
    """,
    "batch": """
        --actors: int min=1, None
        --address: str, None
        --align: str, 'check'
        --backend: str, None
        --batch-size: int min=1, None
        --chroma: 444|422|420, None
        --color-from: auto|ir|vis, 'auto'
        --compression: str, None
        --denoise: str, None
        --device: str, None
        --dtype: auto|float32|tf32|bfloat16|float16, 'auto'
        --eta: float, None
        --format: str, 'png'
        --graph: str, None
        --gray: bool, False
        --images: auto|photographic|functional, None
        --ir-range: str, None
        --json: bool, False
        --keep-thermal: bool, False
        --layout: str, None
        --list: bool, False
        --manifest: Path, None
        --max-pixels: int min=1, None
        --no-metadata: bool, False
        --nodata: str, None
        --num-gpus: float min=0, None
        --on: here|ray, 'here'
        --out-range: str, 'full'
        --pattern: str, None
        --preset: str, None
        --prior-config: str, None
        --prior: str, 'embedded'
        --psi: float, None
        --quality: int min=1 max=100, None
        --range-over: picture|dataset, 'picture'
        --raw-size: str, None
        --redo: bool, False
        --resize: ir|vis, None
        --sampler: str, None
        --seed: int, 3407
        --steps: str, None
        --stretch: none|minmax|percentile|sources, None
        --variant: str, None
        --vis-range: str, None
        --workers: int min=1, 2
        -o --out: Path, None
        -q --quiet: bool, False
        root: Path, required
        vis: Path, None
    """,
    "video": """
        --align: str, 'check'
        --codec: h264|hevc|ffv1|png, None
        --color-from: auto|ir|vis, 'auto'
        --crf: int min=0 max=51, None
        --deinterlace: auto|off, 'auto'
        --denoise: str, None
        --device: str, None
        --end: float min=0, None
        --gray: bool, False
        --image-preset: str, None
        --images: auto|photographic|functional, None
        --ir-range: str, None
        --json: bool, False
        --no-audio: bool, False
        --offset: float, 0.0
        --on-error: skip|repeat|stop, 'skip'
        --preset: str, 'balanced'
        --preview: bool, False
        --prior-config: str, None
        --prior: str, 'embedded'
        --profile: bool, False
        --rate: float, None
        --realtime: bool, False
        --reconnect: float, 0.0
        --resize: str, None
        --seed: int, 3407
        --side-by-side: bool, False
        --start: float min=0, 0.0
        --tone-map: auto|off, 'auto'
        --vis-range: str, None
        -o --out: str, required
        -q --quiet: bool, False
        ir: str, required
        vis: str, None
    """,
    "volume": """
        --color-from: auto|ir|vis, 'auto'
        --colormap: str, None
        --denoise: str, None
        --device: str, None
        --frame: str, None
        --gray: bool, False
        --grid: ir|vis, 'ir'
        --images: auto|photographic|functional, None
        --ir-range: str, None
        --json: bool, False
        --nodata: str, None
        --plane: axial|coronal|sagittal, None
        --preset: str, None
        --prior-config: str, None
        --prior: str, 'embedded'
        --seed: int, 3407
        --series: str, None
        --slices: str, None
        --steps: str, None
        --stretch: none|minmax|percentile|sources, None
        --vis-range: str, None
        -o --out: Path, required
        -q --quiet: bool, False
        ir: Path, required
        vis: Path, required
    """,
    "serve": """
        --backend: str, None
        --denoise: str, None
        --device: str, None
        --dtype: auto|float32|tf32|bfloat16|float16, 'auto'
        --graph: str, None
        --host: str, '127.0.0.1'
        --images: auto|photographic|functional, None
        --insecure: bool, False
        --max-batch: int min=1, None
        --max-bytes: int min=1, 67108864
        --max-pixels: int min=256, 16777216
        --max-queue: int min=1, 256
        --port: int min=0 max=65535, 8000
        --preset: str, None
        --prior-config: str, None
        --prior: str, 'embedded'
        --timeout: float min=0.1, 60.0
        --token-file: Path, None
        --wait: float min=0, 5.0
    """,
    "align": """
        --ir-camera: Path, None
        --ir-range: str, None
        --json: bool, False
        --max-pixels: int min=1, None
        --model: shift|affine|homography, 'homography'
        --vis-camera: Path, None
        --vis-range: str, None
        -o --out: Path, required
        -q --quiet: bool, False
        pictures: list[Path], required
    """,
    "presets": """
        --json: bool, False
    """,
    "doctor": """
        --clear-cache: bool, False
        --json: bool, False
    """,
    "demo": """
        --device: str, None
        --steps: str, None
        --video: bool, False
        -o --out: Path, 'out'
        -q --quiet: bool, False
    """,
    "evaluate": """
        --baselines: bool, False
        --device: str, None
        --extra: str, None
        --format: table|csv|json|markdown, None
        --fused: list[str], None
        --ir-range: str, None
        --json: bool, False
        --layout: str, None
        --limit: int min=1, None
        --manifest: Path, None
        --max-pixels: int min=1, None
        --metrics: str, 'cddfuse'
        --nodata: str, None
        --paper: str, None
        --pattern: str, None
        --per-image: bool, False
        --raw-size: str, None
        --report-pairs: int min=1, 60
        --report: Path, None
        --vis-range: str, None
        -o --out: Path, None
        -q --quiet: bool, False
        root: Path, required
        vis: Path, None
    """,
    "ablate": """
        --baselines: bool, False
        --denoise: str, None
        --device: str, None
        --eta: float, None
        --extra: str, None
        --format: table|csv|json|markdown, None
        --images: auto|photographic|functional, None
        --ir-range: str, None
        --json: bool, False
        --layout: str, None
        --limit: int min=1, None
        --manifest: Path, None
        --max-pixels: int min=1, None
        --metrics: str, 'cddfuse'
        --nodata: str, None
        --paper: str, None
        --pattern: str, None
        --per-image: bool, False
        --preset: str, None
        --prior-config: str, None
        --prior: str, 'embedded'
        --psi: float, None
        --raw-size: str, None
        --report-pairs: int min=1, 60
        --report: Path, None
        --rows: str, None
        --seed: int, 3407
        --steps: str, None
        --vis-range: str, None
        -o --out: Path, required
        -q --quiet: bool, False
        root: Path, required
        vis: Path, None
    """,
    "bench": """
        --compare: tuple[Path, Path], None
        --device: str, None
        --for-profiler: bool, False
        --from: Path, None
        --list: bool, False
        --quick: bool, False
        --rehearse: bool, False
        --repeats: int min=1, 40
        --report: bool, False
        --save: bool, False
        --seconds: float min=0, None
        --size: str, None
        --threads: int min=1, None
        --threshold: float min=0, None
        -o --out: Path, None
        -q --quiet: bool, False
        sections: list[str], None
    """,
    "prior info": """
        --json: bool, False
        file: str, required
    """,
    "prior check": """
        --json: bool, False
        --prior-config: str, None
        file: str, required
    """,
    "prior convert": """
        --config: str, None
        --dtype: float32|float16|bfloat16, None
        dst: Path, required
        src: Path, required
    """,
}
"""what users may have in scripts: names, types and defaults, which are not to change"""

OWN_WORDS = {("video", "preset"), ("ablate", "preset"), ("demo", "steps")}
"""options that mean something narrower than those of the same name in `OPTIONS`"""

BODY = 40


def commands(group: Any = None, prefix: str = "") -> dict[str, Any]:
    found = {}
    for name, command in (group or typer.main.get_command(app)).commands.items():
        if hasattr(command, "commands"):
            found |= commands(command, f"{prefix}{name} ")
        else:
            found[prefix + name] = command
    return found


COMMANDS = commands()


def described(parameter: Any, annotation: Any) -> str:
    """A parameter as `RECORD` has it."""
    kind = typing.get_args(annotation)[0]
    if isinstance(kind, types.UnionType):
        (kind,) = (k for k in typing.get_args(kind) if k is not type(None))
    if typing.get_args(kind):
        text = re.sub(r"pathlib\.(_local\.)?", "", str(kind))
    elif issubclass(kind, Enum):
        text = "|".join(str(choice.value) for choice in kind)
    else:
        text = kind.__name__
    limits = [(name, getattr(parameter, name, None)) for name in ("min", "max")]
    text += "".join(f" {name}={value}" for name, value in limits if value is not None)
    default = getattr(parameter.default, "value", parameter.default)
    default = str(default) if isinstance(default, Path) else default
    end = "required" if parameter.required else repr(default)
    return f"{' '.join(sorted(parameter.opts, key=len))}: {text}, {end}"


@pytest.mark.parametrize("name", RECORD)
def test_every_command_keeps_its_options(name):
    command = COMMANDS[name]
    types_of = inspect.signature(command.callback, eval_str=True).parameters
    found = sorted(described(p, types_of[p.name].annotation) for p in command.params)
    assert found == [line.strip() for line in RECORD[name].strip().splitlines()]


def test_every_command_is_recorded():
    assert list(COMMANDS) == list(RECORD)


def parameters() -> list[tuple[str, Any]]:
    return [(name, p) for name, command in COMMANDS.items() for p in command.params]


def test_what_the_library_shares_comes_from_its_list():
    found = set()
    for name, parameter in parameters():
        if (
            parameter.name not in FuserOptions.__annotations__
            or (name, parameter.name) in OWN_WORDS
        ):
            continue
        if name in ("prior convert", "prior info"):  # of a file, not of a fuser
            continue
        listed = OPTIONS[parameter.name]
        assert (parameter.help, parameter.rich_help_panel) == (listed.help, listed.group), name
        assert getattr(parameter.default, "value", parameter.default) == listed.default, name
        found.add(parameter.name)
    assert {"preset", "steps", "prior", "seed", "device", "dtype", "batch_size"} <= found
    assert not found & ReadingOptions.__annotations__.keys()


def test_every_option_has_a_panel_and_help():
    for name, parameter in parameters():
        assert parameter.rich_help_panel in PANELS, (name, parameter.name)
        assert parameter.help, (name, parameter.name)


PANELS = ("Input", "Input options", "Method", "Output", "Runtime")


def help_of(name: str) -> list[str]:
    result = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "100"})
    assert result.exit_code == 0
    return result.stdout.splitlines()


@pytest.mark.parametrize("name", RECORD)
def test_panels_come_in_one_order(name):
    lines = help_of(name)
    panels = [found[1] for line in lines if (found := re.match(r"╭─ ([\w ]+) ─", line))]
    assert panels == [panel for panel in PANELS if panel in panels]
    assert len(lines) <= 3 * SCREEN


def test_help_of_fuse():
    """The first screen has what people use."""
    text = help_of("fuse")
    first = "\n".join(text[:SCREEN])
    assert all(name in first for name in ("IR", "VIS", "--preset", "--steps", "--out"))
    options = [found[1] for line in text if (found := re.match(r"│ \*? *(--[\w-]+)", line))]
    assert options[:6] == [
        "--ir-range", "--vis-range", "--nodata", "--raw-size", "--resize", "--align",
    ]  # fmt: skip
    assert [line for line in text if "─ Runtime ─" in line]
    assert options[-1] == "--help"


def test_help_of_bench_names_every_section():
    assert set(SECTIONS) <= set(re.findall(r"\w+", COMMANDS["bench"].params[0].help))


def functions() -> dict[str, tuple[ast.Module, ast.FunctionDef]]:
    """Name → module and definition of what is registered as a command."""
    found = {}
    for name, command in COMMANDS.items():
        function = inspect.unwrap(command.callback)
        module = ast.parse(Path(inspect.getfile(function)).read_text(encoding="utf-8"))
        (definition,) = (
            node
            for node in module.body
            if isinstance(node, ast.FunctionDef) and node.name == function.__name__
        )
        found[name] = module, definition
    return found


def test_bodies_are_short():
    for name, (_, function) in functions().items():
        body = function.body[1:]  # without the docstring
        assert function.end_lineno - body[0].lineno + 1 <= BODY, name


def test_no_parameter_is_forgotten():
    """``read_settings`` takes some by name, which no linter sees; here each is looked for."""
    for command, (module, function) in functions().items():
        named = {n.id for s in function.body for n in ast.walk(s) if isinstance(n, ast.Name)}
        taken = {n.value for n in ast.walk(module) if isinstance(n, ast.Constant)}
        if "read_settings" in named:
            taken |= {*FuserOptions.__annotations__, "gray", "color_from", "prior_config"}
        if "output" in named:
            taken |= set(OUTPUT_OPTIONS)
        for argument in (*function.args.args, *function.args.kwonlyargs):
            assert argument.arg in named | taken, (command, argument.arg)


def test_one_list_of_options():
    """No command makes an option of its own, and none imports the application."""
    for path in Path(home.__file__).parent.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path.name not in ("options.py", "app.py"):
            assert "typer.Option(" not in text and "typer.Argument(" not in text, path.name
            assert not re.search(r"from \.app import|from \. import app", text), path.name
