"""The order of training rows: lengths together, batches shuffled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

_POOL = 50  # batches sorted together: enough to pad little, few enough to mix well


class LengthGroupedSampler(Sampler[int]):
    """Row numbers such that every `batch_size` consecutive ones have similar lengths.

    Differs from transformers' sampler of the same name in two ways. The order is a function of (seed, epoch)
    alone, so that a resumed run sees the rows an uninterrupted one sees; theirs draws from the global
    generator. And the batches of a pool are shuffled; theirs go from long to short, which ties the
    learning-rate schedule to the length of the text.

    Args:
        lengths: tokens of each row.
        batch_size: rows of a step, over all devices and accumulation steps.
        seed: of the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed = list(lengths), batch_size, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Trainer before each pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        rows = torch.randperm(len(self.lengths), generator=generator).tolist()
        batches: list[list[int]] = []
        size = self.batch_size
        for start in range(0, len(rows), _POOL * size):
            pool = sorted(rows[start : start + _POOL * size], key=self.lengths.__getitem__)
            batches += [pool[i : i + size] for i in range(0, len(pool), size)]
        # Only the last batch of all may be short, or every batch after it would straddle two groups.
        last = batches.pop() if len(batches[-1]) < size else []
        for index in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[index]
        yield from last
