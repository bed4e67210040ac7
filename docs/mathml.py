"""A hook of mkdocs: formulas as MathML, which browsers show without a script."""

import html
import re

from latex2mathml.converter import convert

#: What pymdownx.arithmatex makes of $…$ and $$…$$.
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: object) -> str:
    """The page with every formula converted."""
    return FORMULA.sub(
        lambda match: convert(html.unescape(match[3]), display="block" if match[2] == "[" else "inline"),
        content,
    )
