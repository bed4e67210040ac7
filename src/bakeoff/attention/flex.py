"""Block-sparse attention on a GPU: one kernel that visits only the blocks of keys that a pattern touches.

PyTorch's flex_attention (Dong et al., 2024, "Flex Attention", https://arxiv.org/abs/2412.05496). A pattern is
said twice: which blocks it touches, wholly or in part, and for single tokens `allowed(b, h, i, j)`, which the
kernel asks where a block is touched in part. The tables of blocks are (N / 128)² and all that is not linear.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

BLOCK = 128  # what the kernel's tiles divide, whatever the head size

_KERNELS = 256  # that a process may have

Allowed = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def applies(q_BHND: Tensor, dropout_p: float) -> bool:
    """Whether the kernel can be used: a GPU that Triton compiles for, heads of 16 or more, no dropout."""
    if not q_BHND.is_cuda or dropout_p or q_BHND.shape[-1] < 16 or q_BHND.dtype == torch.float64:
        return False
    return _has_triton() and torch.cuda.get_device_capability(q_BHND.device) >= (7, 0)


def block_mask(allowed: Allowed, touched_BHIJ: Tensor, whole_BHIJ: Tensor, N: int) -> BlockMask:
    """A pattern over N tokens.

    Args:
        allowed: for indices of row, head, query and key, whether the query may see the key.
        touched_BHIJ: which blocks of keys J hold anything for which blocks of queries I; H is 1 where heads
            are alike.
        whole_BHIJ: which are allowed in every place.
        N: tokens; the last block may be short.
    """
    return BlockMask.from_kv_blocks(
        *_listed(touched_BHIJ & ~whole_BHIJ),
        *_listed(touched_BHIJ & whole_BHIJ),
        BLOCK_SIZE=BLOCK,
        mask_mod=allowed,
        seq_lengths=(N, N),
    )


def attend(q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor, mask: BlockMask, *, scaling: float) -> Tensor:
    """Softmax attention in a pattern: (B, H, N, D). A row that may see nothing is zero."""
    q_BHND, k_BHND = q_BHND.to(v_BHND.dtype), k_BHND.to(v_BHND.dtype)  # rotated in fp32 under autocast
    if torch.compiler.is_compiling():
        return flex_attention(q_BHND, k_BHND, v_BHND, block_mask=mask, scale=scaling)
    # A kernel for each pattern, dtype, head size, and with and without gradients: 8 would be all.
    with torch._dynamo.config.patch(recompile_limit=_KERNELS):
        return _compiled()(q_BHND, k_BHND, v_BHND, block_mask=mask, scale=scaling)


def _listed(blocks_BHIJ: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks are True in each row, and which, those first."""
    order = torch.argsort(blocks_BHIJ.int(), dim=-1, descending=True, stable=True)
    return blocks_BHIJ.sum(-1, dtype=torch.int32), order.int()


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _compiled() -> Callable[..., Any]:
    # In one graph or not at all: what dynamo runs eagerly instead would make an N x N tensor without a word.
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)
