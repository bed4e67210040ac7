"""Attention transfer: before fine-tuning, a mechanism's own state learns to match the attention it replaces.

Zhang et al., 2024, "The Hedgehog & the Porcupine", https://arxiv.org/abs/2402.04347, section 4, and
"LoLCATs", https://arxiv.org/abs/2410.10254, section 3, whose loss, on outputs, this is. The encoder runs on
the task's own training texts with dense attention. Beside it, on each layer, the mechanism gets the same
queries, keys and values, and its state follows the gradient of the mean over layers of

    |mechanism(q, k, v) - dense(q, k, v)|² / |dense(q, k, v)|²

No labels are read, the pretrained weights stay as they are, and nothing is propagated through the encoder: a
step costs its forward pass, with dense attention, and the mechanisms' own forward and backward. Texts that a
mechanism covers, where it equals dense attention already, are left out.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bakeoff import env, runs
from bakeoff.attention import Attention
from bakeoff.attention.base import row_attention
from bakeoff.attention.dense import Dense
from bakeoff.encoder import NAME
from bakeoff.recipes import Recipe
from bakeoff.training.trainer import LengthGroupedTrainer, arguments

_CURVE_POINTS = 20


class _Beside(Attention):
    """Dense attention in the mechanism's place, and beside it the mechanism, which learns to match it."""

    def __init__(self, mechanism: Attention) -> None:
        super().__init__(mechanism.layer)
        self.mechanism = mechanism
        self.layer_inputs = mechanism.layer_inputs
        self.squared_error: Any = 0.0  # of the batch at hand, over all calls
        self.squared_size: Any = 0.0

    def forward(
        self,
        q_BHND: Tensor,
        k_BHND: Tensor,
        v_BHND: Tensor,
        length_B: Tensor | None = None,
        *,
        scaling: float,
        dropout_p: float = 0.0,
        **layer_input: Any,
    ) -> Tensor:
        """Attend densely; see `Attention.forward`."""
        dense = row_attention(q_BHND, k_BHND, v_BHND, length_B, scaling=scaling, dropout_p=0.0)
        with torch.enable_grad():
            out = self.mechanism(q_BHND, k_BHND, v_BHND, length_B, scaling=scaling, **layer_input)
            self.squared_error = self.squared_error + (out.float() - dense.float()).square().sum()
        self.squared_size = self.squared_size + dense.float().square().sum()
        return dense


class _Stage(nn.Module):
    """The loss of a batch, for Trainer."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The relative squared error, mean over layers."""
        self.model.eval()  # no dropout: it is what the encoder computes that is to be matched
        layers = [module for module in self.modules() if isinstance(module, _Beside)]
        for layer in layers:
            layer.squared_error = layer.squared_size = 0.0
        with torch.no_grad():
            types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
            self.model.model.base_model(input_ids=input_ids, attention_mask=attention_mask, **types)
        errors, sizes = (
            torch.stack([getattr(layer, name) for layer in layers])
            for name in ("squared_error", "squared_size")
        )
        if env.processes() > 1:  # which take the mean of their losses
            torch.distributed.all_reduce(sizes)
            errors = errors * env.processes()
        return {"loss": (errors / sizes).mean()}


@contextlib.contextmanager
def in_place(model: PreTrainedModel, make: Callable[[Attention], Attention]) -> Iterator[None]:
    """For a while, what `make` gives in the place of every layer's mechanism."""
    layers = [
        (model.model.get_submodule(site.path), mechanism)
        for site, mechanism in zip(model.sites, model.mechanisms(), strict=True)
    ]
    try:
        for module, mechanism in layers:
            module.add_module(NAME, make(mechanism))
        yield
    finally:
        for module, mechanism in layers:
            module.add_module(NAME, mechanism)


def densely(mechanism: Attention) -> Attention:
    """Dense attention for a mechanism's layer, whose state it keeps; a family's local layers stay local."""
    if mechanism.local:
        return mechanism
    dense = Dense(mechanism.layer)
    dense.dropout = mechanism.dropout
    for name, parameter in mechanism.named_parameters(recurse=False):
        dense.register_parameter(name, parameter)
    for name, buffer in mechanism.named_buffers(recurse=False):
        dense.register_buffer(name, buffer)
    for name, module in mechanism.named_children():
        dense.add_module(name, module)
    return dense


def learning(model: PreTrainedModel) -> list[Attention]:
    """The mechanisms with state to fit, none of it trained already: a base made with them keeps its own."""
    found = [mechanism for mechanism in model.mechanisms() if mechanism.transferable()]
    return found if all(map(_is_at_its_start, found)) else []


def _is_at_its_start(mechanism: Attention) -> bool:
    """But for what saving in half precision rounds: a short training moves some number by more."""
    start = mechanism.initial_state()
    return all(
        torch.allclose(getattr(mechanism, name).to(value), value, rtol=5e-3, atol=1e-6)
        for name, value in start.items()
    )


def _beside_dense(mechanism: Attention) -> Attention:
    return _Beside(mechanism) if mechanism.transferable() else mechanism


def fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: datasets.Dataset,
    recipe: Recipe,
    folder: Path,
    *,
    seed: int,
    bf16: bool = False,
    progress: bool = False,
) -> runs.Transfer | None:
    """Fit the state of the model's mechanisms, in place; None where there is nothing to fit or to fit it on.

    At most `recipe.transfer_steps` steps, and at most one pass over the texts.

    Args:
        model: a converted encoder.
        tokenizer: its tokenizer.
        dataset: encoded training texts; their labels are not read.
        recipe: how long and how fast.
        folder: for Trainer, which writes nothing there.
        seed: of the order of rows.
        bf16: whether to run the encoder in bfloat16 autocast.
        progress: whether to show a bar.
    """
    mechanisms = learning(model)
    if not mechanisms or not recipe.transfer_steps:
        return None
    started = time.perf_counter()
    lengths = dataset["length"][:]
    uncovered = {n for n in {*lengths} if not all(mechanism.covers(n) for mechanism in mechanisms)}
    dataset = dataset.select([row for row, n in enumerate(lengths) if n in uncovered])
    if not len(dataset):
        return None
    mean_length = sum(dataset["length"]) / len(dataset)
    rows_a_process = max(1, round(recipe.transfer_tokens / mean_length / env.processes()))
    rows = rows_a_process * env.processes()
    steps = min(recipe.transfer_steps, math.ceil(len(dataset) / rows))
    parameters = [parameter for mechanism in mechanisms for parameter in mechanism.transferable()]
    trainer = LengthGroupedTrainer(
        _Stage(model),
        arguments(
            output_dir=str(folder),
            per_device_train_batch_size=rows_a_process,
            max_steps=steps,
            learning_rate=recipe.transfer_learning_rate,
            warmup_steps=min(10, steps // 10),
            seed=seed,
            bf16=bf16,
            logging_steps=math.ceil(steps / _CURVE_POINTS),
            logging_nan_inf_filter=False,
            save_strategy="no",
        ),
        train_dataset=dataset,
        data_collator=DataCollatorWithPadding(tokenizer),
        optimizers=(torch.optim.AdamW(parameters, recipe.transfer_learning_rate, weight_decay=0.0), None),
        progress=progress,
    )
    with in_place(model, _beside_dense):
        trainer.train()
    history = [line for line in trainer.state.log_history if "loss" in line]
    if not all(parameter.isfinite().all() for parameter in parameters):
        raise RuntimeError("attention transfer diverged: its error is not a number; try --recipe plain.")
    return runs.Transfer(
        steps=steps,
        rows=min(steps * rows, len(dataset)),
        seconds=time.perf_counter() - started,
        history=tuple({"step": line["step"], "error": line["loss"]} for line in history),
    )
