"""Logits of a classifier: for evaluation, and for new texts."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from bakeoff import env, runs
from bakeoff.checkpoints import load_config, load_tokenizer, load_weights
from bakeoff.encoder import NAME, BakeoffForSequenceClassification
from bakeoff.errors import BakeoffError

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.inference_mode()
def logits(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: datasets.Dataset,
    batch_size: int,
    *,
    bf16: bool = False,
    progress: bool = False,
) -> torch.Tensor:
    """(rows, classes) fp32 logits in the dataset's order.

    Rows are batched by length, which pads the least; by the mechanisms' contract a row's logits do not
    depend on its batch. Processes that run together share the batches, and all get all logits.
    """
    model.eval()
    columns = [c for c in ("input_ids", "token_type_ids") if c in dataset.column_names]
    lengths = dataset["length"][:]
    order = sorted(range(len(dataset)), key=lambda row: -lengths[row])
    out = torch.zeros(len(dataset), model.config.num_labels)
    rows = dataset.select_columns(columns)
    first, step = int(os.environ.get("RANK", "0")) * batch_size, env.processes() * batch_size
    for start in tqdm(range(first, len(order), step), desc="evaluate", disable=not progress, leave=False):
        chosen = order[start : start + batch_size]
        batch = tokenizer.pad(rows[chosen], return_tensors="pt").to(model.device)
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=bf16):
            out[chosen] = model(**batch).logits.float().cpu()
    if env.processes() > 1:
        shared = out.to(model.device)
        torch.distributed.all_reduce(shared)  # each row is zero but with one process
        out = shared.cpu()
    return out


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A text's label, with the probability of every label and what truncation left out."""

    label: str
    probabilities: dict[str, float]
    tokens: int
    truncated: bool


class Classifier:
    """A trained run, ready to classify texts.

    Args:
        folder: a run's folder, or a model folder such as `convert` writes.
    """

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder)
        if not path.is_dir():
            raise BakeoffError(f"no such folder: {path}.")
        if (path / runs.RECORD).exists() or (path / runs.MODEL).is_dir():
            path = path / runs.MODEL
            if not path.is_dir():
                raise BakeoffError(f"{folder} kept no model; run it again with --save-model.")
        if load_config(path).model_type != NAME:
            raise BakeoffError(f"{path} is no bakeoff model; train one with bakeoff run.")
        self.model = load_weights(BakeoffForSequenceClassification, path, complete=True).eval()
        if torch.cuda.is_available():
            self.model.to("cuda")
        self.tokenizer = load_tokenizer(path)
        self.max_length: int = min(self.tokenizer.model_max_length, self.model.max_tokens)

    def __call__(self, texts: Iterable[str | Sequence[str]], batch_size: int = 32) -> Iterator[Prediction]:
        """Classify texts, or pairs of texts, in their order, a batch at a time."""
        pending = iter(texts)
        names = self.model.config.id2label
        while batch := list(islice(pending, batch_size)):
            pairs = [(text,) if isinstance(text, str) else tuple(text) for text in batch]
            if len({len(pair) for pair in pairs}) > 1:
                raise BakeoffError("some inputs are one text and some are two; give all the same number.")
            columns = [list(column) for column in zip(*pairs, strict=True)]
            lengths = [len(ids) for ids in self.tokenizer(*columns, verbose=False)["input_ids"]]
            inputs = self.tokenizer(
                *columns, truncation=True, max_length=self.max_length, padding=True, return_tensors="pt"
            ).to(self.model.device)
            with torch.inference_mode():
                probabilities: Any = self.model(**inputs).logits.float().softmax(-1).tolist()
            for row, length in zip(probabilities, lengths, strict=True):
                if not all(map(math.isfinite, row)):
                    raise BakeoffError("the model gives no finite probabilities; its training diverged.")
                best = max(range(len(row)), key=row.__getitem__)
                by_label = {names[index]: value for index, value in enumerate(row)}
                yield Prediction(names[best], by_label, length, length > self.max_length)
