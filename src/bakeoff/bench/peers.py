"""The implementations that people would otherwise use, each with the weights of ours.

`PEERS` is the table. A peer takes over our encoder's weights, so that both compute the same function, and
says for which rows and lengths that holds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, BigBirdConfig, BigBirdModel, LongformerConfig, LongformerModel

from bakeoff.bench.subjects import FAMILIES, Subject, mask, matrices
from bakeoff.encoder import NAME, BakeoffForMaskedLM
from bakeoff.errors import BakeoffError, missing

Build = Callable[[BakeoffForMaskedLM, Tensor], Subject]
Rows = Callable[[BakeoffForMaskedLM, Sequence[int]], tuple[list[int], str]]


def _every_row(model: BakeoffForMaskedLM, row_lengths: Sequence[int]) -> tuple[list[int], str]:
    return list(range(len(row_lengths))), ""


def _full_rows(model: BakeoffForMaskedLM, row_lengths: Sequence[int]) -> tuple[list[int], str]:
    full = [row for row, length in enumerate(row_lengths) if length == max(row_lengths)]
    return full, "; rows without padding only, as padding changes the peer's real tokens"


def _full_blocks(model: BakeoffForMaskedLM, row_lengths: Sequence[int]) -> tuple[list[int], str]:
    mechanism: Any = model.mechanisms()[0]
    size = mechanism.block_size
    whole = _whole_blocks(max(row_lengths), size)
    if whole == _DRAWS_LAST:
        full, _ = _full_rows(model, row_lengths)
        return full, "; rows without padding only, as the peer may count the last block twice"
    full = [row for row, length in enumerate(row_lengths) if _whole_blocks(length, size) == whole]
    return full, "; rows that reach the last block only, as the peer's last global block is else padding"


def _whole_blocks(length: int, size: int) -> int:
    return -(-length // size) * size


#: At this padded length transformers' BigBird may draw the last block as a random one, though it is global,
#: and counts its keys twice. Ours can follow it only where no key of that block is padding.
_DRAWS_LAST = 1024


@dataclasses.dataclass(frozen=True)
class Peer:
    """An implementation and what it is equal to.

    Attributes:
        name: as in `--against`.
        attention: the mechanism it implements.
        distribution: the package it needs.
        build: it, with the weights of ours.
        refuse: why it cannot run, or equal ours, at this length; None if it can.
        rows: which rows of a padded batch can be compared, and the reason.
        tolerance: of the gate, relative to the largest value.
        same_pattern: makes ours take the peer's random pattern, for the gate.
    """

    name: str
    attention: str
    distribution: str
    build: Build
    refuse: Callable[[Mapping[str, Any], int], str | None] = lambda options, length: None
    rows: Rows = _every_row
    tolerance: float = 1e-4
    same_pattern: Callable[[BakeoffForMaskedLM, Subject], contextlib.AbstractContextManager[None]] = (
        lambda model, peer: contextlib.nullcontext()
    )

    def check(self, encoder: str, options: Mapping[str, Any], length: int) -> None:
        """Raise a BakeoffError where the peer is not installed, or not comparable."""
        try:
            importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            raise missing(f"{self.name} is not installed", "peers") from None
        if encoder != "bert" and self.name != "sdpa":
            raise BakeoffError(f"{self.name} has no {encoder}: use --encoder bert, or --against sdpa.")
        if reason := self.refuse(options, length):
            raise BakeoffError(f"{self.name} for {self.attention}: {reason}")


def _stock(model: BakeoffForMaskedLM, implementation: str) -> nn.Module:
    """The family's own encoder with our weights."""
    config = model.config.encoder_config()
    base = AutoModelForMaskedLM.from_config(config, attn_implementation=implementation).base_model
    state = {k: v for k, v in model.model.base_model.state_dict().items() if f".{NAME}." not in k}
    base.load_state_dict(state)
    return base


def _sdpa(model: BakeoffForMaskedLM, real_BN: Tensor) -> Subject:
    family = FAMILIES[model.config.encoder["model_type"]]
    base = _stock(model, "sdpa")
    return Subject(base, family, mask(real_BN), matrices(base, family))


def _copy(model: BakeoffForMaskedLM, base: nn.Module, first_position: int = 0) -> None:
    """Our weights into a model that has BERT's names, global projections and more positions aside."""
    state = {k.replace(f".{NAME}.", "."): v for k, v in model.model.base_model.state_dict().items()}
    key = "embeddings.position_embeddings.weight"
    positions = base.get_parameter(key).detach().clone()
    positions[first_position : first_position + len(state[key])] = state[key]
    own = base.state_dict()
    base.load_state_dict({k: v for k, v in state.items() if k in own} | {key: positions}, strict=False)


def _longformer(model: BakeoffForMaskedLM, real_BN: Tensor) -> Subject:
    config = model.config.encoder_config()
    mechanisms: list[Any] = [*model.mechanisms()]
    windows = [mechanism.window for mechanism in mechanisms]
    whole_windows = -(-model.max_tokens // max(windows)) * max(windows)
    settings = _settings(config) | {"max_position_embeddings": whole_windows + 1}
    base = LongformerModel(
        LongformerConfig(**settings, attention_window=windows, sep_token_id=0), add_pooling_layer=False
    )
    _copy(model, base, first_position=1)  # the place of the padding token comes first
    is_global = torch.zeros_like(real_BN, dtype=torch.long)
    is_global[:, : mechanisms[0].global_tokens] = 1
    weights = {
        name.replace(".self.", f".self.{NAME}.") if "_global" in name else name: value
        for name, value in matrices(base, FAMILIES["bert"]).items()
    }
    arguments = {"attention_mask": real_BN.long(), "global_attention_mask": is_global}
    return Subject(base, FAMILIES["bert"], arguments, weights)


def _bigbird(model: BakeoffForMaskedLM, real_BN: Tensor) -> Subject:
    mechanism: Any = model.mechanisms()[0]
    # Some of its draws are made for all positions and cut: those of the published checkpoint are 4096.
    settings = _settings(model.config.encoder_config()) | {
        "max_position_embeddings": max(4096, model.max_tokens + mechanism.block_size)
    }
    config = BigBirdConfig(
        **settings,
        attention_type="block_sparse",
        block_size=mechanism.block_size,
        num_random_blocks=mechanism.num_random_blocks,
    )
    base = BigBirdModel(config, add_pooling_layer=False)
    _copy(model, base)
    arguments = {name: value.long() for name, value in mask(real_BN).items()}
    return Subject(base, FAMILIES["bert"], arguments, matrices(base, FAMILIES["bert"]))


def _settings(config: Any) -> dict[str, Any]:
    """What a BERT's config shares with Longformer's and BigBird's."""
    names = (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
        "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob", "type_vocab_size",
        "layer_norm_eps", "pad_token_id",
    )  # fmt: skip
    return {name: getattr(config, name) for name in names}


def _bigbird_refuses(options: Mapping[str, Any], length: int) -> str | None:
    size, drawn, ends = (options[name] for name in ("block_size", "num_random_blocks", "global_tokens"))
    if any(isinstance(value, list) for value in (size, drawn, ends)):
        return "one block_size, num_random_blocks and global_tokens for all layers."
    if ends > size:
        return f"its global blocks are the first and the last one: global_tokens of {size} or less."
    if drawn < 1:
        return "it needs a random block (num_random_blocks)."
    if length <= (5 + 2 * drawn) * size:
        return (
            f"at {length} tokens it turns dense for good; lengths start above {(5 + 2 * drawn) * size} "
            "(5 + 2 num_random_blocks blocks)."
        )
    if length != _DRAWS_LAST == _whole_blocks(length, size):
        return f"padded from {length} to {_DRAWS_LAST} tokens it may count a last block with padding twice."
    return None


@contextlib.contextmanager
def _peer_blocks(model: BakeoffForMaskedLM, peer: Subject) -> Iterator[None]:
    """Let our layers attend to the random blocks that the peer's layers drew in their last forward."""
    layers: Any = peer.model.get_submodule("encoder.layer")
    changed: list[tuple[Any, str, Any]] = []
    mechanism: Any
    for mechanism, layer in zip(model.mechanisms(), layers, strict=True):
        module = layer.attention.self
        drawn: list[Tensor] = []
        own, fixed = mechanism.attended_blocks, module._create_rand_mask_from_inputs

        # The peer has no place for its draw but the third argument of this call.
        def record(*args: Any, drawn: list[Tensor] = drawn, fixed: Any = fixed) -> Tensor:
            drawn[:] = [args[2]]
            return fixed(*args)

        def attended_blocks(
            blocks_B: Tensor, blocks: int, drawn: list[Tensor] = drawn, own: Any = own
        ) -> tuple[Tensor, Tensor]:
            attended, valid = own(blocks_B, blocks)
            if blocks != drawn[0].shape[2] + 2:  # a shorter row by itself, which is not compared
                return attended, valid
            random = drawn[0].shape[-1]
            attended[:, :, 1:-1, -random:] = drawn[0][: len(attended)]  # the draw is that of all rows
            # Every draw counts, also of the last block, which is global (see _DRAWS_LAST).
            valid[:, 1:-1, -random:] = True
            return attended, valid

        changed += [(module, "_create_rand_mask_from_inputs", record)]
        changed += [(mechanism, "attended_blocks", attended_blocks)]
    for module, name, function in changed:
        module.__dict__[name] = function
    try:
        yield
    finally:
        for module, name, _ in changed:
            del module.__dict__[name]


class _InPlaceOfSelf(nn.Module):
    """A peer's layer where BERT has its self-attention; it projects its output itself.

    Args:
        peer: from (B, N, E) to the same shape.
        mask_name: its argument for real tokens; None: it has none.
    """

    def __init__(self, peer: nn.Module, mask_name: str | None) -> None:
        super().__init__()
        self.peer, self.mask_name = peer, mask_name

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        if attention_mask is None or self.mask_name is None:
            return self.peer(hidden_states), None
        return self.peer(hidden_states, **{self.mask_name: attention_mask}), None


#: Our weight's name below `attention`, and the parts of a peer's layer that make it up.
_Parts = Callable[[Any], dict[str, tuple[list[Tensor], bool]]]


def _replaced(
    model: BakeoffForMaskedLM,
    real_BN: Tensor,
    make: Callable[[Any], nn.Module],
    parts: _Parts,
    mask_name: str | None = None,
) -> Subject:
    """Our BERT with a peer's layers for its attention, and our projections in them."""
    base = _stock(model, NAME)  # our mask function hands the (B, N) mask through
    weights = {}
    for index, mechanism in enumerate(model.mechanisms()):
        place = f"encoder.layer.{index}.attention"
        attention: Any = base.get_submodule(place)
        peer = make(mechanism)
        with torch.no_grad():
            for suffix, (pieces, transposed) in parts(peer).items():
                source = _source(model, f"{place}.{suffix}")
                sizes = [piece.shape[0] for piece in pieces]
                values = [source.mT] if transposed else source.split(sizes)
                for piece, value in zip(pieces, values, strict=True):
                    piece.copy_(value)
                weights[f"{place}.{suffix}"] = (pieces, transposed)
        attention.self = _InPlaceOfSelf(peer, mask_name)
        attention.output.dense = nn.Identity()
    return Subject(base, FAMILIES["bert"], mask(real_BN), weights)


def _source(model: BakeoffForMaskedLM, name: str) -> Tensor:
    """A weight of ours as the function uses it: Linformer's projections with the segment means."""
    value = model.model.base_model.get_parameter(name)
    if name.endswith("_projection_KN"):
        summaries, length = value.shape
        means = torch.eye(summaries).repeat_interleave(length // summaries, 1) * (summaries / length)
        return value + means
    return value


@torch.no_grad()
def _flatten_scores(model: BakeoffForMaskedLM) -> None:
    """Queries and keys an eighth as long.

    Both add 1e-4 to features: ours where the largest is 1, the peer where exp(-|q|²/2) has made them so small
    that they all but vanish in it. On short vectors the two agree.
    """
    for site in model.sites:
        module = model.model.get_submodule(site.path)
        for linear in (module.query, module.key):
            linear.weight.div_(8)


def _performer_pytorch(model: BakeoffForMaskedLM, real_BN: Tensor) -> Subject:
    package = importlib.import_module("performer_pytorch")
    _flatten_scores(model)

    def make(mechanism: Any) -> nn.Module:
        layer = mechanism.layer
        peer = package.SelfAttention(
            layer.hidden_size,
            heads=layer.num_heads,
            dim_head=layer.head_dim,
            nb_features=mechanism.num_features,
            qkv_bias=True,
        )
        # Its heads share one matrix: give every head of ours the same.
        mechanism.projection_HMD.copy_(
            mechanism.projection_HMD[:1].clone().expand_as(mechanism.projection_HMD)
        )
        peer.fast_attention.projection_matrix.copy_(mechanism.projection_HMD[0])
        return peer

    def parts(peer: Any) -> dict[str, tuple[list[Tensor], bool]]:
        linears = {
            "self.query": peer.to_q,
            "self.key": peer.to_k,
            "self.value": peer.to_v,
            "output.dense": peer.to_out,
        }
        return {f"{name}.weight": ([linear.weight], False) for name, linear in linears.items()} | {
            f"{name}.bias": ([linear.bias], False) for name, linear in linears.items()
        }

    return _replaced(model, real_BN, make, parts, "mask")


@torch.no_grad()
def _without_bias(model: BakeoffForMaskedLM) -> None:
    """The Linformers' query, key and value projections have no bias."""
    for site in model.sites:
        module = model.model.get_submodule(site.path)
        for linear in (module.query, module.key, module.value):
            linear.bias.zero_()


def _linformer(model: BakeoffForMaskedLM, real_BN: Tensor) -> Subject:
    package = importlib.import_module("linformer.linformer")
    _without_bias(model)

    def make(mechanism: Any) -> nn.Module:
        layer = mechanism.layer
        return package.LinformerSelfAttention(
            layer.hidden_size, layer.max_length, k=mechanism.projected_length, heads=layer.num_heads
        )

    def parts(peer: Any) -> dict[str, tuple[list[Tensor], bool]]:
        return {
            "self.query.weight": ([peer.to_q.weight], False),
            "self.key.weight": ([peer.to_k.weight], False),
            "self.value.weight": ([peer.to_v.weight], False),
            f"self.{NAME}.key_projection_KN": ([peer.proj_k], True),
            f"self.{NAME}.value_projection_KN": ([peer.proj_v], True),
            "output.dense.weight": ([peer.to_out.weight], False),
            "output.dense.bias": ([peer.to_out.bias], False),
        }

    return _replaced(model, real_BN, make, parts)


def _linformer_pytorch(model: BakeoffForMaskedLM, real_BN: Tensor) -> Subject:
    package = importlib.import_module("linformer_pytorch.linformer_pytorch")
    _without_bias(model)

    def make(mechanism: Any) -> nn.Module:
        layer = mechanism.layer
        peer = package.MHAttention(
            input_size=layer.max_length, dim=layer.head_dim, channels=layer.hidden_size,
            dim_k=mechanism.projected_length, nhead=layer.num_heads, dropout=0.0, checkpoint_level="C0",
            parameter_sharing="headwise", E_proj=None, F_proj=None, full_attention=False, causal_mask=None,
        )  # fmt: skip
        for projection in (peer.heads[0].E, peer.heads[0].F):
            nn.init.zeros_(projection.bias)
        return peer

    def parts(peer: Any) -> dict[str, tuple[list[Tensor], bool]]:
        return {
            "self.query.weight": ([linear.weight for linear in peer.to_q], False),
            "self.key.weight": ([linear.weight for linear in peer.to_k], False),
            "self.value.weight": ([linear.weight for linear in peer.to_v], False),
            f"self.{NAME}.key_projection_KN": ([peer.heads[0].E.weight], False),
            f"self.{NAME}.value_projection_KN": ([peer.heads[0].F.weight], False),
            "output.dense.weight": ([peer.w_o.weight], False),
            "output.dense.bias": ([peer.w_o.bias], False),
        }

    return _replaced(model, real_BN, make, parts, "input_mask")


def _linformer_refuses(options: Mapping[str, Any], length: int) -> str | None:
    if options["global_tokens"] != 0:
        return "no token is global: write linformer:global_tokens=0."
    sizes = options["projected_length"]
    if any(length % size for size in (sizes if isinstance(sizes, list) else [sizes])):
        return (
            f"lengths are multiples of projected_length ({sizes}), not {length}: elsewhere our summaries "
            "stand for unequal numbers of tokens, and are weighted so."
        )
    return None


def _longformer_refuses(options: Mapping[str, Any], length: int) -> str | None:
    if options["separate_global"] is not True or isinstance(options["global_tokens"], list):
        return "its global tokens have projections of their own, and are the same in all layers."
    return None


def _performer_refuses(options: Mapping[str, Any], length: int) -> str | None:
    if options["feature_map"] != "random" or options["global_tokens"] != 0:
        return "its features are random, no token global: write performer:feature_map=random;global_tokens=0."
    return None


#: The table: a name may stand in it once a mechanism.
PEERS: tuple[Peer, ...] = (
    Peer("sdpa", "dense", "transformers", _sdpa),
    Peer("transformers", "longformer", "transformers", _longformer, _longformer_refuses),
    Peer(
        "transformers", "bigbird", "transformers", _bigbird, _bigbird_refuses, _full_blocks,
        same_pattern=_peer_blocks,
    ),
    # The two epsilons still differ by some 1e-5 of a gradient on short vectors: see _flatten_scores.
    Peer(
        "performer-pytorch", "performer", "performer-pytorch", _performer_pytorch, _performer_refuses,
        _full_rows, tolerance=1e-3,
    ),
    Peer("linformer", "linformer", "linformer", _linformer, _linformer_refuses, _full_rows),
    Peer(
        "linformer-pytorch", "linformer", "linformer-pytorch", _linformer_pytorch, _linformer_refuses,
        _full_rows,
    ),
)  # fmt: skip
