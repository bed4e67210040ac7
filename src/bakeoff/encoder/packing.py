"""Where a batch's real tokens are, and moving them so that padding costs little.

Mechanisms want each row's real tokens first. Two ways lead there, both undone before anyone sees them:

- `Packed`: the real tokens of all rows stand one after another, (1, T, …) with no padding at all, from the
  first layer to the last. Projections, feed-forward layers and norms then cost what T tokens cost, whatever
  the padding. Outside of attention, no token of an encoder meets another, so nothing changes.
- `Aligned`: tokens stay in their (B, N) places and are brought to the front around each call of the
  mechanism. For little padding, for shapes that may not depend on the data (compile, export), for layers that
  share their weights, and where something reads what is between the layers.

A third, `Traced`, is for a graph that is to hold for every length (`bakeoff.export`): tokens are brought to
the front before the encoder, by `to_front`, and padded further around each call of a mechanism, as that asks.

`first_only` says that after the last layer's attention only each row's first token is of interest.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional as F

#: Packing pays where it saves more than moving tokens costs; see docs/performance.md.
PACKED_BELOW = 0.95
#: Tokens a row, in the mean, from which on a CPU calls the mechanism for every row by itself.
ONE_BY_ONE = 256


@dataclasses.dataclass(frozen=True, eq=False)
class Aligned:
    """Rows in their (B, N) places; `order_BN` brings real tokens to the front, None where they are there."""

    length_B: Tensor | None
    order_BN: Tensor | None = None
    first_only: bool = False

    @property
    def row_lengths(self) -> list[Tensor | None]:
        """Real tokens of each row, for each batch that `to_rows` gives; None where nothing is padded."""
        return [self.length_B]

    def to_rows(self, x_BN: Tensor) -> list[Tensor]:
        """One batch (B, N, …), each row's real tokens first."""
        return [x_BN if self.order_BN is None else _along(x_BN, self.order_BN)]

    def from_rows(self, batches: list[Tensor]) -> Tensor:
        """The inverse of `to_rows`."""
        (x_BN,) = batches
        return x_BN if self.order_BN is None else _along(x_BN, self.order_BN.argsort(1))

    def mask_to_rows(self, mask_BN: Tensor) -> list[Tensor]:
        """A mask over the batch's (B, N) places as masks over what `to_rows` gives."""
        return self.to_rows(mask_BN)

    def first_tokens(self, x_BN: Tensor) -> Tensor:
        """(B, 1, …): what stands first in each row."""
        return x_BN[:, :1]


@dataclasses.dataclass(frozen=True, eq=False)
class Traced(Aligned):
    """Rows of `tokens` with their real tokens in front, which mechanisms see padded to `padded` tokens."""

    tokens: int = 0
    padded: int = 0

    def to_rows(self, x_BN: Tensor) -> list[Tensor]:
        """One batch (B, padded, …)."""
        return [F.pad(x_BN, (0, 0) * (x_BN.dim() - 2) + (0, self.padded - self.tokens))]

    def from_rows(self, batches: list[Tensor]) -> Tensor:
        """The inverse of `to_rows`."""
        return batches[0].narrow(1, 0, self.tokens)  # a slice's size would be a minimum of two symbols


@dataclasses.dataclass(frozen=True, eq=False)
class Packed:
    """Rows without padding: `token_T` is where each real token stands in the (B N) tokens of the batch.

    `row_T` is where it stands among B rows of the longest one's length that have their real tokens first.
    """

    length_B: Tensor
    shape: tuple[int, int]
    token_T: Tensor
    row_T: Tensor
    lengths: tuple[int, ...]
    first_only: bool = False

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(self.lengths)

    @property
    def row_lengths(self) -> list[Tensor | None]:
        """Real tokens of each row, for each batch that `to_rows` gives; None where nothing is padded."""
        return [None for n in self.lengths if n] if self._one_by_one else [self.length_B]

    def pack(self, x_BN: Tensor) -> Tensor:
        """(B, N, …) to (1, T, …)."""
        return x_BN.flatten(0, 1).index_select(0, self.token_T)[None]

    def unpack(self, x_1T: Tensor) -> Tensor:
        """(1, T, …) to (B, N, …), zero at padding."""
        return _spread(x_1T, self.token_T, self.shape)

    def to_rows(self, x_1T: Tensor) -> list[Tensor]:
        """Every row by itself, (1, n, …); or one batch (B, longest, …), each row's real tokens first."""
        if self._one_by_one:
            return list(x_1T.split([n for n in self.lengths if n], dim=1))
        return [_spread(x_1T, self.row_T, (len(self.lengths), self.longest))]

    def from_rows(self, batches: list[Tensor]) -> Tensor:
        """The inverse of `to_rows`."""
        if self._one_by_one:
            return torch.cat(batches, 1)
        return batches[0].flatten(0, 1).index_select(0, self.row_T)[None]

    def mask_to_rows(self, mask_BN: Tensor) -> list[Tensor]:
        """A mask over the batch's (B, N) places as masks over what `to_rows` gives."""
        return self.to_rows(self.pack(mask_BN))

    def first_tokens(self, x_1T: Tensor) -> Tensor:
        """(B, 1, …): what stands first in each row; no row may be empty."""
        ends = torch.tensor(self.lengths).cumsum(0)
        starts = torch.cat((ends.new_zeros(1), ends[:-1])).to(x_1T.device)
        return x_1T[0].index_select(0, starts)[:, None]

    @property
    def _one_by_one(self) -> bool:
        """Whether a call of the mechanism for every row costs less than rows of one length, padded."""
        return self.token_T.device.type == "cpu" and len(self.token_T) >= ONE_BY_ONE * len(self.lengths)


Rows = Aligned | Packed


def align(keep_BN: Tensor) -> Aligned:
    """Rows of a batch whose real tokens are where `keep_BN` is True; no look at its values when compiling."""
    if torch.compiler.is_compiling() or bool((keep_BN[:, 1:] > keep_BN[:, :-1]).any()):
        return Aligned(keep_BN.sum(1), torch.argsort(~keep_BN, dim=1, stable=True))
    return Aligned(None if bool(keep_BN.all()) else keep_BN.sum(1))


def to_front(keep_BN: Tensor) -> Tensor:
    """Where each row's real tokens are, in order, and behind them its padding: (B, N).

    By sums, since ONNX sorts no booleans.
    """
    real_BN, padding_BN = keep_BN.cumsum(1), (~keep_BN).cumsum(1)
    place_BN = torch.where(keep_BN, real_BN, real_BN[:, -1:] + padding_BN) - 1
    token_BN = torch.arange(keep_BN.shape[1], device=keep_BN.device).expand_as(place_BN)
    return torch.zeros_like(place_BN).scatter(1, place_BN, token_BN)


def pack(keep_BN: Tensor) -> Packed | None:
    """The batch without its padding, or None where there is too little of it."""
    length_B = keep_BN.sum(1)
    lengths = length_B.tolist()
    if sum(lengths) > PACKED_BELOW * keep_BN.numel() or not sum(lengths):
        return None
    front_BN = torch.arange(max(lengths), device=keep_BN.device) < length_B[:, None]
    token_T, row_T = (torch.nonzero(kept.flatten())[:, 0] for kept in (keep_BN, front_BN))
    return Packed(length_B, (keep_BN.shape[0], keep_BN.shape[1]), token_T, row_T, tuple(lengths))


def _along(x_BN: Tensor, index_BN: Tensor) -> Tensor:
    return x_BN.gather(1, index_BN[(...,) + (None,) * (x_BN.dim() - 2)].expand_as(x_BN))


def _spread(x_1T: Tensor, places_T: Tensor, shape: tuple[int, int]) -> Tensor:
    empty = x_1T.new_zeros(shape[0] * shape[1], *x_1T.shape[2:])
    return empty.index_copy(0, places_T, x_1T[0]).unflatten(0, shape)
