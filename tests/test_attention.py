"""Every mechanism against its n x n reference and against the contract in attention/base.py."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from bakeoff.attention import (
    ATTENTIONS,
    Attention,
    Layer,
    base,
    build,
    longformer,
    options_of,
    resolve_options,
)
from bakeoff.attention.base import real_tokens
from bakeoff.attention.linformer import segment_means
from bakeoff.attention.reference import REFERENCES
from bakeoff.attention.weights import weights
from bakeoff.errors import BakeoffError

#: Options small enough that short sequences exercise the sparse paths, not the dense rule.
SMALL = {
    "dense": {},
    "longformer": {"window": 8, "global_tokens": 2},
    "bigbird": {"block_size": 4, "num_random_blocks": 1},
    "bigbird global": {"block_size": 4, "num_random_blocks": 1, "global_tokens": 9},
    "performer": {"num_features": 24, "global_tokens": 3},
    "performer alone": {"num_features": 24, "global_tokens": 0},
    "performer random": {"num_features": 24, "feature_map": "random", "global_tokens": 0},
    "performer random, global": {"num_features": 24, "feature_map": "random", "global_tokens": 3},
    "linformer": {"projected_length": 8, "global_tokens": 3},
    "linformer alone": {"projected_length": 8, "global_tokens": 0},
}
MECHANISMS = sorted(SMALL)
H, D, E = 3, 8, 20
SCALING = 0.4  # not D ** -0.5, to which PyTorch's own functions would come back


def make(name, dtype=torch.float64, seed=0, index=1, max_length=128, **options):
    layer = Layer(index, H, H, D, E, max_length, seed)
    if name == "window":
        return longformer.Window(layer, **{"radius": 4, **options})
    torch.manual_seed(7)  # only the linear projections of longformer draw from the global generator
    attention = build(name.split()[0], layer, SMALL[name] | options).to(dtype).eval()
    if attention.transferable():  # away from the start, so that what is learned is tested
        for parameter in attention.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return attention


def inputs(B, N, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(B, H, N, D, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3))
    return q, k, v, torch.randn(B, N, E, generator=generator, dtype=torch.float64).to(dtype)


def attend(attention, q, k, v, hidden, length=None, **kwargs):
    if "hidden_BNE" in attention.layer_inputs:
        kwargs["hidden_BNE"] = hidden
    return attention(q, k, v, length, scaling=SCALING, **kwargs)


def expected(name, attention, q, k, v, hidden, length=None, **kwargs):
    if "hidden_BNE" in attention.layer_inputs:
        kwargs["hidden_BNE"] = hidden
    full = torch.full((len(q),), q.shape[2], device=q.device)
    keep = real_tokens(full if length is None else length, q.shape[2])
    if name == "window":
        name = "longformer"
        attention = SimpleNamespace(radius=attention.radius, global_tokens=0, separate_global=False)
    return REFERENCES[name.split()[0]](attention, q, k, v, keep, SCALING, **kwargs)


def close(actual, wanted, tolerance=1e-10):
    torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=tolerance)


def test_every_mechanism_has_a_reference():
    assert ATTENTIONS.keys() == REFERENCES.keys() == {name.split()[0] for name in SMALL}


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("N", [1, 2, 7, 31, 67, 77, 127])  # 67: linformer's segments are all alike
@pytest.mark.parametrize("name", MECHANISMS)
def test_equals_reference_forward_and_every_gradient(name, N, is_padded):
    length = torch.tensor([N, max(1, N // 3), 0]) if is_padded else None
    attention = make(name)
    results = []
    for function in (attend, lambda *a: expected(name, *a)):
        leaves = [x.requires_grad_() for x in inputs(3, N)]
        attention.zero_grad()
        out = function(attention, *leaves, length)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
        (out * weight).sum().backward()
        gradients = [x.grad if x.grad is not None else torch.zeros_like(x) for x in leaves]
        gradients += [p.grad if p.grad is not None else torch.zeros_like(p) for p in attention.parameters()]
        results.append([out.detach(), *(g.clone() for g in gradients)])
    for actual, wanted in zip(*results, strict=True):
        close(actual, wanted)


def test_bigbird_s_reference_draws_what_there_is_where_more_is_asked_for():
    attention, given = make("bigbird", num_random_blocks=3), inputs(1, 24)
    close(attend(attention, *given), expected("bigbird", attention, *given))


@pytest.mark.parametrize("name", MECHANISMS)
def test_gradcheck(name):
    attention = make(name, window=2) if name == "longformer" else make(name)
    # performer's offset is detached: the quotient does not depend on it up to epsilon, which finite
    # differences see; its gradient is held to the reference above instead.
    if name == "performer random":
        pytest.skip("the detached offset is not differentiated, on purpose")
    leaves = [x.requires_grad_() for x in inputs(1, 34 if name == "longformer" else 33)]
    length = torch.tensor([30])
    assert torch.autograd.gradcheck(
        lambda *x: attend(attention, *x, length), leaves, fast_mode=True, atol=1e-6, nondet_tol=0.0
    )


@pytest.mark.parametrize("name", MECHANISMS)
def test_padding_changes_nothing(name):
    """Neither what padding holds, nor how much of it there is, nor who shares the batch."""
    attention, n, N = make(name), 45, 90
    q, k, v, hidden = inputs(2, n)
    alone = attend(attention, q, k, v, hidden)

    def wide(x, fill):
        return torch.cat((x, torch.full((*x.shape[:-2], N - n, x.shape[-1]), fill, dtype=x.dtype)), dim=-2)

    for fill in (0.0, 1e4):
        out = attend(attention, *(wide(x, fill) for x in (q, k, v, hidden)), torch.tensor([n, n]))
        close(out[:, :, :n], alone)
        assert not out[:, :, n:].any()

    mates = [torch.cat((wide(x, 0.0), wide(x, 0.0).flip(-2) * 3)) for x in (q, k, v, hidden)]
    close(attend(attention, *mates, torch.tensor([n, n, N, 0]))[:2, :, :n], alone)


@pytest.mark.parametrize("N", [5, 90])
@pytest.mark.parametrize("name", MECHANISMS)
def test_an_empty_row_is_zero_and_its_gradients_finite(name, N):
    attention = make(name)
    leaves = [x.requires_grad_() for x in inputs(2, N)]
    out = attend(attention, *leaves, torch.tensor([N, 0]))
    assert not out[1].any()
    out.square().sum().backward()
    for x in [*leaves, *attention.parameters()]:
        assert x.grad is None or x.grad.isfinite().all()


@pytest.mark.parametrize("name", MECHANISMS)
def test_train_and_eval_are_the_same_function(name):
    attention = make(name)
    q, k, v, hidden = inputs(2, 77)
    close(attend(attention.train(), q, k, v, hidden), attend(attention.eval(), q, k, v, hidden), 0)
    close(attend(attention, q, k, v, hidden), attend(attention, q, k, v, hidden), 0)


@pytest.mark.parametrize("name", MECHANISMS)
def test_one_short_input_leaves_the_next_alone(name):
    attention = make(name)
    long, short = inputs(1, 90), inputs(1, 4)
    before = attend(attention, *long)
    attend(attention, *short)
    close(attend(attention, *long), before, 0)


@pytest.mark.parametrize("name", ["bigbird", "performer"])
def test_random_patterns_follow_seed_and_layer_alone(name):
    import numpy

    x = inputs(1, 90)
    torch.manual_seed(0)
    numpy.random.seed(0)
    state, np_state = torch.get_rng_state(), numpy.random.get_state()[1].copy()
    layer = Layer(1, H, H, D, E, 128, 3)
    first = build(name, layer, SMALL[name]).double()
    out = attend(first, *x)
    assert torch.equal(torch.get_rng_state(), state)
    assert (numpy.random.get_state()[1] == np_state).all()
    torch.manual_seed(99)
    close(attend(build(name, layer, SMALL[name]).double(), *x), out, 0)
    for other in (replace(layer, seed=4), replace(layer, index=2)):
        assert (attend(build(name, other, SMALL[name]).double(), *x) - out).abs().max() > 1e-3


def test_bigbird_draws_differ_between_heads_and_cover_blocks_evenly():
    attention = make("bigbird", num_random_blocks=2)
    blocks = 20
    attended, valid = attention.attended_blocks(torch.tensor([blocks]), blocks)
    assert valid[0, 5].all()
    drawn = attended[0, :, 2:-2, 5:]
    assert (drawn[0] != drawn[1]).any()
    counts = torch.cat(
        [
            build("bigbird", Layer(0, 8, 8, D, E, 128, s), {"num_random_blocks": 2, "block_size": 4})
            .attended_blocks(torch.tensor([blocks]), blocks)[0][0, :, 9, 5:]
            .flatten()
            for s in range(100)
        ]
    ).bincount(minlength=blocks)
    assert counts[[0, 8, 9, 10, 19]].sum() == 0
    eligible = counts[counts > 0].double()
    assert len(eligible) == 15
    assert ((eligible - 1600 / 15).abs() < 5 * (1600 / 15) ** 0.5).all()


def test_bigbird_draws_of_neighbouring_blocks_tell_nothing_of_each_other():
    """A row's choice, moved by the distance of the rows, is another row's no oftener than by chance."""
    blocks = 64
    attended, _ = make("bigbird").attended_blocks(torch.tensor([blocks]), blocks)
    drawn = attended[0, :, :, 5]  # (H, blocks)
    for step in (-1, 1):
        moved = (drawn[:, 1:] - drawn[:, :-1] == step).double().mean()
        assert moved < 0.08  # one in 60 by chance


DEGENERATE = {
    "performer": {"global_tokens": 90},
    "longformer": {"window": 200, "global_tokens": 0},
    "bigbird": {"num_random_blocks": 30},
    "linformer": {"projected_length": 90},
}


@pytest.mark.parametrize("length", [None, torch.tensor([90, 50])])
@pytest.mark.parametrize("name", sorted(DEGENERATE))
def test_degenerate_cases_are_dense(name, length):
    N = 90
    layer = Layer(0, H, H, D, E, 128)
    attention = build(name, layer, SMALL[name] | DEGENERATE[name]).double()
    x = inputs(2, N)
    assert attention.covers(N)
    close(attend(attention, *x, length), attend(make("dense"), *x, length))


@pytest.mark.parametrize("name", ["bigbird", "bigbird global"])
def test_bigbird_s_dense_rule_does_not_change_the_function(name):
    """Just below and above the length at which a pattern covers all, reference equality holds."""
    attention = make(name)
    for N in range(12, 40):
        x = inputs(1, N)
        close(attend(attention, *x), expected(name, attention, *x))


@pytest.mark.dense_rule
@pytest.mark.parametrize("marks", [None, "scattered"])
def test_longformer_s_dense_rule_does_not_change_the_function(marks, monkeypatch):
    """Computed densely and as windows: the same outputs and gradients, padded."""
    attention, N = make("longformer"), 300
    length = torch.tensor([N, 290, 40, 0])
    global_BN = None
    if marks:
        global_BN = torch.zeros(4, N, dtype=torch.bool)
        global_BN[torch.tensor([0, 0, 1, 2]), torch.tensor([5, 299, 0, 30])] = True
    results = []
    for rule in (longformer.DENSE_UP_TO, 0):
        monkeypatch.setattr(longformer, "DENSE_UP_TO", rule)
        leaves = [x.requires_grad_() for x in inputs(4, N)]
        out = attend(attention, *leaves, length, global_BN=global_BN)
        out.square().sum().backward()
        results.append([out.detach(), *(x.grad for x in leaves)])
    for dense, windows in zip(*results, strict=True):
        close(dense, windows)
    monkeypatch.setattr(longformer, "DENSE_UP_TO", 100)
    for n in (20, 99, 100, 101):
        x, length = inputs(2, n), torch.tensor([n, n - 7])
        close(attend(attention, *x, length), expected("longformer", attention, *x, length))


@pytest.mark.dense_rule
def test_a_mask_that_changes_in_place_is_read_anew():
    attention, N = make("longformer"), 40
    global_BN = torch.zeros(1, N, dtype=torch.bool)
    global_BN[:, 0] = True
    x = inputs(1, N)
    for _ in range(2):
        close(
            attend(attention, *x, global_BN=global_BN),
            expected("longformer", attention, *x, global_BN=global_BN),
        )
        global_BN[:, 0], global_BN[:, 30] = False, True


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_batch_of_padding_alone(name):
    leaves = [x.requires_grad_() for x in inputs(2, 90)]
    out = attend(make(name), *leaves, torch.tensor([0, 0]))
    assert not out.any()
    out.sum().backward()
    assert all(x.grad is None or not x.grad.any() for x in leaves)


@pytest.fixture
def small_portions(monkeypatch):
    """Several groups of blocks, of heads, of rows and of tokens, though sequences are short."""
    from bakeoff.attention import bigbird, performer

    monkeypatch.setattr(longformer, "_GROUP", 1)
    monkeypatch.setattr(bigbird, "_GATHERED", 1)
    monkeypatch.setattr(performer, "_CHUNK", 1)
    monkeypatch.setattr(performer, "_LEAST", 10)


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize(
    "name", [name for name in MECHANISMS if name.split()[0] not in ("dense", "linformer")]
)
def test_portions_do_not_change_the_function(name, is_padded, small_portions):
    test_equals_reference_forward_and_every_gradient(name, 127, is_padded)


def test_linformer_weighs_the_tokens_of_a_segment_and_nothing_else():
    """However its pooling is weighted, a row that K covers is dense attention."""
    attention = make("linformer alone", projected_length=16)
    for learned in (attention.key_projection_KN, attention.value_projection_KN):
        torch.nn.init.zeros_(learned)
    q, k, v, hidden = inputs(2, 16)
    close(attend(attention, q, k, v, hidden), attend(make("dense"), q, k, v, hidden))
    long = inputs(2, 32)
    plain = build(
        "linformer", Layer(0, H, H, D, E, 128), {"projected_length": 16, "global_tokens": 0}
    ).double()
    assert (attend(attention, *long) - attend(plain, *long)).abs().max() > 0.01


def test_linformer_starts_as_dense_and_then_as_segment_means():
    layer = Layer(0, H, H, D, E, 128)
    attention = build("linformer", layer, {"projected_length": 16, "global_tokens": 0}).double()
    q, k, v, hidden = inputs(2, 64)
    short = [x[:, :, :16] for x in (q, k, v)]
    close(attend(attention, *short, hidden[:, :16]), attend(make("dense"), *short, hidden))
    means = [x.unflatten(2, (16, 4)).mean(3) for x in (k, v)]
    close(attend(attention, q, k, v, hidden), attend(make("dense"), q, *means, hidden))


def test_linformer_refuses_more_tokens_than_it_has_projections():
    with pytest.raises(BakeoffError) as caught:
        attend(make("linformer"), *inputs(1, 129))
    assert str(caught.value) == (
        "linformer: 129 tokens, but its projections hold 128; convert the encoder with a larger max_length."
    )


@pytest.mark.parametrize("marks", ["one", "scattered", "uneven", "none"])
@pytest.mark.parametrize("N", [9, 90])
def test_longformer_takes_any_global_tokens(N, marks):
    attention = make("longformer")
    global_BN = torch.zeros(2, N, dtype=torch.bool)
    if marks == "one":
        global_BN[:, 3] = True
    elif marks == "scattered":
        global_BN[:, ::4] = True
    elif marks == "uneven":
        global_BN[0, [0, 5, N - 1]] = True
    length = torch.tensor([N, N - 3])
    x = inputs(2, N)
    close(
        attend(attention, *x, length, global_BN=global_BN),
        expected("longformer", attention, *x, length, global_BN=global_BN & real_tokens(length, N)),
    )


@pytest.mark.parametrize("name", ["performer random", "performer random, global"])
def test_performer_converges_to_softmax(name):
    q, k, v, hidden = (x / 2 for x in inputs(1, 40))
    dense = attend(make("dense"), q, k, v, hidden)
    errors = []
    for features in (16, 256, 4096):
        attention = make(name, num_features=features)
        errors.append((attend(attention, q, k, v, hidden) - dense).abs().mean().item())
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_performer_s_global_tokens_attend_exactly_and_are_attended_to():
    """The first rows are dense; and a query that meets one of them finds it, whatever features say."""
    attention = make("performer", num_features=2)
    q, k, v, hidden = inputs(1, 40)
    close(attend(attention, q, k, v, hidden)[:, :, :3], attend(make("dense"), q, k, v, hidden)[:, :, :3])
    k[:, :, 1], k[:, :, 2], q = 50 * q[:, :, 9], -50 * q[:, :, 9], q[:, :, 9:10].expand_as(q)
    out = attend(attention, q, k, v, hidden)
    close(out[:, :, 30], v[:, :, 1], 1e-6)


def test_performer_rows_are_orthogonal_in_groups():
    projection = make("performer random").projection_HMD
    gram = projection[0, :D] @ projection[0, :D].T
    close(gram - torch.diag(gram.diagonal()), torch.zeros(D, D, dtype=gram.dtype), 1e-6)
    lengths = make("performer random", num_features=4096).projection_HMD.square().sum(-1)
    assert abs(lengths.mean().item() - D) < 0.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MECHANISMS)
def test_low_precision_stays_within_the_reference_s_own_error(name, dtype):
    length = torch.tensor([77, 50])
    x64 = inputs(2, 77)
    wanted = expected(name, make(name), *x64, length)
    x = [t.to(dtype) for t in x64]
    low = make(name, dtype)
    budget = (expected(name, low, *x, length).double() - wanted).abs().max()
    leaves = [t.requires_grad_() for t in x]
    out = attend(low, *leaves, length)
    assert out.dtype == dtype
    assert (out.double() - wanted).abs().max() <= 2 * budget + torch.finfo(dtype).eps
    out.float().square().sum().backward()
    assert all(t.grad is None or t.grad.isfinite().all() for t in leaves)


@pytest.mark.parametrize("name", MECHANISMS)
def test_dropout_is_applied_when_asked(name):
    attention, x = make(name), inputs(1, 90)
    torch.manual_seed(0)
    changed = (attend(attention, *x, dropout_p=0.5) - attend(attention, *x)).abs().amax(-1) > 1e-3
    assert changed.double().mean() > 0.9  # nearly every row, not those of some blocks alone


@pytest.mark.parametrize("name", sorted(set(MECHANISMS) - {"dense"}))
def test_no_quadratic_tensor(name):
    """The largest tensor of a forward and backward pass grows no faster than the sequence."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for t in out if isinstance(out, tuple | list) else (out,):
                if isinstance(t, torch.Tensor):
                    self.size = max(self.size, t.untyped_storage().nbytes())
            return out

    sizes = []
    for N in (512, 1024, 2048):
        options = {"bigbird": {"block_size": 16}, "bigbird global": {"block_size": 16, "global_tokens": 40}}
        attention = make(name, torch.float32, max_length=2048, **options.get(name, {}))
        leaves = [t.requires_grad_() for t in inputs(1, N, torch.float32)]
        with Largest() as largest:
            attend(attention, *leaves).sum().backward()
        sizes.append(largest.size)
    assert sizes[1] <= 2.1 * sizes[0]
    assert sizes[2] <= 2.1 * sizes[1]
    assert sizes[2] < H * 2048 * 2048 * 4


@pytest.mark.parametrize("name", MECHANISMS)
def test_flops_are_those_counted_and_linear(name):
    """The formula is the maths' own cost: what runs is that or more (whole blocks), by a constant factor."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    options = {
        "longformer": {"window": 64},
        "bigbird": {"block_size": 16},
        "bigbird global": {"block_size": 16, "global_tokens": 40},
    }.get(name, {})
    ratios, counted = [], []
    for N in (1024, 2048):
        attention = make(name, torch.float32, max_length=2048, **options)
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:  # of products the counter can see
            attend(attention, *inputs(1, N, torch.float32))
        counted.append(counter.get_total_flops())
        ratios.append(counted[-1] / attention.flops(N))
    assert 0.9 <= ratios[1] <= ratios[0] * 1.05
    assert ratios[0] < 2.5
    assert counted[1] < (4.1 if name == "dense" else 2.2) * counted[0]


@pytest.mark.parametrize("name", MECHANISMS)
def test_state_round_trips_and_starts_as_declared(name):
    layer = Layer(1, H, H, D, E, 64)
    attention = build(name.split()[0], layer, SMALL[name])
    for key, value in attention.initial_state().items():
        close(attention.state_dict()[key], value, 0)
    again = build(name.split()[0], replace(layer, seed=5), SMALL[name])
    again.load_state_dict(attention.state_dict())
    x = inputs(1, 60, torch.float32)
    if not name.startswith("bigbird"):  # its pattern is no state: it follows the seed, which the config keeps
        close(attend(again, *x), attend(attention, *x), 0)


def test_options_are_checked():
    assert options_of("longformer") == {"window": 512, "global_tokens": 1, "separate_global": True}
    assert resolve_options("longformer", {"window": (8, 16)})["window"] == [8, 16]  # as JSON has it
    assert resolve_options("bigbird", {"block_size": 16}) == {
        "block_size": 16,
        "num_random_blocks": 3,
        "global_tokens": 1,
    }
    for name, options, message in [
        ("longfromer", {}, "^unknown attention 'longfromer'. Did you mean 'longformer'"),
        ("longformer", {"windw": 3}, "^attention longformer: unknown option 'windw'. Did you mean 'window'"),
        ("longformer", {"window": "8"}, "window must be int"),
        ("longformer", {"window": True}, "window must be int"),
        ("dense", {"window": 8}, "has no options"),
    ]:
        with pytest.raises(BakeoffError, match=message):
            resolve_options(name, options)
    layer = Layer(1, H, H, D, E, 64)
    assert build("longformer", layer, {"window": [8, 16]}).window == 16
    even = "longformer: window is an even number of tokens from 2 up, not "
    needs = "num_features must be even and at least 2 where they are learned, not "
    for name, options, message in [
        ("longformer", {"window": [8]}, "attention longformer: window lists 1 values; layer 1 has none."),
        ("longformer", {"window": []}, "attention longformer: window must be int, not []."),
        ("longformer", {"window": [8, 7]}, f"{even}7."),
        ("longformer", {"window": 0}, f"{even}0."),
        ("longformer", {"window": -2}, f"{even}-2."),
        ("longformer", {"global_tokens": -1}, "longformer: global_tokens must not be negative, not -1."),
        ("bigbird", {"block_size": 0}, "bigbird: block_size is a number of tokens from 1 up, not 0."),
        ("bigbird", {"num_random_blocks": -1}, "bigbird: num_random_blocks must not be negative, not -1."),
        ("bigbird", {"global_tokens": 0}, "bigbird: global_tokens is a number from 1 up, not 0."),
        ("performer", {"num_features": 0}, f"performer: {needs}0."),
        ("performer", {"num_features": 7}, f"performer: {needs}7."),
        (
            "performer", {"num_features": 0, "feature_map": "random"},
            "performer: num_features must be at least 1, not 0.",
        ),
        (
            "performer", {"feature_map": "relu"},
            "unknown performer: feature_map 'relu'. Known: learned, random.",
        ),
        ("performer", {"global_tokens": -1}, "performer: global_tokens must not be negative, not -1."),
        ("linformer", {"projected_length": 0}, "linformer: projected_length must be at least 1, not 0."),
        ("linformer", {"global_tokens": -1}, "linformer: global_tokens must not be negative, not -1."),
        ("dense", {"window": 8}, "attention dense: has no options."),
    ]:  # fmt: skip
        with pytest.raises(BakeoffError) as caught:
            build(name, layer, options)
        assert str(caught.value) == message
    for name, options in [
        ("longformer", {"window": 2, "global_tokens": 0}),
        ("bigbird", {"block_size": 1, "num_random_blocks": 0}),
        ("performer", {"num_features": 2, "global_tokens": 0}),
        ("performer", {"num_features": 1, "feature_map": "random"}),
        ("linformer", {"projected_length": 1, "global_tokens": 0}),
    ]:
        attention = build(name, layer, options)
        assert {key: getattr(attention, key) for key in options if key != "feature_map"} == {
            key: value for key, value in options.items() if key != "feature_map"
        }


@pytest.mark.parametrize("name", MECHANISMS)
def test_rows_shorter_than_their_global_tokens(name):
    """Of none, of one, of two, and of as many others, beside a long one."""
    attention, x, length = make(name), inputs(5, 67), torch.tensor([67, 0, 1, 2, 6])
    close(attend(attention, *x, length), expected(name, attention, *x, length))


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("name", MECHANISMS)
def test_tensors_are_made_where_the_inputs_are(name, is_padded):
    """Whatever names no device would be made on another one here, and not work together."""
    attention, x = make(name), inputs(2, 77)
    length = torch.tensor([77, 50]) if is_padded else None
    for function in (attend, lambda *a: expected(name, *a)):
        wanted = function(attention, *x, length)
        with torch.device("meta"):
            close(function(attention, *x, length), wanted)
    if not is_padded:
        with torch.device("meta"):
            given = {"hidden_BNE": x[3][:1]} if "hidden_BNE" in attention.layer_inputs else {}
            weights(attention, x[0][:1], x[1][:1], scaling=1.0, **given)


@pytest.mark.parametrize("dense_up_to", [0, 512])
@pytest.mark.parametrize("exporting", [False, True])
@pytest.mark.parametrize("n", [5, 70])
@pytest.mark.parametrize("name", [*MECHANISMS, "window"])
def test_the_steps_of_a_graph_compute_the_same(name, n, exporting, dense_up_to, monkeypatch):
    """Taken eagerly, as they are recorded; for every length, at the one to which such a graph pads."""
    monkeypatch.setattr(longformer, "DENSE_UP_TO", dense_up_to)
    attention, x, length = make(name), inputs(2, n), torch.tensor([n, n - 2])
    wanted = expected(name, attention, *x, length)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: exporting)
    more = attention.traced_length(n) - n if exporting else 0
    out = attend(attention, *(torch.nn.functional.pad(t, (0, 0, 0, more)) for t in x), length)
    close(out[:, :, :n], wanted)
    assert not out[:, :, n:].any()


@pytest.mark.parametrize("radius", [1, 4, 70])  # 70: two blocks on either side
@pytest.mark.parametrize("length", [None, torch.tensor([200, 67, 1, 0])])
def test_windows_without_global_tokens(radius, length):
    """Forward and every gradient, of Longformer and of the local layers of families that alternate."""
    layer = Layer(0, H, H, D, E, 200)
    window = longformer.Window(layer, radius=radius)
    other = build("longformer", layer, {"window": 2 * radius, "global_tokens": 0}).double()
    results = []
    for function in (
        lambda *x: attend(window, *x, length),
        lambda *x: attend(other, *x, length),
        lambda *x: expected("window", window, *x, length),
    ):
        leaves = [t.requires_grad_() for t in inputs(4, 200)]
        out = function(*leaves)
        out.square().sum().backward()
        results.append([out.detach(), *(t.grad for t in leaves[:3])])
    for local, global_, wanted in zip(*results, strict=True):
        close(local, wanted)
        close(global_, wanted)
    x = inputs(4, 200)
    close(attend(window, *x, length, dropout_p=0.0), attend(window, *x, length), 0)
    torch.manual_seed(0)
    assert (attend(window, *x, length, dropout_p=0.5) - attend(window, *x, length)).abs().max() > 1e-3


def rotary(N, B=1, dtype=torch.float64):
    """cos and sin of angles that differ from row to row."""
    angles = torch.arange(N)[:, None] / 100.0 ** (torch.arange(0, D, 2) / D)
    angles = torch.cat((angles, angles), -1) + torch.arange(B)[:, None, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def test_rotation_is_transformers_own():
    q, k, _, _ = inputs(2, 9)
    cos, sin = rotary(9, 2)
    for x, wanted in zip((q, k), apply_rotary_pos_emb(q, k, cos, sin), strict=True):
        close(longformer.rotate(x, cos, sin), wanted)
    assert longformer.rotate(q.float(), cos, sin).dtype == torch.float32


@pytest.mark.parametrize("rotated", [None, 1, 2])
@pytest.mark.parametrize("count", [2, D + 1])  # more than a head has numbers: global keys are projected
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_longformer_s_own_projections_with_fewer_key_heads_and_rotation(kv_heads, count, rotated):
    layer = Layer(0, 4, kv_heads, D, E, 64)
    torch.manual_seed(7)
    attention = build("longformer", layer, {"window": 8, "global_tokens": count}).double()
    generator = torch.Generator().manual_seed(0)
    turn, length = (None if rotated is None else rotary(40, rotated)), torch.tensor([40, 23])
    results = []
    for function, kwargs in ((attend, {}), (lambda *a, **kw: expected("longformer", *a, **kw), {})):
        generator.manual_seed(0)
        heads = [torch.randn(2, 4, 40, D, generator=generator, dtype=torch.float64) for _ in range(3)]
        leaves = [t.requires_grad_() for t in (*heads, inputs(2, 40)[3])]
        attention.zero_grad()
        out = function(attention, *leaves, length, rotary=turn, **kwargs)
        out.square().sum().backward()
        results.append([out.detach(), *(t.grad.clone() for t in (*leaves, *attention.parameters()))])
    for actual, wanted in zip(*results, strict=True):
        close(actual, wanted, 1e-9)
    torch.nn.init.zeros_(attention.key_global.bias)  # as encoders start
    assert attend(attention, *leaves, length, rotary=turn).isfinite().all()


def test_longformer_drops_weights_of_its_global_rows_too():
    attention, x = make("longformer", window=200), inputs(1, 40)
    torch.manual_seed(0)
    out = attend(attention, *x, dropout_p=0.5)[:, :, :2]
    assert (out - attend(attention, *x)[:, :, :2]).abs().max() > 1e-3


def test_weights_hold_with_rotation_and_leave_the_mechanism_as_it_was():
    attention, (q, k, _, hidden) = make("longformer"), inputs(1, 40)
    before = dict(attention.named_modules())
    found = weights(attention, q, k, scaling=SCALING, hidden_BNE=hidden, rotary=rotary(40))
    assert dict(attention.named_modules()) == before
    own = attention.value_global(hidden).unflatten(-1, (H, D)).transpose(1, 2)
    mixed = torch.where(torch.arange(40)[:, None] < 2, found @ own[0], found @ k[0])
    close(mixed[None], expected("longformer", attention, q, k, k, hidden, rotary=rotary(40)))


@pytest.mark.parametrize(
    ("name", "n", "flops"),
    [
        ("dense", 100, 4 * H * D * 100 * 100),
        ("longformer", 100, 4 * H * D * 100 * (9 + 2 + 2)),
        ("longformer", 5, 4 * H * D * 5 * (5 + 2)),
        ("window", 100, 4 * H * D * 100 * 9),
        ("window", 5, 4 * H * D * 5 * 5),
        ("bigbird", 100, 4 * H * D * 100 * (4 * 6 + 8)),
        ("bigbird", 20, 4 * H * D * 20 * 20),
        ("bigbird global", 100, 4 * H * D * 100 * (4 * 8 + 4 * 4)),
        ("performer alone", 100, H * 100 * 4 * 24 * (D / 2 + D + 1)),
        ("performer", 100, H * 100 * (4 * 24 * (D / 2 + D + 1) + 8 * D * 3)),
        ("performer random, global", 100, H * 100 * (4 * 24 * (D + D + 1) + 8 * D * 3)),
        ("performer", 3, 4 * H * D * 3 * 3),
        ("linformer", 100, 8 * H * D * 100 * (8 + 3)),
        ("linformer", 3, 4 * H * D * 3 * 3),
        ("linformer", 4, 8 * H * D * 4 * (8 + 3)),
    ],
)
def test_flops_by_hand(name, n, flops):
    assert make(name).flops(n) == flops


@pytest.mark.parametrize(
    ("name", "longest"),
    [
        ("longformer", 5),
        ("window", 5),
        ("bigbird", 20),
        ("bigbird global", 28),
        ("performer", 3),
        ("linformer", 11),
    ],
)
def test_a_pattern_is_dense_up_to_a_length(name, longest):
    assert [make(name).covers(n) for n in (longest - 1, longest, longest + 1)] == [True, True, False]


def test_dense_attention_is_dense_at_any_length():
    assert make("dense").covers(1_000_000)


def test_linformer_projects_later_where_that_saves_work():
    assert [make("linformer alone").projects_later(n) for n in (7, 8, 9)] == [False, False, True]
    assert not make("linformer").projects_later(100)


@pytest.mark.parametrize("length", [None, torch.tensor([40, 23, 5, 0])])
def test_linformer_s_own_projections_of_summaries_are_those_of_all_tokens(length):
    attention, (q, _, _, hidden) = make("linformer alone"), inputs(4, 40)
    torch.manual_seed(0)
    key, value = (torch.nn.Linear(E, H * D).double() for _ in range(2))
    k, v = (project(hidden).unflatten(-1, (H, D)).transpose(1, 2) for project in (key, value))
    nothing = torch.full_like(k, torch.nan)
    out = attend(attention, q, nothing, nothing, hidden, length, key=key, value=value)
    close(out, expected("linformer alone", attention, q, k, v, hidden, length))


def test_means_of_segments_are_fp32_and_hold_at_large_weights():
    weight, slot = torch.tensor([[300.0, 301.0, -300.0, 2.0]]), torch.tensor([[0, 0, 1, 1]])
    means = segment_means(weight.bfloat16(), slot, None, 3)
    assert means.dtype == torch.float32
    first = torch.tensor([0.0, weight.bfloat16()[0, 1] - weight.bfloat16()[0, 0]]).softmax(0)
    close(means, torch.tensor([[[*first, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0], [0.0] * 4]]), 1e-6)


def test_what_a_mechanism_is_unless_it_says_otherwise():
    attention = Attention(Layer(0, H, H, D, E, 128))
    assert (attention.covers(1), attention.projects_later(1), attention.traced_length(7)) == (False, False, 7)
    assert (attention.initial_state(), attention.transferable()) == ({}, [])
    assert attention.full_flops(7) == 4 * H * D * 49
    for function in (lambda: attention.flops(1), lambda: attend(attention, *inputs(1, 3))):
        with pytest.raises(NotImplementedError):
            function()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("longformer", "longformer with separate global projections needs the layer's input."),
        ("linformer", "linformer needs the layer's input, hidden_BNE."),
    ],
)
def test_who_needs_the_layer_s_input_says_so(name, said):
    with pytest.raises(ValueError, match=f"^{said}$"):
        make(name)(*inputs(1, 90)[:3], scaling=1.0)


def test_what_transfer_may_fit():
    performer, linformer = make("performer"), make("linformer")
    assert {id(p) for p in performer.transferable()} == {id(p) for p in performer.parameters()}
    fitted = [
        name for name, p in linformer.named_parameters() if any(p is t for t in linformer.transferable())
    ]
    assert fitted == ["key_pooling_E", "value_pooling_E"]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", MECHANISMS)
def test_half_precision_beside_a_state_in_single(name, autocast):
    """An encoder's products are bf16, a mechanism's own parameters stay fp32."""
    if name == "longformer" and not autocast:
        pytest.skip("its projections are layers, as the encoder's own")
    attention, x, length = make(name, torch.float32), inputs(2, 77), torch.tensor([77, 50])
    wanted = expected(name, make(name, torch.float32).double(), *x, length)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = attend(attention, *(t.bfloat16() for t in x), length)
    assert out.dtype == torch.bfloat16
    assert (out.double() - wanted).abs().max() < 0.02 * wanted.abs().max()  # a few roundings to 8 bits


@pytest.mark.parametrize("name", sorted(ATTENTIONS))
def test_a_mechanism_built_by_hand_has_the_same_defaults(name):
    attention, options = ATTENTIONS[name](Layer(0, H, H, D, E, 64)), options_of(name)
    assert options.pop("feature_map", "learned") == "learned"
    assert {key: getattr(attention, key) for key in options} == options
    assert getattr(attention, "learned", True)


@pytest.mark.dense_rule
@pytest.mark.parametrize(
    ("name", "options", "longest", "lengths"),
    [
        ("dense", {}, 128, {1: 1, 9: 9}),
        ("longformer", {"window": 8}, 512, {1: 3, 9: 11}),  # computed densely
        ("longformer", {"window": 8}, 513, {1: 64, 30: 64, 31: 96, 62: 96, 63: 128}),
        ("longformer", {"window": 400}, 800, {9: 11}),  # two windows
        ("longformer", {"window": 400}, 801, {9: 128}),
        ("longformer", {"window": 126}, 801, {9: 64}),
        ("longformer", {"window": 128}, 801, {9: 128, 62: 128, 63: 192}),
        ("window", {"radius": 4}, 513, {1: 64, 32: 64, 33: 96}),
        ("window", {"radius": 4}, 512, {1: 1}),
        ("bigbird", {}, 128, {1: 8, 4: 8, 5: 12, 8: 12, 9: 16}),
        ("bigbird global", {}, 128, {1: 16, 4: 16, 5: 20}),
        ("bigbird", {"global_tokens": 1_000_000}, 128, {1: 1, 9: 9}),  # computed densely
        ("bigbird", {}, 20, {1: 1, 9: 9}),
        ("bigbird", {}, 21, {1: 8, 9: 16}),
        ("performer", {}, 128, {1: 4, 9: 12}),
        ("linformer", {}, 128, {1: 4, 9: 12}),
    ],
)
def test_lengths_to_which_a_graph_pads(name, options, longest, lengths):
    attention = make(name, max_length=longest, **options)
    assert {n: attention.traced_length(n) for n in lengths} == lengths


def test_a_window_as_long_as_the_longest_sequence_pads_no_graph(monkeypatch):
    """Whatever the rule for short sequences says."""
    lengths = [make("window", radius=40, max_length=longest).traced_length(9) for longest in (41, 42)]
    assert lengths == [9, 64]


def test_what_is_remembered():
    built = []
    remembered = base.cached(lambda *of: built.append(of) or torch.ones(2))
    with torch.inference_mode():
        first = remembered(3)
    assert remembered(3) is first
    (first * torch.ones(2, requires_grad=True)).sum().backward()  # no tensor of inference alone
    assert remembered(4) is not first
    assert remembered(3, keep=False) is not first
    assert built == [(3,), (4,), (3,)]


def test_nothing_is_remembered_in_a_graph(monkeypatch):
    remembered = base.cached(lambda: object())
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert remembered() is not remembered()


def test_performer_s_portions_hold_a_chunk_of_features(monkeypatch):
    from bakeoff.attention import performer

    attention = make("performer")
    monkeypatch.setattr(performer, "_CHUNK", H * 24 * 100 + 1)
    assert [attention._portions(torch.empty(9, H, N, D)) for N in (30, 50, 101)] == [
        (3, 100), (2, 100), (1, 100),
    ]  # fmt: skip
    monkeypatch.setattr(performer, "_CHUNK", 1)
    assert attention._portions(torch.empty(9, H, 30, D)) == (1, performer._LEAST)
    assert attention._portions(torch.empty(9, H, 30, D, device="meta")) == (None, None)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert attention._portions(torch.empty(9, H, 30, D)) == (None, None)


def test_a_gpu_alone_takes_the_fused_exponential(monkeypatch):
    from bakeoff.attention import performer

    class OnGPU(torch.Tensor):
        is_cuda = True

    calls = []
    monkeypatch.setattr(performer, "_fused", lambda: lambda *of: calls.append(of) or "fused")
    x, dims = torch.tensor([[1.0, 3.0]]), (-1,)
    assert performer._exponential(x.clone(), dims)[1].item() == 3.0
    assert not calls
    assert performer._exponential(there := x.as_subclass(OnGPU), dims) == "fused"
    assert calls == [(there, dims)]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert performer._exponential(there, dims)[1].item() == 3.0


def test_performer_starts_from_seed_and_layer_and_as_a_mean():
    """Rows as `_orthogonal` draws them, a head after the other; and φ(q) · φ(k) exp(b) is 1."""
    from bakeoff.attention import performer

    layer = Layer(2, H, H, D, E, 128, seed=3)
    state = build("performer", layer, {"num_features": 24, "global_tokens": 3}).state_dict()
    generator = torch.Generator().manual_seed(3 * 1_000_003 + 2)
    heads = torch.stack([performer._orthogonal(12, D, generator) for _ in range(H)])
    close(state["query_projection_HMD"], heads, 0)
    close(state["key_projection_HMD"], heads, 0)
    close(4 / 24 * state["weight_H"].exp(), torch.ones(H), 1e-6)
    assert not state["query_weight_HD"].any()
    assert not state["key_weight_HD"].any()


def test_performer_drops_the_share_of_its_output_that_is_asked_for():
    torch.manual_seed(0)
    dropped = attend(make("performer"), *inputs(2, 90), dropout_p=0.9) == 0
    assert 0.85 < dropped.double().mean() < 0.95


@pytest.mark.parametrize("name", [name for name in MECHANISMS if name.startswith("performer")])
def test_performer_computes_in_single_precision_at_least(name):
    """So that of numbers in bf16 only the output is rounded."""
    attention, length = make(name, torch.bfloat16), torch.tensor([77, 50])
    x = [t.bfloat16() for t in inputs(2, 77)]
    wanted = expected(name, make(name, torch.bfloat16).double(), *(t.double() for t in x), length)
    error = (attend(attention, *x, length).double() - wanted).abs()
    assert (error <= 2**-8 * wanted.abs() + 1e-4).all()  # half of the last of 8 bits


@pytest.mark.parametrize("name", [name for name in MECHANISMS if name.startswith("performer")])
def test_portions_shorter_than_a_head_is_wide(name, monkeypatch):
    from bakeoff.attention import performer

    monkeypatch.setattr(performer, "_CHUNK", 1)
    monkeypatch.setattr(performer, "_LEAST", D - 5)
    attention, x, length = make(name), inputs(2, 20), torch.tensor([20, 11])
    close(attend(attention, *x, length), expected(name, attention, *x, length))
