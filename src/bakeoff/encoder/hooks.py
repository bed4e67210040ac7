"""Hooks on a family's own layers: they pack padding away, and hand a layer's input to its mechanism."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bakeoff.encoder.config import NAME
from bakeoff.encoder.dispatch import two_dimensional
from bakeoff.encoder.packing import Aligned, Packed, Traced, align, pack
from bakeoff.errors import BakeoffError


class Later(nn.Linear):
    """A family's projection, which can leave its work to a mechanism that has less of it."""

    @classmethod
    def of(cls, linear: nn.Linear) -> Later:
        """A projection with the parameters of `linear`."""
        made = cls(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        made.weight, made.bias = linear.weight, linear.bias
        return made

    def forward(self, x: Tensor) -> Tensor:
        """x Wᵀ + b; or the shape of it, where x says so."""
        if not getattr(x, "bakeoff_projected_later", False):
            return super().forward(x)
        return x.new_zeros(()).expand(*x.shape[:-1], self.out_features)


def hand_over_input(
    later: Sequence[str], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Hand the layer's input to the mechanism. A pre-hook, since it survives checkpointing and compile.

    A mechanism that may project keys and values itself is let to, if the projections named `later` are as
    they were: adapters and quantisation put others in their places, and rotation comes after the projection.
    All of it goes with the call and its tensors, so that calls in threads do not meet.
    """
    mechanism, projections = getattr(module, NAME), [getattr(module, name) for name in later]
    hidden, rotary = args[0] if args else kwargs["hidden_states"], kwargs.get("position_embeddings")
    layer_input = {"hidden": hidden, "rotary": rotary}
    if not projections:
        return args, kwargs | {"layer_input": layer_input}
    rows = kwargs.get("rows")
    n = rows.longest if isinstance(rows, Packed) else hidden.shape[1]
    if isinstance(rows, Traced):  # one graph for all lengths: the longest decides
        n = mechanism.layer.max_length
    plain = all(type(projection) is Later for projection in projections)
    waits = plain and rotary is None and mechanism.projects_later(n)
    if waits:
        layer_input["projections"] = projections
    hidden.bakeoff_projected_later = waits
    return args, kwargs | {"layer_input": layer_input}


def find_rows(packs: bool, encoder: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Before the encoder: how this batch's real tokens come together, for all layers."""
    kwargs = dict(kwargs)
    first_only = kwargs.pop("first_only", False)
    if "rows" in kwargs:  # given by who traces, and has seen to it that they are right
        return args, kwargs
    if torch.jit.is_tracing():
        raise BakeoffError("torch.jit.trace gives a graph for one batch's padding only; use bakeoff export.")
    # Someone who reads what is between the layers expects it in its places.
    shown = kwargs.get("output_hidden_states") or encoder.config.output_hidden_states
    looks = packs and not shown and not torch.compiler.is_compiling()
    if (attention_mask := kwargs.get("attention_mask")) is None:
        return args, kwargs | ({"rows": Aligned(None, first_only=True)} if first_only and looks else {})
    keep_BN = two_dimensional(attention_mask)
    rows = (pack(keep_BN) if looks else None) or align(keep_BN)
    if first_only and looks and bool(keep_BN[:, 0].all()):  # and padding is on the right
        rows = dataclasses.replace(rows, first_only=True)
    return args, kwargs | {"rows": rows}


def enter_packed(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Before every layer: pack what comes in (B, N, …) places, the first layer's input and the rotation."""
    rows = kwargs.get("rows")
    if not isinstance(rows, Packed):
        return None

    def packed(x: Any) -> Any:
        if isinstance(x, Tensor) and x.dim() > 2 and x.shape[:2] == rows.shape:
            return rows.pack(x)
        return tuple(map(packed, x)) if isinstance(x, tuple) else x

    if (rotary := kwargs.get("position_embeddings")) is not None:
        kwargs = kwargs | {"position_embeddings": tuple(part.expand(*rows.shape, -1) for part in rotary)}
    return packed(args), {name: packed(value) for name, value in kwargs.items()}


def leave_packed(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """After the last layer: back to (B, N) places, but where each row's first token is all that is left."""
    rows = kwargs.get("rows")
    if not isinstance(rows, Packed):
        return None
    hidden, *others = (output,) if isinstance(output, Tensor) else output
    # A layer that is compiled by itself loses the mark that says so, and keeps all tokens.
    if rows.first_only and hidden.shape[:2] == (len(rows.lengths), 1):
        return None
    return rows.unpack(hidden) if isinstance(output, Tensor) else (rows.unpack(hidden), *others)


def mark_first_tokens(
    attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: tuple[Any, ...]
) -> None:
    """After the last layer's attention, which is told of the rows: where its output is read, say so on it.

    On the output and not on a module, so that calls of the model, in threads or for a backward pass that
    computes a layer anew, do not meet.
    """
    rows = kwargs.get("rows")
    if rows is not None and rows.first_only:
        output[0].bakeoff_first_tokens = rows.first_tokens


def keep_first_tokens(residual: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Before that output meets the residual: each row's first token of both."""
    first_tokens = getattr(args[0], "bakeoff_first_tokens", None)
    return None if first_tokens is None else tuple(map(first_tokens, args))
