"""Where the time of a training step goes on a CPU, and what each measure takes out of it.

    python benchmarks/step.py sst2 MIRROR bench/step

A line a measure, on top of those before: padding by batch in place of `max_length`, rows of similar length
together, and this library's encoder in place of transformers' own, without padding and with a last layer for
the first token alone. Every line gets a process of its own, and
rounds are interleaved. Milliseconds are the mean over the steps of a round, and the median of rounds.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import typer

MEASURES = ("padded to the maximum", "padded by batch", "grouped by length", "bakeoff, dense")
PARTS = ("forward", "backward", "clip", "AdamW", "all")
WARM_UP = 3  # steps


def main(task: str, data_dir: Path, output_dir: Path, steps: int = 20, rounds: int = 5) -> None:
    """Measure, and write step.json and step.md."""
    spec = {
        "task": task,
        "data_dir": str(data_dir),
        "max_train_samples": 32 * 50,  # a pool of LengthGroupedSampler
        "max_eval_samples": 1,
        "max_length": 128,
        "per_device_train_batch_size": 32,
    }
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in MEASURES}
    for number in range(rounds):
        for level, name in enumerate(MEASURES):
            command = [sys.executable, __file__, "--one", json.dumps([spec, level, steps])]
            ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
            if ended.returncode:
                raise SystemExit(f"{name}: {ended.stderr}")
            measured[name].append(json.loads(ended.stdout.splitlines()[-1]))
            print(f"{number + 1}/{rounds} {name}: {measured[name][-1]}", flush=True)
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "step.json").write_text(json.dumps(measured, indent=2))
    (output_dir / "step.md").write_text(table(measured))


def table(measured: dict[str, list[dict[str, float]]]) -> str:
    """Medians in ms by measure and part, with the least and the most of a whole step."""
    heads = ["", *PARTS, "least to most", "tokens a step, with padding"]
    lines = [heads, ["---"] * len(heads)]
    for name, rounds in measured.items():
        medians = [f"{statistics.median(r[part] for r in rounds):.0f}" for part in PARTS]
        whole = [r["all"] for r in rounds]
        tokens = f"{rounds[0]['tokens']:.0f}"
        lines.append([name, *medians, f"{min(whole):.0f} to {max(whole):.0f}", tokens])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def one(spec_values: dict[str, Any], level: int, steps: int) -> dict[str, float]:
    """Milliseconds a step by part, of steps spread over the order of rows."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from bakeoff import checkpoints
    from bakeoff.logs import quiet
    from bakeoff.spec import RunSpec
    from bakeoff.training import preparation
    from bakeoff.training.batching import LengthGroupedSampler

    quiet()
    prepared = preparation.prepare(RunSpec.from_dict(spec_values))
    if level >= MEASURES.index("bakeoff, dense"):
        model = prepared.load_model()
    else:
        folder = checkpoints.resolve(prepared.spec.model_name_or_path)
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, attention_probs_dropout_prob=prepared.spec.attention_dropout
        )
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    rows, size = prepared.train.dataset, 32
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    if level >= MEASURES.index("grouped by length"):
        order = list(LengthGroupedSampler(rows["length"][:], size, seed=0))
    padding = {"padding": "max_length", "max_length": prepared.spec.max_length} if level == 0 else {}
    total = dict.fromkeys((*PARTS, "tokens"), 0.0)
    for step in range(-WARM_UP, steps):
        start = (step * len(order) // steps // size * size) % (len(order) - size)
        batch = rows.select(order[start : start + size])
        inputs = prepared.tokenizer.pad(
            batch.select_columns(["input_ids", "token_type_ids"])[:], return_tensors="pt", **padding
        )
        marks = [time.perf_counter()]
        loss = model(**inputs, labels=torch.tensor(batch["labels"][:])).loss
        marks.append(time.perf_counter())
        loss.backward()
        marks.append(time.perf_counter())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        marks.append(time.perf_counter())
        optimizer.step()
        optimizer.zero_grad()
        marks.append(time.perf_counter())
        if step >= 0:
            spans = [b - a for a, b in itertools.pairwise(marks)]
            for part, seconds in zip(PARTS, [*spans, marks[-1] - marks[0]], strict=True):
                total[part] += 1000 * seconds / steps
            total["tokens"] += inputs["input_ids"].numel() / steps
    return total


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(one(*json.loads(sys.argv[2]))))
    else:
        typer.run(main)
