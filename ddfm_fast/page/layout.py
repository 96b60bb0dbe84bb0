"""What the page shows: controls and results, by Gradio; ``work`` does the computing."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from ..align.call import SETTINGS
from ..config import DEFAULT_PRESET, DEFAULT_SEED, PRESETS
from ..datasets.demo import PAIRS
from ..files.paths import VIDEO_SUFFIXES
from ..images.ranges import NAMES as RANGES
from ..serve.logs import Log
from ..video.temporal import VIDEO_PRESETS
from .controls import COLORS, FORMATS, PRESET_DECIDES, SIZES, Controls
from .sentences import Sentence, as_html, of_error
from .views import Views, score
from .work import Tell, Work

ASSETS = Path(__file__).resolve().parent.parent / "assets"
_ONE = {"concurrency_limit": 1, "concurrency_id": "device", "api_visibility": "private"}
"""for work on the device: one request after the other, over all visitors"""
_LIGHT = {"concurrency_limit": 4, "api_visibility": "private", "show_progress": "hidden"}
_WAITING = 32
"""most visitors who may wait"""
_COLOR_NAMES = {
    "auto": "of the visible picture",
    "vis": "of the visible picture alone",
    "ir": "of the infrared picture",
    "gray": "none",
}
_FORMAT_NAMES = {"png": "PNG", "tif": "TIFF"}

CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
.gradio-container .html-container { padding: 0 !important; }
#head h1 { font-size: 1.35rem; font-weight: 600; margin: 0; }
#head p { margin: .15rem 0 0; color: var(--body-text-color-subdued); }
.sentences { font-size: .9rem; line-height: 1.4; }
.sentences p { margin: 0 !important; padding: .12rem 0 .12rem .6rem; overflow-wrap: anywhere;
  border-left: 3px solid var(--border-color-primary); }
.sentences p.warning { border-left-color: #d9a400; }
.sentences p.error { border-left-color: #c62828; font-weight: 600; }
.sentences code { display: block; margin-top: .5rem; padding: .45rem .6rem; font-size: .8rem;
  background: var(--background-fill-secondary); border-radius: 4px; overflow-wrap: anywhere;
  user-select: all; }
.scores { display: grid; grid-template-columns: repeat(3, max-content); gap: .1rem 1.6rem;
  font-size: .88rem; font-variant-numeric: tabular-nums; text-align: right; }
.scores > :nth-child(3n + 1) { text-align: left; }
.scores > :nth-child(-n + 3) { color: var(--body-text-color-subdued); }
.said { min-height: 6rem; scroll-margin-top: .75rem; }
.said .pending { opacity: 0 !important; }
.examples button { font-weight: 400; white-space: normal; }
@media (max-width: 640px) {
  .gradio-container { padding: .5rem !important; }
  .parts { flex-wrap: nowrap !important; gap: .35rem !important; }
  .parts > * { min-width: 0 !important; }
}
"""


def make_theme() -> Any:
    """Make a plain theme with the system's fonts: none is loaded."""
    return gr.themes.Default(
        primary_hue="slate",
        neutral_hue="gray",
        radius_size="sm",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )


class _Said:
    """Calls the work, and turns an error into a sentence; the log has the traceback."""

    def __init__(self, root: Path, log: Log):
        self.root, self.log = root, log

    def __call__(self, failed: Callable[[str], Any], function: Callable[..., Any]) -> Any:
        @functools.wraps(function)
        def wrapped(*args: Any) -> Any:
            try:
                return function(*args)
            except Exception as error:
                if not isinstance(error, (ValueError, TypeError, ImportError)):
                    self.log("error", error=repr(error), where=traceback.format_exc()[-400:])
                return failed(as_html([Sentence(of_error(error, self.root), "error")]))

        return wrapped

    def html(self, lines: list[Sentence], note: str = "") -> str:
        return as_html([Sentence(of_error(ValueError(t), self.root), k) for t, k in lines], note)


class _Method(NamedTuple):
    """Controls that all three parts of the page have."""

    preset: Any
    denoise: Any
    align: Any
    resize: Any
    ir_range: Any
    vis_range: Any
    color: Any
    steps: Any
    seed: Any


def make_page(work: Work, root: Path, log: Log) -> Any:
    """Make the page.

    Args:
        work: Does the computing.
        root: The folder that no sentence may reveal.
        log: Takes faults of the program.
    """
    said = _Said(root, log)
    with gr.Blocks(
        title="ddfm_fast", analytics_enabled=False, delete_cache=(600, 6 * 3600), fill_width=False
    ) as page:
        gr.HTML(
            "<h1>Fuse two pictures</h1><p>Infrared and visible, or two medical pictures. All is "
            "done on the machine that runs this page.</p>",
            elem_id="head",
            padding=False,
        )
        with gr.Tab("Pictures"):
            _pair_tab(work, said)
        with gr.Tab("Video"):
            _video_tab(work, said)
        with gr.Tab("Folder"):
            _folder_tab(work, said)
    page.queue(max_size=_WAITING, default_concurrency_limit=1, api_open=False)
    return page


def _method(*, image: bool = True) -> _Method:
    """Return the controls; ``image``: also those of single pictures, which a video lacks."""
    summaries = {name: one.summary for name, one in PRESETS.items()}
    preset = _presets(summaries, "Preset" if image else "Preset of each frame", visible=image)
    denoise = gr.Dropdown(
        [PRESET_DECIDES, "auto", "off"], value=PRESET_DECIDES, allow_custom_value=True,
        label="Noise to remove first", info="or its σ in gray levels",
    )  # fmt: skip
    align = gr.Dropdown(
        [*SETTINGS], value="check", label="Align", filterable=False,
        info="check only says if the pair is shifted",
    )  # fmt: skip
    with gr.Accordion("More", open=False):
        with gr.Row():
            ir_range, vis_range = (
                gr.Dropdown(
                    [*RANGES], value="auto", allow_custom_value=True, min_width=140,
                    label=f"{name} range", info="or black,white",
                )
                for name in ("Infrared", "Visible")
            )  # fmt: skip
        names = dict(zip(SIZES, ("no", "both to the infrared", "both to the visible"), strict=True))
        resize = gr.Dropdown(
            [(names[one], one) for one in SIZES], value=SIZES[0], label="Resize",
            filterable=False,
        )  # fmt: skip
        color = gr.Dropdown(
            [(_COLOR_NAMES[one], one) for one in COLORS], value="auto", label="Color",
            filterable=False,
        )  # fmt: skip
        with gr.Row(visible=image):
            steps = gr.Textbox("", label="Steps", placeholder=PRESET_DECIDES, min_width=120)
            seed = gr.Number(DEFAULT_SEED, label="Seed", precision=0, minimum=0, min_width=120)
    return _Method(
        preset, denoise, align, resize, ir_range, vis_range, color, steps, seed
    )  # fmt: skip


def _presets(summaries: dict[str, str], label: str, *, visible: bool = True) -> Any:
    """Return a choice of presets, with the summary of the chosen one above it."""
    names = [*summaries]
    value = DEFAULT_PRESET if DEFAULT_PRESET in names else names[0]
    choice = gr.Dropdown(
        names, value=value, label=label, info=summaries[value], filterable=False, visible=visible
    )
    choice.input(lambda name: gr.update(info=summaries[name]), choice, choice, **_LIGHT)
    return choice


def _files(kinds: list[str] | None, what: str) -> list[Any]:
    return [
        gr.File(
            label=f"{name} {what}", file_types=kinds, height=132, elem_id=f"{short}-{what}",
            elem_classes="file",
        )
        for name, short in (("Infrared", "ir"), ("Visible", "vis"))
    ]  # fmt: skip


def _teller(progress: Any) -> Tell:
    return lambda at, text: progress(at, desc=text)


class _Pair(NamedTuple):
    """What shows a fused pair."""

    result: Any
    slider: Any
    before: Any
    download: Any
    report: Any
    parts: list[Any]
    place: list[Any]
    scores: Any
    views: Any


def _pair_tab(work: Work, said: _Said) -> None:
    with gr.Row():
        with gr.Column(scale=2, min_width=310):
            ir, vis = files = _files(None, "picture")
            gr.HTML("Or an example:", padding=False)
            with gr.Row(elem_classes="examples"):
                for pair in PAIRS:
                    paths = [str(ASSETS / pair.first), str(ASSETS / pair.second)]
                    title = pair.title.partition(",")[0]
                    button = gr.Button(
                        title[:1].upper() + title[1:], size="sm", min_width=90, elem_id=pair.name
                    )
                    button.click(lambda paths=paths: paths, None, files, **_LIGHT)
            seen = gr.HTML(elem_id="seen", padding=False)
            method = _method()
            form = gr.Radio(
                [(_FORMAT_NAMES[one], one) for one in FORMATS], value="png", label="File"
            )
            button = gr.Button("Fuse", variant="primary", elem_id="fuse")
        with gr.Column(scale=3, min_width=330):
            shown = _result()
    given = [*files, *method, form]
    _connect_pair(work, said, button, given, shown)
    looked = said(
        lambda text: text,
        lambda a, b, *c: said.html(work.look(a, b, Controls(*c))),
    )
    changed = [one.change for one in (*files, method.ir_range, method.vis_range, method.resize)]
    gr.on(changed, looked, given, seen, **_LIGHT)


def _result() -> _Pair:
    report = gr.HTML(
        '<p id="empty">Choose two pictures, or an example, then <b>Fuse</b>.</p>',
        elem_id="report",
        elem_classes="said",
        padding=False,
    )
    with gr.Column(visible=False) as result:
        before = gr.Radio(
            [("Infrared", "ir"), ("Visible", "vis")], value="vis", label="Left of the line",
            elem_id="before",
        )  # fmt: skip
        slider = gr.ImageSlider(
            label="Source and result: move the line", interactive=False, format="png",
            max_height=620, buttons=["fullscreen"], elem_id="slider",
        )  # fmt: skip
        download = gr.DownloadButton("Download the file", variant="primary", elem_id="download")
        with gr.Row(elem_classes="parts"):
            parts = [
                gr.Image(label=name, interactive=False, format="png", buttons=[], min_width=90)
                for name in ("Infrared", "Visible", "Fused")
            ]
        with gr.Row():
            place = [
                gr.Slider(0, 100, 50, step=1, label="Across, %", min_width=170, elem_id="across"),
                gr.Slider(0, 100, 50, step=1, label="Down, %", min_width=170),
                gr.Slider(16, 256, 96, step=8, label="Pixels a side", min_width=170),
            ]
        with gr.Accordion("Metrics", open=False):
            scores = gr.HTML(elem_id="scores", padding=False)
    return _Pair(result, slider, before, download, report, parts, place, scores, gr.State(None))


def _in_view(selector: str) -> str:
    """Return JavaScript that scrolls to the message: the button may be far below it."""
    return f"""() => {{ const said = document.querySelector("{selector}");
      const top = said.getBoundingClientRect().top;
      if (top < 0 || top > window.innerHeight - 120) said.scrollIntoView(); }}"""


def _connect_pair(work: Work, said: _Said, button: Any, given: list[Any], shown: _Pair) -> None:
    button.click(None, js=_in_view("#report"))
    head = [shown.report, shown.result, shown.views]
    rest = [shown.slider, shown.download, *shown.place, *shown.parts, shown.scores]

    def fuse(*values: Any, progress: Any) -> list[Any]:
        """Return the sentences and pictures of a pair."""
        ir, vis, *controls = values
        done = work.pair(ir, vis, Controls(*controls), _teller(progress))
        views = done.views
        assert views is not None  # of a pair, always
        across, down = views.place
        return [
            said.html(done.lines, done.note), gr.update(visible=True), views,
            gr.update(value=(views.shown("vis"), views.shown("fused"))),
            gr.update(value=str(done.file)), round(100 * across), round(100 * down), 96,
            *views.parts(across, down, 96), "",
        ]  # fmt: skip

    def failed(text: str) -> list[Any]:
        return [text, gr.update(visible=False), None, *[gr.skip()] * len(rest)]

    def run(*values: Any, progress: Any = gr.Progress()) -> list[Any]:  # noqa: B008
        return said(failed, lambda: fuse(*values, progress=progress))()

    fused = button.click(run, given, [*head, *rest], show_progress_on=shown.report, **_ONE).then(
        lambda: "vis", None, shown.before, **_LIGHT
    )
    fused.then(None, js=_in_view("#report"))
    fused.then(said(str, functools.partial(_scored, said)), shown.views, shown.scores, **_LIGHT)
    shown.before.change(
        lambda name, views: views and (views.shown(name), views.shown("fused")),
        [shown.before, shown.views], shown.slider, **_LIGHT,
    )  # fmt: skip
    gr.on(
        [one.release for one in shown.place], _parts, [shown.views, *shown.place], shown.parts,
        **_LIGHT,
    )  # fmt: skip


def _parts(views: Views | None, across: float, down: float, side: float) -> list[Any]:
    return [None] * 3 if views is None else [*views.parts(across / 100, down / 100, side)]


def _scored(said: _Said, views: Views | None) -> str:
    if views is None:
        return ""
    table, sentences = score(views)
    return table + said.html([Sentence(text, "warning") for text in sentences])


def _video_tab(work: Work, said: _Said) -> None:
    with gr.Row():
        with gr.Column(scale=2, min_width=310):
            files = _files([*VIDEO_SUFFIXES], "video")
            summaries = {name: one.summary for name, one in VIDEO_PRESETS.items()}
            preset = _presets(summaries, "Video preset")
            method = _method(image=False)
            preset.input(
                lambda name: gr.update(visible=name == "exact"), preset, method.preset, **_LIGHT
            )
            button = gr.Button("Fuse the videos", variant="primary", elem_id="fuse-video")
        with gr.Column(scale=3, min_width=330):
            report = gr.HTML(
                "<p>Choose two videos, then <b>Fuse the videos</b>.</p>",
                elem_id="video-report",
                elem_classes="said",
                padding=False,
            )
            player = gr.Video(visible=False, interactive=False, label="Fused", buttons=[])
            download = gr.DownloadButton(
                "Download the file", visible=False, elem_id="download-video"
            )

    def run(
        ir: Any,
        vis: Any,
        preset: str,
        *controls: Any,
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> list[Any]:
        def fuse() -> list[Any]:
            done = work.video(ir, vis, preset, Controls(*controls), _teller(progress))
            shown = gr.update(value=str(done.file), visible=True)
            return [said.html(done.lines), shown, gr.update(value=str(done.file), visible=True)]

        return said(_nothing(2), fuse)()

    outputs = [report, player, download]
    button.click(None, js=_in_view("#video-report"))
    fused = button.click(run, [*files, preset, *method], outputs, show_progress_on=report, **_ONE)
    fused.then(None, js=_in_view("#video-report"))


def _folder_tab(work: Work, said: _Said) -> None:
    with gr.Row():
        with gr.Column(scale=2, min_width=310):
            archive = gr.File(
                label="ZIP file of pairs", file_types=[".zip"], height=132, elem_id="archive"
            )
            gr.HTML(
                "<p>Two folders of equal names, such as <code>ir/</code> and <code>vis/</code>, or "
                "names that tell the two apart.</p>",
                padding=False,
            )
            method = _method()
            form = gr.Radio(
                [(_FORMAT_NAMES[one], one) for one in FORMATS], value="png", label="Files"
            )
            button = gr.Button("Fuse the folder", variant="primary", elem_id="fuse-folder")
        with gr.Column(scale=3, min_width=330):
            report = gr.HTML(
                "<p>Choose a ZIP file, then <b>Fuse the folder</b>.</p>",
                elem_id="folder-report",
                elem_classes="said",
                padding=False,
            )
            download = gr.DownloadButton(
                "Download the file", visible=False, elem_id="download-folder"
            )

    def run(file: Any, *controls: Any, progress: Any = gr.Progress()) -> list[Any]:  # noqa: B008
        def fuse() -> list[Any]:
            done = work.folder(file, Controls(*controls), _teller(progress))
            return [said.html(done.lines), gr.update(value=str(done.file), visible=True)]

        return said(_nothing(1), fuse)()

    button.click(None, js=_in_view("#folder-report"))
    fused = button.click(
        run, [archive, *method, form], [report, download], show_progress_on=report, **_ONE
    )
    fused.then(None, js=_in_view("#folder-report"))


def _nothing(count: int) -> Callable[[str], list[Any]]:
    return lambda text: [text, *[gr.update(visible=False, value=None)] * count]
