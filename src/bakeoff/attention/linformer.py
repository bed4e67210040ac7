"""Linformer: keys and values projected along the sequence, from N tokens to K.

Wang et al., 2020, "Linformer: Self-Attention with Linear Complexity", https://arxiv.org/abs/2006.04768,
equation 7: softmax(scaling · q (E k)ᵀ) (F v), with E and F learned, (K, N), shared by the heads of a layer
("headwise sharing", section 4).

A row's first G tokens are global, as in Longformer and BigBird: they are kept whole beside the K summaries of
the rest, and attend to all tokens themselves. In what follows, n and E count the tokens after them.

Cost: 4 H D N K operations for the projections, 4 H D N K for the attention, 8 H D N G for the global tokens;
memory O(N (K + G)).

Differs from the paper in where the projections start and in what they index. A row with n real tokens uses

    softmax(scaling · q (E k)ᵀ + log c) (F v),    E = S_n(x · u_E) + Δ_E,    F = S_n(x · u_F) + Δ_F

where S_n(w) takes means of K segments of the row's own n tokens (the identity while n <= K), weighted within
a segment by softmax(w); c counts the tokens of each segment (where K divides n they are equal, and log c
cancels); x is the layer's input; and the learned u, (E,), and Δ, (K, max_length), start at zero. So a
converted model starts as dense attention while n <= K and as attention over plain segment means beyond,
instead of from noise. Columns count real tokens, so padding has none, on either side; slots that no token
falls into are left out of the softmax. Any E of the paper's is S_N(0) + Δ_E at n = N. That a projection may
depend on the tokens is the idea of Zhu et al., 2021, "Long-Short Transformer",
https://arxiv.org/abs/2107.02192, equation 4; here it chooses within a segment, and it is what attention
transfer (`training/transfer.py`) fits.

Peers: `linformer` has no mask and `linformer-pytorch` wants N to equal its input size; here any row up to
`max_length` tokens is right.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bakeoff.attention.base import (
    Attention,
    Layer,
    bias_from,
    is_exporting,
    real_tokens,
    row_attention,
    zero_padding,
)
from bakeoff.errors import BakeoffError

Projection = Callable[[Tensor], Tensor]  # (…, E) to (…, H D)


class Linformer(Attention):
    """Attention to K learned summaries of the sequence.

    Args:
        layer: the layer's geometry; `max_length` bounds the sequence.
        projected_length: summaries a sequence (K).
        global_tokens: tokens from the first on that are not summarised (G); 0 for the paper's own mechanism.
    """

    paper = "https://arxiv.org/abs/2006.04768"
    layer_inputs = frozenset({"hidden_BNE"})

    def __init__(self, layer: Layer, *, projected_length: int = 128, global_tokens: int = 16) -> None:
        super().__init__(layer)
        if projected_length < 1:
            raise BakeoffError(f"linformer: projected_length must be at least 1, not {projected_length}.")
        if global_tokens < 0:
            raise BakeoffError(f"linformer: global_tokens must not be negative, not {global_tokens}.")
        self.projected_length, self.global_tokens = projected_length, global_tokens
        self.key_projection_KN = nn.Parameter(torch.zeros(projected_length, layer.max_length))
        self.value_projection_KN = nn.Parameter(torch.zeros(projected_length, layer.max_length))
        self.key_pooling_E = nn.Parameter(torch.zeros(layer.hidden_size))
        self.value_pooling_E = nn.Parameter(torch.zeros(layer.hidden_size))

    def initial_state(self) -> dict[str, Tensor]:
        """Zeros: the projections start as segment means."""
        return {name: torch.zeros(parameter.shape) for name, parameter in self.named_parameters()}

    def transferable(self) -> list[nn.Parameter]:
        """What weighs the tokens of a segment. The position-bound Δ learn too little from one pass."""
        return [self.key_pooling_E, self.value_pooling_E]

    def forward(
        self,
        q_BHND: Tensor,
        k_BHND: Tensor,
        v_BHND: Tensor,
        length_B: Tensor | None = None,
        *,
        scaling: float,
        dropout_p: float = 0.0,
        hidden_BNE: Tensor | None = None,
        key: Projection | None = None,
        value: Projection | None = None,
    ) -> Tensor:
        """Attend; see `Attention.forward`.

        Args:
            q_BHND: queries.
            k_BHND: keys; not read where `key` is given.
            v_BHND: values; not read where `value` is given.
            length_B: real tokens of each row.
            scaling: multiplies q · k.
            dropout_p: dropout on the attention probabilities.
            hidden_BNE: the layer's input.
            key: the layer's key projection, affine in its input.
            value: its value projection.
        """
        H, N = q_BHND.shape[1], q_BHND.shape[2]
        if not is_exporting() and self.layer.max_length < N:
            raise BakeoffError(
                f"linformer: {N} tokens, but its projections hold {self.layer.max_length}; "
                "convert the encoder with a larger max_length."
            )
        if hidden_BNE is None:
            raise ValueError("linformer needs the layer's input, hidden_BNE.")
        G = self.global_tokens
        if N <= G:
            return row_attention(q_BHND, k_BHND, v_BHND, length_B, scaling=scaling, dropout_p=dropout_p)
        rest_B, n = None if length_B is None else (length_B - G).clamp(min=0), N - G
        # As parts: in a graph for every length, the size of a slice is a minimum that is never resolved.
        x_BNE = hidden_BNE.split((G, n), 1)[1]
        slot_BN, tokens_BK = segments(rest_B, n, self.projected_length, q_BHND.device)
        K = tokens_BK.shape[1]

        def project(
            heads_BHND: Tensor, learned_KN: Tensor, pooling_E: Tensor, linear: Projection | None
        ) -> Tensor:
            means_BKN = segment_means(x_BNE @ pooling_E.to(x_BNE.dtype), slot_BN, rest_B, K)
            learned_KN = learned_KN[:K]
            if is_exporting():  # so that a row of the full length is no case of its own
                learned_KN = F.pad(learned_KN, (0, 1))
            sequence_BKN = means_BKN.to(x_BNE.dtype) + learned_KN.narrow(1, 0, n).to(x_BNE.dtype)
            if rest_B is not None:
                sequence_BKN = sequence_BKN * real_tokens(rest_B, n)[:, None]
            if linear is None:
                # The heads share the projection: one product for all of them, over (H D) columns.
                rest_BHND = heads_BHND.split((G, n), 2)[1]
                summaries_BKE = sequence_BKN @ rest_BHND.transpose(1, 2).flatten(2)
            else:
                # E (x W + b) = (E x) W + (E 1) b: the layer's projection for K tokens instead of N.
                summaries_BKE = linear(sequence_BKN @ x_BNE)
                bias_E = linear(x_BNE.new_zeros(x_BNE.shape[2]))
                summaries_BKE = summaries_BKE + (sequence_BKN.sum(-1, keepdim=True) - 1) * bias_E
            return summaries_BKE.unflatten(2, (H, -1)).transpose(1, 2)

        k_BHSD = project(k_BHND, self.key_projection_KN, self.key_pooling_E, key)
        v_BHSD = project(v_BHND, self.value_projection_KN, self.value_pooling_E, value)
        bias = None
        if length_B is not None or n % K or (G and n > K):
            # A slot stands for as many keys as it has tokens: exp(q · mean) counts that often.
            counts_BK = tokens_BK.clamp(min=1).to(q_BHND.dtype).log()
            bias = (bias_from(tokens_BK > 0, q_BHND.dtype) + counts_BK)[:, None, None, :]
        attend = functools.partial(F.scaled_dot_product_attention, dropout_p=dropout_p, scale=scaling)
        if not G:
            return zero_padding(attend(q_BHND, k_BHSD, v_BHSD, bias), length_B)
        real = None if length_B is None else bias_from(real_tokens(length_B, N), q_BHND.dtype)[:, None, None]
        if bias is not None:  # a row with a token to summarise has all of its global ones
            bias = F.pad(bias, (G, 0))
        (q_global, q_rest), (k_global, _), (v_global, _) = (
            x.split((G, n), 2) for x in (q_BHND, k_BHND, v_BHND)
        )
        k_BHSD, v_BHSD = torch.cat((k_global, k_BHSD), 2), torch.cat((v_global, v_BHSD), 2)
        out = (attend(q_global, k_BHND, v_BHND, real), attend(q_rest, k_BHSD, v_BHSD, bias))
        return zero_padding(torch.cat(out, 2), length_B)

    def flops(self, n: int) -> float:
        """4 H D n K to project, 4 H D n K to attend, 8 H D n G for the global tokens."""
        if n <= self.global_tokens:
            return self.full_flops(n)
        H, D = self.layer.num_heads, self.layer.head_dim
        return 8.0 * H * D * n * (self.projected_length + self.global_tokens)

    def covers(self, n: int) -> bool:
        """While n <= K + G nothing is compressed: dense attention at the start, and no saving."""
        return n <= self.projected_length + self.global_tokens

    def traced_length(self, n: int) -> int:
        """More than the global tokens."""
        return n + self.global_tokens

    def projects_later(self, n: int) -> bool:
        """Where there are more tokens than summaries, and none is global: those need all keys and values."""
        return not self.global_tokens and n > self.projected_length


def segments(length_B: Tensor | None, N: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which of `count` parts, as equal as can be, each of a row's real tokens falls into.

    Returns:
        (B, N), in order from 0, each token its own part in rows no longer than `count`, 0 at padding; and the
        tokens of each part, (B, K), with K = min(count, N), or K = count in a graph for every N. B is 1 where
        nothing is padded.
    """
    K = count if is_exporting() else min(count, N)
    place_N = torch.arange(N, device=device)
    length_B1 = place_N.new_full((1, 1), N) if length_B is None else length_B[:, None]
    slot_BN = torch.where(length_B1 <= count, place_N, place_N * count // length_B1.clamp(min=1))
    real_BN = place_N < length_B1
    slot_BN = slot_BN.where(real_BN, 0)
    return slot_BN, slot_BN.new_zeros(slot_BN.shape[0], K).scatter_add_(1, slot_BN, real_BN.long())


def segment_means(weight_BN: Tensor, slot_BN: Tensor, length_B: Tensor | None, K: int) -> Tensor:
    """Rows that take a mean over each part's tokens, weighted by softmax(weight) within it: (B, K, N)."""
    slot_BN = slot_BN.expand_as(weight_BN)
    weight_BN = weight_BN.to(torch.promote_types(weight_BN.dtype, torch.float32))
    lowest = torch.finfo(weight_BN.dtype).min
    if length_B is not None:
        weight_BN = weight_BN.masked_fill(~real_tokens(length_B, weight_BN.shape[1]), -torch.inf)
    top_BK = weight_BN.new_full((weight_BN.shape[0], K), lowest)
    top_BK = top_BK.scatter_reduce(1, slot_BN, weight_BN.detach(), "amax")
    share_BN = (weight_BN - top_BK.gather(1, slot_BN)).exp()
    means_BKN = share_BN.new_zeros(*top_BK.shape, share_BN.shape[1])
    means_BKN = means_BKN.scatter(1, slot_BN[:, None], share_BN[:, None])
    # A part without a token has no share to divide by.
    return means_BKN / means_BKN.sum(-1, keepdim=True).clamp(min=torch.finfo(weight_BN.dtype).tiny)
