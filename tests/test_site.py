"""The documentation's site: built strictly, whole, and loading nothing from elsewhere."""

import contextlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

import bakeoff

ROOT = Path(__file__).parent.parent
#: What a browser fetches by itself; a link is followed by its reader.
LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "video": "src"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder)))
    return folder


class Loads(HTMLParser):
    """The addresses that a page loads."""

    def __init__(self):
        super().__init__()
        self.addresses = []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag in LOADED and given.get("rel") != "canonical":
            self.addresses.append(given.get(LOADED[tag]) or "")
        if "style" in given:
            self.addresses += re.findall(r"url\((.*?)\)", given["style"])


def elsewhere(address):
    return re.match(r"\s*['\"]?(https?:)?//", address) is not None


def test_strictly_built_and_every_page_is_there(site):
    pages = {path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")}
    assert pages <= {path.relative_to(site).with_suffix("") for path in site.rglob("*.html")}


def test_a_broken_link_and_a_page_without_a_place_stop_the_build(tmp_path):
    cases = {"fine": ("index", "Text."), "broken": ("index", "[there](no.md)"), "omitted": ("stray", "Text.")}
    for case, (name, text) in cases.items():
        docs = tmp_path / case
        docs.mkdir(parents=True)
        for page in re.findall(r"\S+\.md", (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]):
            (docs / page).parent.mkdir(exist_ok=True)
            (docs / page).write_text("Text.")
        (docs / f"{name}.md").write_text(text)
        folders = {"docs_dir": str(docs), "site_dir": str(tmp_path / "site")}
        with contextlib.nullcontext() if case == "fine" else pytest.raises(Abort):
            build(load_config(str(ROOT / "mkdocs.yml"), strict=True, **folders))


def test_nothing_is_loaded_from_elsewhere(site):
    seen = 0
    for page in site.rglob("*.html"):
        loads = Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        seen += len(loads.addresses)
        assert not [address for address in loads.addresses if elsewhere(address)], page
    assert seen > 100
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert not [a for a in re.findall(r"url\((.*?)\)|@import\s+(.*?);", text) if elsewhere("".join(a))], (
            sheet
        )


def test_everything_public_and_every_extension_point_is_described(site):
    text = (site / "api.html").read_text(encoding="utf-8")
    described = set(re.findall(r'id="(bakeoff\.[\w.]+)"', text)) | set(
        re.findall(r"bakeoff\.__version__", text)
    )
    assert {f"bakeoff.{name}" for name in bakeoff.__all__} <= described
    points = {"attention.Attention", "metrics.METRICS", "recipes.RECIPES", "draw.draw", "ATTENTIONS", "TASKS"}
    assert {f"bakeoff.{name}" for name in points} <= described


def test_formulas_are_mathml(site):
    page = (site / "attention" / "linformer.html").read_text(encoding="utf-8")
    assert page.count("<math ") > 20
    assert 'class="arithmatex"' not in page
