"""The five mechanisms as n x n formulas: the specification, slow on purpose.

Every function builds the whole (B, H, N, N) weights of a built mechanism, so that output is `weights @ v`.
The fast code never imports this file; the tests hold the two together, forward and every gradient.
Rows at padding are zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bakeoff.attention.base import Attention
from bakeoff.attention.bigbird import BigBird
from bakeoff.attention.linformer import Linformer
from bakeoff.attention.longformer import Longformer, rotate
from bakeoff.attention.performer import EPSILON, Performer


def dense(attention: Attention, q: Tensor, k: Tensor, v: Tensor, keep_BN: Tensor, scaling: float) -> Tensor:
    """Softmax over all real keys."""
    return _softmax(q @ k.mT * scaling, keep_BN[:, None, None, :]) @ v * keep_BN[:, None, :, None]


def longformer(
    attention: Longformer,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep_BN: Tensor,
    scaling: float,
    hidden_BNE: Tensor | None = None,
    global_BN: Tensor | None = None,
    rotary: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Local rows: the window and the global tokens. Global rows: everything, by the global projections."""
    N = q.shape[2]
    if global_BN is None:
        global_BN = keep_BN & (keep_BN.cumsum(1) <= attention.global_tokens)
    place = torch.arange(N, device=q.device)
    near_NN = (place[:, None] - place).abs() <= attention.radius
    allowed = (near_NN | global_BN[:, None, None, :]) & keep_BN[:, None, None, :]
    out = _softmax(q @ k.mT * scaling, allowed) @ v
    if attention.separate_global and hidden_BNE is not None:
        D, groups = attention.layer.head_dim, attention.layer.num_heads // attention.layer.num_key_value_heads
        projections = (attention.query_global, attention.key_global, attention.value_global)
        q, k, v = (p(hidden_BNE).unflatten(-1, (-1, D)).transpose(1, 2) for p in projections)
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    everything = _softmax(q @ k.mT * scaling, keep_BN[:, None, None, :]) @ v
    return torch.where(global_BN[:, None, :, None], everything, out) * keep_BN[:, None, :, None]


def bigbird(attention: BigBird, q: Tensor, k: Tensor, v: Tensor, keep_BN: Tensor, scaling: float) -> Tensor:
    """Softmax over the keys of allowed blocks, blocks counted over each row's real tokens."""
    B, H, N, _ = q.shape
    S, R, g = attention.block_size, attention.num_random_blocks, attention.first_blocks
    allowed = torch.zeros(B, H, N, N, dtype=torch.bool, device=q.device)
    for b in range(B):
        real = keep_BN[b].nonzero()[:, 0].tolist()
        blocks = -(-len(real) // S)
        for h in range(H):
            for i in range(blocks):
                ends = {*range(min(g, blocks)), blocks - 1}
                near = {i - 1, i, i + 1} & set(range(blocks))
                rest = set(range(blocks)) - ends - near
                draw = sorted(
                    rest, key=lambda j: -_random(attention.layer.seed, attention.layer.index, h, i, j)
                )
                chosen = set(range(blocks)) if i in ends else ends | near | set(draw[:R])
                for j in chosen:
                    rows, columns = (
                        torch.tensor(real[block * S : (block + 1) * S], device=q.device) for block in (i, j)
                    )
                    allowed[b, h, rows[:, None], columns] = True
    return _softmax(q @ k.mT * scaling, allowed) @ v * keep_BN[:, None, :, None]


def performer(
    attention: Performer, q: Tensor, k: Tensor, v: Tensor, keep_BN: Tensor, scaling: float
) -> Tensor:
    """Weights φ(q) · φ(k), and exp(q · k) from and to global tokens, normalised over real keys."""
    q, k = q * scaling**0.5, k * scaling**0.5
    global_BN = keep_BN & (keep_BN.cumsum(1) <= attention.global_tokens)
    others = (keep_BN & ~global_BN)[:, None, :, None]

    def project(x: Tensor, projection: Any) -> Tensor:
        return torch.einsum("bhnd,hmd->bhnm", x, projection.to(q.dtype))

    # Offsets would cancel but for epsilon.
    factor_q = factor_k = q.new_zeros(())
    if attention.learned:
        features_q, features_k = (
            torch.cat((x.softmax(-1), (-x).softmax(-1)), -1)
            for x in (project(q, attention.query_projection_HMD), project(k, attention.key_projection_HMD))
        )
        if attention.global_tokens:
            factor_q = project(q, attention.query_weight_HD[:, None]) + attention.weight_H[:, None, None]
            exponents_k = project(k, attention.key_weight_HD[:, None])
            exponents_k = exponents_k.where(others, torch.finfo(k.dtype).min)
            factor_k = exponents_k.amax((2, 3), keepdim=True).detach()
            features_k = features_k * (exponents_k - factor_k).exp()
    else:
        exponents_q = project(q, attention.projection_HMD)
        exponents_k = project(k, attention.projection_HMD) - (k**2).sum(-1, keepdim=True) / 2
        exponents_k = exponents_k.where(others, torch.finfo(k.dtype).min)
        factor_q, factor_k = (
            exponents.amax(dims, keepdim=True).detach()
            for exponents, dims in ((exponents_q, -1), (exponents_k, (2, 3)))
        )
        features_q, features_k = (exponents_q - factor_q).exp(), (exponents_k - factor_k).exp()
        factor_q = factor_q - (q**2).sum(-1, keepdim=True) / 2 - math.log(attention.num_features)
    logs = ((features_q + EPSILON) @ (features_k + EPSILON).mT).log() + factor_q + factor_k
    exact = global_BN[:, None, :, None] | global_BN[:, None, None, :]
    weights = _softmax(torch.where(exact, q @ k.mT, logs), keep_BN[:, None, None, :])
    return weights @ v * keep_BN[:, None, :, None]


def linformer(
    attention: Linformer,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep_BN: Tensor,
    scaling: float,
    *,
    hidden_BNE: Tensor,
) -> Tensor:
    """Row by row, on real tokens alone: softmax(q [k_G, E k]ᵀ + log tokens) [v_G, F v], E = means + learned.

    E and F leave out the G global tokens, whose own queries see every token.
    """
    K = attention.projected_length
    out = torch.zeros_like(q)
    for b, real in enumerate(keep_BN):
        G = min(attention.global_tokens, int(real.sum()))
        n = int(real.sum()) - G
        if not G + n:
            continue
        slots = min(n, K)
        member = torch.zeros(slots, n, dtype=torch.bool, device=q.device)
        for token in range(n):
            member[token if n <= K else token * K // n, token] = True
        tokens = member.sum(1).to(q.dtype)
        own = torch.eye(G, dtype=q.dtype, device=q.device)
        E, F = (
            torch.block_diag(
                own,
                (hidden_BNE[b, real][G:] @ pooling.to(q.dtype)).where(member, -torch.inf).softmax(-1)
                + learned[:slots, :n].to(q.dtype),
            )
            for pooling, learned in (
                (attention.key_pooling_E, attention.key_projection_KN),
                (attention.value_pooling_E, attention.value_projection_KN),
            )
        )
        counts = torch.cat((own.new_ones(G), tokens)).log()
        q_real, k_real, v_real = (x[b][:, real] for x in (q, k, v))
        weights = (q_real @ (E @ k_real).mT * scaling + counts).softmax(-1) @ F
        everything = (q_real @ k_real.mT * scaling).softmax(-1)
        weights = torch.cat((everything[:, :G], weights[:, G:]), 1)
        out = out.index_put(
            (
                torch.tensor(b, device=q.device),
                torch.arange(q.shape[1], device=q.device)[:, None],
                real.nonzero()[:, 0],
            ),
            weights @ v_real,
        )
    return out


REFERENCES: dict[str, Callable[..., Tensor]] = {
    "dense": dense,
    "longformer": longformer,
    "bigbird": bigbird,
    "performer": performer,
    "linformer": linformer,
}


def _softmax(scores: Tensor, allowed: Tensor) -> Tensor:
    """Softmax over the allowed keys; a row with none is zero."""
    weights = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(-1)
    return weights * allowed


def _random(seed: int, layer: int, head: int, i: int, j: int) -> int:
    """BigBird's hash of a (layer, head, query block, key block), on Python's unbounded integers."""
    mask = (1 << 64) - 1
    x = ((seed * 1009 + layer) * 1009 + head) * 1_000_003
    for coordinate in (i, j, 0x5DEECE66D):
        x = (x + coordinate) * 0x9E3779B97F4A7C15 & mask
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
        x ^= x >> 31
    return x & ((1 << 62) - 1)
