"""What to time: one frozen dataclass, checked as it is made."""

from __future__ import annotations

import dataclasses
from typing import Any

from bakeoff.errors import BakeoffError, unknown
from bakeoff.spec import AttentionSpec

LEVELS = ("attention", "encoder")
PHASES = ("inference", "training")
ENCODERS = ("bert", "modernbert")
DTYPES = ("fp32", "bf16")
DEVICES = ("cpu", "cuda")
_MECHANISMS = ("dense", "longformer", "bigbird", "performer", "linformer")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchSpec:
    """One benchmark.

    Attributes:
        level: `attention`, one layer's projections and mechanism, or `encoder`, all layers without a head.
        phases: `inference`, `training` or both.
        lengths: tokens a row; every length is a batch of its own.
        attentions: the mechanisms.
        against: the implementations they are compared with, by their names in `peers.PEERS`.
        batch_size: rows a batch.
        row_lengths: the real tokens of each row of one padded batch, instead of lengths and batch size.
        encoder: the family, `bert` or `modernbert`.
        hidden_size: of the encoder, as `num_heads`, `num_layers` and `intermediate_size`.
        repeats: rounds that are timed.
        dtype: `fp32` or `bf16`, of weights and inputs.
        threads: PyTorch's; None leaves them as they are.
        device: `cpu` or `cuda`.
        seed: of weights, inputs and random patterns.

    Raises:
        BakeoffError: a value is unknown, or out of range.
    """

    level: str = "attention"
    phases: tuple[str, ...] = PHASES
    lengths: tuple[int, ...] = (1024, 2048, 4096)
    attentions: tuple[AttentionSpec, ...] = tuple(AttentionSpec(name) for name in _MECHANISMS)
    against: tuple[str, ...] = ("sdpa",)
    batch_size: int = 1
    row_lengths: tuple[int, ...] = ()
    encoder: str = "bert"
    hidden_size: int = 384
    num_heads: int = 12
    num_layers: int = 4
    intermediate_size: int = 1536
    repeats: int = 5
    dtype: str = "fp32"
    threads: int | None = None
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        for kind, values, known in (
            ("level", (self.level,), LEVELS),
            ("phase", self.phases, PHASES),
            ("encoder", (self.encoder,), ENCODERS),
            ("dtype", (self.dtype,), DTYPES),
            ("device", (self.device,), DEVICES),
        ):
            for value in values:
                if value not in known:
                    raise unknown(kind, value, known)
        for name in ("phases", "lengths", "attentions", "against"):
            given = [str(value) for value in getattr(self, name)]
            if len({*given}) < len(given) or (not given and name != "against"):
                raise BakeoffError(f"{name} is a list of at least one, each once, not {','.join(given)!r}.")
        for name in _POSITIVE:
            value = getattr(self, name)
            for number in value if isinstance(value, tuple) else (value,):
                if number is not None and not 1 <= number < _NUMBER:
                    raise BakeoffError(f"{name} must be at least 1 and below 2^31, not {number}.")
        if not 0 <= self.seed < 2**32:
            raise BakeoffError(f"seed must be at least 0 and below 2^32, not {self.seed}.")
        if self.hidden_size % self.num_heads:
            raise BakeoffError(
                f"hidden_size must be a multiple of num_heads, not {self.hidden_size} of {self.num_heads}."
            )

    def batches(self) -> list[tuple[int, ...]]:
        """The real tokens of each row, a batch a length."""
        return [self.row_lengths] if self.row_lengths else [(n,) * self.batch_size for n in self.lengths]

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, as written to JSON."""
        values = dataclasses.asdict(self) | {"attentions": [str(spec) for spec in self.attentions]}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


_NUMBER = 2**31  # sizes and counts stay below, as PyTorch's threads must
_POSITIVE = (
    "lengths",
    "row_lengths",
    "batch_size",
    "hidden_size",
    "num_heads",
    "num_layers",
    "intermediate_size",
    "repeats",
    "threads",
)
