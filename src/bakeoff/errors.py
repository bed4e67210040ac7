"""The one error a user is meant to see: a line that says what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_LONGEST = 2_000  # characters of a message; a column's name, or a value that is refused, may be a megabyte
_LISTED = 50  # known names in a message; a table can have a column a word


class BakeoffError(Exception):
    """Bad input. The command line prints the message on one line and exits with code 2.

    Whatever names and values the message quotes, it is one line of bounded length: what is not printable,
    line separators, terminal controls and lone surrogates among it, is written as an escape.
    """

    def __init__(self, message: str) -> None:
        half = _LONGEST // 2
        if len(message) > _LONGEST:
            message = f"{message[: half - 3]} … {message[-half:]}"
        line = printable(message)
        super().__init__(line if len(line) <= _LONGEST else f"{line[: half - 3]} … {line[-half:]}")


class FailedError(BakeoffError):
    """The input was good, and what was made of it did not end well: the command line exits with code 1."""


class BusyError(BakeoffError):
    """Another process is making this very run."""


def printable(text: str) -> str:
    """`text` with an escape in place of whatever does not print or would steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(error: object) -> str:
    """What an error says, on one line and without the user and password of an address."""
    return re.sub(r"(?<=://)[^/\s]*@", "", " ".join(str(error).split()))


def missing(sentence: str, extra: str) -> BakeoffError:
    """An error that says with `sentence` what is not installed, and how the extra that holds it is."""
    return BakeoffError(f"{sentence}: pip install '.[{extra}]' in bakeoff's checkout.")


def unknown(kind: str, name: str, known: Iterable[str]) -> BakeoffError:
    """An error for `name`, which is no `kind`, with the nearest known name and the list of them all."""
    names = sorted(known)
    # Of many long names, a comparison with each would take minutes.
    near = difflib.get_close_matches(str(name)[:100], [n[:100] for n in names[:200]], n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    listed = ", ".join(names[:_LISTED]) + (" …" if len(names) > _LISTED else "")
    return BakeoffError(f"unknown {kind} {name!r}.{hint} Known: {listed}.")
