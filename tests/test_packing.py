"""Moving real tokens together, and back: what comes out is what padding would have given."""

import pytest
import torch

import encoders
from bakeoff import checkpoints
from bakeoff.attention import ATTENTIONS, longformer
from bakeoff.encoder import packing
from bakeoff.encoder.families import FIRST_ONLY
from bakeoff.encoder.packing import align, pack

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
    monkeypatch.setattr(packing, "ONE_BY_ONE", one_by_one)
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
    marked = [row for batch in rows.mask_to_rows(keep & (torch.arange(6) == 5)) for row in batch]
    assert sum(int(row.sum()) for row in marked) == 3
    # The sixth place of a row holds its last token.
    assert all(not row[:-1].any() for row in marked if len(row) < 6)


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
    monkeypatch.setattr(packing, "ONE_BY_ONE", one_by_one)
    encoders.save(tmp_path, family)
    model = checkpoints.load(tmp_path, attention, attention_options=encoders.SMALL[attention]).double()
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
        # In float64, but for the loss, which is fp32: the orders of their sums differ.
        torch.testing.assert_close(packed, placed, rtol=1e-5, atol=1e-6)
    real = int(inputs["attention_mask"].sum())
    assert tokens[0] == ((4, 24) if family == "albert" else (1, real))
    assert tokens[-1] == (4, 24)
    assert all(h.shape[:2] == (4, 24) for h in out.hidden_states)


@pytest.mark.parametrize("padding", ["much", "none", "little", "no mask", "left"])
@pytest.mark.parametrize("family", [*FIRST_ONLY, "distilbert"])
def test_the_last_layer_works_for_what_the_classifier_reads(tmp_path, family, padding):
    """Feed-forward of one token a row in the last layer, and of all where someone else reads them."""
    encoders.save(tmp_path, family)
    model = checkpoints.load(tmp_path, "dense")
    inputs = encoders.batch(B=4, N=40, side="left" if padding == "left" else "right")
    lengths = {"none": (40,) * 4, "little": (40, 40, 40, 38)}.get(padding, (40, 5, 18, 15))
    inputs["attention_mask"] = (torch.arange(40) < torch.tensor(lengths)[:, None]).long()
    if padding == "left":
        inputs["attention_mask"] = inputs["attention_mask"].flip(1)
    if padding == "no mask":
        del inputs["attention_mask"]
    seen = []
    norms = [m for m in model.model.base_model.modules() if isinstance(m, torch.nn.LayerNorm)]
    norms[-1].register_forward_hook(lambda m, args, out: seen.append(out[..., 0].numel()))
    told, results = (1 if padding == "left" else 4), []  # rows whose first place holds a token
    for shown in (False, True):
        model.zero_grad()
        logits = model(**inputs, output_hidden_states=shown).logits[:told]
        logits.square().sum().backward()
        results.append([logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    body = model.model.base_model(**inputs)[0]
    assert body.shape[:2] == (4, 40)
    few = family in FIRST_ONLY and padding != "left"
    tokens = sum(lengths) if padding in ("much", "left") else 160
    assert seen == [4 if few else tokens, 160, tokens]


def test_calls_that_meet_in_one_backward_keep_their_rows(tmp_path):
    """Layers that are computed anew find the rows of their own call."""
    encoders.save(tmp_path, "bert")
    model = checkpoints.load(tmp_path, "dense").train()
    inputs = encoders.batch(B=4, N=40)
    calls = []
    for lengths in ((40, 5, 18, 15), (40, 15, 18, 5)):
        mask = (torch.arange(40) < torch.tensor(lengths)[:, None]).long()
        calls.append(inputs | {"attention_mask": mask, "labels": torch.tensor([0, 1, 1, 0])})
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        sum(model(**call).loss for call in calls).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("where", ["left", "scattered"])
@pytest.mark.parametrize("attention", sorted(ATTENTIONS))
def test_where_padding_lies_changes_nothing(tmp_path, attention, where, packed):
    """Against padding on the right, with the same positions; global tokens chosen, too."""
    encoders.save(tmp_path, "bert")
    model = checkpoints.load(tmp_path, attention, attention_options=encoders.SMALL[attention])
    N, lengths = 24, torch.tensor([24, 9, 16])
    right = torch.arange(N) < lengths[:, None]
    keep = right.flip(1)
    if where == "scattered":
        for row, length in enumerate(lengths.tolist()):
            places = torch.randperm(N, generator=torch.Generator().manual_seed(row))[:length]
            keep[row] = torch.zeros(N, dtype=torch.bool).index_fill(0, places, True)
    ids = torch.randint(5, 60, (3, N), generator=torch.Generator().manual_seed(0))
    chosen = torch.zeros(3, N, dtype=torch.long)
    chosen[:, [0, 5]] = 1

    def states(keep, *values):
        """The last hidden states of real tokens, row after row."""
        moved = [
            torch.zeros_like(keep, dtype=torch.long).masked_scatter(keep, value[right]) for value in values
        ]
        extra = {"global_attention_mask": moved[2]} if attention == "longformer" else {}
        out = model.model.base_model(
            input_ids=moved[0],
            position_ids=moved[1],
            attention_mask=keep,
            output_hidden_states=not packed,
            **extra,
        )
        return out.last_hidden_state[keep]

    values = (ids, torch.arange(N).expand(3, -1), chosen)
    torch.testing.assert_close(states(keep, *values), states(right, *values), rtol=1e-4, atol=1e-5)


@pytest.mark.dense_rule
@pytest.mark.parametrize("one_by_one", [1, 256])
@pytest.mark.parametrize("family", sorted(encoders.FAMILIES))
def test_the_dense_rule_in_every_family(tmp_path, family, one_by_one, monkeypatch):
    """Short windows computed densely and as windows: the same logits and gradients on packed rows."""
    monkeypatch.setattr(packing, "ONE_BY_ONE", one_by_one)
    encoders.save(tmp_path, family)
    model = checkpoints.load(tmp_path, "longformer", attention_options=encoders.SMALL["longformer"]).double()
    inputs, results = encoders.batch(B=3, N=24), []
    inputs["attention_mask"][1, 7:] = 0
    for rule in (longformer.DENSE_UP_TO, 0):
        monkeypatch.setattr(longformer, "DENSE_UP_TO", rule)
        model.zero_grad()
        out = model(**inputs, labels=torch.tensor([0, 1, 1]))
        out.loss.backward()
        results.append(
            [out.logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
        )
    for dense, windows in zip(*results, strict=True):
        torch.testing.assert_close(dense, windows, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("attention", ["longformer", "linformer"])
def test_a_call_that_broke_off_leaves_nothing_behind(tmp_path, attention):
    encoders.save(tmp_path, "bert")
    options = encoders.SMALL[attention] | {"global_tokens": 0}  # with which linformer's projections wait
    model = checkpoints.load(tmp_path, attention, attention_options=options)
    inputs = encoders.batch(B=2, N=24)
    wanted = model(**inputs).logits
    query = model.model.bert.encoder.layer[1].attention.self.query

    def fail(module, args):
        raise RuntimeError("out of memory")

    handle = query.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        model(**inputs)
    handle.remove()
    for N in (4, 24):  # few enough tokens for linformer to leave the projections to the layer, and more
        assert model(**encoders.batch(B=2, N=N)).logits.isfinite().all()
    torch.testing.assert_close(model(**inputs).logits, wanted, rtol=0, atol=0)


def test_a_batch_with_an_empty_row(tmp_path):
    encoders.save(tmp_path, "bert")
    inputs = encoders.batch(B=3, N=12)
    inputs["attention_mask"][2] = 0
    for attention in ATTENTIONS:
        assert checkpoints.load(tmp_path, attention)(**inputs).logits.isfinite().all()
