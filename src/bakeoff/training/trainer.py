"""What the stages of a run share: transformers' Trainer with our order of rows, and a quiet bar."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from bakeoff import env
from bakeoff.training.batching import LengthGroupedSampler


class LengthGroupedTrainer(Trainer):
    """Trainer with our order of rows; its training data have a column `length`."""

    def __init__(self, model: Any, args: TrainingArguments, *, progress: bool, **kwargs: Any) -> None:
        super().__init__(model, args, **kwargs)
        self.remove_callback(PrinterCallback)  # which prints a mapping at every point of the curve
        if progress and self.is_world_process_zero():
            self.add_callback(_Progress)

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        sampler = LengthGroupedSampler(self.train_dataset["length"], batch, self.args.seed)
        self.add_callback(_Epoch(sampler))
        return sampler


def arguments(**given: Any) -> TrainingArguments:
    """Trainer's arguments with what is the same for every stage: the device, and no trackers unless given."""
    made = TrainingArguments(
        **{"report_to": "none", **given},
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        # In several processes a batch that is wholly dense, or a phase that is, leaves parameters unused.
        **({"ddp_find_unused_parameters": True} if env.processes() > 1 else {}),
        **({"ddp_backend": "gloo"} if env.processes() > 1 and not torch.cuda.is_available() else {}),
    )
    made._n_gpu = min(made.n_gpu, 1)  # a device a process: torchrun, and not threads in one process
    if made.device.type == "cpu":  # in several processes "cpu:0", where transformers < 5.18 cannot resume to
        made._setup_devices = torch.device("cpu")
    return made


class _Epoch(TrainerCallback):
    """Tells the sampler which pass begins, which does not reach it through a resumed loader's wrappers."""

    def __init__(self, sampler: LengthGroupedSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Before the first row is drawn."""
        self.sampler.set_epoch(int(state.epoch or 0))


class _Progress(ProgressCallback):
    """A bar with the current loss on it."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the loss on the bar."""
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")
