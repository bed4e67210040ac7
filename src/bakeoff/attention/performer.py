"""Performer: softmax attention through positive orthogonal random features (FAVOR+).

Choromanski et al., 2021, "Rethinking Attention with Performers", https://arxiv.org/abs/2009.14794,
lemma 1 and section 2.3: with w drawn from N(0, I), orthogonal in groups of D,

    exp(q · k) = E_w[ exp(w · q - |q|²/2) exp(w · k - |k|²/2) ]  ≈  φ(q) · φ(k)
    out_i = Σ_j φ(q_i)·φ(k_j) v_j / Σ_j φ(q_i)·φ(k_j),  computed as  φ(q) (φ(k)ᵀ [v, 1])

Cost: 4 H N M (D + 1) operations for the products, 4 H N M D for the features; memory O(N M).

Features are offset by the largest exponent (over the features of a query; over all real tokens of a head
for keys), which cancels in the quotient, and by a small epsilon that keeps the quotient defined.

Differs from performer-pytorch, whose mask zeroes the values of padding but not their keys, so that padding
changes real outputs, and which redraws its projections every 1,000 calls. Here padding has no features at
all, and the projections are drawn once, by (seed, layer, head), and saved with the model.
There are no attention probabilities to drop: dropout applies to the output.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from bakeoff.attention.base import Attention, Layer, real_tokens, zero_padding
from bakeoff.errors import BakeoffError

EPSILON = 1e-4  # of the paper's own code; relative to the largest feature, which is 1
_CHUNK = 1 << 20  # features computed at a time, so that they stay in the processor's cache: 4 MiB in fp32


class Performer(Attention):
    """Linear attention with positive orthogonal random features.

    Args:
        layer: the layer's geometry.
        num_features: random features a head (M); the paper's rule of thumb is D ln D.
    """

    paper = "https://arxiv.org/abs/2009.14794"
    projection_HMD: Tensor

    def __init__(self, layer: Layer, *, num_features: int = 256) -> None:
        super().__init__(layer)
        if num_features < 1:
            raise BakeoffError(f"performer: num_features must be at least 1, not {num_features}.")
        self.num_features = num_features
        self.register_buffer(
            "projection_HMD", torch.empty(layer.num_heads, num_features, layer.head_dim, dtype=torch.float32)
        )
        if not self.projection_HMD.is_meta:
            self.projection_HMD.copy_(self.initial_state()["projection_HMD"])

    def initial_state(self) -> dict[str, Tensor]:
        """Gaussian rows, orthogonal in groups of D (section 2.4 of the paper)."""
        layer = self.layer
        generator = torch.Generator().manual_seed(layer.seed * 1_000_003 + layer.index)
        heads = [_orthogonal(self.num_features, layer.head_dim, generator) for _ in range(layer.num_heads)]
        return {"projection_HMD": torch.stack(heads)}

    def forward(
        self,
        q_BHND: Tensor,
        k_BHND: Tensor,
        v_BHND: Tensor,
        length_B: Tensor | None = None,
        *,
        scaling: float,
        dropout_p: float = 0.0,
    ) -> Tensor:
        """Attend; see `Attention.forward`."""
        dtype, N = q_BHND.dtype, q_BHND.shape[2]
        with torch.autocast(q_BHND.device.type, enabled=False):
            # An exponential of a bf16 number is off by up to a factor: features are at least fp32.
            wide = torch.promote_types(dtype, torch.float32)
            q, k, v_and_one = q_BHND.to(wide), k_BHND.to(wide), F.pad(v_BHND.to(wide), (0, 1), value=1.0)
            # A query's own |q|²/2 is the same for all its features and cancels.
            exponent_BHN = k.square().sum(-1) * (-scaling / 2)
            if length_B is not None:  # padding has no features, whatever it holds
                padding = ~real_tokens(length_B, N)[:, None, :]
                exponent_BHN = exponent_BHN.masked_fill(padding, torch.finfo(wide).min / 2)
                k, v_and_one = (x.masked_fill(padding[..., None], 0.0) for x in (k, v_and_one))
            projection_HDM = (self.projection_HMD.to(wide) * scaling**0.5).mT
            size = N if q.is_cuda else max(1, _CHUNK // (q.shape[0] * q.shape[1] * self.num_features))
            summed_BHMD = _sum(k, v_and_one, exponent_BHN, projection_HDM, size)
            every = EPSILON * summed_BHMD.sum(-2, keepdim=True)
            outs = []
            for q_part in q.split(size, 2):
                q_BHNM, _ = _exponential(q_part @ projection_HDM, (-1,))
                out = q_BHNM @ summed_BHMD + every
                # A row that is all padding has no features: its quotient is 0 / 0 without the bound.
                out = out[..., :-1] / out[..., -1:].clamp_min(torch.finfo(wide).tiny)
                outs.append(out.transpose(1, 2))
            out = torch.cat(outs, 1).transpose(1, 2)
        if dropout_p:
            out = F.dropout(out, dropout_p)
        return zero_padding(out.to(dtype), length_B)

    def flops(self, n: int) -> float:
        """4 H n M D for the features, 4 H n M (D + 1) for the products."""
        layer = self.layer
        return 4.0 * layer.num_heads * n * self.num_features * (2 * layer.head_dim + 1)


def _sum(
    k_BHND: Tensor, v_and_one: Tensor, exponent_BHN: Tensor, projection_HDM: Tensor, size: int
) -> Tensor:
    """Σ (φ(k) + ε) [v, 1] + ε over all keys, (B, H, M, D + 1), `size` tokens at a time.

    (φ(q) + ε) (φ(k) + ε)ᵀ [v, 1] takes its epsilons from sums over few rows instead of from every feature.
    Each part is offset by its own largest exponent, and brought to the largest of all in the end.
    """
    sums, tops = [], []
    parts = (x.split(size, 2) for x in (k_BHND, v_and_one, exponent_BHN))
    for k, v, exponent in zip(*parts, strict=True):
        k_BHNM, top = _exponential((k @ projection_HDM).add_(exponent[..., None]), (-2, -1))
        sums.append(k_BHNM.mT @ v)
        tops.append(top)
    weights = (torch.stack(tops) - torch.stack(tops).amax(0)).exp()
    return (torch.stack(sums) * weights).sum(0) + EPSILON * v_and_one.sum(-2, keepdim=True)


def _exponential(x_BHNM: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """exp(x - max over dims), which may take the place of x, and that maximum."""
    if x_BHNM.is_cuda and not torch.compiler.is_compiling():
        return _fused()(x_BHNM, dims)
    top = x_BHNM.detach().amax(dims, keepdim=True)
    return x_BHNM.sub_(top).exp_(), top


@functools.cache
def _fused() -> Callable[[Tensor, tuple[int, ...]], tuple[Tensor, Tensor]]:
    """`_exponential` as one kernel, for a GPU."""

    def exponential(x_BHNM: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        top = x_BHNM.detach().amax(dims, keepdim=True)
        return (x_BHNM - top).exp(), top

    return torch.compile(exponential, dynamic=True)


def _orthogonal(rows: int, dim: int, generator: torch.Generator) -> Tensor:
    """(rows, dim): directions orthogonal in groups of `dim`, lengths those of Gaussian vectors."""
    groups = []
    for _ in range(-(-rows // dim)):
        q, r = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
        groups.append((q * r.diagonal().sign()).T)  # the sign makes the rotation uniformly distributed
    lengths = torch.randn(rows, dim, generator=generator, dtype=torch.float64).norm(dim=1, keepdim=True)
    return (torch.cat(groups)[:rows] * lengths).float()
