"""What a task is, and what loading one gives. Nothing here reads anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, Protocol

Part = Literal["train", "eval"]
Row = tuple[tuple[str, ...], str]  # one or two texts, and the label's name
Rows = Mapping[int, Row]  # by row number in the source split


class Origin(Protocol):
    """Where a task's rows come from: the Hub, an installed package, a generator, or files."""

    def source(self, data_dir: str | None = None) -> str:
        """The origin in words, exact enough to find the same rows again."""

    def read(self, task: Task, part: Part, data_dir: str | None = None) -> Rows:
        """All labelled rows of a part. Raises `BakeoffError` with one line on what to do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A classification task as data: one row of the table `TASKS`."""

    name: str
    description: str
    origin: Origin
    text_columns: tuple[str, ...]
    label_column: str
    labels: tuple[str, ...] = ()  # names in the order of their numbers; empty = those that train holds
    metrics: tuple[str, ...] = ("accuracy",)
    official_rows: Mapping[Part, int] | None = None  # of the published splits; None = the split is our own

    @property
    def source(self) -> str:
        """Where the rows come from, in words."""
        return self.origin.source()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examples:
    """The rows of a part that are used, in order."""

    ids: list[int]  # row numbers in the source split, from 0
    texts: list[tuple[str, ...]]
    labels: list[int]  # indexes into the task's labels
    rows_available: int  # labelled rows in the source, of which these may be a sample


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedTask:
    """A task with its rows. `sampled` is True where a part is not the whole (official) split."""

    name: str
    source: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    train: Examples
    eval: Examples
    sampled: bool
