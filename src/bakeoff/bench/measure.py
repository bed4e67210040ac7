"""One batch: build every subject, hold the pairs equal, then time all of them in turns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from bakeoff import attention as mechanisms
from bakeoff.bench import gate, result, subjects, timing
from bakeoff.bench.peers import PEERS, Peer
from bakeoff.bench.result import Row
from bakeoff.bench.spec import BenchSpec
from bakeoff.errors import BakeoffError, unknown
from bakeoff.spec import AttentionSpec

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_DENSE = AttentionSpec("dense")


def chosen_peers(spec: BenchSpec) -> list[Peer]:
    """The peers that a spec names, all of them installed and able to run what it asks for.

    Raises:
        BakeoffError: one is unknown, missing, without a mechanism to compare with, or refuses a length.
    """
    chosen = []
    for name in spec.against:
        found = [peer for peer in PEERS if peer.name == name]
        if not found:
            raise unknown("peer", name, {peer.name for peer in PEERS})
        wanted = {peer.attention for peer in found}
        # sdpa is a baseline for every mechanism, and dense's equal.
        if name != "sdpa" and not wanted & {attention.name for attention in spec.attentions}:
            raise BakeoffError(
                f"{name} is compared with {' and '.join(sorted(wanted))}: add it to --attentions."
            )
        chosen += found
    for attention in spec.attentions:
        options = mechanisms.resolve_options(attention.name, attention.options)
        for peer in chosen:
            if peer.attention == attention.name:
                for row_lengths in spec.batches():
                    peer.check(spec.encoder, options, max(row_lengths))
    return chosen


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A subject with what its rows say of it."""

    name: str
    attention: str
    peer: str | None
    subject: subjects.Subject
    forward_flops: float


def measure(
    spec: BenchSpec,
    peers: Sequence[Peer],
    row_lengths: Sequence[int],
    gemm_flops_per_second: float,
    after_round: Callable[[], Any],
) -> tuple[list[str], list[Row]]:
    """Gate lines and rows of one batch.

    Raises:
        BakeoffError: two subjects that should agree do not.
    """
    length = max(row_lengths)
    real_BN = (torch.arange(length) < torch.tensor(row_lengths)[:, None]).to(spec.device)
    shape = (len(row_lengths), length, spec.hidden_size)
    inputs_BNE, cotangent_BNE = (
        torch.randn(shape, generator=torch.Generator().manual_seed(spec.seed + i)).to(spec.device)
        for i in range(2)
    )
    lines: list[str] = []
    entries: list[_Entry] = []
    for attention in _built(spec, peers):
        model = subjects.converted(spec, attention, subjects.encoder_config(spec, length))
        own = [peer for peer in peers if peer.attention == attention.name]
        theirs = [peer.build(model, real_BN) for peer in own]
        model.to(spec.device)
        ours = subjects.ours(model, real_BN)
        operations = subjects.flops(model, spec.level, row_lengths)
        for peer, subject in zip(own, theirs, strict=True):
            subject.model.to(spec.device)
            pair = gate.Pair(str(attention), peer, model, ours, subject)
            lines.append(gate.equal_to_peer(spec, pair, inputs_BNE, row_lengths))
            name = peer.name if peer.name == "sdpa" else f"{peer.name} {attention}"
            entries.append(_Entry(name, str(attention), peer.name, subject, operations))
        if attention in spec.attentions:
            entries.append(_Entry(str(attention), str(attention), None, ours, operations))
    entries.sort(key=lambda entry: entry.peer is not None)  # ours first, in the tables

    dtype = DTYPES[spec.dtype]
    inputs_BNE, cotangent_BNE = inputs_BNE.to(dtype), cotangent_BNE.to(dtype) * real_BN[..., None]
    rows: list[Row] = []
    for phase in spec.phases:
        steps = {entry.name: _step(spec, entry, phase, inputs_BNE, cotangent_BNE) for entry in entries}
        seconds = timing.rounds(steps, spec.repeats, spec.device, after_round)
        rows += [
            result.row(
                entry.name,
                entry.attention,
                entry.peer,
                phase,
                row_lengths,
                seconds[entry.name],
                entry.forward_flops,
                gemm_flops_per_second,
                timing.peak_memory(steps[entry.name], spec.device),
            )
            for entry in entries
        ]
    return lines, rows


def _built(spec: BenchSpec, peers: Iterable[Peer]) -> tuple[AttentionSpec, ...]:
    """The attentions to build: dense too where only `sdpa` is timed, as what it is held to."""
    baseline = any(peer.name == "sdpa" for peer in peers)
    dense = baseline and all(attention.name != "dense" for attention in spec.attentions)
    return (*spec.attentions, _DENSE) if dense else spec.attentions


def _step(
    spec: BenchSpec, entry: _Entry, phase: str, inputs_BNE: Tensor, cotangent_BNE: Tensor
) -> timing.Step:
    model = entry.subject.model.to(inputs_BNE.dtype)
    run = entry.subject.run(spec.level, inputs_BNE)
    if phase == "inference":
        return timing.inference(model, run, inputs_BNE)
    return timing.training(model, run, inputs_BNE, cotangent_BNE)
