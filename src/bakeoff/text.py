"""How shares, p-values, and text that a record holds are written."""

from __future__ import annotations

import re


def percent(share: float) -> str:
    """Two decimals, without the sign."""
    return f"{100 * share:z.2f}"


def p_text(p: float) -> str:
    """A p-value as read: two digits, no more than is known, and on its own side of 0.05."""
    if p < 0.001:
        return "< 0.001"
    if 0.0495 <= p < 0.05:
        return "< 0.05"
    return f"{p:.3f}" if p < 0.0995 else f"{p:.2f}"


def plain(text: str) -> str:
    """One line without control characters, whatever a record holds."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def markdown_escape(text: str) -> str:
    """`text` as literal Markdown: no emphasis, link, HTML, table cell, formula or code comes of it."""
    literal = "".join(f"\\{c}" if c in "\\`*_[]<>|#~&$" else c for c in text)
    # Or addresses become links: of pages, and of mail, where a backslash would not help.
    return re.sub(r"://|(?<=www)\.", r"\\\g<0>", literal, flags=re.IGNORECASE).replace("@", "&#64;")
