"""ListOps: nested list arithmetic, generated, whose answer may depend on every token.

`[MAX 2 9 [MIN 4 7 ] 0 ]` is 9. Operators are MAX, MIN, MED (median, rounded down) and SM (sum modulo 10)
over 2 to 10 arguments, each a digit or, with probability 1/4, another list; the ten answers are the classes.
Grammar, limits and the numbers of rows are those of Long Range Arena (Tay et al., 2020, arXiv:2011.04006;
after Nangia and Bowman, 2018, arXiv:1804.06028): lengths from N/4 to N = 2,000 tokens, depth 10. The rows
are drawn here, so figures compare among our runs, not with published ones.

A token is an operator with its bracket, a digit, or a closing bracket, separated by spaces. A subword
tokenizer splits `[MAX` into two or more of its own, so a text may take more than N of those. Below some
32 tokens expressions repeat, on both sides of the split too.
"""

from __future__ import annotations

import dataclasses
import math
import random
import re
import statistics
from collections.abc import Callable, Iterator, Mapping

from bakeoff.errors import BakeoffError
from bakeoff.tasks.base import Part, Row, Rows, Task

MAX_ARGUMENTS = 10
LIST_PROBABILITY = 0.25
ARENA_TOKENS = 2_000
ARENA_DEPTH = 10
MIN_TOKENS = 16

OPERATORS: dict[str, Callable[[list[int]], int]] = {
    "MIN": min,
    "MAX": max,
    "MED": lambda values: int(statistics.median(values)),
    "SM": lambda values: sum(values) % 10,
}


@dataclasses.dataclass(frozen=True)
class ListOps:
    """Expressions of `max_tokens // 4` to `max_tokens` tokens. A row depends on nothing but its number."""

    max_tokens: int = ARENA_TOKENS
    train_rows: int = 96_000
    eval_rows: int = 2_000
    seed: int = 0

    @classmethod
    def parse(cls, setting: str) -> ListOps:
        """From what follows `listops:`, the greatest length in tokens."""
        if not re.fullmatch("[0-9]{1,7}", setting) or int(setting) < MIN_TOKENS:
            raise BakeoffError(
                f"listops:{setting[:20]}: N is the greatest length in tokens, {MIN_TOKENS} to 9,999,999."
            )
        return cls(int(setting))

    def source(self, data_dir: str | None = None) -> str:
        """The generator with its settings."""
        return f"generated, {self.max_tokens // 4} to {self.max_tokens} tokens, seed {self.seed}"

    def read(self, task: Task, part: Part, data_dir: str | None = None) -> Rows:
        """The part's rows, each generated when it is asked for."""
        return _Rows(self, part)


@dataclasses.dataclass(frozen=True)
class _Rows(Mapping[int, Row]):
    settings: ListOps
    part: Part

    def __len__(self) -> int:
        return self.settings.train_rows if self.part == "train" else self.settings.eval_rows

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def __getitem__(self, row: int) -> Row:
        longest = self.settings.max_tokens
        rng = random.Random(f"listops {self.part} {longest} {self.settings.seed} {row}")  # noqa: S311
        while True:
            tokens: list[str] = []
            value = _grow(rng, _depth(longest), longest, tokens)
            if longest // 4 <= len(tokens) <= longest:
                return (" ".join(tokens),), str(value)


def _depth(max_tokens: int) -> int:
    """Long Range Arena's depth up to its length; above, a level each time the length grows by half.

    A list holds 6 arguments on average, of which 1.5 are lists: so many times longer is a deeper text, and
    without more depth hardly any expression drawn would be long enough.
    """
    return ARENA_DEPTH + max(0, math.ceil(math.log(max_tokens / ARENA_TOKENS, 1.5)))


def _grow(rng: random.Random, depth: int, limit: int, tokens: list[str]) -> int:
    """Append a list to `tokens` and return its value; gives up early when longer than `limit`."""
    operator = rng.choice(list(OPERATORS))
    tokens.append(f"[{operator}")
    values = []
    for _ in range(rng.randint(2, MAX_ARGUMENTS)):
        if depth > 2 and rng.random() < LIST_PROBABILITY:
            values.append(_grow(rng, depth - 1, limit, tokens))
        else:
            values.append(rng.randrange(10))
            tokens.append(str(values[-1]))
        if len(tokens) > limit:
            break
    tokens.append("]")
    return OPERATORS[operator](values)
