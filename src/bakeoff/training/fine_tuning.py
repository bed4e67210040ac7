"""Fine-tuning by a recipe with transformers' Trainer: phases, checkpoints, steps that fit into memory."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import json
import math
import shutil
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)

from bakeoff import checkpoints, env, metrics, predict, recipes, runs
from bakeoff.errors import BakeoffError, one_line
from bakeoff.training import interrupts, transfer
from bakeoff.training.callbacks import WEIGHTS, Evaluations, Meter, StartFrom, StopAt, Watch
from bakeoff.training.preparation import Prepared, Resolved
from bakeoff.training.trainer import LengthGroupedTrainer, arguments

_CONVERTED = "converted"  # beside Trainer's own checkpoints: the model when its mechanism came into its place
_ACCOUNT = "transfer.json"
_CURVE_POINTS = 50  # of the training loss, a run


@dataclasses.dataclass(frozen=True)
class FineTuned:
    """What came of fine-tuning, beside the model.

    Attributes:
        state: Trainer's.
        batches: their sizes as the spec names them, where memory made them smaller.
        seconds: of training, those of attention transfer included.
        transfer: its account, where the recipe has it.
    """

    state: TrainerState
    batches: Mapping[str, int]
    seconds: float
    transfer: runs.Transfer | None


def fine_tune(
    prepared: Prepared, model: PreTrainedModel, folder: Path, *, progress: bool, watch: Watch | None
) -> FineTuned:
    """Train by the recipe, from the last checkpoint in `folder` if there is one."""
    spec, recipe = prepared.spec, recipes.get(prepared.spec.recipe)
    phases = _Phases(prepared, model, folder, progress, watch)
    already = spec.attention.name == "dense" or prepared.base.native
    dense_steps = 0 if already else round(recipe.dense_share * phases.steps)
    if _step(last_checkpoint(folder)) < dense_steps:
        with transfer.in_place(model, transfer.densely):
            phases.train(StopAt(dense_steps))
    learns = recipe.transfer_steps and transfer.learning(model)
    if not dense_steps and not learns:
        return FineTuned(phases.train(), phases.batches, phases.meter.seconds, None)
    made = _convert(prepared, model, folder, progress)
    state = phases.train(StartFrom(functools.partial(_load, model, folder / _CONVERTED), dense_steps))
    seconds = phases.meter.seconds + (made.seconds if made else 0.0)
    return FineTuned(state, phases.batches, seconds, made)


class _Phases:
    """One training in one or more phases, which share the schedule, the meter and the checkpoints."""

    def __init__(
        self, prepared: Prepared, model: PreTrainedModel, folder: Path, progress: bool, watch: Watch | None
    ) -> None:
        spec = prepared.spec
        batches = len(prepared.task.train.labels) / (spec.per_device_train_batch_size * env.processes())
        steps_per_epoch = math.ceil(math.ceil(batches) / spec.gradient_accumulation_steps)
        self.steps = math.ceil(spec.num_train_epochs * steps_per_epoch)
        self.prepared, self.model, self.folder, self.progress = prepared, model, folder, progress
        self.batches: dict[str, int] = {}
        self.meter = Meter(every=max(1, round(self.steps / _CURVE_POINTS)))
        self._interruption = interrupts.Interruption()
        self._callbacks: list[TrainerCallback] = [self.meter, self._interruption]
        _arguments(spec, folder)  # makes processes that train together know each other
        if spec.eval_steps is not None:
            every = spec.eval_steps if spec.eval_steps >= 1 else math.ceil(spec.eval_steps * self.steps)
            judge = functools.partial(_judge, prepared, model)
            self._callbacks.append(Evaluations(int(every), judge, self.meter, watch))

    def train(self, *callbacks: TrainerCallback) -> TrainerState:
        """Train to the end, or to where a callback stops it.

        Where a step does not fit into memory, it is made of more and smaller batches: the same rows in the
        same order, and the same mean over them.
        """
        while True:
            try:
                return self._attempt(callbacks)
            except Exception as error:
                # Several processes would have to agree on it.
                if (
                    env.processes() > 1
                    or self.meter.is_paused
                    or not env.is_out_of_memory(error)
                    or self._size == 1
                ):
                    raise
            self._shrink()

    @property
    def _size(self) -> int:
        return self.batches.get("per_device_train_batch_size", self.prepared.spec.per_device_train_batch_size)

    def _shrink(self) -> None:
        spec = self.prepared.spec
        size = max(divisor for divisor in range(1, self._size // 2 + 1) if self._size % divisor == 0)
        accumulation = spec.gradient_accumulation_steps * spec.per_device_train_batch_size // size
        self.batches = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        sys.stderr.write(f"\nout of memory: going on with {accumulation} batches of {size} a step\n")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if last_checkpoint(self.folder) is None:
            self.model.load_state_dict(self.prepared.load_model().state_dict())

    def _attempt(self, callbacks: tuple[TrainerCallback, ...]) -> TrainerState:
        self.model.zero_grad(set_to_none=True)
        trainer = LengthGroupedTrainer(
            self.model,
            _arguments(self.prepared.spec, self.folder, **self.batches),
            train_dataset=self.prepared.train.dataset,
            data_collator=DataCollatorWithPadding(self.prepared.tokenizer),
            processing_class=self.prepared.tokenizer,
            compute_loss_func=_share_of_loss,
            callbacks=[*self._callbacks, *callbacks],
            progress=self.progress,
        )
        checkpoint, self.meter.is_stepping = last_checkpoint(self.folder), False
        try:
            with self._interruption.listening():
                trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
                env.wait_for_all()  # the first one may be writing a checkpoint still
        except UnusableError:
            raise
        except Exception as error:
            elsewhere = self.meter.is_stepping or env.is_out_of_memory(error) or _is_elsewhere(error)
            if checkpoint is None or elsewhere:
                raise
            raise _put_aside(checkpoint, error) from error
        return trainer.state


class UnusableError(RuntimeError):
    """What a run would start from fails it, and was put aside."""


def _is_elsewhere(error: Exception) -> bool:
    """Whether a tracker, another process or the rows failed before the first step, and no checkpoint did."""
    places = ("transformers.integrations", "torch.distributed", "datasets")
    modules = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(module.startswith(places) for module in modules)


def _put_aside(path: Path, error: Exception) -> UnusableError:
    """Take out of the way what a run would fail at for ever; nothing of it is lost."""
    aside = path.with_name(f"unusable-{path.name}")
    try:
        path.rename(aside)
    except FileNotFoundError:  # another process of the run was first
        pass
    except OSError:  # there is one of an earlier time
        shutil.rmtree(aside, ignore_errors=True)
        with contextlib.suppress(OSError):
            path.rename(aside)
    return UnusableError(
        f"{path} could not be resumed from ({one_line(error)}) and is now {aside.name}; run it again to "
        "start before it, or, if the fault lay elsewhere, name it back first"
    )


def _load(model: PreTrainedModel, folder: Path) -> None:
    """The weights that Trainer or `_convert` left in a folder."""
    try:
        load_model(model, folder / WEIGHTS)
    except (OSError, RuntimeError, SafetensorError) as error:
        if env.is_out_of_memory(error):
            raise
        raise _put_aside(folder, error) from error


def _share_of_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor) -> Tensor:
    """A batch's part in the mean cross entropy of all rows of its step, on whatever machine they are.

    The mean of batches' means would weigh the rows of a smaller batch, an epoch's last one, more.
    """
    return F.cross_entropy(outputs.logits.float(), labels, reduction="sum") / num_items_in_batch


def _convert(
    prepared: Prepared, model: PreTrainedModel, folder: Path, progress: bool
) -> runs.Transfer | None:
    """Let the mechanisms start from the model as it is, and fit them; what came of it stays on disk."""
    converted, checkpoint = folder / _CONVERTED, last_checkpoint(folder)
    done = converted.exists()
    env.wait_for_all()  # or one process would look when another has written it
    if not done:
        if checkpoint is not None:
            _load(model, checkpoint)
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
    except (ValueError, RecursionError, BakeoffError) as error:
        raise _put_aside(folder, error) from error  # all of it: what its checkpoints took is not known


def _arguments(spec: Resolved, folder: Path, **batches: int) -> TrainingArguments:
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
        logging_nan_inf_filter=False,  # a loss that is not a number is to be seen
        save_strategy="steps",
        save_steps=spec.save_steps,
        save_total_limit=1,
    )


def _save_converted(model: PreTrainedModel, made: runs.Transfer | None, folder: Path) -> None:
    temporary = folder.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_model(model, str(temporary / WEIGHTS))
    if made is not None:
        runs.write_json(temporary / _ACCOUNT, dataclasses.asdict(made))
    temporary.rename(folder)


def _judge(prepared: Prepared, model: PreTrainedModel) -> dict[str, float]:
    """The task's metrics on the evaluation rows, as Trainer would name them."""
    spec, task = prepared.spec, prepared.task
    logits = predict.logits(
        model, prepared.tokenizer, prepared.eval.dataset, spec.per_device_eval_batch_size, bf16=spec.bf16
    )
    figures = metrics.compute((*task.metrics, "loss"), task.eval.labels, logits.numpy())
    return {f"eval_{name}": metric.value for name, metric in figures.items()}


def _step(checkpoint: Path | None) -> int:
    return 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint: Trainer writes its state last, so one without was cut off.

    One without safetensors is none of ours: Trainer would take pickled weights in their place. A state of
    another step was damaged: it would end the training where it stands. And where the optimizer or its
    schedule is missing, Trainer would go on with new ones.
    """
    needed, whole = (WEIGHTS, "optimizer.pt", "scheduler.pt"), []
    for path in folder.glob("checkpoint-*"):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            step = json.loads((path / "trainer_state.json").read_text())["global_step"]
            if step == _step(path) and step and all((path / name).is_file() for name in needed):
                whole.append(path)
    return max(whole, key=_step, default=None)
