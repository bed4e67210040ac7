"""Performer: attention as a quotient of positive features, linear in the number of tokens.

Choromanski et al., 2021, "Rethinking Attention with Performers", https://arxiv.org/abs/2009.14794,
equation 4: out_i = Σ_j φ(q_i)·φ(k_j) v_j / Σ_j φ(q_i)·φ(k_j), computed as φ(q) (φ(k)ᵀ [v, 1]), with one of
two feature maps φ.

`random` is the paper's FAVOR+ (lemma 1 and section 2.3): with w from N(0, I), orthogonal in groups of D,

    exp(q · k) = E_w[ exp(w · q - |q|²/2) exp(w · k - |k|²/2) ]  ≈  φ(q) · φ(k)

`learned` is that of Zhang et al., 2024, "The Hedgehog & the Porcupine", https://arxiv.org/abs/2402.04347,
section 4: φ(x) = [softmax(W x), softmax(-W x)], with a W for queries and one for keys that attention
transfer (`training/transfer.py`) fits to the pretrained model's own. They start from the same random rows.
In the product stands φ(q)·φ(k) exp(q · c + k · a + b), with a, b and c learned a head.

A row's first G tokens are global, as in Longformer and BigBird: they attend to all tokens, and all tokens to
them, by exp(q · k), and features stand for the rest, in one quotient. That exact and approximate terms share
a normaliser is the idea of Zhang et al., 2024, "LoLCATs", https://arxiv.org/abs/2410.10254, section 3.2,
there for a window.

Cost: 4 H N M (D + 1) operations for the products, and for the features 4 H N M D where they are random, half
of it where they are learned; 8 H D N G for the global tokens; memory O(N (M + G)).

Exponentials are offset by the largest exponent (over the features of a query; over all real tokens of a head
for keys), which cancels in the quotient; a small epsilon on all features keeps it defined.

Differs from performer-pytorch, whose mask zeroes the values of padding but not their keys, so that padding
changes real outputs, and which redraws its projections every 1,000 calls. Here padding has no features at
all, and the projections are drawn once, by (seed, layer, head), and saved with the model.
There are no attention probabilities to drop: dropout applies to the output.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bakeoff.attention.base import (
    Attention,
    Layer,
    bias_from,
    portions,
    real_tokens,
    row_attention,
    zero_padding,
)
from bakeoff.errors import BakeoffError, unknown

FEATURE_MAPS = ("learned", "random")
EPSILON = 1e-4  # of the paper's own code, where the largest feature is 1; learned ones sum to 2 a token
_CHUNK = 1 << 20  # features computed at a time, so that they stay in the processor's cache: 4 MiB in fp32
_LEAST = 64  # tokens at a time, however many features they have


class Performer(Attention):
    """Linear attention with positive features, and a few global tokens.

    Args:
        layer: the layer's geometry.
        num_features: features a head (M); for random ones the paper's rule of thumb is D ln D.
        feature_map: `learned`, a softmax of learned projections and of their negatives, or `random`, FAVOR+.
        global_tokens: tokens from the first on whose attention is exact (G); 0 for the paper's own mechanism.
    """

    paper = "https://arxiv.org/abs/2009.14794"
    projection_HMD: Tensor
    query_projection_HMD: Tensor
    key_projection_HMD: Tensor
    key_weight_HD: Tensor
    query_weight_HD: Tensor
    weight_H: Tensor

    def __init__(
        self, layer: Layer, *, num_features: int = 128, feature_map: str = "learned", global_tokens: int = 16
    ) -> None:
        super().__init__(layer)
        if feature_map not in FEATURE_MAPS:
            raise unknown("performer: feature_map", feature_map, FEATURE_MAPS)
        self.learned = feature_map == "learned"
        if num_features < 1 or (self.learned and num_features % 2):
            kind = "even and at least 2 where they are learned" if self.learned else "at least 1"
            raise BakeoffError(f"performer: num_features must be {kind}, not {num_features}.")
        if global_tokens < 0:
            raise BakeoffError(f"performer: global_tokens must not be negative, not {global_tokens}.")
        self.num_features, self.global_tokens = num_features, global_tokens
        for name, value in self.initial_state().items():
            if self.learned:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def initial_state(self) -> dict[str, Tensor]:
        """Gaussian rows, orthogonal in groups of D (section 2.4 of the paper).

        Beside global tokens, learned features start as a mean over the rest: φ(q)·φ(k) is 4 / M where all
        features are equal, and exp(b) makes it 1.
        """
        layer = self.layer
        generator = torch.Generator().manual_seed(layer.seed * 1_000_003 + layer.index)
        rows = self.num_features // 2 if self.learned else self.num_features
        heads = [_orthogonal(rows, layer.head_dim, generator) for _ in range(layer.num_heads)]
        projection_HMD = torch.stack(heads)
        if not self.learned:
            return {"projection_HMD": projection_HMD}
        state = {"query_projection_HMD": projection_HMD, "key_projection_HMD": projection_HMD.clone()}
        if self.global_tokens:
            state |= {
                "query_weight_HD": torch.zeros(layer.num_heads, layer.head_dim),
                "key_weight_HD": torch.zeros(layer.num_heads, layer.head_dim),
                "weight_H": torch.full((layer.num_heads,), math.log(self.num_features / 4)),
            }
        return state

    def transferable(self) -> list[nn.Parameter]:
        """All that is learned of the features."""
        return list(self.parameters())

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
        B, _, N, _ = q_BHND.shape
        if self.covers(N):
            return row_attention(q_BHND, k_BHND, v_BHND, length_B, scaling=scaling, dropout_p=dropout_p)
        dtype = q_BHND.dtype
        with torch.autocast(q_BHND.device.type, enabled=False):
            # An exponential of a bf16 number is off by up to a factor: features are at least fp32.
            wide = torch.promote_types(dtype, torch.float32)
            q, k = (x.to(wide) * scaling**0.5 for x in (q_BHND, k_BHND))
            v_and_one = F.pad(v_BHND.to(wide), (0, 1), value=1.0)
            lengths_B = torch.full((B,), N, device=q.device) if length_B is None else length_B
            real_BN = real_tokens(lengths_B, N)
            if length_B is not None:  # padding has no features, whatever it holds
                k, v_and_one = (x.masked_fill(~real_BN[:, None, :, None], 0.0) for x in (k, v_and_one))
            # Some rows at a time, and of them some tokens: features are the largest tensors here.
            rows, size = self._portions(q)
            parts = (portions(x, rows) for x in (q, k, v_and_one, real_BN))
            out = torch.cat([self._attend(size, *part) for part in zip(*parts, strict=True)])
        if dropout_p:
            out = F.dropout(out, dropout_p)
        return zero_padding(out.to(dtype), length_B)

    def _portions(self, q_BHND: Tensor) -> tuple[int | None, int | None]:
        """How many rows, and how many of their tokens, have features at a time: all, but on an eager CPU."""
        _, H, N, _ = q_BHND.shape
        if q_BHND.device.type != "cpu" or torch.compiler.is_compiling():
            return None, None
        tokens = max(1, _CHUNK // (H * self.num_features))
        return max(1, tokens // N), max(_LEAST, tokens)

    def _query_features(self, q_BHND: Tensor) -> tuple[Tensor, Tensor]:
        """φ(q), and the exponent of a factor that each query has beside it: (B, H, N, M), (B, H, N, 1)."""
        if not self.learned:
            x_BHNM = q_BHND @ self.projection_HMD.to(q_BHND.dtype).mT
            features_BHNM, top = _exponential(x_BHNM, (-1,))
            half = q_BHND.square().sum(-1, keepdim=True) / 2
            return features_BHNM, top - half - math.log(self.num_features)
        features_BHNM = _softmaxes(q_BHND @ self.query_projection_HMD.to(q_BHND.dtype).mT)
        if not self.global_tokens:
            return features_BHNM, q_BHND.new_zeros(())
        weight = q_BHND @ self.query_weight_HD.to(q_BHND.dtype)[..., None]
        return features_BHNM, weight + self.weight_H.to(q_BHND.dtype)[:, None, None]

    def _key_features(self, k_BHND: Tensor, real_BN: Tensor) -> tuple[Tensor, Tensor]:
        """φ(k), zero at padding, and the exponent of a factor that all keys of a head share: (B, H, 1, 1)."""
        padding, lowest = ~real_BN[:, None, :, None], torch.finfo(k_BHND.dtype).min / 2
        if not self.learned:
            x_BHNM = k_BHND @ self.projection_HMD.to(k_BHND.dtype).mT
            exponent = (k_BHND.square().sum(-1, keepdim=True) / -2).masked_fill(padding, lowest)
            return _exponential(x_BHNM.add_(exponent), (-2, -1))
        features_BHNM = _softmaxes(k_BHND @ self.key_projection_HMD.to(k_BHND.dtype).mT)
        if not self.global_tokens:  # whatever padding has for features, its value and its one are zero
            return features_BHNM, k_BHND.new_zeros(())
        weight = k_BHND @ self.key_weight_HD.to(k_BHND.dtype)[..., None]
        weight, top = _exponential(weight.masked_fill(padding, lowest), (-2, -1))
        return features_BHNM * weight, top

    def _attend(self, size: int | None, q: Tensor, k: Tensor, v_and_one: Tensor, real_BN: Tensor) -> Tensor:
        """(φ(q) + ε) (φ(k) + ε)ᵀ [v, 1], its last column divided out: (B, H, N, D), `size` tokens at a time.

        The epsilons are taken out of the features into sums over few rows. Keys are offset by the largest
        exponent so far, and what was summed before is brought to it.
        """
        G = self.global_tokens
        # As parts: in a graph for every length, the size of a slice is a minimum that is never resolved.
        ends = (G, q.shape[2] - G)
        (k_global, _), (v_global, _) = k.split(ends, 2), v_and_one[..., :-1].split(ends, 2)
        others_BN, others = F.pad(real_BN.split(ends, 1)[1], (G, 0)), v_and_one
        if G:
            others = v_and_one.masked_fill(~others_BN[:, None, :, None], 0.0)
        summed_BHMD: Tensor | float = 0.0
        largest = q.new_full((*q.shape[:2], 1, 1), -torch.inf)
        parts = (portions(k, size, 2), portions(others, size, 2), portions(others_BN, size, 1))
        for key, value, real in zip(*parts, strict=True):
            k_BHNM, top = self._key_features(key, real)
            before, largest = largest, torch.maximum(largest, top)
            summed_BHMD = summed_BHMD * (before - largest).exp() + k_BHNM.mT @ value * (top - largest).exp()
        summed_BHMD = summed_BHMD + EPSILON * others.sum(-2, keepdim=True)
        every = EPSILON * summed_BHMD.sum(-2, keepdim=True)
        outs = []
        for query in portions(q, size, 2):
            q_BHNM, exponent = self._query_features(query)
            out, mass = (q_BHNM @ summed_BHMD + every).split((q.shape[3], 1), -1)
            # A row without such tokens has no features: its quotient is 0 / 0 without the bound.
            mass = mass.clamp_min(torch.finfo(q.dtype).tiny)
            out = out / mass
            if G:  # one softmax over the scores of global tokens and one more, the log of what features give
                # A query that is not global stands in a row with every global token, and with itself.
                scores = torch.cat((query @ k_global.mT, exponent + largest + mass.log()), -1)
                weights = scores.softmax(-1)
                out = weights[..., :-1] @ v_global + weights[..., -1:] * out
            outs.append(out.transpose(1, 2))
        out = torch.cat(outs, 1).transpose(1, 2)
        if not G:
            return out
        real = bias_from(real_BN[:, None], q.dtype)
        q_global, out = q.split(ends, 2)[0], out.split(ends, 2)[1]
        rows = row_attention(q_global, k, v_and_one[..., :-1], None, real, scaling=1.0, dropout_p=0.0)
        return torch.cat((rows, out), 2)

    def flops(self, n: int) -> float:
        """4 H n M D for the features, half of it where they are learned; 4 H n M (D + 1) for the products.

        8 H D n G for the global tokens, as queries and as keys.
        """
        if self.covers(n):
            return self.full_flops(n)
        D, M = self.layer.head_dim, self.num_features
        features = 4.0 * M * ((D / 2 if self.learned else D) + D + 1)
        return self.layer.num_heads * n * (features + 8.0 * D * self.global_tokens)

    def covers(self, n: int) -> bool:
        """Where all tokens are global."""
        return n <= self.global_tokens

    def traced_length(self, n: int) -> int:
        """More than the global tokens."""
        return n + self.global_tokens


def _softmaxes(x_BHNM: Tensor) -> Tensor:
    """[softmax(x), softmax(-x)]."""
    return torch.cat((x_BHNM.softmax(-1), (-x_BHNM).softmax(-1)), -1)


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
