"""Dense softmax attention: the baseline every other mechanism is measured against.

Vaswani et al., 2017, "Attention Is All You Need", https://arxiv.org/abs/1706.03762, equation 1:

    softmax(scaling · q kᵀ) v

Cost: 4 H D N² operations a sequence; memory linear in N where PyTorch's fused kernel applies.

It stands here, and the encoders' own "sdpa" is not used, because theirs expands the padding to a
(B, 1, N, N) mask as soon as one token is padded. Ours stays (B, 1, 1, N), and on a CPU long rows are
attended to one at a time, each at its own length.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bakeoff.attention.base import Attention, pad_tokens, real_tokens, softmax_attention, zero_padding

_BY_ROW = 256  # tokens from which on a call a row costs less than attending to and from padding


class Dense(Attention):
    """Every token attends to every real token."""

    paper = "https://arxiv.org/abs/1706.03762"

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
        N = q_BHND.shape[2]
        if length_B is None:
            return softmax_attention(q_BHND, k_BHND, v_BHND, None, scaling=scaling, dropout_p=dropout_p)
        if q_BHND.device.type == "cpu" and N >= _BY_ROW and not torch.compiler.is_compiling():
            outs = []
            for row, n in enumerate(length_B.tolist()):
                q, k, v = (x[row : row + 1, :, :n] for x in (q_BHND, k_BHND, v_BHND))
                out = softmax_attention(q, k, v, None, scaling=scaling, dropout_p=dropout_p)
                outs.append(pad_tokens(out, N - n))
            return torch.cat(outs)
        allowed = real_tokens(length_B, N)[:, None, None, :]
        out = softmax_attention(q_BHND, k_BHND, v_BHND, allowed, scaling=scaling, dropout_p=dropout_p)
        return zero_padding(out, length_B)

    def flops(self, n: int) -> float:
        """4 H D n²."""
        return self.full_flops(n)

    def covers(self, n: int) -> bool:
        """Always: this is dense attention."""
        return True
