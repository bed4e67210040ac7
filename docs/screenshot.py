"""Take the README's picture of the report: `python docs/screenshot.py [RUNS] [PICTURE]`.

It makes the report of the runs in RUNS (by default `runs/demo`) and photographs the beginning of its page
into PICTURE (`docs/report.png`), 1280 pixels wide: verdict, table and the first figures. The same runs and
the same machine give the same picture. It needs Playwright, of the extra `test`, and a Chromium on the path.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from bakeoff import report

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
WIDTH = 1280
LAST = ".figures figure:nth-of-type(2) .plot"  # of the first task: what the picture ends with


def shoot(runs: Path, picture: Path) -> None:
    """Write `picture`, a PNG."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        page_file = next(path for path in report.write(runs, Path(folder)) if path.suffix == ".html")
        path = next(filter(None, map(shutil.which, CHROMIUMS)), None)
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(
            viewport={"width": WIDTH, "height": 900}, color_scheme="light", reduced_motion="reduce"
        )
        page.goto(page_file.as_uri())
        end = page.locator(LAST).first.bounding_box()
        height = end["y"] + end["height"] + 8
        page.screenshot(path=picture, full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": height})
        browser.close()


if __name__ == "__main__":
    arguments = sys.argv[1:] + ["runs/demo", "docs/report.png"][len(sys.argv) - 1 :]
    shoot(*map(Path, arguments))
    print(arguments[1])
