"""The order of rows: everything once, lengths together, no drift, a function of seed and epoch."""

import random

import numpy as np
import torch

from bakeoff.training.batching import LengthGroupedSampler


def batches(sampler, size):
    rows = list(sampler)
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def lengths(n):
    rng = random.Random(0)
    return [rng.randint(1, 100) for _ in range(n)]


def test_every_row_once_and_only_the_last_batch_short():
    for n in (1, 7, 32, 33, 1000):
        sampler = LengthGroupedSampler(lengths(n), 8, seed=0)
        assert sorted(sampler) == list(range(n))
        assert len(sampler) == n


def test_padding_is_a_fraction_of_that_of_random_order():
    known = lengths(3200)
    grouped = batches(LengthGroupedSampler(known, 16, 0), 16)
    shuffled = batches(torch.randperm(3200, generator=torch.Generator().manual_seed(0)).tolist(), 16)

    def padding(chosen):
        return sum(max(known[i] for i in b) * len(b) - sum(known[i] for i in b) for b in chosen)

    assert padding(grouped) < 0.1 * padding(shuffled)


def test_length_does_not_drift_over_an_epoch():
    known = lengths(6400)
    means = [np.mean([known[i] for i in b]) for b in batches(LengthGroupedSampler(known, 16, 1), 16)]
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.15


def test_order_follows_seed_and_epoch_alone():
    sampler = LengthGroupedSampler(lengths(500), 8, seed=3)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = list(sampler)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(1)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(LengthGroupedSampler(lengths(500), 8, seed=4)) != first
