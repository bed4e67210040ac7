"""Which layers of a family dispatch their attention: found, not listed.

The family's model is built without storage (on torch's meta device) and four tokens run through it with a
recorder for an attention. A family that accepts the name and never calls it is thereby refused instead of
being silently dense.
"""

from __future__ import annotations

import copy
import dataclasses
import threading
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig

from bakeoff.encoder.config import NAME, unchunked
from bakeoff.encoder.dispatch import two_dimensional_mask
from bakeoff.errors import BakeoffError

_RECORDER = "bakeoff_recorder"


@dataclasses.dataclass(frozen=True)
class Site:
    """An attention layer of an encoder, as found by running it."""

    path: str
    hidden_size: int  # of what it projects; in MobileBERT's bottleneck less than the encoder's
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    calls: int  # more than one where layers share their weights (ALBERT)
    sliding_window: int | None  # the family's own local attention: |i - j| < sliding_window


class _Call(NamedTuple):
    """What a family hands to its attention function."""

    module: nn.Module
    query: torch.Size
    key: torch.Size
    sliding_window: int | None
    causal: bool


_calls: list[_Call] = []


def _record(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    causal = getattr(module, "is_causal", False) if (told := kwargs.get("is_causal")) is None else told
    _calls.append(_Call(module, query.shape, key.shape, kwargs.get("sliding_window"), bool(causal)))
    return query.transpose(1, 2).contiguous(), None


_discovered: dict[tuple[Any, str], tuple[list[Site], int]] = {}  # a run asks three times
_discovering = threading.Lock()  # of which one at a time may fill the list below


def dispatched(sites: Iterable[Site]) -> int:
    """How many attention layers call the mechanism, a family's own local layers aside."""
    return sum(site.calls for site in sites if site.sliding_window is None)


def discover(config: PreTrainedConfig, auto_class: Any) -> tuple[list[Site], int]:
    """The attention layers that dispatch in a family, in order, and the tokens its positions hold.

    Raises:
        BakeoffError: the family does not dispatch its attention, wholly or in part.
    """
    if config.model_type == NAME:
        raise BakeoffError(
            "a converted encoder cannot be converted again; take the dense one that it was made from."
        )
    key = auto_class, config.to_json_string(use_diff=False)
    with _discovering:
        if key not in _discovered:
            _discovered[key] = _discover(config, auto_class)
    sites, tokens = _discovered[key]
    return list(sites), tokens


def _discover(config: PreTrainedConfig, auto_class: Any) -> tuple[list[Site], int]:
    family = config.model_type
    refusal = (
        f"{family} does not let its attention be replaced (it never calls the attention interface); "
        "choose an encoder that does, such as bert, roberta, distilbert, electra or modernbert."
    )
    if getattr(config, "is_decoder", False):
        raise BakeoffError(f"this {family} is configured as a decoder; bakeoff compares encoders.")
    _calls.clear()
    config = unchunked(copy.deepcopy(config))
    with torch.device("meta"), torch.no_grad():
        try:
            model = auto_class.from_config(config, attn_implementation=_RECORDER).eval()
        except Exception as error:  # whatever a foreign config makes its class raise
            raise BakeoffError(f"a {family} of this config cannot be built ({_line(error)}).") from error
        try:
            tokens = torch.ones(1, 4, dtype=torch.long)
            model(input_ids=tokens, attention_mask=torch.ones(1, 4, dtype=torch.bool))
        except Exception as error:  # of its own attention, given a mask it does not expect
            raise BakeoffError(f"{refusal} ({_line(error)})") from error
    calls = list(_calls)
    _calls.clear()
    if not calls or len(calls) != config.num_hidden_layers:
        raise BakeoffError(f"{refusal} ({len(calls)} of its {config.num_hidden_layers} layers called it.)")
    if any(call.causal for call in calls):
        raise BakeoffError(
            f"{family} attends to what is behind alone, as decoders do; bakeoff compares encoders."
        )
    paths = {module: path for path, module in model.named_modules()}
    sites: dict[str, Site] = {}
    for module, query, key, sliding_window, _ in calls:
        path = paths[module]
        calls_so_far = sites[path].calls if path in sites else 0
        projected = next(
            (m.in_features for m in module.modules() if isinstance(m, nn.Linear)), config.hidden_size
        )
        sites[path] = Site(path, projected, query[1], key[1], query[3], calls_so_far + 1, sliding_window)
    return list(sites.values()), max_tokens(model, config)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def position_embedding(model: nn.Module) -> tuple[str, nn.Embedding, int] | None:
    """The learned absolute positions of an encoder: path, module and the index of the first; or None."""
    for path, module in model.named_modules():
        if path.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa and its kin count positions from padding_idx + 1.
            return path, module, 0 if module.padding_idx is None else module.padding_idx + 1
    return None


def max_tokens(model: nn.Module, config: PreTrainedConfig) -> int:
    """How many tokens the encoder has positions for, special tokens included."""
    found = position_embedding(model)
    return config.max_position_embeddings if found is None else found[1].num_embeddings - found[2]


AttentionInterface.register(_RECORDER, _record)
AttentionMaskInterface.register(_RECORDER, two_dimensional_mask)
