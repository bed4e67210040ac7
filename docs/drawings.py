"""Make the pictures of the mechanisms' pages anew: python docs/drawings.py, from the root.

Each is the file that a `bakeoff draw … --output` command of a page writes.
"""

import re
import shlex
from pathlib import Path

COMMAND = re.compile(r"^bakeoff (draw .* --output (docs/attention/\S+\.png))$", re.M)


def commands() -> list[tuple[list[str], Path]]:
    """The arguments of each command, and the picture it writes."""
    pages = sorted(Path(__file__).parent.glob("attention/*.md"))
    found = [match for page in pages for match in COMMAND.findall(page.read_text(encoding="utf-8"))]
    return [(shlex.split(arguments), Path(picture)) for arguments, picture in found]


if __name__ == "__main__":
    from bakeoff import cli

    for arguments, _ in commands():
        cli.app(arguments, standalone_mode=False)
