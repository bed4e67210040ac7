"""What to run: frozen dataclasses, to and from YAML, with a digest that identifies a run.

Names are those of Hugging Face's `TrainingArguments` and `run_glue.py` wherever one exists.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Union

import yaml

from bakeoff.errors import BakeoffError, unknown

Option = int | float | bool | str | tuple[int | float | bool | str, ...]

#: Fields that say where things lie or how fast they go, and never what the result is.
NOT_IDENTITY = frozenset({"output_dir", "data_dir", "save_model", "save_steps", "report_to", "max_memory"})

#: Fields younger than runs that exist: left out of the digest at their default, or those would be made anew.
_YOUNGER = frozenset({"held_out_samples", "eval_steps"})


@dataclasses.dataclass(frozen=True)
class AttentionSpec:
    """A mechanism by name with its options, written `longformer:window=64,global_tokens=1`.

    Options may be separated by `;` too, which a list of mechanisms, separated by commas, needs.
    """

    name: str
    options: Mapping[str, Option] = dataclasses.field(default_factory=dict)

    @classmethod
    def parse(cls, value: str | Mapping[str, Any] | AttentionSpec) -> AttentionSpec:
        """Read `name`, `name:option=value,…`, or a mapping with `name` and the options beside it."""
        if isinstance(value, AttentionSpec):
            return value
        if isinstance(value, Mapping):
            options = dict(value)
            name, nested = options.pop("name", None), options.pop("options", None) or {}
            if not isinstance(name, str):
                raise BakeoffError(
                    "an attention given as a mapping needs a 'name', such as {name: longformer}."
                )
            if not isinstance(nested, Mapping):
                raise BakeoffError(f"attention {name}: options is a mapping, not {nested!r}.")
            if twice := options.keys() & nested.keys():
                raise BakeoffError(f"attention {name}: {min(map(str, twice))} is given twice.")
            options.update(nested)
        elif isinstance(value, str):
            if len(value) > _ATTENTION:  # the pattern below takes the square of it
                raise BakeoffError(f"an attention of {len(value):,} characters; write up to {_ATTENTION:,}.")
            name, _, rest = value.partition(":")
            options = {}
            for pair in filter(None, re.split(r"[,;](?![^\[]*\])", rest)):  # but not those of a list
                key, equals, text = pair.partition("=")
                if not equals:
                    raise BakeoffError(
                        f"attention {value!r}: {pair!r} is not option=value, as in longformer:window=64."
                    )
                if key.strip() in options:
                    raise BakeoffError(f"attention {value!r}: {key.strip()} is given twice.")
                try:
                    options[key.strip()] = _parsed(text)
                except ValueError:
                    raise BakeoffError(f"attention {value!r}: {text!r} is no value.") from None
        else:
            raise BakeoffError(f"an attention is a name or a mapping, not {value!r}.")
        options = {str(k): tuple(v) if isinstance(v, list) else v for k, v in options.items()}
        for key, option in options.items():
            for item in option if isinstance(option, tuple) else (option,):
                if not isinstance(item, int | float | str):
                    raise BakeoffError(
                        f"attention {name}: {key} is a number or a list of them, not {option!r}."
                    )
                _check(item, f"attention {name}: {key}")
        for text in (name, *options):
            _check(text, "an attention's name or option")
        return cls(name.strip(), options)

    def __str__(self) -> str:
        options = ",".join(f"{k}={v}" for k, v in sorted(self.options.items()))
        return f"{self.name}:{options}" if options else self.name


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run: a task, an encoder, an attention, and how to train.

    A field left at None takes the task's or the encoder's default when the run is resolved; the run
    record holds the resolved values.
    """

    # What to learn from: a task by name, or the user's own files.
    task: str | None = None
    train_file: str | None = None
    eval_file: str | None = None
    text_columns: tuple[str, ...] = ()
    label_column: str | None = None
    data_dir: str | None = None
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    held_out_samples: int | None = None  # judge on so many training rows in place of the evaluation split

    # What learns.
    model_name_or_path: str = "minilm"
    attention: AttentionSpec = dataclasses.field(default_factory=lambda: AttentionSpec("dense"))
    attention_dropout: float = 0.0
    max_length: int | None = None
    extend_positions: bool = False  # copy learned positions where max_length exceeds them

    # How: a recipe by name, then names and meanings of transformers.TrainingArguments.
    recipe: str = "transfer"
    learning_rate: float | None = None
    per_device_train_batch_size: int = 32
    per_device_eval_batch_size: int = 64
    gradient_accumulation_steps: int = 1
    num_train_epochs: float | None = None
    weight_decay: float = 0.01
    warmup_steps: float = 0.06
    lr_scheduler_type: str = "linear"
    max_grad_norm: float = 1.0
    seed: int = 42
    bf16: bool = False
    gradient_checkpointing: bool = False
    save_steps: int = 200
    eval_steps: float | None = None  # below 1: a share of all steps
    max_memory: str | None = None  # "8GiB": what the run may take, of the device's memory or of the host's

    # Where.
    output_dir: str = "runs"
    save_model: bool = True
    report_to: tuple[str, ...] = ()  # trackers by transformers' names: tensorboard, trackio, wandb, mlflow …

    def __post_init__(self) -> None:
        own = self.train_file is not None or self.eval_file is not None
        if self.task is None and not own:
            raise BakeoffError(
                "nothing to learn from: name a task (--task sst2) or files (--train a.csv --eval b.csv)."
            )
        if self.task is not None and own:
            raise BakeoffError("a task and own files exclude each other: give --task, or --train and --eval.")
        if own and not (self.train_file and self.eval_file and self.text_columns and self.label_column):
            raise BakeoffError(
                "own files need all of train_file, eval_file, text_columns and label_column "
                "(--train a.csv --eval b.csv --text-column text --label-column label)."
            )
        if self.task is not None and (self.text_columns or self.label_column):
            raise BakeoffError("text_columns and label_column are for own files; a task knows its columns.")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise BakeoffError(f"{name} must be above 0, not {value}.")
        for name in ("weight_decay", "warmup_steps", "attention_dropout", "seed"):
            if getattr(self, name) < 0:
                raise BakeoffError(f"{name} must not be negative, not {getattr(self, name)}.")
        if self.max_memory is not None:
            parse_size(self.max_memory, "max_memory")
        if self.held_out_samples is not None and self.max_eval_samples is not None:
            raise BakeoffError("held_out_samples replaces the evaluation split: leave out max_eval_samples.")
        if self.eval_steps is not None and self.eval_steps >= 1 and not float(self.eval_steps).is_integer():
            raise BakeoffError(f"eval_steps is a number of steps, or a share below 1, not {self.eval_steps}.")
        if self.seed >= 2**32:
            raise BakeoffError(f"seed must be below 2^32, not {self.seed}.")
        if self.attention_dropout >= 1:
            raise BakeoffError(f"attention_dropout is a probability below 1, not {self.attention_dropout}.")

    @property
    def task_name(self) -> str:
        """The task's name, or the training file's stem for the user's own files."""
        return self.task if self.task is not None else Path(str(self.train_file)).stem

    def digest(self) -> str:
        """SHA-256 over what decides the result: each such field, and what own files and encoders hold."""
        identity = {k: v for k, v in self.to_dict().items() if k not in NOT_IDENTITY}
        for field in _YOUNGER:
            if identity[field] is None:
                del identity[field]
        for field in ("train_file", "eval_file"):
            path = identity[field]
            if path is not None:
                identity[field] = _sha256(Path(path))
        base = Path(self.model_name_or_path)
        if base.is_dir():
            files = sorted(path for pattern in _BASE_FILES for path in base.glob(pattern) if path.is_file())
            identity["model_sha256"] = {path.name: _sha256(path) for path in files}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def run_id(self) -> str:
        """The run's folder name: readable first, unique by its digest."""
        task, attention = (
            "".join(c if c.isalnum() or c in "-_" else "-" for c in name)
            for name in (self.task_name, self.attention.name)
        )
        return f"{task}-{attention}-s{self.seed}-{self.digest()[:8]}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, as written to YAML and JSON."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "spec") -> RunSpec:
        """The inverse of `to_dict`; an unknown key or a value of the wrong type is an error."""
        return _build(cls, values, where)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridSpec:
    """Every combination of tasks, attentions and seeds over one shared set of run fields.

    `tasks` is `(None,)` where the user's own files, among those fields, are what to learn from.
    """

    tasks: tuple[str | None, ...]
    attentions: tuple[AttentionSpec, ...]
    seeds: tuple[int, ...] = (42,)
    base: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    per_task: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def runs(self) -> Iterator[RunSpec]:
        """One `RunSpec` a cell: tasks outermost, so that a task's table completes early."""
        for task, seed, attention in itertools.product(self.tasks, self.seeds, self.attentions):
            cell = {**self.base, **self.per_task.get(str(task), {})}
            yield RunSpec.from_dict({**cell, "task": task, "attention": attention, "seed": seed}, "grid")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "grid") -> GridSpec:
        """Read `tasks`, `attentions`, `seeds`, `per_task`, and any run field as shared by all cells."""
        rest = dict(values)
        tasks = rest.pop("tasks", None)
        own = tasks is None and "train_file" in rest
        attentions = rest.pop("attentions", None)
        seeds = rest.pop("seeds", [42])
        per_task = rest.pop("per_task", None) or {}
        if tasks is None and not own:
            raise BakeoffError(
                f"{where}: a grid needs tasks (--tasks sst2,imdb), or own files (--train a.csv …)."
            )
        for name, value in (
            ("tasks", [None] if own else tasks),
            ("attentions", attentions),
            ("seeds", seeds),
        ):
            if not isinstance(value, list | tuple) or not value:
                raise BakeoffError(
                    f"{where}: a grid needs {name} (--{name}), a list with at least one entry."
                )
        if not own and not all(isinstance(task, str) for task in tasks):
            raise BakeoffError(f"{where}: tasks are names, not {tasks!r}.")
        if own and per_task:
            raise BakeoffError(f"{where}: per_task is for tasks; own files are one.")
        tasks = [None] if own else tasks
        if (cells := len(tasks) * len(attentions) * len(seeds)) > _CELLS:
            raise BakeoffError(f"{where}: a grid of {cells:,} runs; it takes up to {_CELLS:,}.")
        if not isinstance(per_task, Mapping) or not all(isinstance(v, Mapping) for v in per_task.values()):
            raise BakeoffError(f"{where}: per_task maps a task's name to run fields.")
        for task in per_task:
            if task not in tasks:
                raise BakeoffError(f"{where}: per_task names {task!r}, which is not among tasks.")
        for task, fields in per_task.items():
            if taken := {"task", "attention", "seed", "output_dir"} & fields.keys():
                raise BakeoffError(f"{where}: per_task {task!r} cannot set {sorted(taken)[0]!r}.")
        if forbidden := {"task", "attention", "seed"} & rest.keys():
            raise BakeoffError(
                f"{where}: a grid takes tasks, attentions and seeds, not {sorted(forbidden)[0]!r}."
            )
        grid = cls(
            tasks=tuple(tasks),
            attentions=tuple(AttentionSpec.parse(a) for a in attentions),
            seeds=tuple(seeds),
            base=rest,
            per_task=per_task,
        )
        for _ in grid.runs():  # every cell is checked before the first one trains
            pass
        return grid


def load_yaml(path: str | Path) -> dict[str, Any]:
    """A mapping from a YAML file, by the safe loader; anything else is an error that names the file."""
    try:
        with Path(path).open(encoding="utf-8") as file:
            text = file.read(_YAML + 1)
    except FileNotFoundError:
        raise BakeoffError(f"no such file: {path}.") from None
    except (OSError, ValueError) as error:
        raise BakeoffError(f"{path}: cannot be read as UTF-8 text ({error}).") from None
    if len(text) > _YAML:
        raise BakeoffError(f"{path}: a run file has up to {_YAML:,} characters; is it another file?")
    try:
        values = _parsed(text)
    except ValueError as error:
        raise BakeoffError(f"{path}: not valid YAML ({' '.join(str(error).split())}).") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise BakeoffError(f"{path}: a run file is a mapping of fields, such as 'task: sst2'.")
    return values


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, up to a depth: what it takes for more is the square of it."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > _DEPTH:
            raise ValueError("it is nested too deeply")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        # JSON, which is YAML too, may write a character as the two halves of its surrogate pair.
        node.value = node.value.encode("utf-16", "surrogatepass").decode("utf-16")
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node, seen = super().compose_mapping_node(anchor), set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if (key.tag, key.value) in seen:  # PyYAML would take the last
                    raise ValueError(f"{key.value!r} is given twice")
                seen.add((key.tag, key.value))
        return node


def _parsed(text: str) -> Any:
    """The value that YAML text stands for. Raises `ValueError`, and nothing else, where it is none."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > _YAML:
            raise ValueError("its aliases stand for more than a run file may hold")
        return loader.construct_document(node)
    except Exception as error:  # a tag that does not fit its value makes PyYAML raise anything
        raise ValueError(str(error) or type(error).__name__) from None


def _size(node: yaml.Node, known: dict[int, float]) -> float:
    """Nodes, with what is behind an alias as often as it is named; infinite where one holds itself."""
    if id(node) not in known:
        known[id(node)] = math.inf  # until it is known: whoever asks before is inside
        inner = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = itertools.chain(*inner) if isinstance(node, yaml.MappingNode) else inner
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def parse_size(text: str, where: str) -> int:
    """Bytes of a size such as 8GiB, 500MB or 1024."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:([KMGT])(i?)B)?", text)
    if match is None or not float(match[1]):
        raise BakeoffError(f"{where} is a size such as 8GiB or 500MB, not {text!r}.")
    size = float(match[1]) * (1024 if match[3] else 1000) ** " KMGT".index(match[2] or " ")
    _check(size, where)
    return int(size)


_BASE_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.codes")  # weights, config and tokenizer

_POSITIVE = (
    "max_train_samples",
    "max_eval_samples",
    "held_out_samples",
    "max_length",
    "learning_rate",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_grad_norm",
    "save_steps",
    "eval_steps",
)


_YAML = 100_000  # characters of a run file, and values in it: PyYAML reads about so many a second
_DEPTH = 20  # levels of a run file
_ATTENTION = 1_000  # characters of an attention
_CELLS = 10_000  # runs of a grid
_NUMBER = 2**63  # numbers stay below, as in every file format


def _check(value: Any, where: str) -> None:
    """Refuse what YAML and JSON can write and no record, file name or step count can be."""
    if isinstance(value, str) and any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value):
        raise BakeoffError(f"{where}: {value!r} holds a NUL, or what is not UTF-8; leave it out.")
    if isinstance(value, int | float) and not abs(value) < _NUMBER:
        raise BakeoffError(f"{where} must be a number below 2^63, not {value!r}.")


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BakeoffError(f"{path}: cannot be read ({error.strerror}).") from None


@functools.cache  # a grid asks for each of its runs
def _hints() -> dict[str, Any]:
    return typing.get_type_hints(RunSpec)


def _build(cls: type[RunSpec], values: Mapping[str, Any], where: str) -> RunSpec:
    hints = _hints()
    for key in values:
        if key not in hints:
            error = unknown("field", str(key), hints)
            raise BakeoffError(f"{where}: {error}")
    return cls(**{key: _coerce(value, hints[key], f"{where}: {key}") for key, value in values.items()})


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """Check `value` against a field's annotation; only lossless conversions (1 -> 1.0, list -> tuple)."""
    if hint is AttentionSpec:
        try:
            return AttentionSpec.parse(value)
        except BakeoffError as error:
            raise BakeoffError(f"{where}: {error}") from None
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
        origin = typing.get_origin(hint)
    for item in value if isinstance(value, list | tuple) else (value,):
        _check(item, where)
    if origin is tuple:
        if isinstance(value, str):
            return (value,)
        if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            return tuple(value)
    elif hint is float and not isinstance(value, bool):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            number = float(value)  # YAML reads 2e-5, without a dot, as text
            if math.isfinite(number):
                return number
    elif hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    expected = "a list of texts" if origin is tuple else f"of type {hint.__name__}"
    raise BakeoffError(f"{where} must be {expected}, not {value!r}.")
