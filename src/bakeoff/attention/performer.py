"""Performer: attention as a quotient of positive features, linear in the number of tokens.

Choromanski et al., 2021, "Rethinking Attention with Performers", https://arxiv.org/abs/2009.14794,
equation 4: out_i = Σ_j φ(q_i)·φ(k_j) v_j / Σ_j φ(q_i)·φ(k_j), computed as φ(q) (φ(k)ᵀ [v, 1]), with one of
two feature maps φ.

`random` is the paper's FAVOR+ (lemma 1 and section 2.3): with w from N(0, I), orthogonal in groups of D,

    exp(q · k) = E_w[ exp(w · q - |q|²/2) exp(w · k - |k|²/2) ]  ≈  φ(q) · φ(k)

`learned` is that of Zhang et al., 2024, "The Hedgehog & the Porcupine", https://arxiv.org/abs/2402.04347,
section 4: φ(x) = [softmax(W x), softmax(-W x)], with a W for queries and one for keys that attention
transfer (`bakeoff.transfer`) fits to the pretrained model's own. They start from the same random rows.

Cost: 4 H N M (D + 1) operations for the products, and for the features 4 H N M D where they are random, half
of it where they are learned; memory O(N M).

Random features are offset by the largest exponent (over the features of a query; over all real tokens of a
head for keys), which cancels in the quotient. A small epsilon on all features keeps the quotient defined.

Differs from performer-pytorch, whose mask zeroes the values of padding but not their keys, so that padding
changes real outputs, and which redraws its projections every 1,000 calls. Here padding has no features at
all, and the projections are drawn once, by (seed, layer, head), and saved with the model.
There are no attention probabilities to drop: dropout applies to the output.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bakeoff.attention.base import Attention, Layer, real_tokens, zero_padding
from bakeoff.errors import BakeoffError, unknown

FEATURE_MAPS = ("learned", "random")
EPSILON = 1e-4  # of the paper's own code, where the largest feature is 1; learned ones sum to 2 a token
_CHUNK = 1 << 20  # features computed at a time, so that they stay in the processor's cache: 4 MiB in fp32
_LEAST = 64  # tokens at a time, however many features they have

#: From projected tokens, what is added to a token's exponents, and the dimensions whose maximum is taken out.
Features = Callable[[Tensor, Tensor | None, tuple[int, ...]], tuple[Tensor, Tensor]]


class Performer(Attention):
    """Linear attention with positive features.

    Args:
        layer: the layer's geometry.
        num_features: features a head (M); for random ones the paper's rule of thumb is D ln D.
        feature_map: `learned`, a softmax of learned projections and of their negatives, or `random`, FAVOR+.
    """

    paper = "https://arxiv.org/abs/2009.14794"
    projection_HMD: Tensor

    def __init__(self, layer: Layer, *, num_features: int = 128, feature_map: str = "learned") -> None:
        super().__init__(layer)
        if feature_map not in FEATURE_MAPS:
            raise unknown("performer: feature_map", feature_map, FEATURE_MAPS)
        self.learned = feature_map == "learned"
        if num_features < 1 or (self.learned and num_features % 2):
            kind = "even and at least 2 where they are learned" if self.learned else "at least 1"
            raise BakeoffError(f"performer: num_features must be {kind}, not {num_features}.")
        self.num_features = num_features
        for name, value in self.initial_state().items():
            if self.learned:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def initial_state(self) -> dict[str, Tensor]:
        """Gaussian rows, orthogonal in groups of D (section 2.4 of the paper)."""
        layer = self.layer
        generator = torch.Generator().manual_seed(layer.seed * 1_000_003 + layer.index)
        rows = self.num_features // 2 if self.learned else self.num_features
        heads = [_orthogonal(rows, layer.head_dim, generator) for _ in range(layer.num_heads)]
        projection_HMD = torch.stack(heads)
        if not self.learned:
            return {"projection_HMD": projection_HMD}
        return {"query_projection_HMD": projection_HMD, "key_projection_HMD": projection_HMD.clone()}

    def transferable(self) -> list[nn.Parameter]:
        """The projections of learned features."""
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
        dtype, N = q_BHND.dtype, q_BHND.shape[2]
        with torch.autocast(q_BHND.device.type, enabled=False):
            # An exponential of a bf16 number is off by up to a factor: features are at least fp32.
            wide = torch.promote_types(dtype, torch.float32)
            q, k, v_and_one = q_BHND.to(wide), k_BHND.to(wide), F.pad(v_BHND.to(wide), (0, 1), value=1.0)
            # Of random features. A query's own |q|²/2 is the same for all its features and cancels.
            exponent_BHN = k.square().sum(-1) * (-scaling / 2)
            if length_B is not None:  # padding has no features, whatever it holds
                padding = ~real_tokens(length_B, N)[:, None, :]
                exponent_BHN = exponent_BHN.masked_fill(padding, torch.finfo(wide).min / 2)
                k, v_and_one = (x.masked_fill(padding[..., None], 0.0) for x in (k, v_and_one))
            names = (
                ("query_projection_HMD", "key_projection_HMD") if self.learned else ("projection_HMD",) * 2
            )
            q_HDM, k_HDM = ((getattr(self, name).to(wide) * scaling**0.5).mT for name in names)
            # Some rows at a time, and of them some tokens: features are the largest tensors here.
            rows, size = self._portions(q)
            parts = (x.split(rows) for x in (q, k, v_and_one, exponent_BHN))
            attend = functools.partial(_attend, _learned if self.learned else _random, q_HDM, k_HDM, size)
            out = torch.cat([attend(*part) for part in zip(*parts, strict=True)])
        if dropout_p:
            out = F.dropout(out, dropout_p)
        return zero_padding(out.to(dtype), length_B)

    def _portions(self, q_BHND: Tensor) -> tuple[int, int]:
        """How many rows, and how many of their tokens, have features at a time: a few on an eager CPU."""
        B, H, N, _ = q_BHND.shape
        if q_BHND.device.type != "cpu" or torch.compiler.is_compiling():
            return B, N
        tokens = max(1, _CHUNK // (H * self.num_features))
        return max(1, tokens // N), max(_LEAST, tokens)

    def flops(self, n: int) -> float:
        """4 H n M D for the features, half of it where they are learned; 4 H n M (D + 1) for the products."""
        D = self.layer.head_dim
        return 4.0 * self.layer.num_heads * n * self.num_features * ((D / 2 if self.learned else D) + D + 1)


def _attend(
    features: Features,
    q_HDM: Tensor,
    k_HDM: Tensor,
    size: int,
    q_BHND: Tensor,
    k_BHND: Tensor,
    v_and_one: Tensor,
    exponent_BHN: Tensor,
) -> Tensor:
    """(φ(q) + ε) (φ(k) + ε)ᵀ [v, 1], its last column divided out: (B, H, N, D), `size` tokens at a time.

    The epsilons are taken out of the features into sums over few rows. Keys are offset by the largest
    exponent so far, and what was summed before is brought to it.
    """
    summed_BHMD: Tensor | float = 0.0
    largest = q_BHND.new_full((*q_BHND.shape[:2], 1, 1), -torch.inf)
    parts = (x.split(size, 2) for x in (k_BHND, v_and_one, exponent_BHN))
    for k, v, exponent in zip(*parts, strict=True):
        k_BHNM, top = features(k @ k_HDM, exponent, (-2, -1))
        before, largest = largest, torch.maximum(largest, top)
        summed_BHMD = summed_BHMD * (before - largest).exp() + k_BHNM.mT @ v * (top - largest).exp()
    summed_BHMD = summed_BHMD + EPSILON * v_and_one.sum(-2, keepdim=True)
    every = EPSILON * summed_BHMD.sum(-2, keepdim=True)
    outs = []
    for q in q_BHND.split(size, 2):
        q_BHNM, _ = features(q @ q_HDM, None, (-1,))
        out = q_BHNM @ summed_BHMD + every
        # A row that is all padding has no features: its quotient is 0 / 0 without the bound.
        out = out[..., :-1] / out[..., -1:].clamp_min(torch.finfo(out.dtype).tiny)
        outs.append(out.transpose(1, 2))
    return torch.cat(outs, 1).transpose(1, 2)


def _random(x_BHNM: Tensor, exponent_BHN: Tensor | None, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """FAVOR+ of projected tokens, and the exponent, largest over `dims`, by which they are offset."""
    return _exponential(x_BHNM if exponent_BHN is None else x_BHNM.add_(exponent_BHN[..., None]), dims)


def _learned(x_BHNM: Tensor, exponent_BHN: Tensor | None, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """[softmax(x), softmax(-x)], whose exponents are their own affair."""
    return torch.cat((x_BHNM.softmax(-1), (-x_BHNM).softmax(-1)), -1), x_BHNM.new_zeros(())


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
