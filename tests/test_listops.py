"""ListOps against an evaluator that shares nothing with the generator, and against the stated limits."""

import random

import numpy as np
import pytest

from bakeoff import tasks
from bakeoff.errors import BakeoffError
from bakeoff.spec import RunSpec
from bakeoff.tasks.base import Rows
from bakeoff.tasks.listops import ARENA_DEPTH, MAX_ARGUMENTS, ListOps, _Rows

FUNCTIONS = {"[MIN": np.min, "[MAX": np.max, "[MED": np.median, "[SM": lambda values: np.sum(values) % 10}


def evaluate(text: str) -> tuple[int, int, int]:
    """The value of an expression, by a stack; its depth in lists; and its greatest number of arguments."""
    stack: list[list] = [["root"]]
    depth = widest = 0
    for token in text.split(" "):
        if token in FUNCTIONS:
            stack.append([token])
            depth = max(depth, len(stack) - 1)
        elif token == "]":
            operator, *values = stack.pop()
            assert len(values) >= 2
            widest = max(widest, len(values))
            stack[-1].append(int(FUNCTIONS[operator](values)))
        else:
            assert token in set("0123456789")
            stack[-1].append(int(token))
    [[_, value]] = stack
    return value, depth, widest


def rows(name: str, part: str = "train") -> Rows:
    task = tasks.get(name)
    return task.origin.read(task, part)


def test_evaluator_on_worked_examples() -> None:
    assert evaluate("[MAX 2 9 [MIN 4 7 ] 0 ]") == (9, 2, 4)
    assert evaluate("[MED 1 2 ]")[0] == 1
    assert evaluate("[SM 9 [SM 8 8 ] 7 ]")[0] == 2


@pytest.mark.parametrize("tokens", [16, 100, 2000])
def test_answers_lengths_and_limits(tokens: int) -> None:
    found = [rows(f"listops:{tokens}")[row] for row in range(40)]
    depths = []
    for (text,), label in found:
        value, depth, widest = evaluate(text)
        assert label == str(value)
        assert tokens // 4 <= len(text.split(" ")) <= tokens
        assert widest <= MAX_ARGUMENTS
        depths.append(depth)
    assert max(depths) < ARENA_DEPTH  # a digit in the deepest list is on the last of the levels
    assert len({text for text, _ in found}) > 30  # the shortest expressions do come twice


def test_longer_than_the_arena_still_comes_quickly_and_right() -> None:
    (text,), label = rows("listops:8000")[0]
    assert 2000 <= len(text.split(" ")) <= 8000
    assert str(evaluate(text)[0]) == label


def test_a_row_depends_on_its_number_part_and_settings_alone() -> None:
    random.seed(1)
    state = random.getstate()
    first = rows("listops:64")[5]
    assert random.getstate() == state
    random.seed(2)
    assert rows("listops:64")[5] == first
    assert first not in (rows("listops:64")[6], rows("listops:64", "eval")[5], rows("listops:65")[5])
    task = tasks.get("listops:64")
    assert ListOps(64, seed=1).read(task, "train")[5] != first


def test_a_plain_name_is_the_arena() -> None:
    assert tasks.get("listops").origin == tasks.get("listops:2000").origin
    assert len(rows("listops")) == 96_000
    assert len(rows("listops", "eval")) == 2_000


def test_every_answer_occurs() -> None:
    found = rows("listops:32")
    assert {found[row][1] for row in range(500)} == set(tasks.get("listops").labels)


@pytest.mark.parametrize("setting", ["", "15", "-20", "1e3", "long", "２０", "9" * 5000])
def test_bad_settings(setting: str) -> None:
    with pytest.raises(BakeoffError, match="16 to 9,999,999"):
        tasks.get(f"listops:{setting}")


def test_held_out_rows_are_generated_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them would take minutes, at the start of every trial of a sweep."""
    made: list[int] = []
    generate = _Rows.__getitem__
    monkeypatch.setattr(_Rows, "__getitem__", lambda self, row: made.append(row) or generate(self, row))
    loaded = tasks.load(RunSpec(task="listops:32", held_out_samples=8, max_train_samples=20))
    assert (len(loaded.train.ids), len(loaded.eval.ids)) == (20, 8)
    assert len(made) == 28
