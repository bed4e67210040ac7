import base64
import dataclasses
import hashlib
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from itertools import pairwise

import pytest

import fixture_runs
from bakeoff import report, runs
from bakeoff.bench import result
from bakeoff.comparison import compare
from bakeoff.errors import BakeoffError
from bakeoff.report import plots
from bakeoff.report.html import disagreements
from bakeoff.report.picture import _ticks as ticks_around
from fixture_runs import write_bench, write_run

VOID = {"meta", "link", "br", "img", "hr", "input"}
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)> \"'`|&amp; {{ 7 * 7 }} ]]> -->"


class Page(HTMLParser):
    """What a browser would see: elements, their text, and whether every tag is closed."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.texts, self.scripts = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    fixture_runs.bakeoff(root)
    out = tmp_path_factory.mktemp("out") / "new" / "report"
    return {path.name: path.read_text(encoding="utf-8") for path in report.write(root, out)}, compare(root)


def test_writes_three_files_and_nothing_else(tmp_path):
    write_run(tmp_path / "runs", "dense", range(40))
    paths = report.write(tmp_path / "runs", tmp_path / "out")
    assert sorted(paths) == sorted((tmp_path / "out").iterdir())
    assert {path.name for path in paths} == {"report.md", "report.html", "accuracy-cost.svg"}


def test_same_runs_same_report(tmp_path, written):
    fixture_runs.bakeoff(tmp_path / "runs")
    again = {p.name: p.read_text(encoding="utf-8") for p in report.write(tmp_path / "runs", tmp_path / "out")}
    assert again == written[0]


def test_page_is_well_formed_and_says_the_verdict_first(written):
    files, comparison = written
    page = Page(files["report.html"])
    assert page.open == []
    for group in comparison.groups:
        for sentence in group.verdict:
            assert sentence in page.text
        start = page.text.index(group.evaluated)
        assert page.text.index(group.verdict[0], start) < page.text.index("train loss", start)
    assert "RuntimeError: boom" in page.text


def test_a_page_of_several_tasks_begins_with_what_came_of_each(written):
    head, _, _ = Page(written[0]["report.html"]).text.partition(written[1].groups[0].evaluated)
    assert all(group.verdict[0] in head for group in written[1].groups)
    assert "Choose dense" in head


def test_a_section_says_what_ran(tmp_path):
    one = "encoder: minilm; trained on 400 of 9,000 rows; device: cpu; threads: 2"
    write_run(tmp_path, "dense", range(40), available=9000)
    assert one in Page(report.write(tmp_path, tmp_path / "out")[1].read_text(encoding="utf-8")).text
    write_run(tmp_path, "performer", range(40), available=9001, environment={"device": "cuda"})
    several = "trained on several numbers of rows; device: several; threads: several"
    assert several in Page(report.write(tmp_path, tmp_path / "out")[1].read_text(encoding="utf-8")).text


def test_page_loads_nothing_and_runs_only_its_own_scripts(written):
    page = Page(written[0]["report.html"])
    loading = {"src", "srcset", "action", "data", "poster", "background", "formaction"}
    assert not [a for _, a in page.elements if loading & a.keys()]
    assert not [
        tag for tag, _ in page.elements if tag in {"link", "iframe", "object", "embed", "base", "img"}
    ]
    assert all(a["href"].startswith("#") for tag, a in page.elements if tag == "a")
    (policy,) = [a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    data, *scripts = page.scripts
    assert {base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts} == allowed
    json.loads(data)
    style = re.search(r"<style>(.*?)</style>", written[0]["report.html"], re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style


def test_every_figure_has_a_place_a_name_and_a_caption(written):
    page = Page(written[0]["report.html"])
    drawn = json.loads(page.scripts[0])
    places = [a for _, a in page.elements if a.get("class") == "plot"]
    assert [(a["data-group"], a["data-figure"]) for a in places] == [
        (str(i), str(j)) for i, group in enumerate(drawn) for j in range(len(group))
    ]
    ids = {a["id"] for _, a in page.elements if "id" in a}
    assert all({a["aria-labelledby"], a["aria-describedby"]} <= ids for a in places)
    figures = plots.figures(written[1].groups[1])
    assert all(figure.caption in page.text and figure.title in page.text for figure in figures)
    assert {figure.title for figure in figures} == {
        "Accuracy against cost",
        "Accuracy by seed",
        "Accuracy by length",
        "Calibration",
        "Confidence",
        "Training loss",
    }


def test_every_figure_says_in_numbers_what_it_draws(written):
    page = Page(written[0]["report.html"])
    for figure in plots.figures(written[1].groups[1]):
        if figure.title == "Accuracy against cost":
            continue  # the table of the page
        assert len({len(line) for line in figure.table}) == 1
        assert all(cell in page.text for line in figure.table for cell in line)


def test_a_row_looks_alike_in_every_table_and_unlike_every_other():
    labels = [f"row {i}" for i in range(24)]
    styles = plots.styles(labels)
    assert len(set(styles)) == 24
    assert plots.styles(labels[::-1]) == styles[::-1]


def test_calibration_is_drawn_from_the_answers_of_all_seeds(written):
    row = next(row for row in written[1].groups[1].rows if row.label == "dense")
    (figure,) = [f for f in plots.figures(written[1].groups[1]) if f.title == "Calibration"]
    (trace,) = [t for t in figure.spec["data"] if t["name"] == "dense"]
    assert trace["x"] == pytest.approx([100 / (1 + math.exp(-2))])  # all answers have logits of +-1
    assert trace["y"] == pytest.approx([100 * row.accuracy.value])
    assert trace["customdata"] == [[800, 800]]
    sure, right = 100 / (1 + math.exp(-2)), 100 * row.accuracy.value
    column = [line[1] for line in figure.table]
    assert column[0] == "dense"
    assert f"{right:.1f} right at {sure:.1f}, of 800" in column
    assert column[-1] == f"{abs(right - sure):.2f}"


def test_errors_of_seeds_that_cancel_are_small_together_and_large_in_the_mean(tmp_path):
    write_run(tmp_path, "dense", range(0), seed=1)  # too unsure by 11.9 points
    write_run(tmp_path, "dense", range(96), seed=2)  # too sure by 12.1
    group = compare(tmp_path).groups[0]
    (figure,) = [f for f in plots.figures(group) if f.title == "Calibration"]
    assert group.rows[0].calibration_error > 0.11
    assert figure.table[-1] == ("expected calibration error %, seeds together", "0.08")


def test_logits_that_are_no_numbers_have_no_calibration(tmp_path):
    write_run(tmp_path, "dense", range(40))
    write_run(tmp_path, "performer", logits=[[math.nan, 0.0]] + [[2.0, 0.0]] * 399)
    group = compare(tmp_path).groups[0]
    (figure,) = [f for f in plots.figures(group) if f.title == "Calibration"]
    assert {line[2] for line in figure.table[1:]} == {"–"}


def test_the_confidence_curve_spans_every_bin(written):
    (figure,) = [f for f in plots.figures(written[1].groups[1]) if f.title == "Confidence"]
    for trace in figure.spec["data"]:
        assert trace["x"][0] == 50
        assert trace["x"][-1] == 100
        steps = zip(trace["y"], pairwise(trace["x"]), strict=False)
        assert sum(y * (b - a) for y, (a, b) in steps) == pytest.approx(100 * 2.5)
        assert trace["line"]["shape"] == "hv"


def test_evaluations_in_training_end_with_the_run_s_own(tmp_path):
    history = [
        {"step": 10.0, "epoch": 0.5, "loss": 0.6},
        {"step": 10.0, "epoch": 0.5, "eval_accuracy": 0.7, "eval_loss": 0.5},
        {"step": 20.0, "epoch": 1.0, "loss": 0.4},
    ]
    folder = write_run(tmp_path, "dense", range(40))
    record = runs.load(folder)
    runs.save(folder, dataclasses.replace(record, history=tuple(history)))
    found = {figure.title: figure for figure in plots.figures(compare(tmp_path).groups[0])}
    (trace,) = found["Evaluation accuracy in training"].spec["data"]
    assert (trace["x"], trace["y"]) == ([10, 20], pytest.approx([70, 90]))
    (trace,) = found["Evaluation loss in training"].spec["data"]
    assert trace["y"] == pytest.approx([0.5, record.metrics["loss"].value])


def test_a_diverged_run_leaves_a_page_that_reads(tmp_path):
    """NaN is no JSON, and one in a figure would leave the page without any."""
    write_run(tmp_path, "dense", logits=[[math.nan, 0.0]] * 400, losses=(0.7, math.nan, math.nan))
    write_run(tmp_path, "performer", range(40), eval_seconds=math.inf)
    page = Page(report.write(tmp_path, tmp_path / "out")[1].read_text(encoding="utf-8"))
    assert json.loads(page.scripts[0], parse_constant=pytest.fail)


def test_of_many_classes_the_commonest_mistakes_are_shown(tmp_path):
    labels = [f"class {i}" for i in range(20)]
    truth = [i % 20 for i in range(400)]
    write_run(tmp_path, "dense", range(0, 200, 20), labels=labels, truth=truth)
    page = Page(report.write(tmp_path, tmp_path / "out")[1].read_text(encoding="utf-8"))
    assert "the commonest mistakes" in page.text
    assert "class 0 class 1 10 50.00 %" in page.text
    assert "confusion" not in {a.get("class") for tag, a in page.elements if tag == "table"}


def test_a_benchmark_adds_time_and_memory_by_length(call, tmp_path):
    write_run(tmp_path / "runs", "dense", range(40))
    path = write_bench(tmp_path / "bench")
    write_bench(tmp_path / "single", lengths=(64,))
    code, _, stderr = call(
        "report", tmp_path / "runs", "--bench", path, "--bench", tmp_path / "single",
        "--output-dir", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, stderr
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert page.open == []
    _, figures, none = json.loads(page.scripts[0])
    assert [figure["spec"]["data"][0]["x"] for figure in figures] == [[128, 512]] * 4
    assert figures[0]["spec"]["data"][0]["y"] == pytest.approx([1.05 * n * n / 1e3 for n in (128, 512)])
    assert figures[1]["spec"]["data"][0]["y"] == [128, 512]
    assert none == []
    for title in ("Inference: time against length", "Training: memory against length", "performer 134.40"):
        assert title in page.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no benchmark at"),
        ("{", "not a benchmark"),
        ("[]", "not a benchmark of schema 1"),
        ('{"schema": 2}', "not a benchmark of schema 1"),
        ('{"schema": 1, "rows": 3}', "benchmark.rows has the wrong type"),
        ('{"schema": 1, "wheels": 3}', "unknown fields: wheels"),
        ('{"schema": 1}', "benchmark lacks created, command"),
    ],
)
def test_a_bad_benchmark_is_one_line_and_nothing_is_written(call, tmp_path, text, said):
    write_run(tmp_path / "runs", "dense", range(40))
    if text is not None:
        (tmp_path / "bench.json").write_text(text)
    code, stdout, stderr = call(
        "report", tmp_path / "runs", "--bench", tmp_path, "--output-dir", tmp_path / "out"
    )
    assert (code, stdout) == (2, "")
    assert len(stderr.splitlines()) == 1
    assert said in stderr
    assert not (tmp_path / "out").exists()


def test_a_benchmark_without_times_or_machine_is_refused(tmp_path):
    values = json.loads(write_bench(tmp_path).read_text())
    for field, value, said in (("rows", [], "no times"), ("environment", {}, "lacks device, threads")):
        (tmp_path / "bench.json").write_text(json.dumps({**values, field: value}))
        with pytest.raises(BakeoffError, match=said):
            result.read(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("flops", 10**400, "flops is too large a number"),
        ("length", 0, "a length of 0 tokens"),
        ("length", -1, "a length of -1 tokens"),
        ("median", math.nan, "no positive number of seconds"),
        ("seconds", [0.0, 1.0], "no positive number of seconds"),
    ],
)
def test_a_benchmark_with_figures_that_cannot_be_is_refused(tmp_path, field, value, said):
    values = json.loads(write_bench(tmp_path).read_text())
    values["rows"][0][field] = value
    (tmp_path / "bench.json").write_text(json.dumps(values))
    with pytest.raises(BakeoffError, match=said):
        result.read(tmp_path)


def test_a_folder_that_cannot_be_made_is_one_line(call, tmp_path):
    write_run(tmp_path / "runs", "dense", range(40))
    (tmp_path / "file").write_text("")
    code, _, stderr = call("report", tmp_path / "runs", "--output-dir", tmp_path / "file" / "out")
    assert code == 2
    assert "cannot write to" in stderr


def test_hostile_text_stays_text(tmp_path):
    texts = [f"{HOSTILE} {i}" for i in range(400)]
    shared = {"labels": ("neg", HOSTILE), "texts": texts, "task": HOSTILE}
    write_run(tmp_path, "dense", range(40), run_id=HOSTILE, folder="a", **shared)
    write_run(tmp_path, f"x{HOSTILE.replace(',', ' ').replace(':', ' ')}", range(60), folder="b", **shared)
    write_run(tmp_path, "performer", status="failed", error=HOSTILE, folder="c", task=HOSTILE)
    files = {p.name: p.read_text(encoding="utf-8") for p in report.write(tmp_path, tmp_path / "out")}
    page = Page(files["report.html"])
    assert page.open == []
    assert len(page.scripts) == 3
    assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
    assert page.text.count("<script>alert(1)</script>") > 5
    assert "{{ 7 * 7 }}" in page.text
    for figure in json.loads(page.scripts[0])[0]:  # Plotly reads a little HTML in names
        assert all("<" not in trace["name"].replace("<br>", "") for trace in figure["spec"]["data"])
    ElementTree.fromstring(files["accuracy-cost.svg"])
    prose = re.sub(r"```yaml\n.*?\n```", "", files["report.md"], flags=re.DOTALL)
    assert re.search(r"(?<!\\)<", prose) is None


def test_reproduction_states_the_run_file_the_data_and_the_versions(written):
    for name in ("report.md", "report.html"):
        text = Page(written[0][name]).text if name.endswith("html") else written[0][name].replace("\\", "")
        assert "bakeoff run run.yaml" in text
        assert 'attention: {"name": "longformer", "options": {"window": 16}}' in text
        assert "f" * 64 in text
        assert "2.13.0" in text


def test_a_run_file_reads_back_as_the_spec(tmp_path):
    import yaml

    from bakeoff import spec
    from bakeoff.report.reproduce import reproductions

    write_run(tmp_path, "longformer:window=16", range(40), learning_rate=2e-5)
    comparison = compare(tmp_path)
    (made,) = reproductions(comparison)
    again = spec.RunSpec.from_dict(yaml.safe_load(made.run_file))
    assert again.digest() == comparison.groups[0].rows[0].runs[0].record.digest


def test_front_holds_what_none_beats(written):
    rows = written[1].groups[1].rows
    assert [row.label for row in plots.front(rows, lambda row: row.train_seconds)] == [
        "performer",
        "longformer",
        "dense",
    ]
    fastest = plots.front(rows, lambda row: row.train_tokens_per_second, less_is_better=False)
    assert [row.label for row in fastest] == ["performer", "longformer", "dense"]


def test_disagreements_are_texts_with_different_answers(written):
    found = disagreements(written[1].groups[1])
    assert found
    for item in found:
        assert len({answer.label for answer in item.answers}) > 1
        assert all(answer.right == (answer.label == item.truth) for answer in item.answers)
        assert "linformer" not in {answer.row for answer in item.answers}


def test_one_row_of_one_length_has_a_report(tmp_path):
    write_run(tmp_path, "dense", truth=[0, 1], losses=())
    files = report.write(tmp_path, tmp_path / "out")
    assert Page(files[1].read_text(encoding="utf-8")).open == []


def test_only_failures_still_have_a_report(tmp_path):
    write_run(tmp_path, "dense", status="oom", error="out of memory")
    files = report.write(tmp_path, tmp_path / "out")
    for path in files[:2]:
        assert "out of memory" in path.read_text(encoding="utf-8")
    ElementTree.parse(files[2])


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 100.0), (48.3, 91.2), (89.9, 90.1), (90.0, 90.0), (0.0, 0.4), (0, 9e5)]
)
def test_ticks_are_few_even_and_enclose(low, high):
    ticks = ticks_around(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 9
    steps = {round(b - a, 9) for a, b in pairwise(ticks)}
    assert len(steps) == 1
    assert steps.pop() > 0


def test_labels_in_the_picture_never_overlap(written):
    svg = ElementTree.fromstring(written[0]["accuracy-cost.svg"])
    panels = svg.findall("{http://www.w3.org/2000/svg}g")
    assert len(panels) == 2
    names = {row.label for group in written[1].groups for row in group.rows}
    for panel in panels:
        labels = [t for t in panel.iter("{http://www.w3.org/2000/svg}text") if t.text.split(" (")[0] in names]
        heights = sorted(float(t.get("y")) for t in labels)
        assert len(heights) >= 2
        assert all(b - a >= 15 for a, b in pairwise(heights))
