"""A whole fine-tuning by bakeoff and by what run_glue.py does, from the texts to the end of evaluation.

    python benchmarks/end_to_end.py sst2 MIRROR bench/end-to-end

Everyone gets the same rows, pretrained weights, batch sizes, epochs, learning rate with its schedule, weight
decay and dropout, and a process of its own; rounds are interleaved. run_glue.py's way is transformers'
Trainer on its own classes, with texts padded to `max_length` (its default), to the longest of a batch, and
with Trainer's grouping by length on top.
Writes end_to_end.json and end_to_end.md.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

SUBJECTS = {
    "run_glue, padded to the maximum": {"padding": "max_length"},
    "run_glue, padded by batch": {"padding": "batch"},
    "run_glue, grouped by length": {"padding": "batch", "train_sampling_strategy": "group_by_length"},
}


def by_trainer(spec: Any, padding: str, stock: str = "dense", **strategy: str) -> dict[str, float]:
    """Fine-tune a stock classifier as run_glue.py does; the seconds and the accuracy."""
    import datasets
    import numpy as np
    from transformers import (
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        default_data_collator,
        set_seed,
    )

    from bakeoff import checkpoints, tasks

    started = time.perf_counter()
    set_seed(spec.seed)
    task = tasks.load(spec)
    tokenizer = checkpoints.load_tokenizer(spec.model_name_or_path)
    model = STOCK[stock](spec, task.labels)

    def encoded(part: Any) -> datasets.Dataset:
        rows = datasets.Dataset.from_dict(
            {"texts": [list(t) for t in part.texts], "labels": list(part.labels)}
        )

        def encode(batch: dict[str, Any]) -> dict[str, Any]:
            columns = [list(column) for column in zip(*batch["texts"], strict=True)]
            made = tokenizer(
                *columns,
                truncation=True,
                max_length=spec.max_length,
                padding="max_length" if padding == "max_length" else False,
            )
            return {**made, "length": [len(ids) for ids in made["input_ids"]]}

        return rows.map(encode, batched=True, remove_columns=["texts"])

    train, evaluation = encoded(task.train), encoded(task.eval)
    tokenised = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            TrainingArguments(
                folder,
                learning_rate=spec.learning_rate,
                warmup_steps=spec.warmup_steps,
                weight_decay=spec.weight_decay,
                num_train_epochs=spec.num_train_epochs,
                per_device_train_batch_size=spec.per_device_train_batch_size,
                per_device_eval_batch_size=spec.per_device_eval_batch_size,
                seed=spec.seed,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                **strategy,
            ),
            train_dataset=train,
            eval_dataset=evaluation,
            data_collator=default_data_collator
            if padding == "max_length"
            else DataCollatorWithPadding(tokenizer),
            compute_metrics=lambda p: {
                "accuracy": float((np.argmax(p.predictions, 1) == p.label_ids).mean())
            },
        )
        trainer.train()
        trained = time.perf_counter()
        accuracy = trainer.evaluate()["eval_accuracy"]
    ended = time.perf_counter()
    return {
        "seconds": ended - started,
        "before": tokenised - started,
        "training": trained - tokenised,
        "evaluation": ended - trained,
        "accuracy": accuracy,
    }


def by_bakeoff(spec: Any) -> dict[str, float]:
    """The same by a run of this library, its record and predictions written."""
    import dataclasses

    from bakeoff.training import train

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        record = train.run(dataclasses.replace(spec, output_dir=folder), progress=False)
    ended = time.perf_counter()
    if record.status != "ok":
        raise SystemExit(f"{record.status}: {record.error}")
    return {
        "seconds": ended - started,
        "before": ended - started - record.cost.train_seconds - record.cost.eval_seconds,
        "training": record.cost.train_seconds,
        "evaluation": record.cost.eval_seconds,
        "accuracy": record.metrics["accuracy"].value,
    }


def _stock_dense(spec: Any, labels: tuple[str, ...]) -> Any:
    from transformers import AutoModelForSequenceClassification

    from bakeoff import checkpoints

    folder = checkpoints.resolve(spec.model_name_or_path)
    return AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=len(labels), attention_probs_dropout_prob=spec.attention_dropout
    )


def _stock_longformer(spec: Any, labels: tuple[str, ...]) -> Any:
    """transformers' Longformer with the weights that our conversion starts from."""
    import torch
    from transformers import LongformerForSequenceClassification

    from bakeoff import checkpoints
    from bakeoff.bench.peers import PEERS

    ours = checkpoints.load(
        spec.model_name_or_path,
        "longformer",
        attention_options=spec.attention.options,
        head="masked-lm",
        max_length=spec.max_length,
    )
    (peer,) = (p for p in PEERS if p.name == "transformers" and p.attention == "longformer")
    base = peer.build(ours, torch.ones(1, 8, dtype=torch.bool)).model
    base.config.num_labels = len(labels)
    base.config.attention_probs_dropout_prob = spec.attention_dropout
    for module in base.modules():
        if hasattr(module, "attention_window"):
            module.dropout = spec.attention_dropout
    model = LongformerForSequenceClassification(base.config)
    model.longformer = base
    return model


STOCK = {"dense": _stock_dense, "longformer": _stock_longformer}


def main(
    task: str,
    data_dir: Path,
    output_dir: Path,
    attentions: Annotated[
        str, typer.Option(help="Ours, separated by commas; their options by ;")
    ] = "dense,longformer,bigbird,performer,linformer",
    against: Annotated[str, typer.Option(help="A stock model: dense or longformer.")] = "dense",
    only: Annotated[str, typer.Option(help="Of run_glue's ways, those whose names have this.")] = "",
    train_rows: int = 1600,
    eval_rows: int = 872,
    max_length: int = 128,
    batch_size: int = 32,
    learning_rate: float = 1e-4,
    rounds: int = 5,
) -> None:
    """Time every subject in every round, and write what came of it after each."""
    common = {
        "task": task,
        "data_dir": str(data_dir),
        "max_train_samples": train_rows,
        "max_eval_samples": eval_rows,
        "max_length": max_length,
        "extend_positions": max_length > 512,
        "per_device_train_batch_size": batch_size,
        "per_device_eval_batch_size": batch_size,
        "learning_rate": learning_rate,
        "num_train_epochs": 1,
        "recipe": "plain",
        "save_model": False,
    }
    ours = [name.replace(";", ",") for name in attentions.split(",")]
    stock = {k: v for k, v in SUBJECTS.items() if only in k}
    named = next(name for name in ours if name.startswith(against))
    subjects = {
        f"{name}, {named}": {"spec": {**common, "attention": named}, "way": {**way, "stock": against}}
        for name, way in stock.items()
    } | {f"bakeoff, {name}": {"spec": {**common, "attention": name}} for name in ours}
    output_dir.mkdir(parents=True, exist_ok=True)
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in subjects}
    for number in range(rounds):
        for name, given in subjects.items():
            command = [sys.executable, __file__, "--one", json.dumps(given)]
            ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
            if ended.returncode:
                raise SystemExit(f"{name}: {ended.stderr}")
            measured[name].append(json.loads(ended.stdout.splitlines()[-1]))
            print(f"{number + 1}/{rounds} {name}: {measured[name][-1]}", flush=True)
        (output_dir / "end_to_end.json").write_text(json.dumps(measured, indent=2))
    (output_dir / "end_to_end.md").write_text(table(measured))


def table(measured: dict[str, list[dict[str, float]]]) -> str:
    """Medians with least and most, by subject; and how many times faster than each of run_glue.py's ways.

    In brackets the same for training alone.
    """
    parts = ("before", "training", "evaluation")
    peers = [name for name in measured if name.startswith("run_glue")]
    heads = ["", "s", "least to most", *parts, "accuracy %", *(f"× {p.split(', ')[1]}" for p in peers)]
    lines = [heads, ["---"] * len(heads)]

    def median(name: str, part: str = "seconds") -> float:
        return statistics.median(m[part] for m in measured[name])

    for name, rounds in measured.items():
        seconds = [m["seconds"] for m in rounds]
        lines.append(
            [
                name,
                f"{median(name):.1f}",
                f"{min(seconds):.1f} to {max(seconds):.1f}",
                *(f"{median(name, part):.1f}" for part in parts),
                f"{100 * median(name, 'accuracy'):.1f}",
                *(
                    f"{median(peer) / median(name):.2f} "
                    f"({median(peer, 'training') / median(name, 'training'):.2f})"
                    for peer in peers
                ),
            ]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def one(given: str) -> None:
    """Measure one subject in this process."""
    import contextlib

    from bakeoff.logs import quiet
    from bakeoff.spec import RunSpec
    from bakeoff.training import preparation

    quiet()
    values = json.loads(given)
    spec, _ = preparation.resolve(RunSpec.from_dict(values["spec"]))
    with contextlib.redirect_stdout(sys.stderr):
        figures = by_trainer(spec, **values["way"]) if "way" in values else by_bakeoff(spec)
    print(json.dumps(figures))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2])
    else:
        typer.run(main)
