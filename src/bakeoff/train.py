"""One run, from a spec to its record: load, convert, train with transformers' Trainer, evaluate, write."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import gc
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SchedulerType,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.trainer_callback import ExportableState

from bakeoff import checkpoints, encode, env, interrupts, metrics, predict, recipes, runs, tasks, transfer
from bakeoff.attention import Attention
from bakeoff.attention.longformer import Window
from bakeoff.errors import BakeoffError, unknown
from bakeoff.spec import RunSpec, parse_size
from bakeoff.trainer import LengthGroupedTrainer, arguments

CHECKPOINTS = "checkpoints"
_CONVERTED = "converted"  # beside Trainer's own: the model when the mechanism came into its place
_ACCOUNT = "transfer.json"
_WEIGHTS = "model.safetensors"
_PREVIEW = 400  # characters of each evaluation text kept with its prediction
_CURVE_POINTS = 50  # of the training loss, a run

#: Learning rate and epochs by hidden size: the first line whose bound is not exceeded. 2e-5 and 3 are the
#: usual choice for base-size encoders; a small encoder moves too little at that rate.
DEFAULTS: tuple[tuple[float, float, float], ...] = (
    (512, 1e-4, 3.0),
    (math.inf, 2e-5, 3.0),
)


#: Told of an evaluation during training, by its number from 1 and its figures; True ends the run there.
Watch = Callable[[int, Mapping[str, float]], bool]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run as it would be made, before anything is trained: what `check` shows and `run` starts from."""

    spec: RunSpec  # resolved: no field is left to a default
    base: checkpoints.Base
    tokenizer: PreTrainedTokenizerBase
    task: tasks.LoadedTask
    train: encode.Encoded
    eval: encode.Encoded
    data: runs.Data


def prepare(spec: RunSpec) -> Prepared:
    """Resolve a spec and read its data.

    Raises:
        BakeoffError: the encoder, its attention or the data are not to be had as asked.
    """
    spec, base = resolve(spec)
    task = tasks.load(spec)
    tokenizer = checkpoints.load_tokenizer(spec.model_name_or_path)
    assert spec.max_length is not None  # resolved  # noqa: S101
    train, evaluation = (encode.encode(part, tokenizer, spec.max_length) for part in (task.train, task.eval))
    data = runs.Data(
        task=task.name,
        source=task.source,
        fingerprint=encode.fingerprint(task.train, task.eval),
        labels=task.labels,
        max_length=spec.max_length,
        sampled=task.sampled,
        splits={
            "train": encode.describe(train, task.train, task.labels),
            "eval": encode.describe(evaluation, task.eval, task.labels),
        },
    )
    return Prepared(spec, base, tokenizer, task, train, evaluation, data)


def resolve(spec: RunSpec) -> tuple[RunSpec, checkpoints.Base]:
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
    rate, epochs = next(line[1:] for line in DEFAULTS if base.hidden_size <= line[0])
    resolved = dataclasses.replace(
        spec,
        max_length=max_length,
        learning_rate=rate if spec.learning_rate is None else spec.learning_rate,
        num_train_epochs=epochs if spec.num_train_epochs is None else spec.num_train_epochs,
    )
    return resolved, base


def run(spec: RunSpec, *, progress: bool = True, watch: Watch | None = None) -> runs.RunRecord:
    """Train and evaluate one run, or return its record if it was made before; resume it if it was cut off.

    The record is written for every outcome. Failures do not raise: their record has a status and an error.

    Args:
        spec: what to run.
        progress: whether to show bars.
        watch: is told of every evaluation during training (`eval_steps`), and may end the run there.

    Raises:
        BakeoffError: the input is bad; nothing was trained and nothing written.
        KeyboardInterrupt: after a record of status `cancelled` was written.
    """
    if (done := runs.finished(spec)) is not None:
        return done
    started, clock = datetime.datetime.now(datetime.UTC), time.perf_counter()
    prepared = prepare(spec)
    folder = runs.output_folder(spec) / spec.run_id()
    folder.mkdir(exist_ok=True)
    with interrupts.terminable(), runs.lock(folder) if env.is_first_process() else contextlib.nullcontext():
        return runs.finished(spec) or _record(spec, prepared, folder, started, clock, progress, watch)


def _record(
    spec: RunSpec,
    prepared: Prepared,
    folder: Path,
    started: datetime.datetime,
    clock: float,
    progress: bool,
    watch: Watch | None,
) -> runs.RunRecord:
    """Make a run and write what came of it."""
    record = runs.RunRecord(
        id=folder.name,
        status="failed",
        digest=spec.digest(),
        spec=prepared.spec.to_dict(),
        started=started.isoformat(timespec="seconds"),
        seconds=0.0,
        environment=env.describe("bf16" if spec.bf16 else "fp32"),
        data=prepared.data,
    )
    interrupted = False
    try:
        fresh = env.reset_peak_memory()
        with env.memory_limit(parse_size(spec.max_memory, "max_memory") if spec.max_memory else None):
            model = _model(prepared)
            record = dataclasses.replace(record, model=_describe(model, prepared))
            record = _train(prepared, model, folder, record, progress, watch, fresh)
    except KeyboardInterrupt:
        record = dataclasses.replace(record, status="cancelled", error="interrupted; run it again to resume")
        interrupted = True
    except _Stopped as stop:
        record = dataclasses.replace(record, status="stopped", error=str(stop), history=stop.history)
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    except BakeoffError:  # an encoder whose weights are bad input
        raise
    except Exception as error:  # whatever else went wrong belongs into the record
        record = dataclasses.replace(
            record,
            status="oom" if _out_of_memory(error) else "failed",
            error=f"{type(error).__name__}: {' '.join(str(error).split())}",
        )
    record = dataclasses.replace(record, seconds=time.perf_counter() - clock)
    if env.is_first_process():
        runs.save(folder, record)
    if record.status == "ok" and env.is_first_process():
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    if interrupted:
        raise KeyboardInterrupt
    return record


def _model(prepared: Prepared) -> PreTrainedModel:
    spec = prepared.spec
    set_seed(spec.seed)
    return checkpoints.load(
        spec.model_name_or_path,
        spec.attention.name,
        attention_options=spec.attention.options,
        labels=prepared.task.labels,
        max_length=spec.max_length,
        seed=spec.seed,
        attention_dropout=spec.attention_dropout,
    )


def _train(
    prepared: Prepared,
    model: PreTrainedModel,
    folder: Path,
    record: runs.RunRecord,
    progress: bool,
    watch: Watch | None,
    fresh_memory: bool,
) -> runs.RunRecord:
    spec, task, tokenizer = prepared.spec, prepared.task, prepared.tokenizer
    rows, epochs = len(task.train.labels), spec.num_train_epochs
    assert epochs is not None  # noqa: S101  # resolved
    if "tensorboard" in spec.report_to:  # by default it would lie among the checkpoints, and go with them
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")
    state, batches, seconds, transferred = _fine_tune(prepared, model, folder / CHECKPOINTS, progress, watch)

    clock = time.perf_counter()
    logits = predict.logits(
        model,
        tokenizer,
        prepared.eval.dataset,
        spec.per_device_eval_batch_size,
        bf16=spec.bf16,
        progress=progress,
    )
    eval_seconds = time.perf_counter() - clock
    memory, how = env.peak_memory(fresh_memory)

    if env.is_first_process():
        runs.Predictions(
            ids=task.eval.ids,
            labels=task.eval.labels,
            logits=logits.tolist(),
            tokens=prepared.eval.lengths,
            texts=[" ⏎ ".join(texts)[:_PREVIEW] for texts in task.eval.texts],
        ).save(folder)
    if spec.save_model and env.is_first_process():
        tokenizer.model_max_length = spec.max_length
        _save_model(model, tokenizer, folder / runs.MODEL)
    train_tokens, eval_tokens = (sum(part.dataset["length"]) for part in (prepared.train, prepared.eval))
    mean_length = round(eval_tokens / len(prepared.eval.lengths))
    return dataclasses.replace(
        record,
        status="ok",
        metrics=metrics.compute((*task.metrics, "loss"), task.eval.labels, logits.numpy()),
        train_loss=mean_loss(state),
        batches=batches,
        transfer=transferred,
        cost=runs.Cost(
            train_seconds=seconds,
            train_tokens_per_second=train_tokens * epochs / seconds,
            train_examples_per_second=rows * epochs / seconds,
            eval_seconds=eval_seconds,
            eval_tokens_per_second=eval_tokens / eval_seconds,
            eval_examples_per_second=len(prepared.eval.lengths) / eval_seconds,
            peak_memory_bytes=memory,
            attention_flops_per_eval_token=model.attention_flops(mean_length) / mean_length,
            how=f"wall time; tokens without padding; {how}",
        ),
        history=_history(state),
    )


def _fine_tune(
    prepared: Prepared, model: PreTrainedModel, folder: Path, progress: bool, watch: Watch | None
) -> tuple[TrainerState, dict[str, int], float, runs.Transfer | None]:
    """Train by the recipe, from the last checkpoint in `folder` if there is one.

    Where a step does not fit into memory, it is made of more and smaller batches: the same rows in the same
    order, and the same mean over them.

    Returns:
        Trainer's state, the batches where they became smaller, the seconds of training, those of attention
        transfer included, and its account.
    """
    spec, recipe = prepared.spec, recipes.get(prepared.spec.recipe)
    assert spec.num_train_epochs is not None  # noqa: S101  # resolved
    steps_per_epoch = math.ceil(
        math.ceil(len(prepared.task.train.labels) / (spec.per_device_train_batch_size * env.processes()))
        / spec.gradient_accumulation_steps
    )
    steps = math.ceil(spec.num_train_epochs * steps_per_epoch)
    already = spec.attention.name == "dense" or prepared.base.native
    dense_steps = 0 if already else round(recipe.dense_share * steps)
    meter = _Meter(every=max(1, round(steps / _CURVE_POINTS)))
    _arguments(spec, folder)  # makes processes that train together know each other
    interruption = interrupts.Interruption()
    shared: list[TrainerCallback] = [meter, interruption]
    if spec.eval_steps is not None:
        every = spec.eval_steps if spec.eval_steps >= 1 else math.ceil(spec.eval_steps * steps)
        shared.append(_Evaluations(int(every), lambda: _judge(prepared, model), meter, watch))

    size = spec.per_device_train_batch_size
    batches: dict[str, int] = {}

    def train(*callbacks: TrainerCallback) -> TrainerState:
        nonlocal size, batches
        while True:
            try:
                return attempt(*callbacks)
            except Exception as error:
                # Several processes would have to agree on it.
                if size == 1 or env.processes() > 1 or meter.is_paused or not _out_of_memory(error):
                    raise
            size = max(divisor for divisor in range(1, size // 2 + 1) if size % divisor == 0)
            accumulation = spec.gradient_accumulation_steps * spec.per_device_train_batch_size // size
            batches = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
            sys.stderr.write(f"\nout of memory: going on with {accumulation} batches of {size} a step\n")
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if _last_checkpoint(folder) is None:
                model.load_state_dict(_model(prepared).state_dict())

    def attempt(*callbacks: TrainerCallback) -> TrainerState:
        model.zero_grad(set_to_none=True)
        trainer = LengthGroupedTrainer(
            model,
            _arguments(spec, folder, **batches),
            train_dataset=prepared.train.dataset,
            data_collator=DataCollatorWithPadding(prepared.tokenizer),
            processing_class=prepared.tokenizer,
            compute_loss_func=_share_of_loss,
            callbacks=[*shared, *callbacks],
            progress=progress,
        )
        checkpoint, meter.stepped = _last_checkpoint(folder), False
        try:
            with interruption.listening():
                trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
                env.wait_for_all()  # the first one may be writing a checkpoint still
        except Exception as error:
            if checkpoint is None or meter.stepped or _out_of_memory(error):
                raise
            shutil.rmtree(checkpoint)  # or the run would fail at this for ever
            raise RuntimeError(
                f"{checkpoint} could not be resumed from and was removed; run it again ({error})"
            ) from error
        return trainer.state

    if _step(_last_checkpoint(folder)) < dense_steps:
        with transfer.in_place(model, transfer.densely):
            train(_Stop(dense_steps))
    learns = recipe.transfer_steps and any(mechanism.transferable() for mechanism in model.mechanisms())
    if not dense_steps and not learns:
        return train(), batches, meter.seconds, None
    transferred = _convert(prepared, model, folder, progress)
    state = train(_Converted(model, folder / _CONVERTED, dense_steps))
    return state, batches, meter.seconds + (transferred.seconds if transferred else 0.0), transferred


def _share_of_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor) -> Tensor:
    """A batch's part in the mean cross entropy of all rows of its step, on whatever machine they are.

    The mean of batches' means would weigh the rows of a smaller batch, an epoch's last one, more.
    """
    return F.cross_entropy(outputs.logits.float(), labels, reduction="sum") / num_items_in_batch


def _convert(
    prepared: Prepared, model: PreTrainedModel, folder: Path, progress: bool
) -> runs.Transfer | None:
    """Let the mechanisms start from the model as it is, and fit them; what came of it stays on disk."""
    converted, checkpoint = folder / _CONVERTED, _last_checkpoint(folder)
    done = converted.exists()
    env.wait_for_all()  # or one process would look when another has written it
    if not done:
        if checkpoint is not None:
            load_model(model, checkpoint / _WEIGHTS)
            checkpoints.start_from_weights(model)
        made = transfer.fit(
            model,
            prepared.tokenizer,
            prepared.train.dataset,
            recipes.get(prepared.spec.recipe),
            folder,
            seed=prepared.spec.seed,
            bf16=prepared.spec.bf16,
            progress=progress,
        )
        if env.is_first_process():
            _save_converted(model, made, converted)
        env.wait_for_all()
    account = converted / _ACCOUNT
    try:
        return runs.Transfer.from_dict(json.loads(account.read_text())) if account.exists() else None
    except (OSError, ValueError, BakeoffError) as error:
        shutil.rmtree(folder)  # or the run would fail at this for ever
        raise RuntimeError(
            f"{account} could not be read; the checkpoints were removed, run it again ({error})"
        ) from error


def _arguments(spec: RunSpec, folder: Path, **batches: int) -> TrainingArguments:
    assert spec.learning_rate is not None  # noqa: S101  # resolved
    assert spec.num_train_epochs is not None  # noqa: S101
    return arguments(
        output_dir=str(folder),
        learning_rate=spec.learning_rate,
        **{
            "per_device_train_batch_size": spec.per_device_train_batch_size,
            "gradient_accumulation_steps": spec.gradient_accumulation_steps,
            **batches,
        },
        num_train_epochs=spec.num_train_epochs,
        weight_decay=spec.weight_decay,
        warmup_steps=spec.warmup_steps,
        lr_scheduler_type=spec.lr_scheduler_type,
        max_grad_norm=spec.max_grad_norm,
        seed=spec.seed,
        bf16=spec.bf16,
        **({"gradient_checkpointing": True} if spec.gradient_checkpointing else {}),
        optim="adamw_torch_fused",
        report_to=list(spec.report_to) or "none",
        run_name=folder.parent.name,
        logging_strategy="no",  # the meter decides when
        save_strategy="steps",
        save_steps=spec.save_steps,
        save_total_limit=1,
    )


def _save_converted(model: PreTrainedModel, made: runs.Transfer | None, folder: Path) -> None:
    temporary = folder.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_model(model, str(temporary / _WEIGHTS))
    if made is not None:
        runs.write_json(temporary / _ACCOUNT, dataclasses.asdict(made))
    temporary.rename(folder)


class _Meter(TrainerCallback, ExportableState):
    """Training time over all attempts of a run, and a loss curve that misses no step.

    Trainer's own `train_runtime` and `train_loss` know the last attempt only.
    """

    def __init__(self, every: int, seconds: float = 0.0) -> None:
        self.every, self.seconds = every, seconds
        self.stepped = self.is_paused = False
        self._clock: float | None = None  # of the last count, while training runs

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        self._count()
        return {"args": {"every": self.every, "seconds": self.seconds}, "attributes": {}}

    def _count(self) -> None:
        if self._clock is not None:
            now = time.perf_counter()
            self.seconds, self._clock = self.seconds + now - self._clock, now

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time that is not training's."""
        self._count()
        self._clock, self.is_paused = None, True
        yield
        self._clock, self.is_paused = time.perf_counter(), False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock; after a resume, from what the checkpoint kept."""
        kept = state.stateful_callbacks.get(type(self).__name__)
        if isinstance(kept, dict):
            self.seconds = kept["args"]["seconds"]
        self._clock = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log at every point of the curve, at the end, and wherever a checkpoint would lose the sum."""
        self.stepped, step = True, state.global_step
        control.should_log = step % self.every == 0 or step % args.save_steps == 0 or step == state.max_steps

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop the clock."""
        self._count()


class _Stopped(Exception):  # noqa: N818  # no error
    """Whoever watches a run has seen enough."""

    def __init__(self, state: TrainerState) -> None:
        super().__init__(f"stopped after {state.global_step} of {state.max_steps} steps")
        self.history = _history(state)


class _Evaluations(TrainerCallback):
    """Evaluations during training: into the history, and to whoever watches the run."""

    def __init__(
        self, every: int, judge: Callable[[], dict[str, float]], meter: _Meter, watch: Watch | None
    ) -> None:
        self.every, self.judge, self.meter, self.watch = every, judge, meter, watch

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Evaluate, where it is time; the last step's is the run's own."""
        if state.global_step % self.every or state.global_step == state.max_steps:
            return
        with self.meter.paused():
            figures = self.judge()
        epoch = state.epoch if state.epoch is not None else 0.0
        state.log_history.append({"step": state.global_step, "epoch": epoch, **figures})
        if self.watch is not None and self.watch(state.global_step // self.every, figures):
            raise _Stopped(state)


class _Stop(TrainerCallback):
    """The end of training at a step, with a checkpoint there."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop, where it is time."""
        if state.global_step == self.step:
            control.should_log = control.should_save = control.should_training_stop = True


class _Converted(TrainerCallback):
    """The converted model in place of the checkpoint it was made from, which Trainer loads."""

    def __init__(self, model: PreTrainedModel, converted: Path, step: int) -> None:
        self.model, self.converted, self.step = model, converted, step

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Load it, where training goes on from there."""
        if state.global_step == self.step:
            load_model(self.model, self.converted / _WEIGHTS)


def _judge(prepared: Prepared, model: PreTrainedModel) -> dict[str, float]:
    """The task's metrics on the evaluation rows, as Trainer would name them."""
    spec, task = prepared.spec, prepared.task
    logits = predict.logits(
        model, prepared.tokenizer, prepared.eval.dataset, spec.per_device_eval_batch_size, bf16=spec.bf16
    )
    figures = metrics.compute((*task.metrics, "loss"), task.eval.labels, logits.numpy())
    return {f"eval_{name}": metric.value for name, metric in figures.items()}


def _history(state: TrainerState) -> tuple[dict[str, float], ...]:
    return tuple(
        {k: v for k, v in line.items() if isinstance(v, int | float)}
        for line in state.log_history
        if "loss" in line or "eval_loss" in line
    )


def mean_loss(state: TrainerState) -> float:
    """The mean loss over all steps; each logged value is the mean since the one before."""
    total, before = 0.0, 0
    for line in state.log_history:
        if "loss" in line:
            total, before = total + line["loss"] * (line["step"] - before), line["step"]
    return total / before


def _step(checkpoint: Path | None) -> int:
    return 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint: Trainer writes its state last, so one without was cut off."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        try:
            json.loads((path / "trainer_state.json").read_text())
            whole.append(path)
        except (OSError, ValueError):
            continue
    return max(whole, key=_step, default=None)


def _save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    temporary = folder.with_name(folder.name + ".tmp")
    for leftover in (temporary, folder):
        shutil.rmtree(leftover, ignore_errors=True)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    temporary.rename(folder)


def _describe(model: PreTrainedModel, prepared: Prepared) -> runs.Model:
    spec, mechanisms = prepared.spec, model.mechanisms()
    lengths = [min(length, prepared.data.max_length) for length in prepared.eval.lengths]
    path = checkpoints.resolve(spec.model_name_or_path)
    return runs.Model(
        base=spec.model_name_or_path,
        base_sha256=checkpoints.weights_sha256(path),
        family=prepared.base.family,
        attention=spec.attention.name,
        attention_options=dict(model.config.attention_options),
        attention_seed=model.config.attention_seed,
        layers=prepared.base.layers,
        parameters=model.num_parameters(),
        trainable_parameters=model.num_parameters(only_trainable=True),
        attention_parameters=sum(t.numel() for m in mechanisms for t in m.state_dict().values()),
        share_dense=_share_covered(mechanisms, lengths),
    )


def _share_covered(mechanisms: Sequence[Attention], lengths: Sequence[int]) -> float:
    """The share of texts for which no layer leaves anything out; a family's own local layers aside."""
    chosen = [m for m in mechanisms if not isinstance(m, Window)]
    return sum(all(m.covers(length) for m in chosen) for length in lengths) / len(lengths)


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
