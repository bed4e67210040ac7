"""Fill the tables of README and docs from run records: `make tables`, or `python docs/tables.py FILE …`.

A table stands between `<!-- runs:NAME PART … -->` and `<!-- end:NAME -->`, where NAME is the folder
`runs/NAME`, or several joined by "+", and each PART is one of evaluated, verdict, accuracy, seeds, cost and
length. A table whose runs are not on this machine, or not all well, is left as it is, and said so.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from bakeoff.comparison import compare, markdown_parts
from bakeoff.errors import BakeoffError

TABLE = re.compile(r"(<!-- runs:(\S+) ([\w ]+) -->\n).*?(\n<!-- end:\2 -->)", re.DOTALL)


def filled(text: str, runs: Path) -> tuple[str, list[str]]:
    """`text` with every table made anew whose runs are below `runs`, and why others were left."""
    missing = []

    def table(match: re.Match[str]) -> str:
        begin, name, parts, end = match.groups()
        try:
            comparison = compare([runs / folder for folder in name.split("+")])
            (group,) = comparison.groups
        except (BakeoffError, ValueError) as error:
            missing.append(f"{name} ({error})")
            return match[0]
        if comparison.failures:
            missing.append(f"{name} ({len(comparison.failures)} runs without figures)")
            return match[0]
        made = markdown_parts(group)
        body = "\n\n".join(made[part] for part in parts.split() if made[part])
        return f"{begin}\n{body}\n{end}"

    return TABLE.sub(table, text), missing


def main(files: list[str]) -> None:
    """Rewrite the files, and print what changed and what could not be made."""
    for path in map(Path, files):
        text = path.read_text(encoding="utf-8")
        made, missing = filled(text, Path("runs"))
        if made != text:
            path.write_text(made, encoding="utf-8")
        state = "changed" if made != text else "as before"
        left = f"; left alone: {', '.join(missing)}" if missing else ""
        print(f"{path}: {state}{left}")


if __name__ == "__main__":
    main(sys.argv[1:])
