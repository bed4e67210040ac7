"""Runs to groups of tested rows: which runs share a table, which share a row, and what tells rows apart."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bakeoff import metrics, stats
from bakeoff.comparison import verdict
from bakeoff.comparison.rows import Estimate, Failure, Group, Row, Run
from bakeoff.runs import Data
from bakeoff.spec import NOT_IDENTITY
from bakeoff.text import plain


def grouped(found: Iterable[Run], failures: Sequence[Failure]) -> list[Group]:
    """A group for each task and set of evaluation rows, by name, the larger first."""
    asked: dict[str, list[Run]] = {}
    for run in found:
        asked.setdefault(_evaluation_key(run), []).append(run)
    return sorted((_group(members, failures) for members in asked.values()), key=lambda g: (g.name, -g.n))


def _evaluation_key(run: Run) -> str:
    """Equal for runs that were asked the same questions, as far as records show their texts."""
    p = run.predictions
    asked = [run.data.task, run.data.labels, p.ids, p.labels, p.texts]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _settings(run: Run) -> dict[tuple[str, str], str]:
    """What tells rows apart: the attention's options, the data, and every field that decides a result.

    The seed does not, nor how the data's files are called. Keys are ("attention", option) and ("run", field),
    which sort in that order.
    """
    spec = run.record.spec
    # A field that is null says as much as one that an older record does not know.
    aside = {*NOT_IDENTITY, "seed", "attention", "train_file", "eval_file"}
    fields = {k: v for k, v in spec.items() if v is not None and k not in aside}
    if run.model.base_sha256:  # other weights may have come to lie in the same place
        fields["model_name_or_path"] = f"{run.model.base}@{run.model.base_sha256[:8]}"
    values = {("run", k): v for k, v in {"data": run.data.fingerprint[:8], **fields}.items()}
    return {
        key: json.dumps(v)
        for key, v in {
            **values,
            **{("attention", k): v for k, v in run.model.attention_options.items()},
        }.items()
    }


def _group(members: Sequence[Run], failures: Sequence[Failure]) -> Group:
    """The table and the verdict of runs that share their evaluation rows."""
    first = members[0]
    majority, baseline = metrics.majority_baseline(first.labels)
    by_settings: dict[tuple[Any, ...], dict[int, Run]] = {}
    notes = []
    for run in sorted(members, key=lambda run: run.record.started):
        seeds = by_settings.setdefault((run.model.attention, *sorted(_settings(run).items())), {})
        if run.seed in seeds:
            notes.append(
                f"{plain(seeds[run.seed].record.id)} is left out: a later run has the same settings and seed."
            )
        seeds[run.seed] = run
    kept = [tuple(run for _, run in sorted(seeds.items())) for seeds in by_settings.values()]
    tokens = {tuple(run.predictions.tokens) for seeds in kept for run in seeds}
    lengths = _lengths(next(iter(tokens))) if len(tokens) == 1 else {}
    if len(tokens) > 1:
        notes.append("These encoders' tokens differ, so there is no accuracy by tokens.")
    rows = _tested(
        [
            _row(label, seeds, baseline, [*lengths.values()])
            for label, seeds in zip(_labels(kept), kept, strict=True)
        ]
    )
    if len({run.data.fingerprint for seeds in kept for run in seeds}) > 1:
        notes.append(
            "These runs share their evaluation rows, by number, label and beginning, but were trained on "
            "other rows, or the texts differ further on."
        )
    group = Group(
        name=plain(first.data.task),
        evaluated=_evaluated(first.data, len(first.labels)),
        labels=tuple(plain(label) for label in first.data.labels),
        rows=tuple(rows),
        majority=plain(first.data.labels[majority]),
        baseline=baseline,
        lengths=tuple(lengths),
        n=len(first.labels),
        resolvable=_resolvable(rows),
        same_machine=len({run.machine for seeds in kept for run in seeds}) == 1,
        notes=tuple(notes),
    )
    missing = [failure for failure in failures if failure.task == group.name]
    chosen = verdict.choice(group)
    return dataclasses.replace(
        group,
        verdict=verdict.sentences(group, missing),
        tied=tuple(row.label for row in verdict.tied(group)),
        choice=None if chosen is None else chosen.label,
    )


def _labels(rows: Sequence[Sequence[Run]]) -> list[str]:
    """A name a row: the attention, and whichever settings tell it from the other rows."""
    named = [(seeds[0].model.attention, _settings(seeds[0])) for seeds in rows]
    labels = []
    for name, mine in named:
        peers = {
            "attention": [other for peer, other in named if peer == name],
            "run": [other for _, other in named],
        }
        different = [
            f"{key[1]}={_unquote(mine.get(key, 'null'))}"
            for key in sorted({key for _, other in named for key in other})
            if len({other.get(key) for other in peers[key[0]]}) > 1
        ]
        labels.append(plain(f"{name} ({', '.join(different)})" if different else name))
    return labels


def _lengths(tokens: Sequence[int]) -> dict[str, NDArray[np.bool_]]:
    """Quartiles of length by their bounds, and which rows lie in each; none where there are no two."""
    edges = np.unique(np.quantile(tokens, [0, 0.25, 0.5, 0.75, 1], method="nearest")).astype(int)
    if len(edges) < 3:
        return {}
    parts = np.clip(np.searchsorted(edges, tokens, side="left") - 1, 0, len(edges) - 2)
    lows = [edges[0], *(edges[1:-1] + 1)]
    return {f"{low} to {high}": parts == i for i, (low, high) in enumerate(zip(lows, edges[1:], strict=True))}


def _row(label: str, seeds: tuple[Run, ...], baseline: float, lengths: Sequence[NDArray[np.bool_]]) -> Row:
    def mean(figure: Callable[[Run], float]) -> float:
        return statistics.fmean(figure(run) for run in seeds)

    model = seeds[0].model
    return Row(
        label=label,
        attention=plain(model.attention),
        runs=seeds,
        metrics=_metrics(seeds),
        by_length=tuple(_estimate([run.correct[among] for run in seeds]) for among in lengths),
        calibration_error=mean(lambda run: metrics.reliability(run.labels, run.logits).error),
        train_loss=mean(lambda run: math.nan if run.record.train_loss is None else run.record.train_loss),
        train_seconds=mean(lambda run: run.cost.train_seconds),
        transfer_seconds=mean(lambda run: run.record.transfer.seconds if run.record.transfer else 0.0)
        or None,
        train_tokens_per_second=mean(lambda run: run.cost.train_tokens_per_second),
        eval_seconds=mean(lambda run: run.cost.eval_seconds),
        eval_tokens_per_second=mean(lambda run: run.cost.eval_tokens_per_second),
        peak_memory_bytes=max(run.cost.peak_memory_bytes for run in seeds),
        parameters=model.parameters,
        attention_parameters=model.attention_parameters,
        share_truncated=mean(lambda run: run.data.splits["eval"].share_truncated),
        share_dense=mean(lambda run: run.model.share_dense),
        fault=verdict.fault(seeds, baseline),
    )


def _metrics(seeds: Sequence[Run]) -> dict[str, Estimate]:
    first, wanted = seeds[0], {"accuracy", *seeds[0].record.metrics}
    rarest = int(np.bincount(first.labels, minlength=first.logits.shape[1]).min())
    return {
        name: _estimate(
            [measure.of_rows(run.labels, run.logits) for run in seeds], rarest if measure.by_class else None
        )
        for name, measure in metrics.METRICS.items()
        if measure.title and name in wanted
    }


def _estimate(values: Sequence[NDArray[Any]], alike: int | None = None) -> Estimate:
    """The mean of values by row, for each seed."""
    y = np.stack(values)
    return Estimate(float(y.mean()), *stats.mean_interval(y, alike))


def _tested(rows: Sequence[Row]) -> list[Row]:
    """The rows from best to worst, each tested against the best of those that learned (or of all).

    The best is picked by the very figures that are tested, so every pair might have been. p is adjusted for
    all pairs (García and Herrera 2008): adjusted for those with the best alone, equals would be told apart
    in 6 to 8 % of tables of five.
    """
    ranked = sorted(rows, key=lambda row: (-row.accuracy.value, row.train_seconds))
    best = next((row for row in ranked if row.fault is None), ranked[0])
    order = [best, *(row for row in ranked if row is not best)]
    pairs = list(itertools.combinations(range(len(order)), 2))
    correct, seeds = [row.correct for row in order], [[run.seed for run in row.runs] for row in order]
    differences = [
        stats.paired_difference(correct[a], correct[b], len(pairs), same_seeds=seeds[a] == seeds[b])
        for a, b in pairs
    ]
    adjusted = stats.holm([difference.p for difference in differences])
    for row, difference, p in zip(order[1:], differences, adjusted, strict=False):  # the best's come first
        ranked[ranked.index(row)] = dataclasses.replace(row, to_best=difference._replace(p=p))
    return ranked


def _resolvable(rows: Sequence[Row]) -> float | None:
    """The smallest difference these rows and seeds could show, by the comparisons of rows that learned."""
    found = [row.to_best.smallest for row in rows if row.to_best and not row.fault]
    return statistics.fmean(found) if found else None


def _evaluated(data: Data, n: int) -> str:
    available = data.splits["eval"].rows_available
    if n < available:
        return f"evaluated on a sample of {n:,} of {available:,} rows"
    if data.sampled:
        return f"evaluated on {n:,} rows; training or evaluation rows are a sample of the official split"
    return f"evaluated on all {n:,} rows"


def _unquote(value: str) -> str:
    return value[1:-1] if value.startswith('"') else value
