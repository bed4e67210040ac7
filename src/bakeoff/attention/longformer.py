"""Longformer: a sliding window plus a few global tokens with projections of their own.

Beltagy, Peters and Cohan, 2020, "Longformer: The Long-Document Transformer",
https://arxiv.org/abs/2004.05150, section 3:

- a local token i attends to the tokens j with |i - j| <= radius, and to every global token;
- a global token attends to every token, through projections (q_g, k_g, v_g) of its own.

`window` is the total width, as in the published checkpoints: radius = window // 2.

Cost: 4 H D N (window + G) operations and O(N) memory, where dense attention takes 4 H D N².

How: queries in blocks, each against the keys its block can reach, so that the work is a batch of small
dense attentions. Where the window spans the sequence, one masked dense attention is the same function.

Differs from transformers' implementation, which pads every input to a multiple of the window (513 tokens
cost 3 x 512) and takes an attention mask with three values; here nothing is padded beyond a block, and
the global tokens are an argument of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bakeoff.attention.base import (
    Attention,
    Layer,
    bias_from,
    pad_tokens,
    real_first,
    real_positions,
    softmax_attention,
    take_tokens,
    zero_padding,
)
from bakeoff.errors import BakeoffError


class Longformer(Attention):
    """Window and global attention.

    Args:
        layer: the layer's geometry.
        window: total width in tokens, even; each token sees `window // 2` on either side.
        global_tokens: how many of the first real tokens are global, unless `global_BN` says which.
        separate_global: whether global tokens project with weights of their own, as in the paper.
    """

    paper = "https://arxiv.org/abs/2004.05150"
    needs_layer_input = True

    def __init__(
        self, layer: Layer, *, window: int = 512, global_tokens: int = 1, separate_global: bool = True
    ) -> None:
        super().__init__(layer)
        if window < 2 or window % 2:
            raise BakeoffError(f"longformer: window is an even number of tokens from 2 up, not {window}.")
        if global_tokens < 0:
            raise BakeoffError(f"longformer: global_tokens must not be negative, not {global_tokens}.")
        self.window, self.radius = window, window // 2
        self.global_tokens, self.separate_global = global_tokens, separate_global
        if separate_global:
            kv_size = layer.num_key_value_heads * layer.head_dim
            self.query_global = nn.Linear(layer.hidden_size, layer.num_heads * layer.head_dim)
            self.key_global = nn.Linear(layer.hidden_size, kv_size)
            self.value_global = nn.Linear(layer.hidden_size, kv_size)

    def forward(
        self,
        q_BHND: Tensor,
        k_BHND: Tensor,
        v_BHND: Tensor,
        keep_BN: Tensor | None = None,
        *,
        scaling: float,
        dropout_p: float = 0.0,
        hidden_BNE: Tensor | None = None,
        rotary: tuple[Tensor, Tensor] | None = None,
        global_BN: Tensor | None = None,
    ) -> Tensor:
        """Attend; see `Attention.forward`.

        Args:
            q_BHND: queries.
            k_BHND: keys.
            v_BHND: values.
            keep_BN: True at real tokens.
            scaling: multiplies q · k.
            dropout_p: dropout on the attention probabilities.
            hidden_BNE: the layer's input, which the global projections read.
            rotary: cos and sin, (B or 1, N, D), where the encoder rotates its queries and keys.
            global_BN: True at global tokens; by default the first `global_tokens` real ones.
        """
        B, _, N, _ = q_BHND.shape
        if global_BN is None:
            count = min(self.global_tokens, N)
            everyone = torch.ones(B, N, dtype=torch.bool, device=q_BHND.device)
            real_BN = everyone if keep_BN is None else keep_BN
            global_BN = real_BN & (real_positions(real_BN) < count)
        else:
            global_BN = global_BN.bool() if keep_BN is None else global_BN.bool() & keep_BN
            count = int(global_BN.sum(1).max())
        if not count:
            out = window_attention(
                q_BHND, k_BHND, v_BHND, keep_BN, self.radius, scaling=scaling, dropout_p=dropout_p
            )
            return zero_padding(out, keep_BN)

        index_BG = real_first(global_BN)[:, :count]
        present_BG = global_BN.gather(1, index_BG)
        out = window_attention(
            q_BHND, k_BHND, v_BHND, keep_BN, self.radius, global_BN, index_BG, present_BG,
            scaling=scaling, dropout_p=dropout_p,
        )  # fmt: skip
        allowed = None if keep_BN is None else keep_BN[:, None, None, :]
        if not self.separate_global:
            q_g = take_tokens(q_BHND, index_BG)
            out_BHGD = softmax_attention(q_g, k_BHND, v_BHND, allowed, scaling=scaling, dropout_p=dropout_p)
        elif hidden_BNE is None:
            raise ValueError("longformer with separate global projections needs the layer's input.")
        elif rotary is None and not dropout_p and count <= self.layer.head_dim:
            out_BHGD = self._attend_unprojected(hidden_BNE, index_BG, allowed, scaling)
        else:
            q_g, k_g, v_g = self._project(hidden_BNE, index_BG, rotary)
            out_BHGD = softmax_attention(q_g, k_g, v_g, allowed, scaling=scaling, dropout_p=dropout_p)
        # A row with fewer global tokens than its batch mates keeps its local output in the spare places.
        # Under autocast the two may differ in type.
        out_BHGD = torch.where(
            present_BG[:, None, :, None], out_BHGD.to(out.dtype), take_tokens(out, index_BG)
        )
        out = out.scatter(2, index_BG[:, None, :, None].expand_as(out_BHGD), out_BHGD)
        return zero_padding(out, keep_BN)

    def _project(
        self, hidden_BNE: Tensor, index_BG: Tensor, rotary: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Global queries (B, H, G, D), and keys and values (B, H, N, D) as global tokens see them."""
        B, N, E = hidden_BNE.shape
        D = self.layer.head_dim
        chosen_BGE = hidden_BNE.gather(1, index_BG[:, :, None].expand(B, -1, E))
        q = self.query_global(chosen_BGE).unflatten(-1, (-1, D)).transpose(1, 2)
        k = self.key_global(hidden_BNE).unflatten(-1, (-1, D)).transpose(1, 2)
        v = self.value_global(hidden_BNE).unflatten(-1, (-1, D)).transpose(1, 2)
        if rotary is not None:
            cos_BND, sin_BND = (part.expand(B, N, D) for part in rotary)
            index_BGD = index_BG[:, :, None].expand(B, -1, D)
            q = rotate(q, cos_BND.gather(1, index_BGD), sin_BND.gather(1, index_BGD))
            k = rotate(k, cos_BND, sin_BND)
        groups = self.layer.num_heads // self.layer.num_key_value_heads
        return q, k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)

    def _attend_unprojected(
        self, hidden_BNE: Tensor, index_BG: Tensor, allowed: Tensor | None, scaling: float
    ) -> Tensor:
        """Global rows without global keys and values for every token: (B, H, G, D).

        q · (W x + b) = (qᵀ W) x + q · b, whose last term is the same for all keys and cancels; and the
        weights sum to 1, so that Σ p (W x + b) = W (Σ p x) + b. A few queries then cost two small products
        instead of two projections of the whole sequence. It holds without dropout and rotation only.
        """
        B, _, E = hidden_BNE.shape
        H, D, G = self.layer.num_heads, self.layer.head_dim, index_BG.shape[1]
        groups = H // self.layer.num_key_value_heads
        key_HDE, value_HDE = (
            p.weight.view(-1, D, E).repeat_interleave(groups, 0) for p in (self.key_global, self.value_global)
        )
        chosen_BGE = hidden_BNE.gather(1, index_BG[:, :, None].expand(B, G, E))
        q_BHGD = self.query_global(chosen_BGE).unflatten(-1, (H, D)).transpose(1, 2)
        # As einsum, a product per head over all rows; a broadcast matmul would be one per row and head.
        absorbed = torch.einsum("bhgd,hde->bhge", q_BHGD, key_HDE).flatten(1, 2)[:, None]
        x = hidden_BNE[:, None]
        pooled = softmax_attention(absorbed, x, x, allowed, scaling=scaling, dropout_p=0.0)
        bias_HD = self.value_global.bias.view(-1, D).repeat_interleave(groups, 0)
        out = torch.einsum("bhge,hde->bhgd", pooled[:, 0].unflatten(1, (H, G)), value_HDE)
        # The key's bias cancels, so its gradient is zero; without this it would be absent, and training on
        # several devices waits for every parameter's.
        return out + bias_HD[:, None] + 0 * self.key_global.bias.sum()

    def flops(self, n: int) -> float:
        """4 H D n (window + 1 + 2 G): local rows see window and globals, G global rows see everything."""
        local = min(n, 2 * self.radius + 1 + self.global_tokens)
        return 4.0 * self.layer.num_heads * self.layer.head_dim * n * (local + self.global_tokens)

    def covers(self, n: int) -> bool:
        """Whether the window spans the sequence. Global tokens with own projections still differ."""
        return n - 1 <= self.radius


class Window(Attention):
    """A sliding window without global tokens: the local layers of families that alternate (ModernBERT).

    Args:
        layer: the layer's geometry.
        radius: tokens seen on either side.
    """

    paper = Longformer.paper

    def __init__(self, layer: Layer, *, radius: int) -> None:
        super().__init__(layer)
        self.radius = radius

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
        """Attend; see `Attention.forward`."""
        out = window_attention(
            q_BHND, k_BHND, v_BHND, keep_BN, self.radius, scaling=scaling, dropout_p=dropout_p
        )
        return zero_padding(out, keep_BN)

    def flops(self, n: int) -> float:
        """4 H D n (2 radius + 1)."""
        return 4.0 * self.layer.num_heads * self.layer.head_dim * n * min(n, 2 * self.radius + 1)

    def covers(self, n: int) -> bool:
        """Whether the window spans the sequence."""
        return n - 1 <= self.radius


def rotate(x_BHND: Tensor, cos_BND: Tensor, sin_BND: Tensor) -> Tensor:
    """Rotary position embedding on halves, as transformers' `apply_rotary_pos_emb`."""
    half = x_BHND.shape[-1] // 2
    turned = torch.cat((-x_BHND[..., half:], x_BHND[..., :half]), dim=-1)
    return (x_BHND * cos_BND[:, None] + turned * sin_BND[:, None]).to(x_BHND.dtype)


def window_attention(
    q_BHND: Tensor,
    k_BHND: Tensor,
    v_BHND: Tensor,
    keep_BN: Tensor | None,
    radius: int,
    global_BN: Tensor | None = None,
    index_BG: Tensor | None = None,
    present_BG: Tensor | None = None,
    *,
    scaling: float,
    dropout_p: float,
) -> Tensor:
    """Attend to |i - j| <= radius, and to the tokens `index_BG` (where `present_BG`) wherever they are.

    `global_BN` marks the same tokens: they leave the window, so that none is counted twice.
    Returns (B, H, N, D); rows at padding are finite and without meaning.
    """
    _, H, N, D = q_BHND.shape
    block = 128 if radius >= 128 else 64 if radius >= 32 else 32
    if block + 2 * radius >= N:
        # One block reaches every key: the same function as a masked dense attention, without the copies.
        allowed = None if keep_BN is None else keep_BN[:, None, None, :]
        if radius < N - 1:
            place = torch.arange(N, device=q_BHND.device)
            near = ((place[:, None] - place).abs() <= radius)[None, None]
            near = near if global_BN is None else near | global_BN[:, None, None, :]
            allowed = near if allowed is None else near & allowed
        return softmax_attention(q_BHND, k_BHND, v_BHND, allowed, scaling=scaling, dropout_p=dropout_p)

    blocks = -(-N // block)
    tail = blocks * block - N
    reach = block + 2 * radius

    def in_blocks(x_BHND: Tensor) -> Tensor:
        """The keys or values that each block of queries reaches: (B, blocks, H, reach, D)."""
        return pad_tokens(x_BHND, radius, radius + tail).unfold(2, reach, block).permute(0, 2, 1, 4, 3)

    # Inside a block, query t stands at key t + radius, so it sees keys t to t + 2 radius.
    t = torch.arange(block, device=q_BHND.device)[:, None]
    s = torch.arange(reach, device=q_BHND.device)
    band = (s >= t) & (s <= t + 2 * radius)
    there_BN = torch.ones(1, N, dtype=torch.bool, device=q_BHND.device) if keep_BN is None else keep_BN
    if global_BN is not None:
        there_BN = there_BN & ~global_BN
    reached = F.pad(there_BN, (radius, radius + tail)).unfold(1, reach, block)  # (B or 1, blocks, reach)
    allowed = reached[:, :, None, None, :] & band

    q = pad_tokens(q_BHND, 0, tail).unflatten(2, (blocks, block)).transpose(1, 2)
    k, v = in_blocks(k_BHND), in_blocks(v_BHND)
    if index_BG is not None and present_BG is not None:
        globals_shape = (-1, blocks, H, -1, D)
        k = torch.cat((k, take_tokens(k_BHND, index_BG)[:, None].expand(globals_shape)), dim=3)
        v = torch.cat((v, take_tokens(v_BHND, index_BG)[:, None].expand(globals_shape)), dim=3)
        spare = present_BG[:, None, None, None, :].expand(-1, blocks, 1, block, -1)
        allowed = torch.cat((allowed.expand(len(spare), -1, -1, -1, -1), spare), dim=-1)
    bias = bias_from(allowed, q.dtype).expand(len(q), -1, -1, -1, -1)
    out = F.scaled_dot_product_attention(
        q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1),
        attn_mask=bias.flatten(0, 1), dropout_p=dropout_p, scale=scaling,
    )  # fmt: skip
    return out.unflatten(0, (-1, blocks)).transpose(1, 2).flatten(2, 3)[:, :, :N]
