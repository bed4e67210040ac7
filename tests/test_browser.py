"""The report's page in a real browser."""

import dataclasses
import re

import pytest

import fixture_runs
from bakeoff import report, runs
from bakeoff.text import plain
from browser import FAINT, PAYLOADS, SENTINEL, visit
from fixture_runs import write_bench, write_run

LONG = "performer:feature_map=random,global_tokens=1,kernel=a_name_that_is_never_going_to_end_{}"

ROWS = 100  # of evaluation, where more would show no more


@pytest.fixture(scope="module")
def opened(browser, tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    fixture_runs.bakeoff(root / "runs")
    for folder, record in list(runs.find(root / "runs")):
        if record.status == "ok":  # as --eval-steps leaves them
            evaluation = {"step": 20.0, "epoch": 0.3, "eval_accuracy": 0.7, "eval_loss": 0.5}
            runs.save(folder, dataclasses.replace(record, history=(*record.history, evaluation)))
    files = report.write(root / "runs", root / "out", [write_bench(root / "bench")])
    return visit(browser, files[1])


@pytest.fixture
def page(opened):
    """The page as it was opened, which is cheaper than another."""
    page = opened.page
    page.set_viewport_size({"width": 1280, "height": 900})
    page.emulate_media(color_scheme="light", media="screen", reduced_motion="reduce")
    yield page
    page.mouse.move(0, 0)
    for search in page.locator("input[type=search]").all():
        search.fill("")
    for select in page.locator("select").all():
        select.select_option(index=0)
    for button in page.locator(".legend [aria-pressed=false]").all():
        button.click()


def labels(page, section="#task-2"):
    rows = page.locator(f"{section} .sortable").first.locator("tbody tr:visible")
    return rows.evaluate_all("rows => rows.map((row) => row.dataset.label.split(' ')[0])")


def overflow(page):
    return page.evaluate("document.documentElement.scrollWidth - innerWidth")


def test_it_loads_from_a_file_without_a_word_or_a_request(opened):
    page = opened.page
    assert opened.said == []
    assert opened.requests == [page.url]
    assert page.url.startswith("file://")
    plots = page.locator(".plot")
    assert plots.count() == 8 + 7 + 4
    assert page.locator(".plot:has(svg .trace)").count() == plots.count()


def test_headings_sort_by_click_and_by_key(page):
    table = page.locator("#task-2 .sortable").first
    heading = table.get_by_role("button", name="train s", exact=True)
    cell = table.locator("th[aria-sort]")
    heading.click()
    assert labels(page) == ["performer", "longformer", "dense", "linformer"]
    heading.focus()
    page.keyboard.press("Enter")
    assert cell.get_attribute("aria-sort") == "descending"
    assert labels(page)[-1] == "performer"
    page.keyboard.press("Space")
    assert cell.get_attribute("aria-sort") == "ascending"
    table.get_by_role("button", name="attention", exact=True).press("Enter")
    assert labels(page) == ["dense", "linformer", "longformer", "performer"]
    table.get_by_role("button", name="p", exact=True).click()
    assert labels(page)[0] == "dense"  # the best has no p
    assert cell.count() == 1


def test_a_search_hides_rows_in_table_figures_and_counts(page):
    section = page.locator("#task-2")
    page.locator("#task-2 .sortable th button").first.focus()
    page.keyboard.press("Shift+Tab")  # from the table's headings back over its region
    page.keyboard.press("Shift+Tab")
    page.keyboard.type("FORMER per")
    assert labels(page) == ["performer"]
    assert section.locator(".controls output").first.inner_text() == "1 of 4 rows"
    assert section.locator(".legend li:visible").all_text_contents() == ["▲performer"]
    assert section.locator(".confusions > :visible caption").all_text_contents() == ["▲performer"]
    lengths = section.locator("figure", has=page.get_by_role("heading", name="Accuracy by length"))
    assert lengths.locator(".scatterlayer .trace").count() == 1
    assert section.locator(".sortable tbody tr:visible").count() == 2  # one in each table
    assert len(labels(page, "#task-1")) == 2
    section.get_by_label("Filter rows by name").fill("")
    assert len(labels(page)) == 4
    assert lengths.locator(".scatterlayer .trace").count() == 4


def test_a_legend_s_button_takes_a_row_out_of_the_figures(page):
    traces = page.locator("#speed-1 .plot").first.locator(".scatterlayer .trace")
    assert traces.count() == 2
    page.locator("#speed-1 .legend").get_by_role("button", name="performer").press("Space")
    assert traces.count() == 1
    assert page.locator("#task-2 .plot").nth(1).locator(".scatterlayer .trace").count() == 4


def test_disagreements_filter_by_text_class_and_who_is_wrong(page):
    box = page.locator("#task-2 .disagreements")
    articles = box.locator("article:visible")
    assert articles.count() == 50
    box.get_by_label("Wrong").select_option("dense")
    wrong = articles.count()
    assert 0 < wrong < 50
    assert all("dense" in text for text in articles.locator(".wrong").all_inner_texts())
    assert box.locator("output").inner_text() == f"{wrong} of 50 texts"
    box.get_by_label("Wrong").select_option("")
    box.get_by_label("True class").select_option("positive")
    assert all(a.get_attribute("data-truth") == "positive" for a in articles.all())
    box.get_by_label("True class").select_option("any")
    box.get_by_label("Text with").fill("4 NUMBER")
    assert 0 < articles.count() < 50
    assert all("4" in text for text in articles.locator("blockquote").all_inner_texts())
    box.get_by_label("Text with").fill("nowhere to be found")
    assert articles.count() == 0


def test_what_a_point_is_shows_on_hover(page):
    plot = page.locator("#task-2 .plot").first
    plot.scroll_into_view_if_needed()
    plot.locator(".points path").first.hover(force=True)
    shown = plot.locator(".hovertext")
    shown.wait_for()
    text = shown.text_content()
    assert text.startswith("dense90.00 % (")
    assert text.endswith("training time, seconds: 100")
    fill = "element => getComputedStyle(element).fill"
    assert shown.locator("path").evaluate(fill) == "rgb(243, 244, 245)"
    page.emulate_media(color_scheme="dark")
    assert shown.locator("path").evaluate(fill) == "rgb(31, 35, 40)"
    assert shown.locator("text").first.evaluate(fill) == "rgb(230, 232, 235)"


def test_another_cost_is_drawn_and_named(page):
    figure = page.locator("#task-2 figure").first
    figure.locator("select").select_option("evaluation time, seconds")
    assert figure.locator(".xtitle").text_content() == "evaluation time, seconds"


def test_both_themes_are_legible_and_differ(page):
    page.locator("details").evaluate_all("all => all.forEach((one) => { one.open = true })")
    papers = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        papers.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        found = page.evaluate(FAINT)
        assert found["faint"] == []
        assert found["kinds"] > 15  # of text, or the page was not read
    assert papers[0] != papers[1]
    page.locator("details").evaluate_all("all => all.forEach((one) => { one.open = false })")


@pytest.mark.parametrize("width", [390, 700])
def test_a_phone_does_not_scroll_sideways(page, width):
    page.set_viewport_size({"width": width, "height": 844})
    page.wait_for_function(
        "width => [...document.querySelectorAll('.main-svg')].every((plot) => plot.clientWidth < width)",
        arg=width,
    )
    assert overflow(page) <= 0


def test_keys_reach_every_control_and_show_where_they_are(page):
    controls = "a, button, input, select, summary, [tabindex='0']"
    reachable = page.locator(controls).filter(visible=True).count()
    page.locator(".skip").focus()
    names = []
    for _ in range(reachable - 1):
        page.keyboard.press("Tab")
        names.append(
            page.evaluate("""() => {
              const element = document.activeElement, style = getComputedStyle(element);
              const label = element.getAttribute("aria-labelledby");
              const name = element.getAttribute("aria-label") || element.labels?.[0]?.textContent
                || (label && document.getElementById(label).textContent) || element.textContent;
              return style.outlineStyle === "solid" && name.trim();
            }""")
        )
    assert all(names)
    assert page.evaluate("document.activeElement.closest('#reproduce') !== null")  # the last of them


def test_motion_is_for_those_who_want_it(page):
    behaviour = "getComputedStyle(document.documentElement).scrollBehavior"
    assert page.evaluate(behaviour) == "auto"
    page.emulate_media(reduced_motion="no-preference")
    assert page.evaluate(behaviour) == "smooth"


def test_it_prints_in_dark_ink_on_paper_that_holds_it(page):
    page.emulate_media(color_scheme="dark")
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.emulate_media(color_scheme="dark", media="print")
    page.set_viewport_size({"width": 690, "height": 900})  # A4 between its margins
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate(FAINT)["faint"] == []
    assert overflow(page) <= 0
    numbers = page.locator("figure details")
    assert not numbers.first.is_visible()
    numbers.first.evaluate("one => { one.open = true }")
    assert numbers.first.locator("table").is_visible()  # who opened it wants it on paper
    numbers.first.evaluate("one => { one.open = false }")
    assert not page.locator("#reproduce").is_visible()  # a heading with nothing below it
    assert (
        page.evaluate("Math.max(...[...document.querySelectorAll('.plot svg')].map((e) => e.clientWidth))")
        == 330
    )
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.emulate_media(color_scheme="light", media="screen")
    page.set_viewport_size({"width": 1280, "height": 900})
    page.wait_for_function("() => document.querySelector('.plot svg').clientWidth > 500")


def test_twenty_rows_with_long_names_fit(browser, tmp_path):
    for i in range(20):
        write_run(
            tmp_path / "runs",
            LONG.format(i),
            range(5 + i),
            rows=ROWS,
            task="a_task_with_a_name_like_this" * 5,
        )
    path = report.write(tmp_path / "runs", tmp_path / "out")[1]
    assert path.stat().st_size < 6e6
    page = visit(browser, path, viewport={"width": 390, "height": 844}).page
    assert overflow(page) <= 0
    first = page.locator(".sortable tbody th").first
    assert first.evaluate("cell => cell.clientWidth") < 390 / 2
    assert "never_going_to_end_" in first.inner_text()
    button = page.locator(".legend button").first
    assert button.evaluate("button => button.clientWidth") < 390
    assert "never_going_to_end_" in button.get_attribute("title")
    page.set_viewport_size({"width": 1280, "height": 900})
    assert overflow(page) <= 0
    styles = page.locator(".sortable tbody .glyph").evaluate_all("all => all.map((e) => e.outerHTML)")
    assert len(set(styles)) == 20


def test_every_column_is_in_sight_and_what_is_not_has_a_shadow(browser, tmp_path):
    asked = {
        "rows": ROWS,
        "names": ("accuracy", "f1"),
        "labels": ("not_a_duplicate_of_it", "duplicate_of_it"),
    }
    write_run(tmp_path / "runs", "dense", range(5), **asked)
    write_run(tmp_path / "runs", "longformer:window=16", range(9), **asked)
    path = report.write(tmp_path / "runs", tmp_path / "out")[1]
    page = visit(browser, path, viewport={"width": 1280, "height": 900}).page
    tables = page.locator(".scroll:has(.sortable)")
    hidden = "all => all.map((e) => e.scrollWidth - e.clientWidth)"
    assert tables.evaluate_all(hidden) == [0, 0]
    assert page.locator(".scroll:has(.confusion)").evaluate_all(hidden) == [0, 0]
    page.set_viewport_size({"width": 500, "height": 900})
    assert min(tables.evaluate_all(hidden)) > 0

    def edge():
        """What the last pixels beside the first heading show."""
        box = tables.first.bounding_box()
        return page.screenshot(
            clip={"x": box["x"] + box["width"] - 4, "y": box["y"] + 4, "width": 4, "height": 4}
        )

    start = edge()
    tables.first.evaluate("e => { e.scrollLeft = e.scrollWidth }")
    assert edge() != start


def test_no_text_of_a_record_is_obeyed(browser, tmp_path):
    """With the content security policy off: what is tested is that there is nothing for it to stop."""
    control = visit(browser, "about:blank", SENTINEL, bypass_csp=True).page
    control.set_content(f"<p>{PAYLOADS[0]}</p>{PAYLOADS[4]}")
    control.wait_for_function("() => window.count >= 2")  # so it would be seen

    for i, payload in enumerate(PAYLOADS):
        write_run(
            tmp_path / "runs",
            "x" + re.sub("[:,]", " ", payload),
            range(4 * i, 20 + 4 * i),
            rows=ROWS,
            task="".join(PAYLOADS),
            labels=(payload if i == 0 else PAYLOADS[0], PAYLOADS[9], PAYLOADS[17]),
            texts=[PAYLOADS[j % len(PAYLOADS)] for j in range(ROWS)],
            run_id=payload,
            folder=f"run{i}",
            environment={payload: payload, "device": payload},
            started=payload,
        )
    every = "".join(PAYLOADS)
    write_run(tmp_path / "runs", "dense", status="failed", error=every, folder="failed", run_id=every)
    bench = write_bench(tmp_path / "bench", subjects=PAYLOADS, device=every)
    path = report.write(tmp_path / "runs", tmp_path / "out", [bench])[1]
    opened = visit(browser, path, SENTINEL, bypass_csp=True)
    page = opened.page
    page.locator("details").evaluate_all("all => all.forEach((one) => { one.open = true })")
    for point in page.locator(".plot").filter(has=page.locator(".points path")).all()[::3]:
        point.locator(".points path").last.hover(force=True)
        point.locator(".hovertext").first.wait_for()
    page.evaluate("""() => {
      for (const element of document.querySelectorAll("body *")) {
        for (const name of ["mouseover", "focus", "click", "load", "error", "toggle"]) {
          if (!element.closest("a, .legend, .plot")) element.dispatchEvent(new Event(name));
        }
      }
    }""")
    page.locator("#task-1 .sortable th button").last.click()
    page.locator("#task-1").get_by_label("Filter rows by name").fill("fired")
    assert page.evaluate("window.count") == 0
    assert opened.said == []
    assert opened.requests == [page.url]
    assert page.locator("script").count() == 3
    attributes = page.evaluate(
        "[...document.querySelectorAll('*')].flatMap((e) => [...e.attributes].map((a) => [a.name, a.value]))"
    )
    assert not [name for name, value in attributes if name.startswith("on")]
    assert all(value.startswith("#") for name, value in attributes if name.endswith("href"))
    assert page.locator("iframe, img, blockquote *, article input").count() == 0
    assert set(page.locator("blockquote").all_text_contents()) <= {plain(payload) for payload in PAYLOADS}
    shown = page.title() + page.locator("main").text_content() + page.locator("header").text_content()
    assert not re.search("[\x01\x08\x1b\x7f\x85\u2028\u2029\u202a-\u202e\u2066-\u2069]", shown)
