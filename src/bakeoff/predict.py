"""Logits of a classifier: for evaluation, and for new texts."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import torch
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from bakeoff import env, runs, tasks
from bakeoff.checkpoints import load_config, load_tokenizer, load_weights
from bakeoff.encode import tokenize
from bakeoff.encoder import NAME, BakeoffForSequenceClassification
from bakeoff.errors import BakeoffError, BusyError
from bakeoff.spec import RunSpec
from bakeoff.tasks import files

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH = 32
WINDOW = 16  # batches whose texts are put in the order of their lengths
SOURCE = ".source.json"


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
    first, step = env.rank() * batch_size, env.processes() * batch_size
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

    def line(self) -> str:
        """As a line of JSON, which may be shown on a terminal: in ASCII where a label would steer it."""
        values = dataclasses.asdict(self)
        line = json.dumps(values, ensure_ascii=False)
        return (line if line.isprintable() else json.dumps(values)) + "\n"


class Classifier:
    """A trained run, ready to classify texts.

    Args:
        folder: a run's folder, or a model folder such as `convert` writes.
    """

    def __init__(self, folder: str | Path) -> None:
        path = model_folder(folder)
        if load_config(path).model_type != NAME:
            raise BakeoffError(f"{path} is no bakeoff model; train one with bakeoff run.")
        self.model = load_weights(BakeoffForSequenceClassification, path, complete=True).eval()
        if torch.cuda.is_available():
            self.model.to("cuda")
        self.tokenizer = load_tokenizer(path)
        self.max_length: int = min(self.tokenizer.model_max_length, self.model.max_tokens)
        self.columns = columns_of(Path(folder))

    def __call__(self, texts: Iterable[str | Sequence[str]], batch_size: int = BATCH) -> Iterator[Prediction]:
        """Classify texts, or pairs of texts, in their order, `WINDOW` batches at a time.

        Within these, texts are batched by length, which pads the least.
        """
        if isinstance(texts, str):
            raise BakeoffError("a single text would be read letter by letter; give a list of texts.")
        pending = iter(texts)
        while window := list(islice(pending, WINDOW * batch_size)):
            yield from self._classify([(t,) if isinstance(t, str) else tuple(t) for t in window], batch_size)

    def encode(self, texts: Sequence[tuple[str, ...]]) -> tuple[dict[str, list[list[int]]], list[int]]:
        """What the model reads of texts, as `encode.tokenize` gives it, and their lengths uncut."""
        if len({len(text) for text in texts}) > 1:
            raise BakeoffError("some inputs are one text and some are two; give all the same number.")
        found = len(texts[0])
        if found not in (1, 2) or self.columns not in (None, found):
            wanted = {1: "one text", 2: "a pair of texts", None: "one text or a pair"}[self.columns]
            raise BakeoffError(f"this model takes {wanted} an input, not {found} text(s).")
        try:
            "".join(part for text in texts for part in text).encode()
        except UnicodeEncodeError as error:
            raise BakeoffError(
                f"a text holds {error.object[error.start]!r}, half of a character and no text; is it UTF-8?"
            ) from None
        return tokenize(texts, self.tokenizer, self.max_length)

    def _classify(self, texts: list[tuple[str, ...]], batch_size: int) -> list[Prediction]:
        names = self.model.config.id2label
        columns: dict[str, list[list[int]]] = {}
        lengths: list[int] = []
        for start in range(0, len(texts), batch_size):  # uncut, long texts take more memory than the model
            part, whole = self.encode(texts[start : start + batch_size])
            lengths += whole
            for name, values in part.items():
                columns.setdefault(name, []).extend(values)
        order = sorted(range(len(texts)), key=lambda row: -len(columns["input_ids"][row]))
        probabilities: list[list[float]] = [[]] * len(texts)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = {name: [values[row] for row in chosen] for name, values in columns.items()}
            inputs = self.tokenizer.pad(batch, return_tensors="pt").to(self.model.device)
            try:
                with torch.inference_mode():
                    found = self.model(**inputs).logits.float().softmax(-1).tolist()
            except Exception as error:  # of a config that its weights fit, and no forward pass does
                if env.is_out_of_memory(error):
                    raise
                raise BakeoffError(
                    f"the model cannot take these texts ({type(error).__name__}: {error})."
                ) from error
            for row, shares in zip(chosen, found, strict=True):
                probabilities[row] = shares
        predictions = []
        for shares, length in zip(probabilities, lengths, strict=True):
            if not all(map(math.isfinite, shares)):
                raise BakeoffError("the model gives no finite probabilities; its training diverged.")
            best = max(range(len(shares)), key=shares.__getitem__)
            by_label = {names[index]: share for index, share in enumerate(shares)}
            predictions.append(Prediction(names[best], by_label, length, length > self.max_length))
        return predictions


def columns_of(folder: Path) -> int | None:
    """How many texts an input of a run's task has, one or two; None where no record says so."""
    if not (folder / runs.RECORD).exists():
        return None
    try:
        spec = RunSpec.from_dict(dict(runs.load(folder).spec))
        return len(spec.text_columns or tasks.get(spec.task_name).text_columns)
    except BakeoffError:  # a record of a task that is no more: its model may still load
        return None


def model_folder(folder: str | Path) -> Path:
    """Where the model of a run is, or `folder` itself where it is no run's.

    Raises:
        BakeoffError: there is no such folder, it holds several runs, or the run kept no model.
    """
    path = Path(folder)
    if not path.is_dir():
        raise BakeoffError(f"no such folder: {path}.")
    if (path / runs.RECORD).exists() or (path / runs.MODEL).is_dir():
        path = path / runs.MODEL
        if not path.is_dir():
            raise BakeoffError(
                f"{folder} kept no model; move the folder away, and run it again with --save-model."
            )
    elif any(path.glob(f"*/{runs.RECORD}")):
        raise BakeoffError(f"{folder} holds runs; name one of them, which bakeoff ls {folder} lists.")
    return path


def label_file(folder: Path, file: Path, text_columns: Sequence[str], output: Path | None = None) -> int:
    """Label a file of texts, or of pairs, of any size: a line of JSON a row, in order, in constant memory.

    The file is read once before, so that its faults are said before any work, and the rows are known.

    Args:
        folder: as for `Classifier`.
        file: csv, tsv, jsonl or parquet.
        text_columns: one or two.
        output: where lines go, by default stdout. What is there already of the same model and texts, said by
            the file beside it (`output` + `SOURCE`), is kept, and labelling goes on behind it.

    Returns:
        The rows that this call labelled.
    """
    if len(text_columns) not in (1, 2) or len({*text_columns}) < len(text_columns):
        raise BakeoffError(f"one text column or two different ones, not {', '.join(text_columns)}.")
    if output is not None and (not output.name or output.is_dir()):
        raise BakeoffError(f"{output} is a folder; name a file for --output.")
    asked = file.stat() if file.exists() else None
    total, digest = files.survey(file, text_columns)
    if output is None:
        _label(Classifier(folder), file, text_columns, sys.stdout, 0, total)
        return total
    model = model_folder(folder)
    if output.resolve().parent == model.resolve():
        raise BakeoffError(f"{output} would lie in the model's folder; choose another --output.")
    try:
        source = {"model": _sha256(model), "texts": digest, "rows": total}
    except OSError as error:
        raise BakeoffError(f"cannot read {model} ({error.strerror or error}).") from None
    try:
        # The lock would take a folder that is not ours to write for one in which it is held.
        if output.parent.is_dir() and not os.access(output.parent, os.W_OK):
            raise PermissionError(f"no right to write to {output.parent}")
        with FileLock(output.with_name(f".{output.name}.lock"), timeout=0):
            done = _resume(output, source)
            if done < total:
                classifier = Classifier(folder)
                with output.open("a", encoding="utf-8", newline="\n") as lines:
                    _label(classifier, file, text_columns, lines, done, total)
                now = file.stat()
                if asked is None or (now.st_mtime_ns, now.st_size) != (asked.st_mtime_ns, asked.st_size):
                    # Of which texts the lines are, none can say.
                    output.with_name(output.name + SOURCE).unlink()
                    raise BakeoffError(f"{file} changed while it was labelled; label it again elsewhere.")
    except Timeout:
        raise BusyError(f"{output} is being written by another process.") from None
    except OSError as error:
        raise BakeoffError(
            f"cannot write {output} ({error.strerror or error}); make room there, or choose another --output."
        ) from None
    return total - done


def _label(
    classifier: Classifier, file: Path, text_columns: Sequence[str], lines: TextIO, done: int, total: int
) -> None:
    """Write the lines of all rows but the first `done`."""
    # From the window's beginning, though some of it is there already: batches, and so the last digits of a
    # probability, are those of a call that was not interrupted.
    again = done % (WINDOW * BATCH)
    texts = islice(files.rows(file, text_columns), done - again, total)
    labelled = islice(classifier(tuple(text or "" for text in row) for row in texts), again, None)
    shown = sys.stderr.isatty() and not lines.isatty()
    for prediction in tqdm(
        labelled, desc="predict", initial=done, total=total, unit=" rows", disable=not shown, leave=False
    ):
        lines.write(prediction.line())


def _resume(output: Path, source: Mapping[str, Any]) -> int:
    """How many lines stand in `output`, once a torn last one is cut off; 0 where there are none yet.

    Raises:
        BakeoffError: they are not of this `source`, or nothing says of which.
    """
    beside = output.with_name(output.name + SOURCE)
    if not output.exists() or not output.stat().st_size:
        runs.write_json(beside, source)
        return 0
    found = None
    with contextlib.suppress(FileNotFoundError, ValueError, RecursionError):
        found = json.loads(beside.read_text(encoding="utf-8"))
    if found != source:
        what = "of another model or of other texts" if found else f"and no {beside.name} says of what it is"
        raise BakeoffError(f"{output} is there, {what}; choose another --output, or move it away.")
    done = end = 0
    with output.open("r+b") as file:
        for line in file:
            if line.endswith(b"\n"):
                done, end = done + 1, end + len(line)
        file.truncate(end)
    if done > source["rows"]:
        raise BakeoffError(f"{output} has {done} lines for {source['rows']} texts; it was changed.")
    return done


def _sha256(folder: Path) -> str:
    """SHA-256 of all that a model folder holds: its weights, config and tokenizer."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
