"""The script of the report, run by a real browser without a screen; the DOM shows what it drew."""

from __future__ import annotations

import re
import shutil
import subprocess

import numpy as np
import pytest

from ddfm_fast.datasets.pairs import find_pairs
from ddfm_fast.files.writing import write_image
from ddfm_fast.metrics.evaluation import CORE, MethodPictures, evaluate
from ddfm_fast.metrics.report import write_report

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
pytestmark = pytest.mark.skipif(not BROWSER, reason="no Chromium here to open the page with")

HAND = """<script>
addEventListener('error', (event) => { document.title = `error: ${event.message}`; });
addEventListener('load', () => setTimeout(() => {
  const set = (id, value) => {
    byId(id).value = value;
    byId(id).dispatchEvent(new Event('change'));
  };
  ACTIONS
  setTimeout(() => {
    const shown = document.querySelector('.panel:not([hidden])');
    const crop = shown.querySelectorAll('.crop')[2].getContext('2d').getImageData(9, 9, 1, 1).data;
    document.body.dataset.crop = [...crop].join(' ');
    document.body.dataset.pair = shown.querySelector('h2').textContent;
    document.body.dataset.first = document.querySelector('tbody th').textContent;
  }, 400);
}, 400));
</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Three pairs; of b the maximum's mean squared error is least, of c it is most."""
    root = tmp_path_factory.mktemp("page")
    x = np.arange(64, dtype=np.uint8) + np.zeros((48, 1), np.uint8)
    for name, lead in {"a": 20, "b": 5, "c": 60}.items():
        write_image(root / "set" / "ir" / f"{name}.png", x + 80)
        write_image(root / "set" / "vi" / f"{name}.png", x + 80 + lead)
    items = find_pairs(root / "set")
    methods = [MethodPictures("mean"), MethodPictures("max")]
    evaluation = evaluate(items, methods, names=(*CORE, "MSE"), convention="sane")
    return write_report(root / "r.html", evaluation, items, methods)


def opened(page, actions: str, hash: str = "") -> str:
    copy = page.with_name("copy.html")
    copy.write_text(page.read_text("utf-8").replace("</body>", HAND.replace("ACTIONS", actions)))
    run = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"),
            *("--virtual-time-budget=4000", "--dump-dom", f"{copy.as_uri()}{hash}"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "<title>error" not in run.stdout
    return re.sub("(?s)<script.*?</script>", "", run.stdout)


def kept(dom: str, name: str) -> str:
    return re.search(rf'<body[^>]*data-{name}="([^"]*)"', dom)[1]


def lenses(dom: str) -> list[tuple[str, str]]:
    return re.findall(r'class="lens" style="left: ([\d.]+%); top: ([\d.]+%);', dom)


def test_one_place_of_all_pictures_is_enlarged(page):
    dom = opened(page, "move(0.25, 0.5);")
    assert lenses(dom) == [("12.5%", "37.5%")] * 4
    assert dom.count('<polyline fill="none"') == 2 and dom.count("<circle") == 6
    dom = opened(
        page,
        """const view = document.querySelectorAll('.panel:not([hidden]) .view')[3];
        const box = view.getBoundingClientRect();
        view.dispatchEvent(new PointerEvent('pointermove', { bubbles: true,
          clientX: box.left + box.width, clientY: box.top }));""",
    )
    assert lenses(dom) == [("75%", "0%")] * 4


def test_pairs_are_ordered_by_a_score_and_less_is_better_where_it_is(page):
    by_error = "set('metric', data.columns.findIndex((c) => c.name === 'MSE')); set('order', 1);"
    assert kept(opened(page, by_error), "pair") == "c"
    assert kept(opened(page, by_error + "leaf(2);"), "pair") == "b"
    assert kept(opened(page, by_error + "leaf(-1);"), "pair") == "b"
    assert kept(opened(page, "", "#pair-2"), "pair") == "b"


def test_differences_are_from_the_picture_that_is_chosen(page):
    """The mean of pair a is 10 levels above its first source, JPEG's error aside."""
    red, green, blue, _ = map(int, kept(opened(page, "set('base', 0);"), "crop").split())
    assert red == 255 and green == blue and abs(green - (255 - 40)) <= 12
    red, _, blue, _ = map(int, kept(opened(page, "set('base', 1);"), "crop").split())
    assert blue == 255 and abs(red - (255 - 40)) <= 12
    assert len(set(kept(opened(page, ""), "crop").split()[:3])) == 1


def test_methods_are_ordered_by_a_column(page):
    assert kept(opened(page, ""), "first") == "mean"
    assert (
        kept(opened(page, "document.querySelector('thead th button').click();"), "first") == "mean"
    )
    column = "[...document.querySelectorAll('thead th')].find((h) => h.textContent.startsWith"
    least = f"const h = {column}('MSE')); const b = h.querySelector('button'); b.click();"
    top = kept(opened(page, least), "first")
    assert {top, kept(opened(page, least + "b.click();"), "first")} == {"mean", "max"}
