"""The contract every mechanism keeps, and the shape legend.

Shapes are suffixes of names:

    B batch      H heads          N tokens           D head size       E hidden size
    G global tokens               S block size       R random blocks   A attended blocks
    M random features             K projected length

`keep_BN` is True at a real token and None where nothing is padded. It is never called a mask, whose sign
differs between libraries.

The contract, tested for every mechanism:

- the content of padding never reaches a real token, on whichever side it lies;
- the output at padding is zero, and a row that is all padding stays finite, gradients included;
- a row does not depend on its batch mates, nor on how far it is padded;
- train and eval compute the same function; randomness is a function of (seed, layer, head) alone;
- time and memory grow linearly in N, `Dense` excepted.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclasses.dataclass(frozen=True)
class Layer:
    """The geometry of the attention layer a mechanism is built for."""

    index: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_size: int
    max_length: int
    seed: int = 0


class Attention(nn.Module):
    """A mechanism: options are the constructor's keywords, state is its parameters and buffers."""

    paper: str
    #: True if `forward` takes the layer's input beside q, k and v: `hidden_BNE`, `rotary` and `global_BN`.
    needs_layer_input = False

    #: What `forward` is to receive in the coming call, left here by the bridge if `needs_layer_input`.
    layer_input: dict[str, Any]
    #: Dropout on the attention probabilities in training; None leaves it to the encoder's own config.
    dropout: float | None = None

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer
        self.layer_input = {}

    def forward(
        self,
        q_BHND: Tensor,
        k_BHND: Tensor,
        v_BHND: Tensor,
        keep_BN: Tensor | None = None,
        *,
        scaling: float,
        dropout_p: float = 0.0,
    ) -> Tensor:
        """Attend: (B, H, N, D) from three of the same shape. `scaling` multiplies q · k."""
        raise NotImplementedError

    def initial_state(self) -> dict[str, Tensor]:
        """The values this mechanism's own raw tensors start from, by name; deterministic by seed."""
        return {}

    def flops(self, n: int) -> float:
        """Multiply-adds times two of one sequence of `n` tokens, forward, without the projections."""
        raise NotImplementedError

    def covers(self, n: int) -> bool:
        """Whether nothing is left out or compressed at `n` tokens, so that it starts as dense attention."""
        return False

    def full_flops(self, n: int) -> float:
        """What dense attention would take."""
        return 4.0 * self.layer.num_heads * self.layer.head_dim * n * n


def bias_from(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """An additive bias: 0 where allowed, else so low that the weight is exactly 0.

    Finite, so that a row with nothing allowed gives a finite mean instead of NaN; halved, so that adding
    a score cannot overflow to infinity.
    """
    return torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min / 2)


def zero_padding(out_BHND: Tensor, keep_BN: Tensor | None) -> Tensor:
    """Zero the output of padding, whose rows saw nothing that matters."""
    return out_BHND if keep_BN is None else out_BHND.masked_fill(~keep_BN[:, None, :, None], 0.0)


def softmax_attention(
    q_BHND: Tensor,
    k_BHND: Tensor,
    v_BHND: Tensor,
    allowed: Tensor | None,
    *,
    scaling: float,
    dropout_p: float,
) -> Tensor:
    """Softmax attention where `allowed` (broadcastable to the scores, or None) is True."""
    bias = None if allowed is None else bias_from(allowed, q_BHND.dtype)
    return F.scaled_dot_product_attention(
        q_BHND, k_BHND, v_BHND, attn_mask=bias, dropout_p=dropout_p, scale=scaling
    )


def real_positions(keep_BN: Tensor) -> Tensor:
    """Each token's place among the real tokens of its row: (B, N), meaningful where `keep_BN` is True."""
    return keep_BN.long().cumsum(1).sub_(1).clamp_(min=0)


def real_first(keep_BN: Tensor) -> Tensor:
    """The order that brings each row's real tokens to the front, in their order: (B, N) indices."""
    return torch.argsort(~keep_BN, dim=1, stable=True)


def take_tokens(x_BHND: Tensor, index_BG: Tensor) -> Tensor:
    """Tokens `index_BG` of every head: (B, H, G, D)."""
    B, H, _, D = x_BHND.shape
    return x_BHND.gather(2, index_BG[:, None, :, None].expand(B, H, -1, D))


def pad_tokens(x_BHND: Tensor, before: int, after: int) -> Tensor:
    """Zeros before and after along the tokens."""
    return F.pad(x_BHND, (0, 0, before, after))
