"""Texts to token ids, with what the truncation cost, and the fingerprint of the data used."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from bakeoff.runs import Split
from bakeoff.tasks import Examples

if TYPE_CHECKING:
    import datasets

_BATCH = 1_000
_QUANTILES = ("0.5", "0.95", "1.0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoded:
    """A part as token ids, in memory, with its lengths in tokens before truncation.

    `dataset` holds `input_ids`, `labels`, `length` (after truncation) and, where the tokenizer gives them,
    `token_type_ids`; there is no padding, and so no attention mask.
    """

    dataset: datasets.Dataset
    lengths: list[int]
    quantiles: dict[str, int]  # "0.5", "0.95", "1.0" -> tokens
    share_truncated: float


def encode(examples: Examples, tokenizer: Any, max_length: int) -> Encoded:
    """Tokenise `examples` to at most `max_length` tokens, special tokens included.

    A pair is shortened from the end of its longer text. Only what is too long is tokenised twice.
    """
    import datasets
    import pyarrow as pa

    lengths: list[int] = []
    batches = []
    for start in range(0, len(examples.texts), _BATCH):
        texts = examples.texts[start : start + _BATCH]
        columns = _tokenize(tokenizer, texts, truncation=False)
        whole = [len(ids) for ids in columns["input_ids"]]
        lengths += whole
        long = [row for row, length in enumerate(whole) if length > max_length]
        if long:
            cut = _tokenize(
                tokenizer, [texts[row] for row in long], truncation="longest_first", max_length=max_length
            )
            for name, values in cut.items():
                for row, value in zip(long, values, strict=True):
                    columns[name][row] = value
        arrays = {name: pa.array(values, pa.list_(pa.int32())) for name, values in columns.items()}
        arrays["labels"] = pa.array(examples.labels[start : start + _BATCH], pa.int64())
        arrays["length"] = pa.array([len(ids) for ids in columns["input_ids"]], pa.int64())
        batches.append(pa.table(arrays))
    ordered = sorted(lengths)
    return Encoded(
        dataset=datasets.Dataset(pa.concat_tables(batches)),
        lengths=lengths,
        quantiles={q: ordered[math.ceil(float(q) * len(ordered)) - 1] for q in _QUANTILES},
        share_truncated=sum(length > max_length for length in lengths) / len(lengths),
    )


def describe(encoded: Encoded, examples: Examples, labels: tuple[str, ...]) -> Split:
    """What the run record says of a part. `labels` are the task's names, in the order of their numbers."""
    counts = Counter(examples.labels)
    return Split(
        rows=len(examples.labels),
        rows_available=examples.rows_available,
        token_quantiles=encoded.quantiles,
        share_truncated=encoded.share_truncated,
        label_counts={name: counts[number] for number, name in enumerate(labels)},
    )


def fingerprint(train: Examples, evaluation: Examples) -> str:
    """SHA-256 over the texts and labels of both parts, in order."""
    digest = hashlib.sha256()
    for part in (train, evaluation):
        for texts, label in zip(part.texts, part.labels, strict=True):
            digest.update(json.dumps([*texts, label]).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _tokenize(tokenizer: Any, texts: list[tuple[str, ...]], **options: Any) -> dict[str, list[list[int]]]:
    columns = (list(column) for column in zip(*texts, strict=True))
    # Not verbose: that a text is longer than the encoder's positions is for the truncation to cure.
    encoded = tokenizer(*columns, return_attention_mask=False, verbose=False, **options)
    return {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}
