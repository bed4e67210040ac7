"""Seconds and bytes of one call, and the machine's rate at plain matrix products."""

from __future__ import annotations

import functools
import gc
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from bakeoff.bench.subjects import Run

Step = Callable[[], Any]

#: (rows, inner, columns) of the products whose best rate is the machine's: one of a feed-forward, one square.
GEMMS = ((2048, 384, 1536), (1024, 1024, 1024))


def inference(model: nn.Module, run: Run, inputs_BNE: Tensor) -> Step:
    """A forward without gradients."""

    def step() -> Tensor:
        with torch.no_grad():
            return run(inputs_BNE)

    model.eval()
    return step


def training(model: nn.Module, run: Run, inputs_BNE: Tensor, cotangent_BNE: Tensor) -> Step:
    """Forward and backward of one cotangent, to the gradients of the input and of all parameters."""
    inputs_BNE = inputs_BNE.detach().clone().requires_grad_()
    wanted = [inputs_BNE, *model.parameters()]

    def step() -> tuple[Tensor | None, ...]:
        # At the attention level the rest of the encoder takes no part.
        return torch.autograd.grad(run(inputs_BNE), wanted, cotangent_BNE, allow_unused=True)

    model.train()
    return step


def rounds(
    steps: Mapping[str, Step], repeats: int, device: str, after_round: Callable[[], Any]
) -> dict[str, list[float]]:
    """Seconds of each step in each round; in a round every step has one turn, of two calls, the second timed.

    Taking turns, all steps meet the same state of the machine, and a ratio compares neighbours in time. The
    first call of a turn brings back what the step's own calls leave behind, such as memory at hand, which the
    others' turns have swept away: in use, a model's call follows a call of the same model.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        gc.collect()
        gc.disable()
        try:
            for name, step in steps.items():
                step()
                seconds[name].append(_seconds(step, device))
        finally:
            gc.enable()
        after_round()
    return seconds


def _seconds(step: Step, device: str) -> float:
    _wait(device)
    start = time.perf_counter()
    result = step()
    _wait(device)
    elapsed = time.perf_counter() - start
    del result  # freeing is not part of it
    return elapsed


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory(step: Step, device: str) -> int:
    """The most bytes that one call holds at a time beyond what was there before, its result included."""
    if device == "cuda":
        _wait(device)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        _wait(device)
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it announces itself on the terminal
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    # PyTorch has no counter of the CPU's memory; of the profiler's views only this one keeps the order.
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


def gemm_rate(dtype: torch.dtype, device: str) -> float:
    """The best rate at `GEMMS`, in operations a second: what the machine can do here, at these threads."""
    best = 0.0
    for rows, inner, columns in GEMMS:
        a = torch.randn(rows, inner, device=device).to(dtype)
        b = torch.randn(columns, inner, device=device).to(dtype)
        # As a linear layer has it: in bf16, PyTorch's `a @ b` may miss the kernel that layers use.
        fastest = min(_seconds(functools.partial(F.linear, a, b), device) for _ in range(5))
        best = max(best, 2.0 * rows * inner * columns / fastest)
    return best
