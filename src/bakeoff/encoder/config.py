"""The config of a converted model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from bakeoff import attention as mechanisms
from bakeoff.errors import BakeoffError

NAME = "bakeoff"  # of the model type, the attention function, and the submodule on each attention layer


def _of_encoder(name: str) -> property:
    """A number of the family's config by the name that most have for it, as DeepSpeed asks for it."""

    def key(config: BakeoffConfig) -> str:
        if (family := (config.encoder or {}).get("model_type")) not in CONFIG_MAPPING:
            raise AttributeError(name)
        return str(CONFIG_MAPPING[family].attribute_map.get(name, name))

    def read(config: BakeoffConfig) -> Any:
        if (own := key(config)) not in config.encoder:  # type: ignore[operator]
            raise AttributeError(name)
        return config.encoder[own]  # type: ignore[index]

    def write(config: BakeoffConfig, value: Any) -> None:
        config.encoder = {**(config.encoder or {}), key(config): value}

    return property(read, write)


class BakeoffConfig(PreTrainedConfig):
    """The family's config as a plain mapping, and the attention that replaces its own.

    Args:
        encoder: the family's config as `to_dict()` gives it, with its `model_type`.
        attention: a mechanism's name.
        attention_options: its options; a list gives one value a layer.
        attention_seed: what random features and random blocks are drawn from.
        attention_dropout: dropout on the attention probabilities; None leaves it to the encoder's config.
        **kwargs: labels and the like, as for any config.
    """

    model_type = NAME
    vocab_size = _of_encoder("vocab_size")
    hidden_size = _of_encoder("hidden_size")
    num_hidden_layers = _of_encoder("num_hidden_layers")
    num_attention_heads = _of_encoder("num_attention_heads")

    def __init__(
        self,
        encoder: Mapping[str, Any] | None = None,
        attention: str = "dense",
        attention_options: Mapping[str, Any] | None = None,
        attention_seed: int = 0,
        attention_dropout: float | None = None,
        **kwargs: Any,
    ) -> None:
        self.encoder = dict(encoder) if encoder else None
        self.attention = attention
        self.attention_options = mechanisms.resolve_options(attention, attention_options or {})
        self.attention_seed = attention_seed
        self.attention_dropout = attention_dropout
        super().__init__(**kwargs)

    @classmethod
    def wrap(cls, encoder: PreTrainedConfig, attention: str, **kwargs: Any) -> BakeoffConfig:
        """The config for `attention` in the family of `encoder`, labels and token ids taken over."""
        values = encoder.to_dict()
        # What the outer config decides, and what would pin the inner model to its source, is left out.
        for key in ("architectures", "dtype", "torch_dtype", "_name_or_path", "transformers_version"):
            values.pop(key, None)
        shared = {k: values.get(k) for k in ("id2label", "label2id", "problem_type", "pad_token_id")}
        shared["tie_word_embeddings"] = values.get("tie_word_embeddings", True)
        return cls(
            encoder=values,
            attention=attention,
            **{k: v for k, v in shared.items() if v is not None},
            **kwargs,
        )

    def encoder_config(self) -> PreTrainedConfig:
        """A fresh config of the family, with this config's labels."""
        if not self.encoder:
            raise BakeoffError(
                "this bakeoff config names no encoder; make one with BakeoffConfig.wrap(config, attention)."
            )
        values = copy.deepcopy(self.encoder)
        model_type = values.pop("model_type")
        config = AutoConfig.for_model(model_type, **values)
        config.id2label, config.label2id = copy.deepcopy(self.id2label), copy.deepcopy(self.label2id)
        config.problem_type = self.problem_type
        return unchunked(config)


def unchunked(config: PreTrainedConfig) -> PreTrainedConfig:
    """`config` without feed-forward chunks, which have to divide the tokens: packed, there are any number.

    They save memory and change no result.
    """
    if getattr(config, "chunk_size_feed_forward", 0):
        config.chunk_size_feed_forward = 0
    return config
