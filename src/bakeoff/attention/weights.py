"""The n x n weights with which a mechanism mixes its values: what its code computes, not what a paper draws.

A mechanism need not have them, and the fast ones never do; but each is linear in its values, so that values
which are the identity give them, whatever it computes in between: Linformer's summaries, shared by the
columns of a segment, and Performer's product of features included.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from bakeoff.attention.base import Attention


def weights(mechanism: Attention, q_1HND: Tensor, k_1HND: Tensor, **given: Any) -> Tensor:
    """The (H, N, N) weights of a mechanism for one row without padding.

    Args:
        mechanism: a built one.
        q_1HND: queries.
        k_1HND: keys, without meaning where `key` is given.
        **given: what else its `forward` takes.
    """
    _, H, N, D = q_1HND.shape
    if (key := given.pop("key", None)) is not None:  # the layer's own projections, which came too early
        k_1HND = key(given["hidden_BNE"]).unflatten(-1, (H, D)).transpose(1, 2)
        del given["value"]
    # The identity, D columns a row of the batch: values of another width than the keys' are no one's promise.
    C = -(-N // D)
    v_CND = torch.eye(N, C * D, dtype=q_1HND.dtype, device=q_1HND.device).unflatten(1, (C, D)).movedim(1, 0)
    if mechanism.projections():
        # Global rows make their values themselves.
        kv = mechanism.layer.num_key_value_heads
        mechanism = copy.deepcopy(mechanism)
        to_values = mechanism.projections()[2]
        (name,) = (name for name, module in mechanism.named_children() if module is to_values)
        mechanism.add_module(name, _Values(v_CND.repeat(1, 1, kv)))
    given = {
        name: value.expand(C, *value.shape[1:]) if isinstance(value, Tensor) else value
        for name, value in given.items()
    }
    q_CHND, k_CHND = (x.expand(C, -1, -1, -1) for x in (q_1HND, k_1HND))
    out_CHND = mechanism(q_CHND, k_CHND, v_CND[:, None].expand(C, H, N, D), **given)
    return out_CHND.permute(1, 2, 0, 3).flatten(2)[..., :N]


class _Values(nn.Module):
    """A projection whose output is known."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = values

    def forward(self, x: Tensor) -> Tensor:
        return self.values
