"""A real browser for the tests of pages: headless Chromium through Playwright, and what such tests share."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser():
    """Chromium, a process a module; tests that need it skip where it or Playwright is not there.

    Not a session: as long as Playwright's synchronous interface is open, its event loop counts as running,
    and a later test that starts a loop of its own, as the notebooks' do, would fail.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on the path")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield opened
        opened.close()


@dataclasses.dataclass
class Visit:
    """A page in a browser, with all that it said on the console and asked the network for."""

    page: Any
    said: list[str] = dataclasses.field(default_factory=list)
    requests: list[str] = dataclasses.field(default_factory=list)


def visit(browser: Any, address: Path | str, init: str = "", **context: Any) -> Visit:
    """Open a file or an address in a context of its own; `init` is a script that runs before the page's."""
    page = browser.new_context(reduced_motion="reduce", **context).new_page()
    found = Visit(page)
    page.set_default_timeout(60_000)  # milliseconds; a busy machine takes 10 s for a page
    page.on("console", lambda message: found.said.append(message.text))
    page.on("pageerror", lambda error: found.said.append(str(error)))
    page.on("dialog", lambda dialog: (found.said.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: found.requests.append(request.url))
    if init:
        page.add_init_script(init)
    page.goto(address.as_uri() if isinstance(address, Path) else address)
    return found


#: Counts calls of `fired`, and of what a payload would use to show itself.
SENTINEL = "window.count = 0; window.fired = window.alert = window.print = () => { window.count += 1 }"

#: Texts that would call `fired` if a page, a template or a library took them for more than text.
PAYLOADS = (
    "<script>fired()</script>",
    "</script><script>fired()</script>",
    "</title></style></textarea></option></select><script>fired()</script>",
    "<!--<script>fired()</script>-->",
    "<img src=x onerror=fired()>",
    "<svg onload=fired()></svg>",
    "<details open ontoggle=fired()>",
    '"><input autofocus onfocus=fired() x="',
    "' onmouseover='fired()' onfocus='fired()' x='",
    '<a href="javascript:fired()">click</a>',
    "javascript:fired()",
    "<iframe srcdoc='<script>parent.fired()</script>'></iframe>",
    "<style>body { display: none }</style>",
    "&lt;script&gt;fired()&lt;/script&gt; &#60;img src=x onerror=fired()&#62;",
    "{{ fired() }} {% raw %} ${fired()} <%= fired() %> #{fired()}",
    "%{customdata[0]} %{meta} $\\href{javascript:fired()}{x}$",
    "__proto__ constructor \\u003cscript\\u003efired()\\u003c/script\\u003e ]]> `${fired()}`",
    "\u202efired\u202c \u2066<b>\u2069 \u200f \u2028 \u2029 \ufeff",
    "\x01\x08\x1b[31m\x7f\x85<b>",
)

#: Every visible text whose contrast with what lies behind it is below WCAG's AA: 4.5, or 3 where it is large
#: or a mark that repeats a text. Colours of any notation are painted and read back.
FAINT = """() => {
  const context = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const painted = (colors) => {
    context.fillStyle = "#fff";
    for (const color of ["#fff", ...colors]) { context.fillStyle = color; context.fillRect(0, 0, 1, 1); }
    return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = (rgb) => rgb.map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const faint = [], seen = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
    if (!text || !element.checkVisibility() || element.closest("script, style, option, .unseen")) continue;
    const style = getComputedStyle(element), backgrounds = [];
    for (let behind = element; behind; behind = behind.parentElement) {
      backgrounds.unshift(getComputedStyle(behind).backgroundColor);
    }
    const color = element.closest("svg") ? style.fill : style.color;
    const key = JSON.stringify([color, backgrounds, style.fontSize, !!element.closest("[aria-hidden]")]);
    if (seen.has(key)) continue;
    seen.add(key);
    const [a, b] = [painted([...backgrounds, color]), painted(backgrounds)].map(luminance);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const large = parseFloat(style.fontSize) >= 24 || element.closest("[aria-hidden]");
    if (ratio < (large ? 3 : 4.5)) faint.push(`${ratio.toFixed(2)}: ${text.slice(0, 60)}`);
  }
  return { faint, kinds: seen.size };
}"""
