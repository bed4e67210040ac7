"""Longformer: a sliding window plus a few global tokens with projections of their own.

Beltagy, Peters and Cohan, 2020, "Longformer: The Long-Document Transformer",
https://arxiv.org/abs/2004.05150, section 3:

- a local token i attends to the tokens j with |i - j| <= radius, and to every global token;
- a global token attends to every token, through projections (q_g, k_g, v_g) of its own.

`window` is the total width, as in the published checkpoints: radius = window // 2.

Cost: 4 H D N (window + G) operations and O(N) memory, where dense attention takes 4 H D N².

How: queries in blocks, each against the keys its block can reach, so that the work is a batch of small
dense attentions; on a GPU, one block-sparse kernel. Short sequences are one masked dense attention.

Differs from transformers' implementation, which pads every input to a multiple of the window (513 tokens
cost 3 x 512) and takes an attention mask with three values; here nothing is padded beyond a block, and
the global tokens are an argument of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask

from bakeoff.attention import flex
from bakeoff.attention.base import (
    Attention,
    Layer,
    bias_from,
    cached,
    is_exporting,
    portions,
    real_tokens,
    row_attention,
    softmax_attention,
    take_tokens,
    zero_padding,
)
from bakeoff.errors import BakeoffError

#: Up to this many tokens, or windows, masked dense attention is faster on a CPU: see docs/performance.md.
DENSE_UP_TO = 512
DENSE_WINDOWS = 2
_GROUP = 1 << 20  # numbers of keys in a group of blocks: 4 MiB in fp32


class Longformer(Attention):
    """Window and global attention.

    Args:
        layer: the layer's geometry.
        window: total width in tokens, even; each token sees `window // 2` on either side.
        global_tokens: how many of the first real tokens are global, unless `global_BN` says which.
        separate_global: whether global tokens project with weights of their own, as in the paper.
    """

    paper = "https://arxiv.org/abs/2004.05150"
    layer_inputs = frozenset({"hidden_BNE", "rotary", "global_BN"})

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
        length_B: Tensor | None = None,
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
            length_B: real tokens of each row.
            scaling: multiplies q · k.
            dropout_p: dropout on the attention probabilities.
            hidden_BNE: the layer's input, which the global projections read.
            rotary: cos and sin, (B or 1, N, D), where the encoder rotates its queries and keys.
            global_BN: True at global tokens; by default the first `global_tokens` real ones.
        """
        B, _, N, _ = q_BHND.shape
        if global_BN is None:
            count = self.global_tokens if is_exporting() else min(self.global_tokens, N)
        else:
            global_BN = global_BN.bool() if length_B is None else global_BN.bool() & real_tokens(length_B, N)
            count = int(global_BN.sum(1).max())
        out = window_attention(
            q_BHND, k_BHND, v_BHND, length_B, self.radius, self.layer.max_length, count, global_BN,
            scaling=scaling, dropout_p=dropout_p,
        )  # fmt: skip
        if not count:
            return zero_padding(out, length_B)

        index_BG, present_BG = global_places(B, count, global_BN, length_B, q_BHND.device)
        allowed = None if length_B is None else real_tokens(length_B, N)[:, None, None, :]
        if not self.separate_global:
            q_g = take_tokens(q_BHND, index_BG)
            out_BHGD = softmax_attention(q_g, k_BHND, v_BHND, allowed, scaling=scaling, dropout_p=dropout_p)
        elif hidden_BNE is None:
            raise ValueError("longformer with separate global projections needs the layer's input.")
        elif rotary is None and not dropout_p and count <= self.layer.head_dim and self._is_plain():
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
        return zero_padding(out, length_B)

    def _is_plain(self) -> bool:
        """Whether the projections are their weights.

        Adapters and quantisation put others in their places; offloading, casting and pruning hook on to them.
        """
        return all(
            type(p) is nn.Linear and not (p._forward_pre_hooks or p._forward_hooks or "forward" in vars(p))
            for p in (self.key_global, self.value_global)
        )

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
        instead of two projections of the whole sequence. It holds without dropout and rotation only, and for
        plain projections.
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

    def projections(self) -> tuple[nn.Linear, ...]:
        """Those of the global tokens: they start as copies of the local ones (section 5 of the paper)."""
        return (self.query_global, self.key_global, self.value_global) if self.separate_global else ()

    def flops(self, n: int) -> float:
        """4 H D n (window + 1 + 2 G): local rows see window and globals, G global rows see everything."""
        local = min(n, 2 * self.radius + 1 + self.global_tokens)
        return 4.0 * self.layer.num_heads * self.layer.head_dim * n * (local + self.global_tokens)

    def covers(self, n: int) -> bool:
        """Whether the window spans the sequence. Global tokens with own projections still differ."""
        return n - 1 <= self.radius

    def traced_length(self, n: int) -> int:
        """More than the global tokens, and where windows are computed as such, whole blocks of them."""
        return _traced_length(n, self.radius, self.global_tokens, self.layer.max_length)


class Window(Attention):
    """A sliding window without global tokens: the local layers of families that alternate (ModernBERT).

    Args:
        layer: the layer's geometry.
        radius: tokens seen on either side.
    """

    paper = Longformer.paper
    local = True

    def __init__(self, layer: Layer, *, radius: int) -> None:
        super().__init__(layer)
        self.radius = radius

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
        out = window_attention(
            q_BHND, k_BHND, v_BHND, length_B, self.radius, self.layer.max_length,
            scaling=scaling, dropout_p=dropout_p,
        )  # fmt: skip
        return zero_padding(out, length_B)

    def flops(self, n: int) -> float:
        """4 H D n (2 radius + 1)."""
        return 4.0 * self.layer.num_heads * self.layer.head_dim * n * min(n, 2 * self.radius + 1)

    def covers(self, n: int) -> bool:
        """Whether the window spans the sequence."""
        return n - 1 <= self.radius

    def traced_length(self, n: int) -> int:
        """Where windows are computed as such, whole blocks of them."""
        return _traced_length(n, self.radius, 0, self.layer.max_length)


def rotate(x_BHND: Tensor, cos_BND: Tensor, sin_BND: Tensor) -> Tensor:
    """Rotary position embedding on halves, as transformers' `apply_rotary_pos_emb`."""
    half = x_BHND.shape[-1] // 2
    turned = torch.cat((-x_BHND[..., half:], x_BHND[..., :half]), dim=-1)
    return (x_BHND * cos_BND[:, None] + turned * sin_BND[:, None]).to(x_BHND.dtype)


def global_places(
    B: int, count: int, global_BN: Tensor | None, length_B: Tensor | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Where each row's global tokens are, (B, G), and which of those places count.

    The first `count` tokens, or where `global_BN` is True: real tokens, at most `count` a row.
    """
    if global_BN is not None:
        index_BG = torch.argsort(~global_BN, dim=1, stable=True)[:, :count]
        return index_BG, global_BN.gather(1, index_BG)
    index_BG = torch.arange(count, device=device).expand(B, -1)
    present_BG = torch.ones_like(index_BG, dtype=torch.bool)
    return index_BG, present_BG if length_B is None else index_BG < length_B[:, None]


def window_attention(
    q_BHND: Tensor,
    k_BHND: Tensor,
    v_BHND: Tensor,
    length_B: Tensor | None,
    radius: int,
    longest: int,
    count: int = 0,
    global_BN: Tensor | None = None,
    *,
    scaling: float,
    dropout_p: float,
) -> Tensor:
    """Attend to |i - j| <= radius, and to the global tokens wherever they are; see `global_places`.

    A graph that is to hold for every N takes the way that is right for N = `longest`, and so for all.

    Returns (B, H, N, D); rows at padding are finite and without meaning.
    """
    B, _, N, _ = q_BHND.shape
    device = q_BHND.device
    tokens = longest if is_exporting() else N
    if radius >= tokens - 1:
        return row_attention(q_BHND, k_BHND, v_BHND, length_B, scaling=scaling, dropout_p=dropout_p)
    if flex.applies(q_BHND, dropout_p):
        mask = _window_mask(B, N, radius, count, global_BN, length_B, device, keep=global_BN is None)
        return flex.attend(q_BHND, k_BHND, v_BHND, mask, scaling=scaling)
    short = _short(radius)
    if tokens > short:
        return _attend_in_blocks(
            q_BHND, k_BHND, v_BHND, length_B, radius, count, global_BN, scaling=scaling, dropout_p=dropout_p
        )
    # The same function as a masked dense attention, without the copies.
    keep = global_BN is None and not is_exporting()
    size = min(short, 1 << (N - 1).bit_length()) if keep else N  # a larger bias serves many lengths
    bias = _window_bias(size, radius, count, global_BN, q_BHND.dtype, device, keep=keep)
    if keep:
        bias = bias[:, :N, :N]
    return row_attention(q_BHND, k_BHND, v_BHND, length_B, bias, scaling=scaling, dropout_p=dropout_p)


def _attend_in_blocks(
    q_BHND: Tensor,
    k_BHND: Tensor,
    v_BHND: Tensor,
    length_B: Tensor | None,
    radius: int,
    count: int,
    global_BN: Tensor | None,
    *,
    scaling: float,
    dropout_p: float,
) -> Tensor:
    """`window_attention` as small dense attentions: a block of queries against the keys it can reach.

    The T blocks of the whole batch stand one after another; those that are all padding are left out.
    """
    B, _, N, _ = q_BHND.shape
    device = q_BHND.device
    block = _block(radius)
    blocks = -(-N // block)
    which_T = torch.arange(B * blocks, device=device)
    if length_B is not None and not torch.compiler.is_compiling():
        which_T = which_T[which_T % blocks * block < length_B.repeat_interleave(blocks)]
    if not which_T.shape[0]:
        return torch.zeros_like(q_BHND)
    row_T = which_T // blocks
    everything = which_T.shape[0] == B * blocks

    def in_blocks(x_BN: Tensor) -> Tensor:
        """(B, N, …) in blocks: (T, block, …)."""
        if N % block:  # padding by nothing would still be a copy
            x_BN = F.pad(x_BN, (0, 0) * (x_BN.dim() - 2) + (0, blocks * block - N))
        x_T = x_BN.unflatten(1, (blocks, block)).flatten(0, 1)
        return x_T if everything else x_T[which_T]

    q_TSHD, k_TSHD, v_TSHD = (in_blocks(x.transpose(1, 2)) for x in (q_BHND, k_BHND, v_BHND))
    real_BN, is_global_BN = _marked(B, N, count, global_BN, length_B, device)
    index_BG, present_BG = global_places(B, count, global_BN, length_B, device)
    k_TGHD, v_TGHD = (take_tokens(x, index_BG).transpose(1, 2)[row_T] for x in (k_BHND, v_BHND))
    side = -(-radius // block)  # blocks of keys that a block of queries reaches on either side
    # What a query may see is what its block reaches and, of tokens, what is near: two biases, to be added.
    reached_TK = _reachable(in_blocks(real_BN & ~is_global_BN), present_BG[row_T], row_T, side)
    place = torch.arange(block, device=device)
    chunk = torch.arange(-side, side + 1, device=device)
    near_SCS = (chunk[:, None] * block + place - place[:, None, None]).abs() <= radius
    near_SK = F.pad(near_SCS, (0, count), value=True).flatten(1)
    reached_bias, near_bias = (bias_from(x, q_BHND.dtype) for x in (reached_TK, near_SK))

    # A group of blocks at a time, small enough for the processor's cache.
    group: int | None = max(1, _GROUP // k_TSHD[0].numel() // len(chunk))
    if torch.compiler.is_compiling():  # one step to trace, whatever the length
        group = None
    if is_exporting():  # no format of a graph has overlapping views
        k_groups, v_groups = (
            (_around(torch.cat(x, 1), side).permute(0, 2, 4, 1, 3).flatten(2, 3),)
            for x in ((k_TSHD, k_TGHD), (v_TSHD, v_TGHD))
        )
    else:
        k_groups, v_groups = (
            _Reach.apply(*x, side, group or which_T.shape[0]) for x in ((k_TSHD, k_TGHD), (v_TSHD, v_TGHD))
        )
    outs = []
    groups = (portions(q_TSHD.transpose(1, 2), group), k_groups, v_groups, portions(reached_bias, group))
    for q, k, v, reached in zip(*groups, strict=True):
        bias = (reached[:, None] + near_bias)[:, None]
        out = F.scaled_dot_product_attention(q, k, v, bias, dropout_p=dropout_p, scale=scaling)
        outs.append(out.transpose(1, 2))
    out = torch.cat(outs)
    if not everything:
        out = out.new_zeros(B * blocks, *out.shape[1:]).index_copy(0, which_T, out)
    return out.unflatten(0, (B, blocks)).flatten(1, 2).narrow(1, 0, N).transpose(1, 2)


def _short(radius: int) -> int:
    """Tokens up to which a window is computed as masked dense attention."""
    return max(DENSE_UP_TO, DENSE_WINDOWS * 2 * radius)


def _block(radius: int) -> int:
    """Queries that go together where a window is computed as one."""
    return 64 if radius >= 64 else 32


def _traced_length(n: int, radius: int, count: int, longest: int) -> int:
    """More than the `count` global tokens; and where windows are, whole blocks, two or more."""
    if longest <= max(_short(radius), radius + 1):  # `window_attention` takes no blocks
        return n + count
    block = _block(radius)
    return (n + count + 2 * block - 1) // block * block


@cached
def _window_bias(
    N: int, radius: int, count: int, global_BN: Tensor | None, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The window and the global tokens as a bias: (B or 1, N, N)."""
    place = torch.arange(N, device=device)
    near_NN = (place[:, None] - place).abs() <= radius
    is_global = place < count if global_BN is None else global_BN[:, None]
    return bias_from((near_NN | is_global).view(-1, N, N), dtype)


def _marked(
    B: int, N: int, count: int, global_BN: Tensor | None, length_B: Tensor | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """True at real tokens, and at global ones: (B, N) each."""
    everyone = torch.ones(B, N, dtype=torch.bool, device=device)
    real_BN = everyone if length_B is None else real_tokens(length_B, N)
    if global_BN is None:
        global_BN = (torch.arange(N, device=device) < count) & real_BN
    return real_BN, global_BN


@cached
def _window_mask(
    B: int,
    N: int,
    radius: int,
    count: int,
    global_BN: Tensor | None,
    length_B: Tensor | None,
    device: torch.device,
) -> BlockMask:
    """The pattern for `flex`."""
    real_BN, is_global_BN = _marked(B, N, count, global_BN, length_B, device)
    blocks, S = -(-N // flex.BLOCK), flex.BLOCK
    block = torch.arange(blocks, device=device)
    apart = (block[:, None] - block).abs()  # the nearest tokens of two blocks are (apart - 1) S + 1 apart
    real_BJS, global_BJS = (
        F.pad(x, (0, blocks * S - N)).unflatten(1, (blocks, S)) for x in (real_BN, is_global_BN)
    )
    touched = (((apart - 1) * S < radius) | global_BJS.any(-1)[:, None]) & real_BJS.any(-1)[:, None]
    whole = ((apart + 1) * S - 1 <= radius) & real_BJS.all(-1)[:, None]

    def allowed(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (((i - j).abs() <= radius) | is_global_BN[b, j]) & real_BN[b, j]

    return flex.block_mask(allowed, touched[:, None], whole[:, None], N)


def _reachable(local_TS: Tensor, present_TG: Tensor, row_T: Tensor, side: int) -> Tensor:
    """Which tokens and globals count in the C = 2 side + 1 blocks around each block: (T, C (S + G))."""
    near = _around(local_TS, side)
    # Neighbours in the batch are neighbours in memory; a window ends where its row does. Beyond the ends no
    # token is near.
    same_row = _around(row_T, side) == row_T[:, None]
    # Every block carries its row's globals, and one copy counts.
    present = present_TG[:, None] & (torch.arange(2 * side + 1, device=row_T.device) == side)[:, None]
    return torch.cat(((near & same_row[:, None]).transpose(1, 2), present), -1).flatten(1)


def _around(x_T: Tensor, side: int) -> Tensor:
    """Each of T and `side` neighbours on either side, last: (T, …, 2 side + 1); zeros beyond the ends."""
    padded = F.pad(x_T, (0, 0) * (x_T.dim() - 1) + (side, side))
    return torch.stack([padded.narrow(0, step, x_T.shape[0]) for step in range(2 * side + 1)], -1)


class _Reach(torch.autograd.Function):
    """The keys or values that each block reaches, as overlapping views of one copy.

    (T, S, H, D) blocks and (T, G, H, D) global tokens give groups of up to `size` blocks, each
    (size, H, (2 side + 1) (S + G), D): for each block its own and its neighbours' tokens and globals, `side`
    of them on either side, zeros beyond the ends.
    """

    @staticmethod
    def forward(x_TSHD: Tensor, global_TGHD: Tensor, side: int, size: int) -> tuple[Tensor, ...]:
        T, S, H, D = x_TSHD.shape
        G = global_TGHD.shape[1]
        laid_out = x_TSHD.new_empty(T + 2 * side, S + G, H, D)
        laid_out[:side], laid_out[T + side :] = 0, 0
        laid_out[side : T + side, :S], laid_out[side : T + side, S:] = x_TSHD, global_TGHD
        token, block = H * D, (S + G) * H * D
        reach = laid_out.as_strided((T, H, (2 * side + 1) * (S + G), D), (block, D, token, 1))
        return reach.split(size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int, int], output: tuple[Tensor, ...]) -> None:
        ctx.shape, ctx.side = inputs[0].shape, inputs[2]

    @staticmethod
    def backward(ctx: Any, *grads_THKD: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (T, S, H, D), side, start = ctx.shape, ctx.side, 0
        total = grads_THKD[0].new_zeros(T + 2 * side, grads_THKD[0].shape[2] // (2 * side + 1), H, D)
        for grad_THKD in grads_THKD:
            for chunk, part in enumerate(grad_THKD.transpose(1, 2).chunk(2 * side + 1, dim=1)):
                total[start + chunk : start + chunk + len(part)] += part
            start += len(grad_THKD)
        total = total[side : T + side]
        return total[:, :S], total[:, S:], None, None
