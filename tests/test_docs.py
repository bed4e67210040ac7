"""The command that fills the docs' tables, and the marks between which it does."""

import importlib.util
import re
from pathlib import Path

import pytest

from fixture_runs import write_run

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_table_is_made_from_its_runs_and_others_are_left(tables, tmp_path):
    write_run(tmp_path / "mine", "dense", range(40))
    write_run(tmp_path / "mine", "performer", range(60))
    text = (
        "before\n<!-- runs:mine verdict accuracy -->\nOLD\n<!-- end:mine -->\nbetween\n"
        "<!-- runs:other cost -->\nkept\n<!-- end:other -->\nafter\n"
    )
    made, missing = tables.filled(text, tmp_path)
    assert [name.split()[0] for name in missing] == ["other"]
    assert "OLD" not in made
    assert "\nkept\n" in made
    assert made.startswith("before\n<!-- runs:mine verdict accuracy -->\n\n- dense")
    assert "| dense             |      0.480 |   100.0 |    90.00" in made
    assert tables.filled(made, tmp_path)[0] == made
    write_run(tmp_path / "more", "linformer", range(20))
    both, _ = tables.filled("<!-- runs:mine+more accuracy -->\n\n<!-- end:mine+more -->\n", tmp_path)
    assert "| linformer         |" in both
    assert "| performer         |" in both
    write_run(tmp_path / "mine", "linformer", status="failed", error="boom")
    assert tables.filled(text, tmp_path) == (text, ["mine (1 runs without figures)", missing[0]])


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_every_link_to_a_file_leads_there_in_the_repository(page):
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert link.startswith("https://") or (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_table_has_a_beginning_an_end_and_known_parts(tables, page):
    text = page.read_text(encoding="utf-8")
    begun = re.findall(r"<!-- runs:(\S+)", text)
    assert begun == [match[2] for match in tables.TABLE.finditer(text)]
    assert begun == re.findall(r"<!-- end:(\S+) -->", text)
    assert text.strip()
    for match in tables.TABLE.finditer(text):
        assert {*match[3].split()} <= {"evaluated", "verdict", "accuracy", "seeds", "cost", "length"}
