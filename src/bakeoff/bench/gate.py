"""No figure without equality: what is timed is first held to a peer, or to its n x n reference.

The only place outside of the tests that imports `attention.reference`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bakeoff import attention as mechanisms
from bakeoff.attention.base import real_tokens
from bakeoff.attention.reference import REFERENCES
from bakeoff.bench.peers import Peer
from bakeoff.bench.spec import BenchSpec
from bakeoff.bench.subjects import Subject
from bakeoff.encoder import BakeoffForMaskedLM
from bakeoff.errors import BakeoffError
from bakeoff.spec import AttentionSpec

_TOLERANCE = 1e-4  # of the reference, in fp32


@dataclasses.dataclass(frozen=True)
class Pair:
    """Ours and a peer's, built to compute the same function."""

    attention: str
    peer: Peer
    model: BakeoffForMaskedLM
    ours: Subject
    theirs: Subject


def equal_to_peer(spec: BenchSpec, pair: Pair, embeddings_BNE: Tensor, row_lengths: Sequence[int]) -> str:
    """Hold ours to a peer at the measured shape, in fp32, in training mode and in inference.

    Compared are outputs, and gradients of the input and of all shared weight matrices, for one random
    cotangent, zero at padding and in rows that the peer gets wrong.

    Returns:
        a sentence with the largest differences.

    Raises:
        BakeoffError: a difference is beyond the peer's tolerance.
    """
    rows, reason = pair.peer.rows(pair.model, row_lengths)
    real_BN = torch.zeros(embeddings_BNE.shape[:2], dtype=torch.bool, device=embeddings_BNE.device)
    for row in rows:
        real_BN[row, : row_lengths[row]] = True
    generator = torch.Generator().manual_seed(spec.seed + 1)
    cotangent = torch.randn(embeddings_BNE.shape, generator=generator).to(embeddings_BNE)
    cotangent = cotangent * real_BN[..., None]
    ours, theirs, tolerance = pair.ours, pair.theirs, pair.peer.tolerance
    names = [name for name in theirs.weights if name in ours.weights]

    def values(subject: Subject) -> dict[str, Tensor]:
        """Every compared quantity by name."""
        subject.model.train()
        inputs = embeddings_BNE.clone().requires_grad_()
        out = subject.run(spec.level, embeddings_BNE)(inputs)
        parts = [part for name in names for part in subject.weights[name][0]]
        given, *gradients = torch.autograd.grad(out, [inputs, *parts], cotangent, allow_unused=True)
        found = {"output": out.detach()[real_BN], "gradient of the input": given[real_BN]}
        for name in names:
            pieces, transposed = subject.weights[name]
            own = [gradients.pop(0) for _ in pieces]
            if own[0] is not None:  # at the attention level the rest of the encoder has none
                joined = torch.cat(own)
                found[f"gradient of {name}"] = joined.mT if transposed else joined
        return found

    with pair.peer.same_pattern(pair.model, theirs):
        wanted, found = values(theirs), values(ours)
        ours.model.eval()
        with torch.no_grad():
            inference = ours.run(spec.level, embeddings_BNE)(embeddings_BNE)
    both = f"{pair.attention} and {pair.peer.name}, {max(row_lengths)} tokens"
    output = _compare(both, "output", wanted, found, tolerance)
    found["output in inference"], wanted["output in inference"] = inference[real_BN], wanted["output"]
    largest = max(_compare(both, name, wanted, found, tolerance) for name in wanted)
    padded = min(row_lengths) < max(row_lengths)
    return (
        f"{pair.attention} equals {pair.peer.name} at {max(row_lengths)} tokens: outputs within "
        f"{output:.1e}, gradients within {largest:.1e} of their largest, tolerance {tolerance:.0e}"
        f"{reason if padded else ''}"
    )


def equal_to_reference(spec: BenchSpec, attention: AttentionSpec) -> str:
    """Hold a mechanism to its n x n reference, in fp32, at an odd length, with and without padding.

    Two heads of the measured size, as the reference takes memory in n²; about the longest length measured, up
    to 2,048 tokens, and longer than what it covers.

    Returns:
        a sentence with the largest differences.

    Raises:
        BakeoffError: a difference is beyond the tolerance.
    """
    size = spec.hidden_size // spec.num_heads
    longest = max(max(lengths) for lengths in spec.batches())

    def build(n: int) -> mechanisms.Attention:
        layer = mechanisms.Layer(0, 2, 2, size, 2 * size, n, spec.seed)
        return mechanisms.build(attention.name, layer, attention.options)

    torch.manual_seed(spec.seed)
    covers = build(longest).covers
    beyond = next((n for n in range(1, longest + 1) if not covers(n)), 0)
    n = max(331, 3 * beyond + 7, min(longest, 2048)) | 1
    mechanism = build(n)
    with torch.no_grad():
        for parameter in mechanism.parameters():
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
    q, k, v, cotangent = torch.randn(4, 2, 2, n, size).unbind()
    hidden = torch.randn(2, n, 2 * size)
    extra = {"hidden_BNE": hidden} if "hidden_BNE" in mechanism.layer_inputs else {}

    def values(length_B: Tensor | None, by_reference: bool) -> dict[str, Tensor]:
        device = torch.device("cpu" if by_reference else spec.device)
        module = copy.deepcopy(mechanism).to(device)
        inputs = [x.to(device, copy=True).requires_grad_() for x in (q, k, v, *extra.values())]
        named = dict(zip(("q", "k", "v", *extra), inputs, strict=True))
        layer_input = {name: named[name] for name in extra}
        if by_reference:
            function = REFERENCES[attention.name]
            keep_BN = real_tokens(torch.full((2,), n) if length_B is None else length_B, n)
            out = function(module, *inputs[:3], keep_BN, size**-0.5, **layer_input)
        else:
            given = None if length_B is None else length_B.to(device)
            out = module(*inputs[:3], given, scaling=size**-0.5, **layer_input)
        named |= {name: p for name, p in module.named_parameters() if not name.endswith("bias")}
        gradients = torch.autograd.grad(out, [*named.values()], cotangent.to(device))
        found = {"output": out.detach()} | {
            f"gradient of {name}": gradient for name, gradient in zip(named, gradients, strict=True)
        }
        return {name: value.cpu() for name, value in found.items()}

    pair = f"{attention} and its reference, {n} tokens"
    differences: list[dict[str, float]] = []
    for length_B in (None, torch.tensor([n, n - n // 3])):
        wanted, found = values(length_B, by_reference=True), values(length_B, by_reference=False)
        differences.append({name: _compare(pair, name, wanted, found, _TOLERANCE) for name in wanted})
    output = max(found["output"] for found in differences)
    largest = max(max(found.values()) for found in differences)
    return (
        f"{attention} equals its n x n reference at {n} tokens, 2 heads: outputs within {output:.1e}, "
        f"gradients within {largest:.1e} of their largest, tolerance {_TOLERANCE:.0e}"
    )


def _compare(
    pair: str, name: str, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], tolerance: float
) -> float:
    """The largest difference relative to the largest value; an error beyond the tolerance, or at NaN."""
    scale = wanted[name].abs().max().item()
    difference = (found[name] - wanted[name]).abs().max().item()
    if not difference <= tolerance * scale:
        raise BakeoffError(
            f"{pair}: the {name} differs by {difference:.2e}, where the largest is {scale:.2e} and "
            f"{tolerance:.0e} of it is allowed; no figure is given."
        )
    return difference / scale if scale else 0.0
