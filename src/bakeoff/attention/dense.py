"""Dense softmax attention: the baseline every other mechanism is measured against.

Vaswani et al., 2017, "Attention Is All You Need", https://arxiv.org/abs/1706.03762, equation 1:

    softmax(scaling · q kᵀ) v

Cost: 4 H D N² operations a sequence; memory linear in N where PyTorch's fused kernel applies.

It stands here, and the encoders' own "sdpa" is not used, because theirs expands the padding to a
(B, 1, N, N) mask as soon as one token is padded. Ours stays (B, 1, 1, N).
"""

from __future__ import annotations

from torch import Tensor

from bakeoff.attention.base import Attention, row_attention


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
        return row_attention(q_BHND, k_BHND, v_BHND, length_B, scaling=scaling, dropout_p=dropout_p)

    def flops(self, n: int) -> float:
        """4 H D n²."""
        return self.full_flops(n)

    def covers(self, n: int) -> bool:
        """Always: this is dense attention."""
        return True
