"""The bridge to transformers: any encoder that dispatches its attention, with any mechanism in it.

A converted model is a `BakeoffForSequenceClassification` or a `BakeoffForMaskedLM`, of a model type of its
own ("bakeoff"), so that it saves and loads exactly, and fails loudly where this library is missing instead
of turning dense. Inside stands the family's own model with its own weights under their own names, and on each
attention layer one submodule more, `bakeoff`: the mechanism with its state. One registered attention function
calls it. Hooks on the layers pack padding away, and hand a layer's input to mechanisms that ask for it.

Which layers those are is found, not listed: the family's model is built without storage (on torch's meta
device) and four tokens run through it with a recorder for an attention. A family that accepts the name and
never calls it is thereby refused instead of being silently dense.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    initialization,
)

from bakeoff import attention as mechanisms
from bakeoff.attention.base import is_exporting
from bakeoff.attention.longformer import Window
from bakeoff.errors import BakeoffError
from bakeoff.packing import Aligned, Packed, Traced, align, pack

NAME = "bakeoff"  # of the model type, the attention function, and the submodule on each attention layer
_RECORDER = "bakeoff_recorder"

Rows = Aligned | Packed

#: Families whose classifier reads the first token alone, and the module of a layer in which attention's
#: output meets the residual: behind it, the last layer has work for that token only. One line a family.
FIRST_ONLY: dict[str, str] = {
    "bert": "attention.output",
    "camembert": "attention.output",
    "data2vec-text": "attention.output",
    "electra": "attention.output",
    "ernie": "attention.output",
    "roberta": "attention.output",
    "xlm-roberta": "attention.output",
}

#: A family's query, key and value projections on its attention module: one name each, or one fused.
#: Needed where a mechanism starts from their weights (Longformer's global projections). One line a family.
PROJECTIONS: dict[str, tuple[str, ...]] = {
    "albert": ("query", "key", "value"),
    "bert": ("query", "key", "value"),
    "camembert": ("query", "key", "value"),
    "data2vec-text": ("query", "key", "value"),
    "distilbert": ("q_lin", "k_lin", "v_lin"),
    "electra": ("query", "key", "value"),
    "ernie": ("query", "key", "value"),
    "eurobert": ("q_proj", "k_proj", "v_proj"),
    "modernbert": ("Wqkv",),
    "roberta": ("query", "key", "value"),
    "roberta-prelayernorm": ("query", "key", "value"),
    "xlm-roberta": ("query", "key", "value"),
}


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


_discovered: dict[tuple[Any, str], tuple[list[Site], int]] = {}  # a run asks three times
_discovering = threading.Lock()  # of which one at a time may fill the list below


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
    **kwargs: Any,  # what else a family passes: position_ids, sliding_window (see _install), flash settings
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
        rows = Aligned(None) if attention_mask is None else align(_two_dimensional(attention_mask))
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


def _two_dimensional(attention_mask: Tensor) -> Tensor:
    """The mask as booleans, (B, N)."""
    if attention_mask.dim() != 2:
        raise ValueError(
            f"attention_mask has {attention_mask.dim()} dimensions; it must have two: (batch, tokens)."
        )
    return attention_mask.bool()


def _two_dimensional_mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """Hand the (B, N) mask through: without a mask function transformers passes None, and padding counts."""
    return attention_mask


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _two_dimensional_mask)
AttentionInterface.register(_RECORDER, _record)
AttentionMaskInterface.register(_RECORDER, _two_dimensional_mask)


class _Later(nn.Linear):
    """A family's projection, which can leave its work to a mechanism that has less of it."""

    @classmethod
    def of(cls, linear: nn.Linear) -> _Later:
        """A projection with the parameters of `linear`."""
        made = cls(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        made.weight, made.bias = linear.weight, linear.bias
        return made

    def forward(self, x: Tensor) -> Tensor:
        """x Wᵀ + b; or the shape of it, where x says so."""
        if not getattr(x, "bakeoff_projected_later", False):
            return super().forward(x)
        return x.new_zeros(()).expand(*x.shape[:-1], self.out_features)


def _hand_over_input(
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
    plain = all(type(projection) is _Later for projection in projections)
    waits = plain and rotary is None and mechanism.projects_later(n)
    if waits:
        layer_input["projections"] = projections
    hidden.bakeoff_projected_later = waits
    return args, kwargs | {"layer_input": layer_input}


def _find_rows(packs: bool, encoder: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
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
    keep_BN = _two_dimensional(attention_mask)
    rows = (pack(keep_BN) if looks else None) or align(keep_BN)
    if first_only and looks and bool(keep_BN[:, 0].all()):  # and padding is on the right
        rows = dataclasses.replace(rows, first_only=True)
    return args, kwargs | {"rows": rows}


def _enter_packed(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
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


def _leave_packed(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """After the last layer: back to (B, N) places, but where each row's first token is all that is left."""
    rows = kwargs.get("rows")
    if not isinstance(rows, Packed):
        return None
    hidden, *others = (output,) if isinstance(output, Tensor) else output
    # A layer that is compiled by itself loses the mark that says so, and keeps all tokens.
    if rows.first_only and hidden.shape[:2] == (len(rows.lengths), 1):
        return None
    return rows.unpack(hidden) if isinstance(output, Tensor) else (rows.unpack(hidden), *others)


def _mark_first_tokens(
    attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: tuple[Any, ...]
) -> None:
    """After the last layer's attention, which is told of the rows: where its output is read, say so on it.

    On the output and not on a module, so that calls of the model, in threads or for a backward pass that
    computes a layer anew, do not meet.
    """
    rows = kwargs.get("rows")
    if rows is not None and rows.first_only:
        output[0].bakeoff_first_tokens = rows.first_tokens


def _keep_first_tokens(residual: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Before that output meets the residual: each row's first token of both."""
    first_tokens = getattr(args[0], "bakeoff_first_tokens", None)
    return None if first_tokens is None else tuple(map(first_tokens, args))


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
            functools.partial(_find_rows, packs), with_kwargs=True
        )
        if packs:
            for layer in layers:
                layer.register_forward_pre_hook(_enter_packed, with_kwargs=True)
            layers[-1].register_forward_hook(_leave_packed, with_kwargs=True)
        residual = FIRST_ONLY.get(self.model.config.model_type)
        heads = [name for name, module in self.model.named_children() if module is not self.model.base_model]
        if getattr(self.model.base_model, "pooler", None) is not None:
            heads.append(f"{self.model.base_model_prefix}.pooler")
        self._heads = {name: type(self.model.get_submodule(name)) for name in heads}
        self._keeps_first = packs and self.classifies and residual is not None
        if self._keeps_first:
            attention = self.model.get_submodule(self.sites[-1].path)
            attention.register_forward_hook(_mark_first_tokens, with_kwargs=True)
            layers[-1].get_submodule(str(residual)).register_forward_pre_hook(_keep_first_tokens)

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
            module.add_module(name, _Later.of(module.get_submodule(name)))
        if mechanism.layer_inputs:
            module.register_forward_pre_hook(functools.partial(_hand_over_input, later), with_kwargs=True)

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
