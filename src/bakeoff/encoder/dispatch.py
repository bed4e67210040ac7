"""The attention function that transformers calls on every converted layer, and the mask it is given."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from bakeoff import attention as mechanisms
from bakeoff.attention.base import is_exporting
from bakeoff.encoder.config import NAME
from bakeoff.encoder.packing import Aligned, Rows, Traced, align
from bakeoff.errors import BakeoffError


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    global_attention_mask: Tensor | None = None,
    rows: Rows | None = None,
    layer_input: Mapping[str, Any] | None = None,
    **kwargs: Any,  # what else a family passes: position_ids, sliding_window (see `model.build`), flash
) -> tuple[Tensor, None]:
    """The attention function that transformers calls, on every converted layer."""
    mechanism = getattr(module, NAME, None)
    if mechanism is None:
        raise ValueError(
            f"{type(module).__name__} has no mechanism: convert the model with bakeoff.load or convert."
        )
    given = layer_input or {}
    if mechanism.dropout is not None:
        dropout = mechanism.dropout if module.training else 0.0
    if global_attention_mask is not None and not ("global_BN" in mechanism.layer_inputs or mechanism.local):
        raise ValueError(f"global_attention_mask is for longformer; {type(mechanism).__name__} takes none.")
    if rows is None:  # nothing is padded, or an inner layer is called by itself
        rows = Aligned(None) if attention_mask is None else align(two_dimensional(attention_mask))
    if is_exporting():
        if not isinstance(rows, Traced):
            raise BakeoffError("torch.export alone gives a graph for some lengths only; use bakeoff export.")
        rows = dataclasses.replace(rows, padded=mechanism.traced_length(rows.tokens))
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if "projections" in given:
        key = value = query  # what the layer's own projections gave means nothing
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    heads = (rows.to_rows(x.transpose(1, 2)) for x in (query, key, value))
    extra = _extra(mechanism, given, rows, global_attention_mask)
    outs = []
    for *qkv_BNHD, length_B, more in zip(*heads, rows.row_lengths, extra, strict=True):
        q, k, v = (x.transpose(1, 2) for x in qkv_BNHD)
        out = mechanism(q, k, v, length_B, scaling=scaling, dropout_p=dropout, **more)
        outs.append(out.transpose(1, 2))
    return rows.from_rows(outs).contiguous(), None


def _extra(
    mechanism: mechanisms.Attention,
    given: Mapping[str, Any],
    rows: Rows,
    global_attention_mask: Tensor | None,
) -> list[dict[str, Any]]:
    """What a mechanism takes beside q, k and v, for each batch of `rows`."""
    extra: list[dict[str, Any]] = [{} for _ in rows.row_lengths]

    def add(name: str, values: Iterable[Any]) -> None:
        for arguments, value in zip(extra, values, strict=True):
            arguments[name] = value

    if "hidden_BNE" in mechanism.layer_inputs and given:
        add("hidden_BNE", rows.to_rows(given["hidden"]))
    if "rotary" in mechanism.layer_inputs and given.get("rotary"):
        shape = given["hidden"].shape[:2]
        parts = (rows.to_rows(part.expand(*shape, -1)) for part in given["rotary"])
        add("rotary", zip(*parts, strict=True))
    if "global_BN" in mechanism.layer_inputs and global_attention_mask is not None:
        add("global_BN", rows.mask_to_rows(global_attention_mask.bool()))
    if "projections" in given:
        for name, projection in zip(("key", "value"), given["projections"], strict=True):
            add(name, [projection] * len(extra))
    return extra


def two_dimensional(attention_mask: Tensor) -> Tensor:
    """The mask as booleans, (B, N)."""
    if attention_mask.dim() != 2:
        raise ValueError(
            f"attention_mask has {attention_mask.dim()} dimensions; it must have two: (batch, tokens)."
        )
    return attention_mask.bool()


def two_dimensional_mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """Hand the (B, N) mask through: without a mask function transformers passes None, and padding counts."""
    return attention_mask


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, two_dimensional_mask)
