"""The GPU's kernel: its patterns against the references here, the kernel itself where there is a GPU."""

from types import SimpleNamespace

import pytest
import torch

from bakeoff.attention import Layer, build, flex, longformer
from bakeoff.attention.base import real_tokens
from bakeoff.attention.reference import REFERENCES

H, D = 2, 16
SCALING = 0.3  # not D ** -0.5, the kernel's own
SPARSE = {
    "longformer": {"window": 300, "global_tokens": 2},
    "bigbird": {"block_size": 64, "num_random_blocks": 1},
    "bigbird global": {"block_size": 64, "num_random_blocks": 1, "global_tokens": 70},
}


def make(name, N, device="cpu", dtype=torch.float32, **options):
    torch.manual_seed(0)
    layer = Layer(0, H, H, D, H * D, N)
    return build(name.split()[0], layer, SPARSE.get(name, {}) | options).to(device, dtype).eval()


def inputs(B, N, device="cpu", dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    heads = [torch.randn(B, H, N, D, generator=generator) for _ in range(3)]
    return [x.to(device, dtype) for x in (*heads, torch.randn(B, N, H * D, generator=generator))]


def call(attention, q, k, v, hidden, length):
    extra = {"hidden_BNE": hidden} if "hidden_BNE" in attention.layer_inputs else {}
    return attention(q, k, v, length, scaling=SCALING, **extra)


def expected(name, attention, q, k, v, hidden, length):
    extra = {"hidden_BNE": hidden} if "hidden_BNE" in attention.layer_inputs else {}
    full = torch.full((len(q),), q.shape[2], device=q.device)
    keep_BN = real_tokens(full if length is None else length, q.shape[2])
    return REFERENCES[name.split()[0]](attention, q, k, v, keep_BN, SCALING, **extra)


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("name", sorted(SPARSE))
def test_patterns_by_tokens_and_by_blocks_are_the_references(name, is_padded, monkeypatch):
    """Eager flex_attention asks `allowed` for every pair, and reads no table of blocks: those must agree."""
    N = 700
    attention, x = make(name, N), inputs(2, N)
    length = torch.tensor([N, 333]) if is_padded else None
    wanted = expected(name, attention, *x, length)
    masks = []
    block_mask = flex.block_mask
    anew = longformer._window_mask.__wrapped__  # though an earlier test may have had the same pattern
    monkeypatch.setattr(longformer, "_window_mask", lambda *args, keep: anew(*args))
    monkeypatch.setattr(flex, "applies", lambda q, dropout_p: dropout_p == 0.0)
    monkeypatch.setattr(flex, "block_mask", lambda *args: masks.append(args) or block_mask(*args))
    monkeypatch.setattr(flex, "_compiled", lambda: torch.nn.attention.flex_attention.flex_attention)
    with torch.no_grad():
        torch.testing.assert_close(call(attention, *x, length), wanted, rtol=1e-4, atol=1e-5)
    allowed, touched, whole, _ = masks[0]
    assert not touched.all()  # something is skipped
    assert (whole & touched).any()
    # A block that is not touched holds nothing, one that is whole holds everything.
    b, h, i, j = torch.meshgrid(*(torch.arange(n) for n in (2, H, N, N)), indexing="ij")
    pattern = allowed(b, h, i, j)
    for row in range(touched.shape[2]):
        for column in range(touched.shape[3]):
            first, second = row * flex.BLOCK, column * flex.BLOCK
            tile = pattern[:, :, first : first + flex.BLOCK, second : second + flex.BLOCK].flatten(2)
            assert not (tile.any(-1) & ~touched[..., row, column]).any()
            assert not (whole[..., row, column] & touched[..., row, column] & ~tile.all(-1)).any()


@pytest.mark.parametrize(
    ("change", "applies"),
    [
        ({}, True),
        ({"is_cuda": False}, False),
        ({"dropout_p": 0.1}, False),
        ({"size": 15}, False),
        ({"dtype": torch.float64}, False),
        ({"capability": (6, 9)}, False),
        ({"capability": (8, 0)}, True),
        ({"triton": False}, False),
    ],
)
def test_where_the_kernel_applies(change, applies, monkeypatch):
    case = {"is_cuda": True, "dropout_p": 0.0, "size": 16, "dtype": torch.float32, "capability": (7, 0)}
    case |= {"triton": True, "device": "the q's own"} | change
    monkeypatch.setattr(flex, "_has_triton", lambda: case["triton"])
    asked = []
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: asked.append(device) or case["capability"]
    )
    q = SimpleNamespace(shape=(1, H, 100, case["size"]), **case)
    assert flex.applies(q, case["dropout_p"]) == applies
    assert set(asked) <= {"the q's own"}


def test_blocks_are_listed_whole_ones_apart():
    """Query blocks 0 to 2: nothing, one block in part, one in part between two whole ones."""
    touched = torch.tensor([[[[0, 0, 0], [0, 1, 0], [1, 1, 1]]]]).bool()
    whole = torch.tensor([[[[1, 0, 0], [0, 0, 1], [1, 0, 1]]]]).bool()  # of what is not touched, no matter

    def allowed(b, h, i, j):
        return i >= 0

    mask = flex.block_mask(allowed, touched, whole, 300)
    assert mask.kv_num_blocks.tolist() == [[[0, 1, 1]]]
    assert mask.kv_indices[0, 0, 1:, 0].tolist() == [1, 1]
    assert mask.full_kv_num_blocks.tolist() == [[[0, 0, 2]]]
    assert mask.full_kv_indices[0, 0, 2, :2].tolist() == [0, 2]
    assert {t.dtype for t in (mask.kv_num_blocks, mask.kv_indices)} == {torch.int32}  # what the kernel reads
    assert (mask.seq_lengths, mask.BLOCK_SIZE, mask.mask_mod) == ((300, 300), (128, 128), allowed)


def test_a_process_may_need_more_kernels_than_dynamo_makes_by_itself(monkeypatch):
    """Of a head size each; the limit was 8. The backend compiles nothing, so that it runs on a CPU."""
    torch._dynamo.reset()
    compiled = torch.compile(flex.flex_attention, dynamic=True, fullgraph=True, backend="eager")
    monkeypatch.setattr(flex, "_compiled", lambda: compiled)
    one = torch.ones(1, 1, 1, 1).bool()
    mask = flex.block_mask(lambda b, h, i, j: i >= 0, one, one, 100)
    for size in range(16, 30):
        q, k, v = torch.randn(3, 1, 1, 100, size)
        expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        torch.testing.assert_close(flex.attend(q, k, v, mask, scaling=size**-0.5), expected)
    torch._dynamo.reset()


@pytest.mark.parametrize("compiling", [False, True])
def test_the_kernel_gets_what_was_given(compiling, monkeypatch):
    calls = []

    def kernel(*args, **kwargs):
        calls.append((args, kwargs))
        return "out"

    name = "flex_attention" if compiling else "_compiled"
    monkeypatch.setattr(flex, name, kernel if compiling else lambda: kernel)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    q, k, v = torch.randn(3, 1, 1, 4, 16)
    half = torch.bfloat16
    assert flex.attend(q, k, v.to(half), "mask", scaling=0.3) == "out"  # as autocast leaves a rotation
    [(given, settings)] = calls
    assert [x.dtype for x in given] == [half] * 3
    assert all(map(torch.equal, given, (q.to(half), k.to(half), v.to(half))))
    assert settings == {"block_mask": "mask", "scale": 0.3}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_on_a_gpu_equals_the_reference_forward_and_every_gradient(name, is_padded, dtype):
    N = 1000
    length = torch.tensor([N, 333], device="cuda") if is_padded else None
    results = []
    for kind in (torch.float64, dtype):
        attention = make(name, N, "cuda", kind)
        leaves = [x.requires_grad_() for x in inputs(2, N, "cuda", kind)]
        function = (lambda *a: expected(name, *a)) if kind == torch.float64 else call
        out = function(attention, *leaves, length)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
        (out * weight).sum().backward()
        gradients = [x.grad for x in (*leaves, *attention.parameters()) if x.grad is not None]
        results.append([out, *gradients])
    for wanted, actual in zip(*results, strict=True):
        limit = 2e-2 if dtype == torch.bfloat16 else 5e-3  # fp32 products may run as TF32
        assert (actual.double() - wanted).abs().max() <= limit * wanted.abs().max()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", sorted(SPARSE))
def test_a_gpu_makes_no_quadratic_tensor(name):
    sizes = []
    for N in (4096, 8192):
        x = inputs(1, N, "cuda", torch.bfloat16)
        with torch.no_grad():
            call(make(name, N, "cuda", torch.bfloat16), *x, None)  # compiles
            # Another layer, whose pattern is built anew.
            attention = make(name, N, "cuda", torch.bfloat16, **{"longformer": {"window": 200}}.get(name, {}))
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            call(attention, *x, None)
        sizes.append(torch.cuda.max_memory_allocated() - before)
    assert sizes[1] < 2.5 * sizes[0]
