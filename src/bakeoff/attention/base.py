"""The contract every mechanism keeps, and the shape legend.

Shapes are suffixes of names:

    B batch      H heads          N tokens           D head size       E hidden size
    G global tokens               S block size       R random blocks   A attended blocks
    M features                    K projected length

A row's real tokens come first and padding last; `length_B` counts the real ones, and is None where nothing is
padded. Padding that lies elsewhere is moved by the bridge (`encoder/packing.py`), once a forward pass, so
that no mechanism has to. Nothing is called a mask, whose sign differs between libraries.

The contract, tested for every mechanism:

- the content of padding never reaches a real token;
- the output at padding is zero, and a row that is all padding stays finite, gradients included;
- a row does not depend on its batch mates, nor on how far it is padded;
- train and eval compute the same function; randomness is a function of (seed, layer, head) alone;
- time and memory grow linearly in N, `Dense` excepted.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
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
    #: What `forward` takes beside q, k and v, of: `hidden_BNE`, the layer's input; `rotary`, cos and sin
    #: where the encoder rotates; `global_BN`, the user's global tokens.
    layer_inputs: frozenset[str] = frozenset()

    #: Whether it is a family's own local attention, which stays whatever mechanism is asked for.
    local: bool = False

    #: Dropout on the attention probabilities in training; None leaves it to the encoder's own config.
    dropout: float | None = None

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer

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
        """Attend: (B, H, N, D) from three of the same shape. `scaling` multiplies q · k."""
        raise NotImplementedError

    def initial_state(self) -> dict[str, Tensor]:
        """The values this mechanism's own raw tensors start from, by name; deterministic by seed."""
        return {}

    def projections(self) -> tuple[nn.Linear, ...]:
        """Its own projections to queries, keys and values, which start as the layer's; none by default."""
        return ()

    def transferable(self) -> list[nn.Parameter]:
        """What attention transfer (`training/transfer.py`) may fit before fine-tuning; nothing by default."""
        return []

    def flops(self, n: int) -> float:
        """Multiply-adds times two of one sequence of `n` tokens, forward, without the projections."""
        raise NotImplementedError

    def covers(self, n: int) -> bool:
        """Whether nothing is left out or compressed at `n` tokens, so that it starts as dense attention."""
        return False

    def projects_later(self, n: int) -> bool:
        """Whether `forward` would rather project keys and values itself, for fewer than the `n` tokens.

        Where the bridge can, it then gives `hidden_BNE` and the layer's projections, `key` and `value`; k and
        v have no meaning.
        """
        return False

    def traced_length(self, n: int) -> int:
        """Tokens, at least the `n` there are, to which a graph that is to hold for every `n` pads.

        `n` is a symbol there, and so is what comes of it: such that no branch of `forward` depends on it.
        Where `is_exporting()`, `forward` may count on this length, and on `length_B`.
        """
        return n

    def full_flops(self, n: int) -> float:
        """What dense attention would take."""
        return 4.0 * self.layer.num_heads * self.layer.head_dim * n * n


def is_exporting() -> bool:
    """Whether a graph for every length is being made.

    The Dynamo of torch 2.9 says that it exports whatever it compiles.
    """
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()


def bias_from(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """An additive bias: 0 where allowed, else so low that the weight is exactly 0.

    Finite, so that a row with nothing allowed gives a finite mean instead of NaN; a quarter of the lowest
    number, so that adding a score, or another bias, cannot overflow to infinity.
    """
    return torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min / 4)


def real_tokens(length_B: Tensor, N: int) -> Tensor:
    """True at real tokens: (B, N)."""
    return torch.arange(N, device=length_B.device) < length_B[:, None]


def zero_padding(out_BHND: Tensor, length_B: Tensor | None) -> Tensor:
    """Zero the output of padding, whose rows saw nothing that matters."""
    if length_B is None:
        return out_BHND
    return out_BHND.masked_fill(~real_tokens(length_B, out_BHND.shape[2])[:, None, :, None], 0.0)


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


def row_attention(
    q_BHND: Tensor,
    k_BHND: Tensor,
    v_BHND: Tensor,
    length_B: Tensor | None,
    bias_BNN: Tensor | None = None,
    *,
    scaling: float,
    dropout_p: float,
) -> Tensor:
    """Softmax attention over each row's real tokens, zero at padding; `bias_BNN` (B or 1) adds to scores."""
    bias = None if bias_BNN is None else bias_BNN[:, None]
    sdpa = functools.partial(F.scaled_dot_product_attention, dropout_p=dropout_p, scale=scaling)
    if length_B is None:
        return sdpa(q_BHND, k_BHND, v_BHND, bias)
    real = bias_from(real_tokens(length_B, q_BHND.shape[2])[:, None, None, :], q_BHND.dtype)
    return zero_padding(sdpa(q_BHND, k_BHND, v_BHND, real if bias is None else bias + real), length_B)


def take_tokens(x_BHND: Tensor, index_BG: Tensor) -> Tensor:
    """Tokens `index_BG` of every head: (B, H, G, D)."""
    B, H, _, D = x_BHND.shape
    return x_BHND.gather(2, index_BG[:, None, :, None].expand(B, H, -1, D))


def pad_tokens(x_BHND: Tensor, after: int) -> Tensor:
    """Zeros after the last token; the tensor itself where there is nothing to add."""
    return F.pad(x_BHND, (0, 0, 0, after)) if after else x_BHND


def portions(x: Tensor, size: int | None, dim: int = 0) -> tuple[Tensor, ...]:
    """`x.split(size, dim)`; or `x` in one where `size` is None, as in a graph, whose steps are fixed."""
    return (x,) if size is None else x.split(size, dim)


def cached(build: Callable[..., Any]) -> Callable[..., Any]:
    """Remember what is the same for the layers of a forward pass, by sizes and by tensors themselves.

    The tensors must be nobody's to change: `length_B` is; a mask that a user gave is not.
    """
    kept = functools.lru_cache(maxsize=32)(build)

    @functools.wraps(build)
    def get(*arguments: Any, keep: bool = True) -> Any:
        if torch.compiler.is_compiling() or not keep:
            return build(*arguments)
        with torch.inference_mode(False):  # it may be used again where gradients are wanted
            return kept(*arguments)

    return get
