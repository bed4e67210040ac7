"""What watches and steers a run's training through Trainer: its time and losses, evaluations, phases."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

WEIGHTS = "model.safetensors"  # of a checkpoint

#: Told of an evaluation during training, by its number from 1 and its figures; True ends the run there.
Watch = Callable[[int, Mapping[str, float]], bool]


class Meter(TrainerCallback, ExportableState):
    """Training time over all attempts of a run, and a loss curve that misses no step.

    Trainer's own `train_runtime` and `train_loss` know the last attempt only.
    """

    def __init__(self, every: int, seconds: float = 0.0) -> None:
        self.every, self.seconds = every, seconds
        self.is_stepping = self.is_paused = False
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

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """All that a checkpoint kept has been read."""
        self.is_stepping = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log at every point of the curve, at the end, and wherever a checkpoint would lose the sum."""
        step = state.global_step
        control.should_log = step % self.every == 0 or step % args.save_steps == 0 or step == state.max_steps

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop the clock."""
        self._count()


class Stopped(Exception):  # noqa: N818  # no error
    """Whoever watches a run has seen enough."""

    def __init__(self, state: TrainerState) -> None:
        super().__init__(f"stopped after {state.global_step} of {state.max_steps} steps")
        self.history = history(state)


class Evaluations(TrainerCallback):
    """Evaluations during training: into the history, and to whoever watches the run."""

    def __init__(
        self, every: int, judge: Callable[[], dict[str, float]], meter: Meter, watch: Watch | None
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
            raise Stopped(state)


class StopAt(TrainerCallback):
    """The end of training at a step, with a checkpoint there."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop, where it is time."""
        if state.global_step == self.step:
            control.should_log = control.should_save = control.should_training_stop = True


class StartFrom(TrainerCallback):
    """The converted model in place of the checkpoint it was made from, which Trainer loads."""

    def __init__(self, load: Callable[[], None], step: int) -> None:
        self.load, self.step = load, step

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Load it, where training goes on from there."""
        if state.global_step == self.step:
            self.load()


def history(state: TrainerState) -> tuple[dict[str, float], ...]:
    """The losses and evaluations that Trainer logged."""
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
