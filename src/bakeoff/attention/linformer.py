"""Linformer: keys and values projected along the sequence, from N tokens to K.

Wang et al., 2020, "Linformer: Self-Attention with Linear Complexity", https://arxiv.org/abs/2006.04768,
equation 7: softmax(scaling · q (E k)ᵀ) (F v), with E and F learned, (K, N), shared by the heads of a layer
("headwise sharing", section 4).

Cost: 4 H D N K operations for the projections, 4 H D N K for the attention; memory O(N K).

Differs from the paper in where the projections start and in what they index. A row with n real tokens uses

    softmax(scaling · q (E k)ᵀ + log c) (F v),    E = S_n + Δ_E,    F = S_n + Δ_F

where S_n takes the means of K segments of the row's own n tokens (the identity while n <= K), c counts the
tokens of each segment (where K divides n they are equal, and log c cancels), and the learned Δ,
(K, max_length), starts at zero. So a converted model starts as dense attention while n <= K and as attention
over segment means beyond, instead of from noise. Columns count real tokens, so padding has none, on either
side; slots that no token falls into are left out of the softmax. Any E of the paper's is S_N + Δ_E at n = N.

Peers: `linformer` has no mask and `linformer-pytorch` wants N to equal its input size; here any row up to
`max_length` tokens is right.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bakeoff.attention.base import Attention, Layer, bias_from, real_tokens, zero_padding
from bakeoff.errors import BakeoffError

Projection = Callable[[Tensor], Tensor]  # (…, E) to (…, H D)


class Linformer(Attention):
    """Attention to K learned summaries of the sequence.

    Args:
        layer: the layer's geometry; `max_length` bounds the sequence.
        projected_length: summaries a sequence (K).
    """

    paper = "https://arxiv.org/abs/2006.04768"

    def __init__(self, layer: Layer, *, projected_length: int = 128) -> None:
        super().__init__(layer)
        if projected_length < 1:
            raise BakeoffError(f"linformer: projected_length must be at least 1, not {projected_length}.")
        self.projected_length = projected_length
        self.key_projection_KN = nn.Parameter(torch.zeros(projected_length, layer.max_length))
        self.value_projection_KN = nn.Parameter(torch.zeros(projected_length, layer.max_length))

    def initial_state(self) -> dict[str, Tensor]:
        """Zeros: the projections start as segment means."""
        zeros = torch.zeros(self.projected_length, self.layer.max_length)
        return {"key_projection_KN": zeros, "value_projection_KN": zeros}

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
            hidden_BNE: the layer's input, for `key` and `value`.
            key: the layer's key projection, affine in its input.
            value: its value projection.
        """
        H, N = q_BHND.shape[1], q_BHND.shape[2]
        if self.layer.max_length < N:
            raise BakeoffError(
                f"linformer: {N} tokens, but its projections hold {self.layer.max_length}; "
                "convert the encoder with a larger max_length."
            )
        means_BKN, tokens_BK = segment_means(length_B, N, self.projected_length, q_BHND)
        K = tokens_BK.shape[1]

        def project(x_BHND: Tensor, learned_KN: Tensor, linear: Projection | None) -> Tensor:
            sequence_BKN = means_BKN + learned_KN[:K, :N].to(means_BKN.dtype)
            if length_B is not None:
                sequence_BKN = sequence_BKN * real_tokens(length_B, N)[:, None]
            if linear is None or hidden_BNE is None:
                # The heads share the projection: one product for all of them, over (H D) columns.
                x_BKE = sequence_BKN @ x_BHND.transpose(1, 2).flatten(2)
            else:
                # E (x W + b) = (E x) W + (E 1) b: the layer's projection for K tokens instead of N.
                x_BKE = linear(sequence_BKN @ hidden_BNE)
                bias_E = linear(hidden_BNE.new_zeros(hidden_BNE.shape[2]))
                x_BKE = x_BKE + (sequence_BKN.sum(-1, keepdim=True) - 1) * bias_E
            return x_BKE.unflatten(2, (H, -1)).transpose(1, 2)

        k_BHKD = project(k_BHND, self.key_projection_KN, key)
        v_BHKD = project(v_BHND, self.value_projection_KN, value)
        bias = None
        if length_B is not None or N % K:
            # A slot stands for as many keys as it has tokens: exp(q · mean) counts that often.
            counts_BK = tokens_BK.clamp(min=1).to(q_BHND.dtype).log()
            bias = (bias_from(tokens_BK > 0, q_BHND.dtype) + counts_BK)[:, None, None, :]
        out = F.scaled_dot_product_attention(
            q_BHND, k_BHKD, v_BHKD, attn_mask=bias, dropout_p=dropout_p, scale=scaling
        )
        return zero_padding(out, length_B)

    def flops(self, n: int) -> float:
        """4 H D n K to project, 4 H D n K to attend."""
        return 8.0 * self.layer.num_heads * self.layer.head_dim * n * self.projected_length

    def covers(self, n: int) -> bool:
        """While n <= K nothing is compressed: dense attention at the start, and no saving."""
        return n <= self.projected_length

    def projects_later(self, n: int) -> bool:
        """Where there are more tokens than summaries."""
        return n > self.projected_length


def segment_means(length_B: Tensor | None, N: int, segments: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Rows that take the mean of each of `segments` parts of a row's real tokens, as equal as can be.

    Returns:
        (B, K, N) of the type of `like`, with K = min(segments, N), the identity on rows no longer than
        `segments`; and the tokens of each part, (B, K). B is 1 where nothing is padded.
    """
    place_N = torch.arange(N, device=like.device)
    length_B1 = place_N.new_full((1, 1), N) if length_B is None else length_B[:, None]
    slot_BN = torch.where(length_B1 <= segments, place_N, place_N * segments // length_B1.clamp(min=1))
    real_BN = place_N < length_B1
    slot_BN = slot_BN.where(real_BN, 0)
    tokens_BK = slot_BN.new_zeros(len(slot_BN), min(segments, N)).scatter_add_(1, slot_BN, real_BN.long())
    share_BN = tokens_BK.gather(1, slot_BN).clamp(min=1).to(like.dtype).reciprocal().where(real_BN, 0.0)
    means_BKN = share_BN.new_zeros(*tokens_BK.shape, N)
    return means_BKN.scatter_(1, slot_BN[:, None], share_BN[:, None]), tokens_BK
