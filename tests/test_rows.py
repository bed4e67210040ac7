"""Moving real tokens together, and back: what comes out is what padding would have given."""

import pytest
import torch

import encoders
from bakeoff import checkpoints
from bakeoff import rows as rows_module
from bakeoff.attention import ATTENTIONS
from bakeoff.rows import align, pack

KEEP = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1], [1, 0, 1, 0, 0, 1]]).bool()


def test_packed_tokens_come_back_to_their_places():
    x = torch.randn(4, 6, 3, requires_grad=True)
    rows = pack(KEEP)
    assert rows.length_B.tolist() == [6, 2, 3, 3]
    assert torch.equal(rows.pack(x)[0], x[KEEP])
    assert torch.equal(rows.unpack(rows.pack(x)), x * KEEP[..., None])
    (rows.unpack(rows.pack(x)) * torch.arange(1.0, 73).view(4, 6, 3)).sum().backward()
    assert torch.equal(x.grad, torch.arange(1.0, 73).view(4, 6, 3) * KEEP[..., None])


@pytest.mark.parametrize("one_by_one", [1, 256])
@pytest.mark.parametrize("make", [pack, align])
def test_rows_have_their_real_tokens_first(make, one_by_one, monkeypatch):
    monkeypatch.setattr(rows_module, "ONE_BY_ONE", one_by_one)
    x = torch.randn(4, 6, 3)
    keep = KEEP.clone()
    keep[1] = False
    rows = make(keep)
    given = rows.pack(x) if make is pack else x
    batches = rows.to_rows(given)
    assert len(batches) == len(rows.row_lengths) == (3 if make is pack and one_by_one == 1 else 1)
    front = [row for batch in batches for row in batch]
    if len(batches) == 1:
        assert rows.row_lengths[0].tolist() == keep.sum(1).tolist()
        del front[1]
    for row, b in zip(front, (0, 2, 3), strict=True):
        assert torch.equal(row[: keep[b].sum()], x[b, keep[b]])
    assert torch.equal(rows.from_rows(batches), given)
    masks = rows.mask_to_rows(keep)
    assert sum(int(mask.sum()) for mask in masks) == int(keep.sum())


def test_what_is_in_place_is_not_moved():
    full = torch.ones(2, 5, dtype=torch.bool)
    assert align(full).length_B is None
    assert pack(full) is None
    right = torch.arange(5) < torch.tensor([[5], [3]])
    assert align(right).order_BN is None
    assert align(right.flip(1)).order_BN is not None
    assert pack(torch.zeros(2, 5, dtype=torch.bool)) is None


@pytest.mark.parametrize("one_by_one", [1, 256])
@pytest.mark.parametrize("attention", sorted(ATTENTIONS))
@pytest.mark.parametrize("family", sorted(encoders.FAMILIES))
def test_a_packed_encoder_computes_the_same(tmp_path, family, attention, one_by_one, monkeypatch):
    """Logits and every gradient, against the same tokens left in their places."""
    monkeypatch.setattr(rows_module, "ONE_BY_ONE", one_by_one)
    encoders.save(tmp_path, family)
    options = {"longformer": {"window": 4, "global_tokens": 2}, "bigbird": {"block_size": 2}}
    model = checkpoints.load(tmp_path, attention, attention_options=options.get(attention, {}))
    inputs = encoders.batch(B=4, N=24, side="right")
    lengths = (24, 5, 18, 15) if one_by_one == 1 else (11, 5, 4, 4)  # the latter are N tokens together
    inputs["attention_mask"] = (torch.arange(24) < torch.tensor(lengths)[:, None]).long()
    inputs["input_ids"] = inputs["input_ids"].clamp(min=5) * inputs["attention_mask"]
    tokens, results = [], []
    deepest = model.model.get_submodule(model.sites[-1].path)
    deepest.register_forward_pre_hook(
        lambda m, args, kwargs: tokens.append((args[0] if args else kwargs["hidden_states"]).shape[:2]),
        with_kwargs=True,
    )
    for shown in (False, True):  # hidden states that are shown stay in their places
        model.zero_grad()
        out = model(**inputs, labels=torch.tensor([0, 1, 1, 0]), output_hidden_states=shown)
        out.loss.backward()
        results.append(
            [out.logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
        )
    for packed, placed in zip(*results, strict=True):
        torch.testing.assert_close(packed, placed, rtol=1e-4, atol=1e-5)
    real = int(inputs["attention_mask"].sum())
    assert tokens[0] == ((4, 24) if family == "albert" else (1, real))
    assert tokens[-1] == (4, 24)
    assert all(h.shape[:2] == (4, 24) for h in out.hidden_states)


def test_a_batch_with_an_empty_row(tmp_path):
    encoders.save(tmp_path, "bert")
    inputs = encoders.batch(B=3, N=12)
    inputs["attention_mask"][2] = 0
    for attention in ATTENTIONS:
        assert checkpoints.load(tmp_path, attention)(**inputs).logits.isfinite().all()
