"""BigBird: block-sparse attention with a window, global and random blocks.

Zaheer et al., 2020, "Big Bird: Transformers for Longer Sequences", https://arxiv.org/abs/2007.14062,
section 2 and appendix D (internal transformer construction, blocked). With tokens in blocks of S:

- the first g blocks and the last one are global: they attend to all blocks, and all blocks attend to them;
- block i attends to blocks i - 1, i and i + 1;
- block i attends to R random blocks, drawn a head, outside of those.

Cost: 4 H D N S (5 + 2 g + R) operations and O(N) memory, where dense attention takes 4 H D N²; and H (N / S)²
integers to draw the random blocks from. The authors and transformers have g = 1; more are for a question that
every part of a text has to see.

Differs from transformers' implementation, in which every "random" block is block 0 outside of training,
the last global block may be padding, one short input switches the model to dense attention for good, and
every training step re-seeds NumPy's global generator. Here the random blocks are a hash of
(seed, layer, head, query block, key block): the same in training and evaluation, for any padding and any
batch, and no generator is touched. Blocks are counted from the first real token of a row to its last.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask

from bakeoff.attention import flex
from bakeoff.attention.base import (
    Attention,
    Layer,
    bias_from,
    cached,
    is_exporting,
    pad_tokens,
    portions,
    real_tokens,
    row_attention,
    softmax_attention,
    zero_padding,
)
from bakeoff.errors import BakeoffError

_GATHERED = 1 << 20  # numbers of keys gathered at a time: 4 MiB in fp32


class BigBird(Attention):
    """Window, global and random blocks.

    Args:
        layer: the layer's geometry.
        block_size: tokens a block (S).
        num_random_blocks: random blocks a query block and head (R).
        global_tokens: a row's first tokens, which are global in whole blocks: g is as many as hold them.
    """

    paper = "https://arxiv.org/abs/2007.14062"

    def __init__(
        self, layer: Layer, *, block_size: int = 64, num_random_blocks: int = 3, global_tokens: int = 1
    ) -> None:
        super().__init__(layer)
        if block_size < 1:
            raise BakeoffError(f"bigbird: block_size is a number of tokens from 1 up, not {block_size}.")
        if num_random_blocks < 0:
            raise BakeoffError(f"bigbird: num_random_blocks must not be negative, not {num_random_blocks}.")
        if global_tokens < 1:
            raise BakeoffError(f"bigbird: global_tokens is a number from 1 up, not {global_tokens}.")
        self.block_size, self.num_random_blocks = block_size, num_random_blocks
        self.global_tokens = global_tokens

    @property
    def first_blocks(self) -> int:
        """Global blocks at a row's beginning (g)."""
        return -(-self.global_tokens // self.block_size)

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
        B, H, N, D = q_BHND.shape
        if self.covers(self.layer.max_length if is_exporting() else N):  # a graph is one for all lengths
            # Every block attends to every block: the same function, without the copies.
            return row_attention(q_BHND, k_BHND, v_BHND, length_B, scaling=scaling, dropout_p=dropout_p)
        S = self.block_size
        blocks = -(-N // S)
        if flex.applies(q_BHND, dropout_p):
            mask = _mask(self.attended_blocks, self.first_blocks, S, B, N, length_B, q_BHND.device)
            return zero_padding(flex.attend(q_BHND, k_BHND, v_BHND, mask, scaling=scaling), length_B)
        lengths_B = torch.full((B,), N, device=q_BHND.device) if length_B is None else length_B
        blocks_B = (lengths_B + S - 1) // S
        attended_BHIA, valid_BIA = self.attended_blocks(blocks_B, blocks)
        A = attended_BHIA.shape[-1]

        q_BHISD, k_BHISD, v_BHISD = (
            pad_tokens(x, blocks * S - N).unflatten(2, (blocks, S)) for x in (q_BHND, k_BHND, v_BHND)
        )
        # Only a row's last block can be part padding, and it appears in global slots alone, which are the
        # same for every head; so one bias serves all heads.
        places_BIAS = attended_BHIA[:, 0, :, :, None] * S + torch.arange(S, device=q_BHND.device)
        within_BIAS = (places_BIAS < lengths_B[:, None, None, None]) & valid_BIA[..., None]
        bias_BHIK = bias_from(within_BIAS.flatten(2), q_BHND.dtype)[:, None].expand(-1, H, -1, -1)

        # A few heads at a time, so that what is gathered stays in the processor's cache. A block of keys is
        # one contiguous row there, and gathering copies whole rows.
        size = None if torch.compiler.is_compiling() else max(1, _GATHERED // (blocks * A * S * D))
        heads = (
            portions(x.flatten(0, 1), size) for x in (q_BHISD, k_BHISD, v_BHISD, attended_BHIA, bias_BHIK)
        )
        outs = []
        for q, k, v, attended, bias in zip(*heads, strict=True):
            first = torch.arange(k.shape[0], device=k.device)[:, None, None] * blocks
            rows = (first + attended).flatten()
            k_near, v_near = (
                x.reshape(-1, S * D).index_select(0, rows).view(-1, 1, A * S, D) for x in (k, v)
            )
            outs.append(
                F.scaled_dot_product_attention(
                    q.flatten(0, 1)[:, None], k_near, v_near, bias.flatten(0, 1)[:, None, None],
                    dropout_p=dropout_p, scale=scaling,
                )
            )  # fmt: skip
        out = torch.cat(outs).view(B, H, blocks, S, D)

        # The global blocks attend to the whole row.
        g, last_B = self.first_blocks, (blocks_B - 1).clamp(min=0)
        row, head = (torch.arange(n, device=q_BHND.device) for n in (B, H))
        q_last = q_BHISD[row[:, None], head, last_B[:, None]]  # (B, H, S, D)
        q_ends = torch.cat((q_BHISD[:, :, :g].flatten(2, 3), q_last), dim=2)
        real = None if length_B is None else real_tokens(length_B, N)[:, None, None, :]
        out_ends = softmax_attention(
            q_ends, k_BHND, v_BHND, real, scaling=scaling, dropout_p=dropout_p
        ).unflatten(2, (g + 1, S))
        block = torch.arange(blocks, device=q_BHND.device)
        is_end_BI = (block < g) | (block == last_B[:, None])
        own = out_ends.index_select(2, block.clamp(max=g))
        out = torch.where(is_end_BI[:, None, :, None, None], own, out)
        return zero_padding(out.flatten(2, 3).narrow(2, 0, N), length_B)

    def attended_blocks(self, blocks_B: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
        """Which key blocks each query block attends to in rows of `blocks_B` blocks, padded to `blocks`.

        Returns:
            indices (B, H, blocks, A) with A = 4 + g + R, and whether a slot counts (B, blocks, A): a block
            that appears twice counts once. The rows of the global blocks are not used.
        """
        H, R, g = self.layer.num_heads, self.num_random_blocks, self.first_blocks
        device = blocks_B.device
        B = blocks_B.shape[0]
        i = torch.arange(blocks, device=device)
        last = (blocks_B - 1).clamp(min=0)[:, None]  # (B, 1)

        first = torch.arange(g, device=device).expand(B, blocks, -1)
        window = torch.stack([(i + step).expand(B, -1) for step in (-1, 0, 1)], dim=-1)
        in_window = (window >= g) & (window < last[..., None])
        fixed_BIA = torch.cat(
            (first, last[..., None].expand(-1, blocks, -1), window.clamp(0, blocks - 1)), -1
        )
        # Rows of which one of the first blocks is the last one are all global, and not used.
        valid_BIA = torch.cat((torch.ones_like(fixed_BIA[..., : g + 1], dtype=torch.bool), in_window), -1)

        j = i[None, None, :]
        eligible = (j >= g) & (j < last[..., None]) & ((i[:, None] - j).abs() > 1)  # (B, I, J)
        scores = _hash(self.layer.seed, self.layer.index, H, blocks, device)
        scores = scores[None].masked_fill(~eligible[:, None], -1)
        if is_exporting():  # of fewer than R blocks there are none to draw
            scores = F.pad(scores, (0, R), value=-1)
        values, drawn = scores.topk(R, dim=-1)
        random_valid = values[:, 0] >= 0  # how many are eligible does not depend on the head
        drawn = drawn.where(values >= 0, 0)
        attended = torch.cat((fixed_BIA[:, None].expand(-1, H, -1, -1), drawn), -1)
        return attended, torch.cat((valid_BIA, random_valid), -1)

    def flops(self, n: int) -> float:
        """4 H D n S (4 + g + R) and the global blocks' rows; dense where the pattern covers all."""
        if self.covers(n):
            return self.full_flops(n)
        g, R = self.first_blocks, self.num_random_blocks
        keys = self.block_size * ((4 + g + R) + (g + 1))
        return 4.0 * self.layer.num_heads * self.layer.head_dim * n * keys

    def covers(self, n: int) -> bool:
        """With 3 + g + R blocks or fewer, fixed and random blocks are all blocks."""
        return -(-n // self.block_size) <= 3 + self.first_blocks + self.num_random_blocks

    def traced_length(self, n: int) -> int:
        """Whole blocks, one more than the first g or more; but where the longest sequence is covered."""
        if self.covers(self.layer.max_length):
            return n
        return (n + (self.first_blocks + 1) * self.block_size - 1) // self.block_size * self.block_size


@cached
def _mask(
    attended_blocks: Callable[[Tensor, int], tuple[Tensor, Tensor]],
    first_blocks: int,
    S: int,
    B: int,
    N: int,
    length_B: Tensor | None,
    device: torch.device,
) -> BlockMask:
    """The pattern of a layer for `flex`."""
    blocks = -(-N // S)
    length_B = torch.full((B,), N, device=device) if length_B is None else length_B
    attended_BHIA, valid_BIA = attended_blocks((length_B + S - 1) // S, blocks)
    block = torch.arange(blocks, device=device)
    is_end_BI = (block < first_blocks) | (block == (length_B[:, None] - 1) // S)
    # A slot that does not count writes what the first one does: block 0, which all attend to.
    counted_BHIA = attended_BHIA.where(valid_BIA[:, None], 0)
    pattern_BHIJ = torch.zeros(*attended_BHIA.shape[:3], blocks, dtype=torch.bool, device=device)
    pattern_BHIJ = pattern_BHIJ.scatter(3, counted_BHIA, True) | is_end_BI[:, None, :, None]

    def allowed(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return pattern_BHIJ[b, h, i // S, j // S] & (j < length_B[b])

    # The kernel's blocks are others than the pattern's: what one of them overlaps decides.
    kernel = torch.arange(-(-N // flex.BLOCK), device=device)[:, None]
    overlaps = ((block * S < (kernel + 1) * flex.BLOCK) & ((block + 1) * S > kernel * flex.BLOCK)).float()
    touched, left_out = (overlaps @ p.float() @ overlaps.mT > 0 for p in (pattern_BHIJ, ~pattern_BHIJ))
    real_BJ = kernel[:, 0] * flex.BLOCK < length_B[:, None]
    full_BJ = (kernel[:, 0] + 1) * flex.BLOCK <= length_B[:, None]
    whole = ~left_out & full_BJ[:, None, None]
    return flex.block_mask(allowed, touched & real_BJ[:, None, None], whole, N)


def _hash(seed: int, layer: int, heads: int, blocks: int, device: torch.device) -> Tensor:
    """A pseudo-random number from 0 up for each (head, query block, key block): (H, blocks, blocks).

    The finaliser of SplitMix64 (Steele, Lea and Flood, 2014) over a linear mix of the coordinates. As a
    function and not a generator, its values do not depend on how many blocks are asked for.
    """
    h = torch.arange(heads, device=device)[:, None, None]
    i = torch.arange(blocks, device=device)[None, :, None]
    j = torch.arange(blocks, device=device)[None, None, :]
    x = ((seed * 1009 + layer) * 1009 + h) * 1_000_003
    for coordinate in (i, j, 0x5DEECE66D):  # in turn: by their sum, a whole anti-diagonal would share one
        x = (x + coordinate) * -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed number; wraps
        x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
        x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685  # 0x94D049BB133111EB
        x = x ^ ((x >> 31) & 0x1FFFFFFFF)
    return x & 0x3FFFFFFFFFFFFFFF
