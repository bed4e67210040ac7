"""A local page on which trained runs answer a text side by side: their labels, and what each reads.

`candidates.py` loads the runs, `explain.py` says what a model attends to, `server.py` serves both to
the page, which is `page.html`, `page.css` and `page.js`.
"""

from __future__ import annotations

from bakeoff.playground.candidates import Candidate, load
from bakeoff.playground.server import listen, serve

__all__ = ["Candidate", "listen", "load", "serve"]
