"""What is timed: an encoder, ours or a peer's, whole or at its first attention layer.

The attention level is cut out of a whole, small encoder: it runs once, its call of the attention module is
recorded, and that call is made again with other hidden states. So masks, rotations and padding are those
that the encoder itself prepares, whoever wrote it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, PreTrainedConfig

from bakeoff.bench.spec import BenchSpec
from bakeoff.encoder import NAME, BakeoffConfig, BakeoffForMaskedLM
from bakeoff.encoder.packing import Packed
from bakeoff.spec import AttentionSpec

Run = Callable[[Tensor], Tensor]  # hidden states or embeddings to the same shape: (B, N, E)


@dataclasses.dataclass(frozen=True)
class Family:
    """Where a family has its layers, the first attention, and its output projection if that is outside."""

    layers: str
    attention: str
    output: str | None


FAMILIES = {
    "bert": Family(
        "encoder.layer", "encoder.layer.0.attention.self", "encoder.layer.0.attention.output.dense"
    ),
    "modernbert": Family("layers", "layers.0.attn", None),
}


@dataclasses.dataclass(frozen=True)
class Subject:
    """An encoder without a head, and how to call it.

    Attributes:
        model: a transformers base model.
        family: where its parts are.
        arguments: what its forward takes beside `inputs_embeds`: masks.
        weights: a weight of ours, by name, as the parts that make it up here, and whether it is transposed.
    """

    model: nn.Module
    family: Family
    arguments: Mapping[str, Tensor]
    weights: Mapping[str, tuple[Sequence[Tensor], bool]]

    def run(self, level: str, example_BNE: Tensor) -> Run:
        """The function to time at a level, for inputs of the shape of `example_BNE`."""
        return self._attention(example_BNE) if level == "attention" else self._whole

    def _whole(self, embeddings_BNE: Tensor) -> Tensor:
        return self.model(inputs_embeds=embeddings_BNE, **self.arguments).last_hidden_state

    def _attention(self, example_BNE: Tensor) -> Run:
        """Projections, mechanism and output projection of the first layer, called as the encoder calls it."""
        module = self.model.get_submodule(self.family.attention)
        output = self.family.output
        project = nn.Identity() if output is None else self.model.get_submodule(output)
        calls: list[tuple[list[Any], dict[str, Any]]] = []
        handle = module.register_forward_pre_hook(
            lambda _, args, kwargs: calls.append(([*args], dict(kwargs))), with_kwargs=True
        )
        with torch.no_grad():
            self._whole(example_BNE)
        handle.remove()
        args, kwargs = calls[0]
        seen = args.pop(0) if args else kwargs.pop("hidden_states")
        rows = kwargs.get("rows")
        if isinstance(rows, Packed):  # ours runs on real tokens alone
            return lambda hidden_BNE: rows.unpack(project(module(rows.pack(hidden_BNE), *args, **kwargs)[0]))
        length = example_BNE.shape[1]
        extra = seen.shape[1] - length  # some peers pad every input to whole windows or blocks

        def run(hidden_BNE: Tensor) -> Tensor:
            padded = F.pad(hidden_BNE, (0, 0, 0, extra)) if extra else hidden_BNE
            return project(module(padded, *args, **kwargs)[0])[:, :length]

        return run


def encoder_config(spec: BenchSpec, length: int) -> PreTrainedConfig:
    """A config with positions for `length` tokens, without dropout; the attention level takes one layer."""
    tokens = dict.fromkeys(
        ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0
    )
    fewest = 2 if spec.encoder == "modernbert" else 1  # which transformers 5.10 refuses without a local layer
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # ModernBERT's are 0
    return AutoConfig.for_model(
        spec.encoder,
        vocab_size=8,  # embeddings are given, so that their gradient can be compared
        hidden_size=spec.hidden_size,
        num_hidden_layers=spec.num_layers if spec.level == "encoder" else fewest,
        num_attention_heads=spec.num_heads,
        intermediate_size=spec.intermediate_size,
        max_position_embeddings=length,
        **(tokens if spec.encoder == "modernbert" else dropout),
    )


def converted(spec: BenchSpec, attention: AttentionSpec, config: PreTrainedConfig) -> BakeoffForMaskedLM:
    """Our encoder with random weights, the same for every mechanism."""
    torch.manual_seed(spec.seed)
    model = BakeoffForMaskedLM(
        BakeoffConfig.wrap(
            config, attention.name, attention_options=attention.options, attention_seed=spec.seed
        )
    )
    spread(model)
    return model


@torch.no_grad()
def spread(module: nn.Module) -> None:
    """Weights that keep the variance of their inputs: initial ones are so small that attention is even."""
    for parameter in module.parameters():
        if parameter.dim() == 2:
            parameter.normal_(std=parameter.shape[1] ** -0.5)


def ours(model: BakeoffForMaskedLM, real_BN: Tensor) -> Subject:
    """Our encoder as a subject; `real_BN` is True at real tokens."""
    base = model.model.base_model
    family = FAMILIES[model.config.encoder["model_type"]]
    return Subject(base, family, mask(real_BN), matrices(base, family))


def mask(real_BN: Tensor) -> dict[str, Tensor]:
    """The attention mask as an argument; none where nothing is padded."""
    return {} if real_BN.all() else {"attention_mask": real_BN}


def matrices(base: nn.Module, family: Family) -> dict[str, tuple[Sequence[Tensor], bool]]:
    """The weight matrices of the layers by name, for `Subject.weights`."""
    return {
        name: ([parameter], False)
        for name, parameter in base.named_parameters()
        if name.startswith(f"{family.layers}.") and parameter.dim() == 2
    }


def flops(model: BakeoffForMaskedLM, level: str, row_lengths: Sequence[int]) -> float:
    """Forward operations of the function over the rows' real tokens, whoever computes it.

    Two a weight and token of the linear layers, those that the mechanism adds aside, and `Attention.flops`.
    """
    base = model.model.base_model
    linear = sum(
        module.weight.numel()
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear) and f".{NAME}." not in name
    )
    if level == "encoder":
        return sum(2.0 * linear * n + model.attention_flops(n) for n in row_lengths)
    projections = 4 * model.config.encoder["hidden_size"] ** 2
    return sum(2.0 * projections * n + model.mechanisms()[0].flops(n) for n in row_lengths)
