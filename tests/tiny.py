"""A tiny encoder with a tokenizer, and a task that it can learn, all on disk: a real run in a second."""

import csv
import random
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import encoders
from bakeoff.spec import RunSpec
from bakeoff.tasks import TASKS, Hub

GOOD, BAD = ["good", "fine", "great"], ["bad", "poor", "awful"]
OTHER = ["a", "film", "with", "some", "scenes", "and", "actors", "in", "the", "rain"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *GOOD, *BAD, *OTHER]


def encoder(folder: Path, family: str = "bert", **changes) -> Path:
    encoders.save(folder, family, vocab_size=60, **changes)
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    tokenizer.save_pretrained(folder)
    return folder


def texts(rows: int, seed: int, words: tuple[int, int] = (3, 12)) -> list[tuple[str, str]]:
    rng, out = random.Random(seed), []
    for row in range(rows):
        label = ("neg", "pos")[row % 2]
        said = rng.choices(OTHER, k=rng.randint(*words))
        said.insert(rng.randrange(len(said)), rng.choice(GOOD if label == "pos" else BAD))
        out.append((" ".join(said), label))
    return out


def write(path: Path, rows: list[tuple[str, str]], header: tuple[str, str] = ("text", "label")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def mirror(folder: Path) -> None:
    """The Hub's tasks as docs/data.md lays them out, 64 training and 40 evaluation rows each."""
    for name, task in TASKS.items():
        if isinstance(task.origin, Hub):
            (folder / name).mkdir(parents=True)
            for split, rows in ((task.origin.train_split, 64), (task.origin.eval_split, 40)):
                with (folder / name / f"{split}.csv").open("w", newline="") as file:
                    columns = task.text_columns
                    lines = [(*[text] * len(columns), int(y == "pos")) for text, y in texts(rows, len(split))]
                    csv.writer(file).writerows([(*columns, "label"), *lines])


def spec(folder: Path, **changes) -> RunSpec:
    """A run of 96 steps on 256 rows; `folder` gets what is not there yet."""
    for name, rows, seed in (("train", 256, 0), ("eval", 60, 1)):
        if not (folder / f"{name}.csv").exists():
            write(folder / f"{name}.csv", texts(rows, seed))
    if not (folder / "encoder").exists():
        encoder(folder / "encoder")
    values = {
        "train_file": str(folder / "train.csv"),
        "eval_file": str(folder / "eval.csv"),
        "text_columns": ["text"],
        "label_column": "label",
        "model_name_or_path": str(folder / "encoder"),
        "attention": "dense",
        "learning_rate": 3e-3,
        "per_device_train_batch_size": 16,
        "num_train_epochs": 6,
        "output_dir": str(folder / "runs"),
    }
    return RunSpec.from_dict(values | changes)
