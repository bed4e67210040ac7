"""The one error a user is meant to see: a line that says what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class BakeoffError(Exception):
    """Bad input. The command line prints the message on one line and exits with code 2."""


class BusyError(BakeoffError):
    """Another process is making this very run."""


def one_line(error: object) -> str:
    """What an error says, on one line and without the user and password of an address."""
    return re.sub(r"(?<=://)[^/\s]*@", "", " ".join(str(error).split()))


def unknown(kind: str, name: str, known: Iterable[str]) -> BakeoffError:
    """An error for `name`, which is no `kind`, with the nearest known name and the list of them all."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return BakeoffError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(names)}.")
