"""Ctrl-C once, or SIGTERM: training finishes its step, saves and ends. Ctrl-C twice: it ends at once."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bakeoff import env


class Interruption(TrainerCallback):
    """A wish to stop, which Trainer reads at the end of every step."""

    def __init__(self) -> None:
        self.asked = False  # this process
        self.agreed = False  # all of them, at the end of a step

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take signals as wishes, and raise `KeyboardInterrupt` in the end if there was one.

        In another thread than the main one, which Python tells of no signal, nothing changes.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, self._wish)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.agreed or (self.asked and env.processes() == 1):
            raise KeyboardInterrupt

    def _wish(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        already, self.asked = self.asked, True
        if not already:
            with contextlib.suppress(OSError, RuntimeError, ValueError):  # whoever read it may have gone
                sys.stderr.write("\nfinishing this step and saving; Ctrl-C again ends at once\n")

    def _agree(self, device: torch.device) -> bool:
        if env.processes() == 1:
            return self.asked
        asked = torch.tensor(float(self.asked), device=device)
        torch.distributed.all_reduce(asked)
        return bool(asked)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save and stop, if someone wishes so: with several processes, whichever of them was told."""
        self.agreed = self._agree(args.device)
        if self.agreed:
            control.should_log = control.should_save = control.should_training_stop = True


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Take SIGTERM as Ctrl-C, so that what is under way is recorded; in the main thread, which is told."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGTERM)
    if before is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
