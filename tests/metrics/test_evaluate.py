"""Evaluation: the numbers, what is left out, the warnings, and the four tables and the page."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import shared
from PIL import Image
from typer.testing import CliRunner

from ddfm_fast import metrics
from ddfm_fast.cli.app import app
from ddfm_fast.datasets.items import PairItem
from ddfm_fast.datasets.pairs import find_pairs
from ddfm_fast.files.reading import read_image
from ddfm_fast.files.writing import write_image
from ddfm_fast.metrics.evaluation import (
    CORE,
    GUARDS,
    PAPER,
    Evaluation,
    MethodPictures,
    MethodScores,
    Results,
    evaluate,
    parse_method,
)
from ddfm_fast.metrics.report import write_report
from ddfm_fast.metrics.tables import FORMATS, as_dict, format_value, render

HEIGHT, WIDTH = 48, 64


def texture(seed: int, low: int, high: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.random((HEIGHT // 4, WIDTH // 4)).repeat(4, 0).repeat(4, 1)
    level = 0.7 * coarse + 0.3 * rng.random((HEIGHT, WIDTH))
    return (low + (high - low) * level).astype(np.uint8)


@pytest.fixture
def root(tmp_path):
    """A data set of three pairs, and the results of two methods: ``avg`` and ``copy`` (of vis)."""
    for n, name in enumerate("abc"):
        ir, vis = texture(n, 10, 250), texture(n + 10, 60, 200)
        write_image(tmp_path / "set" / "ir" / f"{name}.png", ir)
        write_image(tmp_path / "set" / "vi" / f"{name}.bmp", vis)
        fused = ((ir.astype(np.uint16) + vis) // 2).astype(np.uint8)
        write_image(tmp_path / "avg" / f"{name}.png", np.repeat(fused[..., None], 3, 2))
        write_image(tmp_path / "copy" / f"{name}.tif", vis)
    return tmp_path


@pytest.fixture
def both(root):
    return [MethodPictures("avg", root / "avg"), MethodPictures("copy", root / "copy")]


def items_of(root) -> list[PairItem]:
    return find_pairs(root / "set")


def call(*arguments):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def command(root, *more):
    fused = ["--fused", f"avg={root / 'avg'}", "--fused", root / "copy"]
    return call(root / "set", *fused, *more)


# Numbers


def test_numbers_are_those_of_compute(root, both):
    methods = [*both, MethodPictures("max")]
    evaluation = evaluate(items_of(root), methods, names=metrics.NAMES[:4] + CORE)
    assert evaluation.pairs == ["a", "b", "c"] and not evaluation.failures
    for n, name in enumerate("abc"):
        ir, vis = (read_image(root / "set" / p) for p in (f"ir/{name}.png", f"vi/{name}.bmp"))
        fused = {
            "avg": read_image(root / "avg" / f"{name}.png")[..., 0],
            "copy": vis,
            "max": np.maximum(ir, vis),
        }
        for method in evaluation.methods:
            expected = metrics.compute(fused[method.name], ir, vis, names=evaluation.columns[:6])
            for key, value in expected.items():
                assert method.values[key][n] == value.item(), (name, method.name, key)
    sd = evaluation.methods[0].values["SD"]
    assert evaluation.methods[0].mean("SD") == pytest.approx(sum(sd) / 3)
    assert evaluation.methods[0].std("SD") == pytest.approx(((sd - sd.mean()) ** 2).mean() ** 0.5)


def test_max_baseline_reproduces_the_community_evaluator():
    folder = shared("data/ivf")
    golden = json.loads(shared("golden/metrics_cddfuse.json").read_text())
    items = find_pairs(folder)[:2]
    evaluation = evaluate(items, [MethodPictures("max")])
    for n, item in enumerate(items):
        row = golden[f"ivf/ir/{item.ir.name}|ivf/vi/{item.vis.name}|max"]
        for name in ("EN", "SD", "MI", "VIF", "Qabf"):
            assert evaluation.methods[0].values[name][n] == pytest.approx(row[name], rel=1e-4), name


def test_mean_baseline_rounds_half_up(tmp_path):
    ir, vis = texture(0, 0, 255), texture(1, 0, 255)
    write_image(tmp_path / "ir" / "a.png", ir)
    write_image(tmp_path / "vi" / "a.png", vis)
    item = find_pairs(tmp_path)[0]
    lumas = [metrics.to_luma(x) for x in (ir, vis)]
    picture = Results(MethodPictures("mean"), [item]).picture(item, *lumas)
    np.testing.assert_array_equal(picture, (ir.astype(int) + vis + 1) // 2)
    assert picture.dtype == np.uint8


# The guard


def test_every_table_has_the_guards(root, both):
    evaluation = evaluate(items_of(root), both)
    assert evaluation.columns == (*CORE, *GUARDS)
    for format in FORMATS:
        text = render(evaluation, format).replace("\\_", "_")
        for column in (*CORE, *GUARDS):
            assert re.search(rf"(?<![\w-]){re.escape(column)}(?![\w-])", text), (format, column)


def test_a_copy_is_named(root, both):
    evaluation = evaluate(items_of(root), [*both, MethodPictures("mean"), MethodPictures("max")])
    copies = {m.name: m.near_copies for m in evaluation.methods}
    assert copies.pop("copy") == dict.fromkeys("abc", "vis")
    assert not any(copies.values())
    (warning,) = evaluation.warnings
    assert warning.startswith("copy: 3 of 3") and "visible" in warning
    by_name = {m.name: m for m in evaluation.methods}
    # what the guard is for: the copy wins VIF and MI, and loses the worse source's VIF
    for name in ("VIF", "MI"):
        assert by_name["copy"].mean(name) > by_name["avg"].mean(name)
    assert by_name["copy"].mean("VIF_min") < by_name["avg"].mean("VIF_min")


def test_a_copy_is_named_on_the_command_line(root):
    result = command(root)
    assert result.exit_code == 0
    assert "warning: copy: 3 of 3" in result.stderr and "avg: " not in result.stderr


# What is left out


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.unlink(), "no result"),
        (lambda path: path.write_bytes(path.read_bytes()[:60]), "b.png"),
        (lambda path: write_image(path, texture(0, 0, 255)[:32]), "64x32"),
    ],
    ids=["missing", "corrupt", "other-size"],
)
def test_a_pair_is_left_out_of_all_methods(root, both, spoil, words):
    alone = evaluate([i for i in items_of(root) if i.name != "b"], both)
    spoil(root / "avg" / "b.png")
    evaluation = evaluate(items_of(root), both)
    assert evaluation.pairs == ["a", "c"]
    assert list(evaluation.failures) == ["b"] and words in evaluation.failures["b"]
    for method, expected in zip(evaluation.methods, alone.methods, strict=True):
        for name, values in expected.values.items():
            np.testing.assert_array_equal(method.values[name], values)
    result = command(root)
    assert result.exit_code == 1
    assert "1 of 3 pairs are left out" in result.stderr and words in result.stderr
    assert "2 pairs" in result.stdout


def test_a_corrupt_source_is_left_out(root):
    (root / "set" / "ir" / "c.png").write_bytes(b"no image")
    result = command(root, "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert (
        found["ok"] is False and found["pairs"] == ["a", "b"] and "c.png" in found["failures"]["c"]
    )


def test_nothing_left_is_an_error(root):
    for name in "abc":
        (root / "avg" / f"{name}.png").write_bytes(b"x")
    result = command(root)
    assert result.exit_code == 2 and "none of the 3 pairs" in result.stderr


# Where results are


def test_results_in_subfolders_flat_and_of_vifb(tmp_path):
    items = [PairItem(f"s{n}/{n:04}", tmp_path, tmp_path) for n in range(2)]
    picture = texture(0, 0, 255)
    nested = [write_image(tmp_path / "n" / f"{item.name}.png", picture) for item in items]
    flat = [write_image(tmp_path / "f" / f"{n:04}.jpg", picture) for n in range(2)]
    vifb = [write_image(tmp_path / "v" / f"{n:04}_Ours.bmp", picture) for n in range(2)]
    for folder, expected in (("n", nested), ("f", flat), ("v", vifb)):
        results = Results(MethodPictures("Ours", tmp_path / folder), items)
        assert [results.path(item) for item in items] == expected


def test_flat_results_do_not_serve_equal_stems(tmp_path):
    items = [PairItem(f"{s}/0001", tmp_path, tmp_path) for s in "ab"]
    write_image(tmp_path / "f" / "0001.png", texture(0, 0, 255))
    with pytest.raises(ValueError, match=r"no result of any of the 2 pairs.*a/0001\.png"):
        Results(MethodPictures("m", tmp_path / "f"), items)


def test_two_files_of_a_pair_are_refused(root, both):
    write_image(root / "avg" / "a.jpg", texture(0, 0, 255))
    evaluation = evaluate(items_of(root), both)
    assert "a.jpg, a.png" in evaluation.failures["a"]


def test_parse_method(root):
    assert parse_method(f"x={root / 'avg'}") == MethodPictures("x", root / "avg")
    assert parse_method(str(root / "avg")) == MethodPictures("avg", root / "avg")
    odd = root / "a=b"
    odd.mkdir()
    assert parse_method(str(odd)) == MethodPictures("a=b", odd)
    for text in ("x=", "nowhere", f"={root / 'avg'}", f"x={root / 'none'}"):
        with pytest.raises(ValueError, match="NAME=FOLDER"):
            parse_method(text)


# Bad input


def test_bad_arguments(root, both, tmp_path):
    items = items_of(root)
    (tmp_path / "empty").mkdir()
    for methods, words in (
        ([], "--baselines"),
        ([both[0], both[0]], "two methods"),
        ([MethodPictures("median")], "baselines are mean, max"),
        ([MethodPictures("e", tmp_path / "empty")], "no images"),
        ([MethodPictures("s", root / "set" / "nowhere")], "no images"),
    ):
        with pytest.raises(ValueError, match=words):
            evaluate(items, methods)
    for wrong in ({"convention": "mine"}, {"names": ["NIQE"]}, {"paper": "KAIST"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            evaluate(items, both, **wrong)
    with pytest.raises(ValueError, match="items"):
        evaluate([], both)
    with pytest.raises(ValueError, match="format"):
        render(evaluate(items, both), "rst")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--metrics", "mine"], "cddfuse"),
        (["--paper", "KAIST"], "RoadScene"),
        (["--extra", "NIQE"], "MS-SSIM"),
        (["--extra", "all,LPIPS"], "LPIPS needs"),
        (["-o", "table.xlsx"], ".csv"),
        (["--fused", "x=nowhere"], "NAME=FOLDER"),
        (["--report", "/proc/no/r.html"], "/proc/no"),
        (["--device", "tpu"], "cuda"),
    ],
)
def test_bad_options(root, more, words):
    result = command(root, *more)
    assert result.exit_code == 2 and words in result.stderr and "Traceback" not in result.stderr


def test_no_method_and_no_data_set(root, tmp_path):
    assert "--fused" in call(root / "set").stderr
    result = call(tmp_path / "none", "--baselines")
    assert result.exit_code == 2 and "none" in result.stderr


# Tables


def test_csv_and_json_hold_everything(root, both):
    evaluation = evaluate(items_of(root), both)
    rows = list(csv.DictReader(io.StringIO(render(evaluation, "csv", per_image=True))))
    assert [(r["method"], r["pair"]) for r in rows[:8]] == [
        (m, s) for m in ("avg", "copy") for s in ("mean", "std", "low95", "high95")
    ]
    assert len(rows) == 8 + 6
    found = json.loads(render(evaluation, "json", per_image=True))
    for method, json_method in zip(evaluation.methods, found["methods"], strict=True):
        by_pair = {r["pair"]: r for r in rows if r["method"] == method.name}
        for name, values in method.values.items():
            assert float(by_pair["mean"][name]) == values.mean() == json_method["mean"][name]
            assert float(by_pair["std"][name]) == values.std() == json_method["std"][name]
            for n, pair in enumerate("abc"):
                assert float(by_pair[pair][name]) == values[n]
                assert json_method["per_image"][pair][name] == values[n]
    assert {"VIF_ir", "VIF_vis", "SSIM_min"} <= found["methods"][0]["mean"].keys()
    assert set(found["definitions"]) == set(found["columns"])
    assert found["methods"][1]["near_copies"] == dict.fromkeys("abc", "vis")
    assert "per_image" not in as_dict(evaluation)["methods"][0]


def test_markdown_and_terminal_tables(root, both):
    evaluation = evaluate(items_of(root), both)
    mean = evaluation.methods[0].mean("VIF")
    markdown = render(evaluation, "markdown", per_image=True)
    tables = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in tables[:6]}) == 1
    assert f"{mean:.3f}" in tables[2] and "**Note:** copy: 3 of 3" in markdown
    text = render(evaluation, "table", per_image=True)
    lines = text.splitlines()
    assert lines[0].startswith("3 pairs, metric convention cddfuse")
    assert lines[3].startswith("avg ") and f"{mean:.3f}" in lines[3]
    assert sum(line.startswith(("a ", "b ", "c ")) for line in lines) == 6


def test_numbers_are_printed_alike_in_a_column():
    assert [format_value(x, "SD") for x in (9.876, 41.06)] == ["9.88", "41.06"]
    assert format_value(0.5, "VIF") == "0.500"
    assert [format_value(x, "CC") for x in (None, float("nan"), float("inf"))] == ["–", "–", "∞"]


def test_values_that_are_not_finite_keep_the_json_valid():
    scores = MethodScores("m", None, {"EN": np.array([1.0, np.inf])}, {})
    found = json.loads(render(Evaluation("cddfuse", ["a", "b"], [scores]), "json", per_image=True))
    assert found["methods"][0]["mean"]["EN"] is None
    assert found["methods"][0]["per_image"]["b"]["EN"] is None


def test_paper_rows(root, both):
    evaluation = evaluate(items_of(root), both, paper="RoadScene")
    rows = dict(evaluation.paper_rows())
    assert rows["paper, RoadScene"]["SD"] == 52.61 and rows["paper, RoadScene"]["VIF"] == 0.75
    assert rows["public code, RoadScene"]["SD"] == 40.95
    for format in FORMATS:
        text = render(evaluation, format)
        assert "52.61" in text and "40.95" in text, format
        assert format == "csv" or "does not reproduce them" in text, format
    result = command(root, "--paper", "roadscene", "--metrics", "sane")
    assert "paper, RoadScene" in result.stdout and "follow the convention cddfuse" in result.stderr
    for row in PAPER.values():
        assert len(row) == 6


# The page


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.images, self.panels, self.attributes, self.headings = [], 0, [], []
        self.open, self.tags = None, set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.attributes += [(tag, *pair) for pair in attrs.items()]
        self.open = tag
        self.tags.add(tag)
        if tag == "img":
            self.images.append(attrs)
        self.panels += attrs.get("class") == "panel"

    def handle_data(self, data):
        if self.open == "h2":
            self.headings.append(data)
            self.open = None


def test_the_page_is_whole_and_needs_nothing_else(root, both):
    methods = [*both, MethodPictures("max")]
    wide = np.tile(texture(0, 0, 255), (1, 10))
    for folder, suffix in (("set/ir", "png"), ("set/vi", "bmp"), ("avg", "png"), ("copy", "tif")):
        write_image(root / folder / f"d.{suffix}", wide)
    items = items_of(root)
    evaluation = evaluate(items, methods, paper="TNO")
    path = write_report(root / "r.html", evaluation, items, methods, title="Mine & yours")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.panels == 4 and page.headings == ["a", "b", "c", "d"]
    assert len(page.images) == 4 * (2 + 3)
    assert all(image["alt"].strip() for image in page.images)
    for image in page.images:
        kind, _, data = image["src"].partition(",")
        assert kind == "data:image/jpeg;base64"
        size = Image.open(io.BytesIO(base64.b64decode(data, validate=True))).size
        assert size in ((64, 48), (640, 48))
    assert "http:" not in text and "https:" not in text and "@" not in re.sub("@media", "", text)
    loads = [a for a in page.attributes if a[1] in ("src", "href") and a[0] != "img"]
    assert not loads and "url(" not in text and "import" not in text
    assert "<title>Mine &amp; yours</title>" in text
    assert "prefers-color-scheme" in text and "nearly the second (visible) source" in text
    assert "0.490" in text and "does not reproduce them" in text
    assert "Xydeas" in text, "the definitions are on the page"


def test_names_cannot_inject_into_the_page(root):
    name = '"><img src=x onerror=alert(1)>@script@'
    items = [PairItem(name, i.ir, i.vis) for i in items_of(root)[:1]]
    methods = [MethodPictures("max"), MethodPictures("<i>&\"'", root / "inj")]
    write_image(root / "inj" / f"{name}.png", texture(3, 0, 255))
    evaluation = evaluate(items, methods)
    path = write_report(root / "r.html", evaluation, items, methods, title="</script>")
    page = Page(path.read_text(encoding="utf-8"))
    assert len(page.images) == 4
    assert "i" not in page.tags and not [a for a in page.attributes if a[1].startswith("on")]
    assert page.headings == [name]


def test_a_long_page_shows_the_suspects_and_an_even_choice(root, both):
    items = [
        PairItem(f"{n:03}", root / "set" / "ir" / "a.png", root / "set" / "vi" / "a.bmp")
        for n in range(40)
    ]
    for item in items:
        write_image(root / "m" / f"{item.name}.png", read_image(root / "avg" / "a.png"))
    scores = MethodScores("m", "m", {n: np.ones(40) for n in (*CORE, *GUARDS)}, {"037": "ir"})
    evaluation = Evaluation("cddfuse", [i.name for i in items], [scores])
    methods = [MethodPictures("m", root / "m")]
    path = write_report(root / "r.html", evaluation, items, methods, max_pairs=5)
    text = path.read_text(encoding="utf-8")
    assert Page(text).headings == ["000", "009", "019", "029", "037"]
    assert "5 of 40 pairs are shown" in text


# The command


def test_files_are_written_by_suffix(root):
    starts = {".csv": "method,", ".json": "{", ".md": "3 pairs", ".txt": "3 p", ".tex": "% needs"}
    for suffix, start in starts.items():
        out = root / "tables" / f"t{suffix}"
        result = command(root, "-o", out, "--baselines")
        assert result.exit_code == 0, result.output
        assert out.read_text(encoding="utf-8").startswith(start)
        assert "mean" in out.read_text(encoding="utf-8") and str(out) in result.stdout
    result = command(root, "--format", "csv")
    assert result.stdout.startswith("method,")
    result = command(root, "-o", root / "odd.dat", "--format", "markdown", "-q")
    assert result.stdout == "" and "| avg |" in (root / "odd.dat").read_text(encoding="utf-8")


def test_the_table_for_a_paper_is_whole(root):
    """Braces and environments are closed, and each row has the columns that the head announces."""
    out = root / "t.tex"
    extra = "SF,AG,PSNR,MSE,NMI,FMI-pixel,FMI-gradient,Qcb,Qcv"
    result = command(root, "--baselines", "--paper", "TNO", "--extra", extra, "-o", out, "-q")
    assert result.exit_code == 0, result.output
    text = out.read_text(encoding="utf-8")
    bare = re.sub(r"\\[{}&_%$#]", "", re.sub(r"(?m)^%.*\n", "", text))
    assert bare.count("{") == bare.count("}") and bare.isascii()
    for kind in ("table", "tabular"):
        assert bare.count(f"\\begin{{{kind}}}") == bare.count(f"\\end{{{kind}}}") == 1
    columns = len(re.search(r"\{tabular\}\{(lr+)\}", bare)[1])
    rows = [line for line in bare.splitlines() if line.endswith("\\\\")]
    assert {row.count("&") + 1 for row in rows} == {columns} and len(rows) == 1 + 4 + 1
    assert columns > 20 and "Qcv$\\downarrow$" in bare and "LPIPS" not in bare


def test_noisy_sources_are_scored_against_clean_ones_by_naming_these(root):
    """As the docs have it, the data set is the clean one and the fused folder is of the noisy."""
    rng = np.random.default_rng(0)
    for name in "abc":
        fused = read_image(root / "avg" / f"{name}.png")[..., 0]
        noisy = np.clip(fused + rng.normal(0, 20, fused.shape), 0, 255).astype(np.uint8)
        write_image(root / "noisy" / f"{name}.png", noisy)
    result = call(root / "set", "--fused", root / "avg", "--fused", root / "noisy", "--json",
                  "--extra", "MSE,AG")  # fmt: skip
    clean, noisy = (m["mean"] for m in json.loads(result.stdout)["methods"])
    assert noisy["MSE"] == pytest.approx(clean["MSE"] + 20**2, rel=0.1)
    assert noisy["SSIM"] < clean["SSIM"] and noisy["AG"] > clean["AG"]


def test_two_plain_folders_extra_columns_limit_and_report(root):
    (root / "set").rename(root / "x")
    result = call(
        root / "x" / "ir", root / "x" / "vi", "--fused", root / "avg", "--extra", "sf,PSNR",
        "--limit", "2", "--report", root / "out" / "r.html",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    head = result.stdout.splitlines()[2].split()
    assert head == [*CORE, *GUARDS, "SF", "PSNR"]
    assert result.stdout.startswith("2 pairs") and str(root / "out" / "r.html") in result.stdout
    assert Page((root / "out" / "r.html").read_text(encoding="utf-8")).panels == 2


def test_json_is_all_there_is_on_stdout(root):
    result = command(root, "--json", "--per-image", "--report", root / "r.html")
    found = json.loads(result.stdout)
    assert found["ok"] and found["convention"] == "cddfuse" and (root / "r.html").is_file()
    assert found["methods"][0]["per_image"].keys() == set("abc")
