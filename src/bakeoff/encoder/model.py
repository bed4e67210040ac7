"""A family's model with a mechanism on each attention layer."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    initialization,
)

from bakeoff import attention as mechanisms
from bakeoff.attention.longformer import Window
from bakeoff.encoder import hooks
from bakeoff.encoder.config import NAME, BakeoffConfig
from bakeoff.encoder.discovery import Site, discover
from bakeoff.encoder.families import FIRST_ONLY, PROJECTIONS
from bakeoff.errors import BakeoffError


def build(sites: Sequence[Site], max_length: int, config: BakeoffConfig) -> Iterator[mechanisms.Attention]:
    """The mechanism of each attention layer, in order. What the family computes locally stays local.

    Raises:
        BakeoffError: an option does not suit the mechanism, or lists values for more or fewer layers.
    """
    for name, value in config.attention_options.items():
        if isinstance(value, list) and len(value) != len(sites):
            raise BakeoffError(
                f"attention {config.attention}: {name} lists {len(value)} values; the encoder has "
                f"{len(sites)} attention layers."
            )
    for index, site in enumerate(sites):
        layer = mechanisms.Layer(
            index,
            site.num_heads,
            site.num_key_value_heads,
            site.head_dim,
            site.hidden_size,
            max_length,
            config.attention_seed,
        )
        if site.sliding_window is not None:
            yield Window(layer, radius=site.sliding_window - 1)
        else:
            yield mechanisms.build(config.attention, layer, config.attention_options)


class _Bakeoff(PreTrainedModel):
    """A family's model with a mechanism on each attention layer."""

    config_class = BakeoffConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    # Otherwise Trainer trusts the model to divide its loss by the items of all accumulation steps; a
    # classifier takes the mean of its own step, and the gradient is too large by the number of steps.
    accepts_loss_kwargs = False
    auto_class: ClassVar[Any]
    classifies: ClassVar[bool] = False

    def __init__(self, config: BakeoffConfig) -> None:
        super().__init__(config)
        encoder_config = config.encoder_config()
        self.sites, self.max_tokens = discover(encoder_config, self.auto_class)
        self.model = self.auto_class.from_config(encoder_config, attn_implementation=NAME)
        for site, mechanism in zip(self.sites, build(self.sites, self.max_tokens, config), strict=True):
            self._install(site, mechanism)
        self._hook_layers()
        self.post_init()

    def _hook_layers(self) -> None:
        """Let the encoder look at its padding once, and where it can, run its layers on packed tokens."""
        found = [re.match(r".+?\.\d+(?=\.)", site.path) for site in self.sites]
        layers = [self.model.get_submodule(match[0]) for match in found if match]
        # Layers that share their weights are one module, which does not know whose turn it is.
        packs = len({*layers}) == sum(site.calls for site in self.sites)
        self.model.base_model.register_forward_pre_hook(
            functools.partial(hooks.find_rows, packs), with_kwargs=True
        )
        if packs:
            for layer in layers:
                layer.register_forward_pre_hook(hooks.enter_packed, with_kwargs=True)
            layers[-1].register_forward_hook(hooks.leave_packed, with_kwargs=True)
        residual = FIRST_ONLY.get(self.model.config.model_type)
        heads = [name for name, module in self.model.named_children() if module is not self.model.base_model]
        if getattr(self.model.base_model, "pooler", None) is not None:
            heads.append(f"{self.model.base_model_prefix}.pooler")
        self._heads = {name: type(self.model.get_submodule(name)) for name in heads}
        self._keeps_first = packs and self.classifies and residual is not None
        if self._keeps_first:
            attention = self.model.get_submodule(self.sites[-1].path)
            attention.register_forward_hook(hooks.mark_first_tokens, with_kwargs=True)
            layers[-1].get_submodule(str(residual)).register_forward_pre_hook(hooks.keep_first_tokens)

    @property
    def first_only(self) -> bool:
        """Whether only each row's first token is read of the last layer, as by the family's own head."""
        if not self._keeps_first:
            return False
        heads = ((self.model.get_submodule(name), kind) for name, kind in self._heads.items())
        # PEFT wraps a head that is trained in full.
        return all(type(getattr(head, "original_module", head)) is kind for head, kind in heads)

    def _install(self, site: Site, mechanism: mechanisms.Attention) -> None:
        mechanism.dropout = self.config.attention_dropout
        module = self.model.get_submodule(site.path)
        module.add_module(NAME, mechanism)
        later: tuple[str, ...] = ()
        if mechanism.projects_later(self.max_tokens):
            later = PROJECTIONS.get(self.model.config.model_type, ())[1:]
        for name in later:
            module.add_module(name, hooks.Later.of(module.get_submodule(name)))
        if mechanism.layer_inputs:
            module.register_forward_pre_hook(
                functools.partial(hooks.hand_over_input, later), with_kwargs=True
            )

    @property
    def base_model(self) -> nn.Module:
        """The family's encoder, without its head."""
        return self.model.base_model

    def mechanisms(self) -> list[mechanisms.Attention]:
        """The mechanism of each attention layer, in order."""
        return [self.model.get_submodule(f"{site.path}.{NAME}") for site in self.sites]

    def attention_flops(self, n: int) -> float:
        """Forward operations of attention over one sequence of `n` tokens, projections aside."""
        return sum(
            site.calls * mechanism.flops(n)
            for site, mechanism in zip(self.sites, self.mechanisms(), strict=True)
        )

    def initialize_weights(self) -> None:
        """Initialise what no checkpoint held; transformers' functions skip tensors already loaded."""
        super().initialize_weights()
        for mechanism in self.mechanisms():
            for name, value in mechanism.initial_state().items():
                initialization.copy_(getattr(mechanism, name), value)

    def get_input_embeddings(self) -> nn.Module:
        """The family's token embeddings."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the family's token embeddings."""
        self.model.set_input_embeddings(value)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """As transformers'; the family's own config is told, or what is saved would not load."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        self.model.config.vocab_size = self.config.vocab_size = embeddings.num_embeddings
        return embeddings

    def get_output_embeddings(self) -> nn.Module | None:
        """The masked-LM head's decoder, if there is one."""
        return self.model.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the masked-LM head's decoder."""
        self.model.set_output_embeddings(value)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the family's own model. Trainer takes what is named here from a data set, and nothing else.

        Args:
            input_ids: (B, N) token ids.
            attention_mask: (B, N), 1 at real tokens; on either side. None: nothing is padded.
            token_type_ids: (B, N), for families that have them.
            labels: (B,) classes, or (B, N) tokens for the masked-LM head.
            inputs_embeds: (B, N, E) in place of `input_ids`.
            position_ids: (B, N), for families that take them.
            global_attention_mask: (B, N), not 0 at global tokens, for longformer.
            **kwargs: whatever else the family takes.
        """
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "labels": labels,
            "inputs_embeds": inputs_embeds,
            "global_attention_mask": global_attention_mask,
        }
        length = (input_ids if input_ids is not None else inputs_embeds).shape[1]  # type: ignore[union-attr]
        if length > self.max_tokens:
            raise BakeoffError(
                f"{length} tokens, but the encoder has positions for {self.max_tokens}: truncate, or extend "
                f"it with bakeoff convert … --max-length {length}."
            )
        if self.first_only:
            kwargs["first_only"] = True
        if self.config.output_hidden_states:
            kwargs.setdefault("output_hidden_states", True)
        if not self.config.return_dict:
            kwargs.setdefault("return_dict", False)
        if self.model.config.problem_type != self.config.problem_type:
            self.model.config.problem_type = self.config.problem_type
        output = self.model(**{k: v for k, v in given.items() if v is not None}, **kwargs)
        if labels is not None:  # by which the family may have found it
            self.config.problem_type = self.model.config.problem_type
        return output


class BakeoffForSequenceClassification(_Bakeoff):
    """Any encoder family's sequence classifier, with any mechanism."""

    auto_class = AutoModelForSequenceClassification
    classifies = True


class BakeoffForMaskedLM(_Bakeoff):
    """Any encoder family's masked language model, with any mechanism."""

    auto_class = AutoModelForMaskedLM


AutoConfig.register(NAME, BakeoffConfig, exist_ok=True)
AutoModelForSequenceClassification.register(BakeoffConfig, BakeoffForSequenceClassification, exist_ok=True)
AutoModelForMaskedLM.register(BakeoffConfig, BakeoffForMaskedLM, exist_ok=True)
