"""What a run starts from: its spec with every field resolved, its data encoded, its encoder found fit."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase, SchedulerType, set_seed
from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from bakeoff import checkpoints, encode, recipes, runs, tasks
from bakeoff.errors import BakeoffError, unknown
from bakeoff.spec import RunSpec

#: Learning rate and epochs by hidden size: the first line whose bound is not exceeded. 2e-5 and 3 are the
#: usual choice for base-size encoders; a small encoder moves too little at that rate.
DEFAULTS: tuple[tuple[float, float, float], ...] = (
    (512, 1e-4, 3.0),
    (math.inf, 2e-5, 3.0),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resolved(RunSpec):
    """A spec in which what the encoder decides is filled in."""

    max_length: int
    learning_rate: float
    num_train_epochs: float


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run as it would be made, before anything is trained: what `check` shows and `run` starts from."""

    spec: Resolved
    base: checkpoints.Base
    tokenizer: PreTrainedTokenizerBase
    task: tasks.LoadedTask
    train: encode.Encoded
    eval: encode.Encoded
    data: runs.Data

    def load_model(self) -> PreTrainedModel:
        """The model as training begins with it, the same at every call."""
        spec = self.spec
        set_seed(spec.seed)
        return checkpoints.load(
            spec.model_name_or_path,
            spec.attention.name,
            attention_options=spec.attention.options,
            labels=self.task.labels,
            max_length=spec.max_length,
            seed=spec.seed,
            attention_dropout=spec.attention_dropout,
        )


def prepare(spec: RunSpec, cache: Path | None = None) -> Prepared:
    """Resolve a spec and read its data.

    Args:
        spec: what to run.
        cache: a folder for token ids, as `encode.encode` takes it.

    Raises:
        BakeoffError: the encoder, its attention or the data are not to be had as asked.
    """
    resolved, base = resolve(spec)
    task = tasks.load(resolved)
    tokenizer = checkpoints.load_tokenizer(resolved.model_name_or_path)
    special = encode.special_tokens(tokenizer, len(task.train.texts[0]))
    if resolved.max_length <= special:
        raise BakeoffError(
            f"max_length {resolved.max_length}, but {special} tokens are special ones, which leaves no text; "
            "take more."
        )
    train, evaluation = (
        encode.encode(part, tokenizer, resolved.max_length, cache) for part in (task.train, task.eval)
    )
    data = runs.Data(
        task=task.name,
        source=task.source,
        fingerprint=encode.fingerprint(task.train, task.eval),
        labels=task.labels,
        max_length=resolved.max_length,
        sampled=task.sampled,
        splits={
            "train": encode.describe(train, task.train, task.labels),
            "eval": encode.describe(evaluation, task.eval, task.labels),
        },
    )
    return Prepared(resolved, base, tokenizer, task, train, evaluation, data)


def resolve(spec: RunSpec) -> tuple[Resolved, checkpoints.Base]:
    """Fill in what the encoder decides: `max_length`, `learning_rate`, `num_train_epochs`."""
    base = checkpoints.inspect(spec.model_name_or_path, spec.attention.name, spec.attention.options)
    recipes.get(spec.recipe)
    if spec.lr_scheduler_type not in (known := [s.value for s in SchedulerType]):
        raise unknown("lr_scheduler_type", spec.lr_scheduler_type, known)
    max_length = min(512, base.max_tokens) if spec.max_length is None else spec.max_length
    if max_length > base.max_tokens and not spec.extend_positions:
        raise BakeoffError(
            f"max_length {max_length}, but {spec.model_name_or_path} has positions for {base.max_tokens} "
            "tokens; --extend-positions copies them for longer texts, a smaller --max-length truncates."
        )
    for tracker in spec.report_to:
        if tracker not in INTEGRATION_TO_CALLBACK:
            raise unknown("report_to", tracker, INTEGRATION_TO_CALLBACK)
        if tracker not in get_available_reporting_integrations():
            raise BakeoffError(f"report_to {tracker}: it is not installed; pip install {tracker}.")
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision != "no" and not (precision == "bf16" and spec.bf16):
        raise BakeoffError(
            f"accelerate's config asks for mixed precision {precision}; a run is in fp32, or with --bf16 in "
            "bf16; make the two agree."
        )
    rate, epochs = next(line[1:] for line in DEFAULTS if base.hidden_size <= line[0])
    decided = {
        "max_length": max_length,
        "learning_rate": rate if spec.learning_rate is None else spec.learning_rate,
        "num_train_epochs": epochs if spec.num_train_epochs is None else spec.num_train_epochs,
    }
    return Resolved(**vars(spec) | decided), base
