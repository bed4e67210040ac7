"""Run folders made by code, through the library's own writers, for tests of comparing and reporting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bakeoff import metrics, runs
from bakeoff.bench import result, tables
from bakeoff.spec import AttentionSpec, RunSpec

LABELS = ("negative", "positive")


def write_run(
    root: Path,
    attention: str,
    wrong: Sequence[int] = (),
    *,
    task: str = "sst2",
    seed: int = 42,
    rows: int = 400,
    available: int | None = None,
    positive: float = 0.55,
    logit: float = 2.0,
    train_seconds: float = 100.0,
    eval_seconds: float = 5.0,
    losses: Sequence[float] = (0.69, 0.45, 0.3),
    share_dense: float = 0.0,
    attention_parameters: int = 0,
    status: str = "ok",
    error: str | None = None,
    names: Sequence[str] = ("accuracy", "loss"),
    labels: Sequence[str] = LABELS,
    truth: Sequence[int] | None = None,
    logits: Any = None,
    texts: Sequence[str] | None = None,
    tokens: Sequence[int] | None = None,
    run_id: str | None = None,
    folder: str | None = None,
    fingerprint: str = "f" * 64,
    environment: Mapping[str, Any] | None = None,
    started: str = "2026-01-02T03:04:05Z",
    **fields: Any,
) -> Path:
    """One run that answers `rows` rows right but those in `wrong`, with logits of +-`logit` / 2."""
    spec = RunSpec.from_dict({"task": task, "attention": attention, "seed": seed, **fields})
    folder_path = root / (folder or spec.run_id())
    folder_path.mkdir(parents=True)
    y = np.asarray(truth) if truth is not None else (np.arange(rows) < positive * rows).astype(int)
    if logits is None:
        answers = y.copy()
        answers[list(wrong)] = (answers[list(wrong)] + 1) % len(labels)
        logits = (np.eye(len(labels))[answers] - 0.5) * logit
    ok = status == "ok"
    if ok:
        runs.Predictions(
            ids=list(range(len(y))),
            labels=y.tolist(),
            logits=np.asarray(logits, dtype=float).tolist(),
            tokens=list(tokens) if tokens is not None else [5 + i % 40 for i in range(len(y))],
            texts=list(texts) if texts is not None else [f"text number {i}" for i in range(len(y))],
        ).save(folder_path)
    parsed = AttentionSpec.parse(attention)
    counts = {label: int((y == i).sum()) for i, label in enumerate(labels)}
    split = runs.Split(
        rows=len(y),
        rows_available=available or len(y),
        token_quantiles={"0.5": 20, "0.95": 42, "1.0": 44},
        share_truncated=0.0,
        label_counts=counts,
    )
    record = runs.RunRecord(
        id=run_id or spec.run_id(),
        status=status,  # type: ignore[arg-type]
        digest=spec.digest(),
        spec=spec.to_dict(),
        started=started,
        seconds=train_seconds + eval_seconds,
        environment=environment
        if environment is not None
        else {"bakeoff": "0.1.0", "torch": "2.13.0", "device": "cpu", "threads": 2, "dtype": "float32"},
        error=error,
        model=runs.Model(
            base="minilm",
            base_sha256=None,
            family="bert",
            attention=parsed.name,
            attention_options=dict(parsed.options),
            attention_seed=seed,
            layers=4,
            parameters=22_000_000 + attention_parameters,
            trainable_parameters=22_000_000 + attention_parameters,
            attention_parameters=attention_parameters,
            share_dense=share_dense,
        )
        if ok
        else None,
        data=runs.Data(
            task=task,
            source="a mirror",
            fingerprint=fingerprint,
            labels=tuple(labels),
            max_length=64,
            sampled=available is not None,
            splits={"train": split, "eval": split},
        )
        if ok
        else None,
        metrics=metrics.compute(names, y, logits) if ok and np.isfinite(logits).all() else {},
        train_loss=float(np.mean(losses)) if ok and losses else None,
        cost=runs.Cost(
            train_seconds=train_seconds,
            train_tokens_per_second=1e6 / train_seconds,
            train_examples_per_second=1e4 / train_seconds,
            eval_seconds=eval_seconds,
            eval_tokens_per_second=1e5 / eval_seconds,
            eval_examples_per_second=1e3 / eval_seconds,
            peak_memory_bytes=512 * 2**20,
            attention_flops_per_eval_token=1e6,
            how="wall clock",
        )
        if ok
        else None,
        history=tuple(
            {"step": 20.0 * (i + 1), "epoch": (i + 1) / len(losses), "loss": loss}
            for i, loss in enumerate(losses)
        ),
    )
    runs.save(folder_path, record)
    return folder_path


def bakeoff(root: Path) -> Path:
    """A small bake-off with a case of each kind.

    sst2, two seeds each: dense and longformer are tied, performer is 2 x faster and 10 points worse,
    linformer is a coin within [0.49, 0.51]; one bigbird failed and one ran out of memory. imdb is a sample.
    """
    for seed in (1, 2):
        write_run(root, "dense", range(seed, 40 + seed), seed=seed)
        write_run(
            root,
            "longformer:window=16",
            range(20 + seed, 64 + seed),
            seed=seed,
            train_seconds=95.0,
            share_dense=0.9,
            attention_parameters=100_000,
        )
        write_run(root, "performer", range(300, 380), seed=seed, train_seconds=50.0, eval_seconds=2.0)
        write_run(
            root,
            "linformer",
            range(0, 400, 2),
            seed=seed,
            logit=0.04,
            losses=(0.694, 0.693, 0.693),
            attention_parameters=50_000,
        )
    write_run(root, "bigbird", status="failed", error="RuntimeError: boom", seed=1)
    write_run(root, "bigbird", status="oom", error="out of memory at 4,096 tokens", seed=2)
    write_run(root, "dense", range(30), task="imdb", available=12432, rows=200, seed=1)
    write_run(root, "performer", range(25, 60), task="imdb", available=12432, rows=200, seed=1)
    return root


def write_bench(
    folder: Path,
    *,
    lengths: Sequence[int] = (128, 512),
    subjects: Sequence[str] = ("dense", "performer"),
    device: str = "cpu",
) -> Path:
    """The `bench.json` of a benchmark in which dense alone grows with the square of the length."""
    rows = [
        result.row(subject, subject, None, phase, (n,), (seconds, 1.1 * seconds), 1e9, 1e11, 2**20 * n)
        for phase in ("inference", "training")
        for n in lengths
        for subject in subjects
        for seconds in [n * n / 1e6 if subject == "dense" else n / 1e3]
    ]
    settings = {"level": "attention", "dtype": "fp32", "repeats": 2}
    facts = ("device", "threads", "bakeoff", "python", "torch", "transformers")
    found = result.BenchResult(
        created="2026-01-02T03:04:05Z",
        command=f"bakeoff bench --device {device}",
        environment=dict.fromkeys(facts, device),
        settings=settings,
        gemm_flops_per_second=1e11,
        gate=(),
        rows=tuple(rows),
        ratios=result.ratios(rows),
        crossovers=result.crossovers(rows),
    )
    return tables.write(found, folder)[0]
