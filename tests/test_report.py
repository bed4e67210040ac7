import base64
import hashlib
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from itertools import pairwise

import pytest

import fixture_runs
from bakeoff import report
from bakeoff.comparison import compare
from bakeoff.report import plots
from bakeoff.report.html import disagreements
from fixture_runs import write_run

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
    figures = json.loads(page.scripts[0])
    places = [(a["data-group"], a["data-figure"]) for _, a in page.elements if a.get("class") == "plot"]
    assert places == [(str(i), str(j)) for i, group in enumerate(figures) for j in range(len(group))]
    ids = {a["id"] for _, a in page.elements if "id" in a}
    assert all(a["aria-labelledby"] in ids for _, a in page.elements if a.get("class") == "plot")
    assert all(figure["caption"] and figure["title"] for group in figures for figure in group)
    assert {f["title"] for f in figures[1]} == {
        "Accuracy against cost",
        "Training loss",
        "Accuracy by length",
        "Confidence",
    }


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
        assert all("<" not in trace["name"] for trace in figure["spec"]["data"])
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
    ticks = plots._ticks(low, high)
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
