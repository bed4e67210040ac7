"""Texts to token ids, with what the truncation cost, and the fingerprint of the data used."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bakeoff.errors import BakeoffError
from bakeoff.runs import Split
from bakeoff.tasks import Examples

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

_BATCH = 1_000
_QUANTILES = ("0.5", "0.95", "1.0")
_WHOLE = "length before truncation"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoded:
    """A part as token ids, with its lengths in tokens before truncation.

    `dataset` holds `input_ids`, `labels`, `length` (after truncation) and, where the tokenizer gives them,
    `token_type_ids`; there is no padding, and so no attention mask.
    """

    dataset: datasets.Dataset
    lengths: list[int]
    quantiles: dict[str, int]  # "0.5", "0.95", "1.0" -> tokens
    share_truncated: float


def encode(examples: Examples, tokenizer: Any, max_length: int, cache: Path | None = None) -> Encoded:
    """Tokenise `examples` to at most `max_length` tokens, special tokens included.

    A pair is shortened from the end of its longer text.

    Args:
        examples: texts and labels.
        tokenizer: of the encoder.
        max_length: in tokens.
        cache: a folder, made if need be, where token ids of the same texts and labels by the same tokenizer
            are looked for, and left for the next. One that cannot be written costs time and nothing else.
    """
    import datasets

    path = cache / f"{_key(examples, tokenizer, max_length)}.arrow" if cache and tokenizer.is_fast else None
    table = _read(path, examples) if path else None
    if table is None:
        table = _tokenized(examples, tokenizer, max_length)
        if path:
            _write(table, path)
    lengths = table[_WHOLE].to_pylist()
    ordered = sorted(lengths)
    return Encoded(
        # Its own name would be a hash of all that it holds, pickled.
        dataset=datasets.Dataset(table.drop_columns(_WHOLE), fingerprint=uuid.uuid4().hex),
        lengths=lengths,
        quantiles={q: ordered[math.ceil(float(q) * len(ordered)) - 1] for q in _QUANTILES},
        share_truncated=sum(length > max_length for length in lengths) / len(lengths),
    )


def _tokenized(examples: Examples, tokenizer: Any, max_length: int) -> pa.Table:
    """The dataset's columns, and each text's tokens before truncation."""
    import pyarrow as pa

    batches = []
    for start in range(0, len(examples.texts), _BATCH):
        columns, whole = tokenize(examples.texts[start : start + _BATCH], tokenizer, max_length)
        arrays = {name: pa.array(values, pa.list_(pa.int32())) for name, values in columns.items()}
        arrays["labels"] = pa.array(examples.labels[start : start + _BATCH], pa.int64())
        arrays["length"] = pa.array([len(ids) for ids in columns["input_ids"]], pa.int64())
        arrays[_WHOLE] = pa.array(whole, pa.int64())
        batches.append(pa.table(arrays))
    return pa.concat_tables(batches)


def _key(examples: Examples, tokenizer: Any, max_length: int) -> str:
    """Equal where the token ids are: by texts, labels, everything the tokenizer does, and the length."""
    import tokenizers

    backend = tokenizer.backend_tokenizer
    backend.no_truncation()  # what its last call set, and the next sets again
    backend.no_padding()
    digest = hashlib.sha256()
    for part in (
        examples.texts,
        examples.labels,
        max_length,
        backend.to_str(),
        tokenizer.model_input_names,
        tokenizer.truncation_side,
        tokenizer.split_special_tokens,
        tokenizers.__version__,
    ):
        digest.update(json.dumps(part).encode() + b"\n")
    return digest.hexdigest()


def _read(path: Path, examples: Examples) -> pa.Table | None:
    """What `_write` left for these examples, mapped rather than read; None if it is not there and whole."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
        if not _is_ours(table.schema):
            return None
        table.validate(full=True)
        return table if table["labels"].to_pylist() == examples.labels else None
    except (OSError, KeyError, pa.ArrowException):
        return None


def _is_ours(schema: pa.Schema) -> bool:
    import pyarrow as pa

    numbers = {"labels", "length", _WHOLE}
    return {*numbers, "input_ids"} <= {*schema.names} and all(
        field.type == (pa.int64() if field.name in numbers else pa.list_(pa.int32())) for field in schema
    )


def _write(table: pa.Table, path: Path) -> None:
    import pyarrow as pa

    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")  # runs side by side may write the same
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


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


def tokenize(
    texts: Sequence[tuple[str, ...]], tokenizer: Any, max_length: int
) -> tuple[dict[str, list[list[int]]], list[int]]:
    """`input_ids`, and `token_type_ids` where the tokenizer has them, cut to `max_length`; and lengths uncut.

    A pair is shortened from the end of its longer text. Only what is too long is tokenised twice.
    """
    columns = _tokenize(tokenizer, texts, truncation=False)
    whole = [len(ids) for ids in columns["input_ids"]]
    long = [row for row, length in enumerate(whole) if length > max_length]
    if long:
        cut = _tokenize(
            tokenizer, [texts[row] for row in long], truncation="longest_first", max_length=max_length
        )
        for name, values in cut.items():
            for row, value in zip(long, values, strict=True):
                columns[name][row] = value
    return columns, whole


def special_tokens(tokenizer: Any, texts: int) -> int:
    """How many tokens are added to one or two texts."""
    with _said():
        return int(tokenizer.num_special_tokens_to_add(pair=texts > 1))


@contextlib.contextmanager
def _said() -> Iterator[None]:
    """A line in place of what is raised by a tokenizer whose files say what it cannot do."""
    try:
        yield
    except BaseException as error:
        # Rust's panics are no Exception, so that none but who knows them catches them.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise BakeoffError(f"the tokenizer cannot take these texts ({error}); save it again.") from error


def _tokenize(tokenizer: Any, texts: Sequence[tuple[str, ...]], **options: Any) -> dict[str, list[list[int]]]:
    columns = (list(column) for column in zip(*texts, strict=True))
    with _said():
        # Not verbose: that a text is longer than the encoder's positions is for the truncation to cure.
        encoded = tokenizer(*columns, return_attention_mask=False, verbose=False, **options)
    return {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}
