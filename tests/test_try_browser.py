"""The page in a browser: what a person sees, with a mouse, with keys, on a phone."""

import shutil
import threading
import time

import pytest

import tiny
from bakeoff import checkpoints, playground
from bakeoff.playground import server

sync_api = pytest.importorskip("playwright.sync_api")
uvicorn = pytest.importorskip("uvicorn")

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
HOSTILE = (
    "<img src=x onerror=\"document.title='hacked'\"></textarea><script>document.title='hacked'</script>&amp;"
)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Two models with hostile labels that differ on some texts, a run without one, at a running server."""
    path = tmp_path_factory.mktemp("try")
    for index, name in enumerate(("dense", "performer")):
        base = tiny.encoder(path / f"base-{name}", seed=index)
        model = checkpoints.convert(base, name, path / name)
        model.config.id2label = {0: "<b>good</b>", 1: HOSTILE}
        model.config.label2id = {"<b>good</b>": 0, HOSTILE: 1}
        model.save_pretrained(path / name)
    candidates = playground.load([path / "dense", path / "performer"])
    fault = playground.Candidate(name=HOSTILE, where="there", fault=f"broken: {HOSTILE}")
    serving = uvicorn.Server(uvicorn.Config(server.app([*candidates, fault]), log_level="warning"))
    with server.listen(0) as listening:
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [listening]})
        thread.start()
        while not serving.started:
            time.sleep(0.01)
        yield "http://{}:{}/".format(*listening.getsockname())
        serving.should_exit = True
        thread.join()


@pytest.fixture
def opened(browser, address):
    """Open the page with these options; what it logs, or asks of others, is a failure."""
    contexts, said = [], []

    def open_page(**options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: request.url.startswith(address) or said.append(request.url))
        page.goto(address)
        sync_api.expect(page.locator(".card")).to_have_count(2)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []


def ask(page, text):
    page.fill("#first", text)
    page.press("#first", "Control+Enter")
    sync_api.expect(page.locator(".explained:visible")).to_have_count(2)


def test_a_text_is_answered_by_all_and_explained(opened):
    page = opened()
    ask(page, "a good film with rain")
    for card in page.locator(".card").all():
        assert card.locator(".label").inner_text() in ("<b>good</b>", HOSTILE)
        shares = [float(x.split()[0]) for x in card.locator(".bars dd:not(.bar)").all_inner_texts()]
        assert sum(shares) == pytest.approx(100, abs=0.2)
        assert "ms · 7 tokens" in card.locator(".cost").inner_text()
        assert card.locator(".tokens").inner_text() == "[CLS]a good film with rain[SEP]"
    card = page.locator(".card").first
    token = card.locator(".tokens span", has_text="good")
    token.hover()
    assert card.locator(".explained .readout").inner_text() == token.get_attribute("title")
    card.locator(".tokens span").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert card.locator(".explained .readout").inner_text() == token.get_attribute("title")


def test_a_pattern_is_drawn_and_read_out(opened):
    page = opened()
    ask(page, "a good film with rain")
    card = page.locator(".card").first
    card.locator("summary").press("Enter")
    readout = card.locator("details .readout")
    sync_api.expect(readout).to_contain_text("Point at a cell")
    canvas = card.locator("canvas")
    painted = (
        "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)"
        ".data.some(value => value)"
    )
    assert canvas.evaluate(painted)
    canvas.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    assert readout.inner_text().startswith("a (2) looks at a (2): 0.")
    canvas.hover(position={"x": 3, "y": 3})
    first = readout.inner_text()
    assert first.startswith("[CLS] (1) looks at [CLS] (1): 0.")
    card.locator("select").select_option("0")
    sync_api.expect(readout).to_contain_text("Point at a cell")
    canvas.hover(position={"x": 4, "y": 4})
    assert readout.inner_text() != first


def test_hostile_text_stays_text(opened):
    page = opened()
    for text in (HOSTILE, "🙂 \u202e film", "film\n\n  rain"):
        ask(page, text)
        for shown in page.locator(".tokens").all():
            said = shown.evaluate("element => element.textContent")
            assert said.removeprefix("[CLS]").removesuffix("[SEP]") == text
    assert page.title() == "Bake-off: try a text"
    assert HOSTILE in page.locator("#faults li").inner_text()
    assert page.locator("img, main script, main b:not(#how b)").count() == 0


def test_they_agree_or_differ_at_a_glance(opened):
    page = opened()
    seen = set()
    for word in ("good", "bad", "film", "rain", "actors in the rain", "awful", "great scenes", "poor"):
        ask(page, word)
        labels = page.locator(".card .label").all_inner_texts()
        verdict = page.locator("#verdict").inner_text()
        assert verdict.startswith("All 2 say" if len(set(labels)) == 1 else "They differ: 1 says")
        seen.add(len(set(labels)))
    assert seen == {1, 2}


def test_a_long_text_is_answered_and_the_next_one_explained(opened):
    page = opened()
    page.fill("#first", "rain " * 600)
    page.click("button")
    sync_api.expect(page.locator(".cost").last).to_contain_text("explained up to 256 tokens only")
    assert "cut to" in page.locator(".cost").first.inner_text()
    assert page.locator(".explained:visible, details:visible").count() == 0
    ask(page, "a film")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_cut_off(opened, scheme):
    page = opened(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    ask(page, "a" * 300 + " good film")
    page.locator("summary").first.click()
    sync_api.expect(page.locator("details .readout").first).to_contain_text("Point at a cell")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    for unlabelled in ("textarea:not([id])", "button:empty", "select:not(label select)"):
        assert page.locator(unlabelled).count() == 0
