"""The benchmark: equal before timed, figures that follow from each other, and refusals of one line."""

import dataclasses
import importlib.metadata
import inspect
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
import torch

from bakeoff import bench, cli
from bakeoff.attention import ATTENTIONS
from bakeoff.attention.base import Layer
from bakeoff.attention.performer import Performer
from bakeoff.bench import gate, measure, peers, picture, result, subjects, timing
from bakeoff.encoder import packing
from bakeoff.errors import BakeoffError
from bakeoff.spec import AttentionSpec

#: Every peer's name and mechanism, with options small enough for 256 tokens to be sparse.
SMALL = {
    "dense": "dense",
    "longformer": "longformer:window=32,global_tokens=2",
    "bigbird": "bigbird:block_size=16,num_random_blocks=2",
    "performer": "performer:feature_map=random,num_features=32,global_tokens=0",
    "linformer": "linformer:projected_length=32,global_tokens=0",
}


def test_the_command_line_has_the_spec_s_defaults_and_every_mechanism():
    spec = bench.BenchSpec()
    assert [attention.name for attention in spec.attentions] == [*ATTENTIONS]
    options = inspect.signature(cli.bench).parameters
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        text = ",".join(map(str, value)) if isinstance(value, tuple) else value
        assert options[field.name.replace("phases", "phase")].default == text, field.name


PEERS = {f"{peer.name} {peer.attention}": peer for peer in peers.PEERS}


def small(*attentions, **changes):
    """A spec of two tiny layers and 256 tokens."""
    given = tuple(AttentionSpec.parse(attention) for attention in attentions)
    sizes = {"hidden_size": 32, "num_heads": 4, "num_layers": 2, "intermediate_size": 64, "repeats": 1}
    return bench.BenchSpec(**{"attentions": given, "lengths": (256,), **sizes, **changes})


def installed(*names):
    for name in names:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{name} is not installed")


def pair(spec, peer):
    """Ours and the peer, built as `measure` builds them, and their input."""
    (row_lengths,) = spec.batches()
    length = max(row_lengths)
    model = subjects.converted(spec, spec.attentions[0], subjects.encoder_config(spec, length))
    real_BN = torch.arange(length) < torch.tensor(row_lengths)[:, None]
    theirs = peer.build(model, real_BN)
    built = gate.Pair(str(spec.attentions[0]), peer, model, subjects.ours(model, real_BN), theirs)
    embeddings = torch.randn(
        len(row_lengths), length, spec.hidden_size, generator=torch.Generator().manual_seed(0)
    )
    return built, embeddings, row_lengths


@pytest.mark.parametrize("row_lengths", [(256,), (250, 241, 100)], ids=["full", "padded"])
@pytest.mark.parametrize("level", ["attention", "encoder"])
@pytest.mark.parametrize("name", PEERS)
def test_every_peer_equals_ours_and_the_gate_sees_a_changed_weight(name, level, row_lengths):
    peer = PEERS[name]
    installed(peer.distribution)
    if peer.attention == "linformer" and len(row_lengths) > 1:
        row_lengths = (256, 241, 100)
    spec = small(SMALL[peer.attention], level=level, row_lengths=row_lengths)
    built, embeddings, row_lengths = pair(spec, peer)
    line = gate.equal_to_peer(spec, built, embeddings, row_lengths)
    assert f"equals {peer.name} at {max(row_lengths)} tokens" in line
    assert ("rows" in line) == (len(row_lengths) > 1 and peer.rows is not peers._every_row)
    # A hundredth of one matrix is enough, though residuals and norms follow.
    with torch.no_grad():
        built.model.model.base_model.get_parameter("encoder.layer.0.attention.self.value.weight").mul_(1.01)
    with pytest.raises(BakeoffError, match=r"differs by .* no figure is given"):
        gate.equal_to_peer(spec, built, embeddings, row_lengths)


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_equals_ours_row_by_row(name, monkeypatch):
    monkeypatch.setattr(packing, "ONE_BY_ONE", 1)
    peer = PEERS[name]
    installed(peer.distribution)
    spec = small(SMALL[peer.attention], level="encoder", row_lengths=(256, 100))
    assert f"equals {peer.name}" in gate.equal_to_peer(spec, *pair(spec, peer))


@pytest.mark.parametrize("level", ["attention", "encoder"])
def test_modernbert_equals_the_stock_one(level):
    spec = small("dense", level=level, encoder="modernbert", row_lengths=(200, 90))
    built, embeddings, row_lengths = pair(spec, PEERS["sdpa dense"])
    assert "outputs within" in gate.equal_to_peer(spec, built, embeddings, row_lengths)


def test_bigbird_takes_the_peer_s_blocks_for_the_gate_alone():
    spec = small(SMALL["bigbird"])
    built, embeddings, row_lengths = pair(spec, PEERS["transformers bigbird"])
    gate.equal_to_peer(spec, built, embeddings, row_lengths)
    assert "attended_blocks" not in vars(built.model.mechanisms()[0])
    without = dataclasses.replace(PEERS["transformers bigbird"], same_pattern=peers.Peer.same_pattern)
    with pytest.raises(BakeoffError, match="differs"):
        gate.equal_to_peer(spec, dataclasses.replace(built, peer=without), embeddings, row_lengths)


def test_bigbird_at_the_length_where_the_peer_draws_its_last_block():
    spec = small("bigbird:block_size=32,num_random_blocks=2", row_lengths=(1024, 1000))
    built, embeddings, row_lengths = pair(spec, PEERS["transformers bigbird"])
    assert "rows without padding only" in gate.equal_to_peer(spec, built, embeddings, row_lengths)
    with pytest.raises(BakeoffError, match="padded from 1000 to 1024"):
        built.peer.check("bert", {"block_size": 32, "num_random_blocks": 2, "global_tokens": 1}, 1000)


@pytest.mark.parametrize("attention", SMALL)
def test_every_mechanism_equals_its_reference(attention):
    line = gate.equal_to_reference(small("dense"), AttentionSpec.parse(SMALL[attention]))
    assert "n x n reference at 331 tokens" in line


def test_a_mechanism_that_is_not_its_reference_is_refused(monkeypatch):
    forward = Performer.forward
    monkeypatch.setattr(Performer, "forward", lambda *args, **kwargs: forward(*args, **kwargs) * 1.001)
    with pytest.raises(BakeoffError, match=r"performer.* and its reference, 331 tokens: the output differs"):
        gate.equal_to_reference(small("dense"), AttentionSpec.parse(SMALL["performer"]))


def test_flops_are_those_of_the_formula():
    E, I, n = 32, 64, 256  # noqa: E741
    mechanism = Performer(Layer(0, 4, 4, 8, E, n), num_features=32, feature_map="random", global_tokens=0)
    for level, linear in (("attention", 4 * E * E), ("encoder", 2 * (4 * E * E + 2 * E * I))):
        spec = small(SMALL["performer"], level=level)
        model = subjects.converted(spec, spec.attentions[0], subjects.encoder_config(spec, n))
        layers = 1 if level == "attention" else 2
        wanted = sum(2 * linear * length + layers * mechanism.flops(length) for length in (n, 100))
        assert subjects.flops(model, level, (n, 100)) == wanted


def test_peak_memory_is_the_most_held_at_a_time():
    x = torch.ones(256, 256)  # a quarter MiB

    def step():
        first = x + 1
        second = first + 1
        del first
        return second * 2

    assert 2 * 2**18 <= timing.peak_memory(step, "cpu") < 2.1 * 2**18


def test_rounds_take_turns_and_time_the_second_call():
    order = []
    steps = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = timing.rounds(steps, 2, "cpu", lambda: order.append("|"))
    assert "".join(order) == "aabbcc|aabbcc|"
    assert {name: len(values) for name, values in seconds.items()} == dict.fromkeys("abc", 2)


def made(subject, length, seconds, phase="training", peer=None, attention=None):
    return result.row(subject, attention or subject, peer, phase, (length,), seconds, 1e6, 1e9, 2**20)


def test_ratios_are_taken_round_by_round():
    rows = [
        made("longformer", 512, (1.0, 2.0, 4.0)),
        made("transformers longformer", 512, (3.0, 2.0, 8.0), peer="transformers", attention="longformer"),
        made("sdpa", 512, (1.0, 2.0, 4.4), peer="sdpa", attention="dense"),
        made("sdpa", 1024, (9.0, 9.0, 9.0), peer="sdpa", attention="dense"),
    ]
    equal, baseline = result.ratios(rows)
    assert (equal.median, equal.low, equal.high) == (2.0, 1.0, 3.0)
    assert equal.resolved
    assert equal.same_function
    assert (baseline.median, baseline.high) == (1.0, pytest.approx(1.1))
    assert not baseline.resolved
    assert not baseline.same_function
    for seconds, resolved in ((1.19, False), (1.21, True), (1 / 1.19, False), (1 / 1.21, True)):
        rows = [made("dense", 512, (1.0,)), made("sdpa", 512, (seconds,), peer="sdpa", attention="dense")]
        assert result.ratios(rows)[0].resolved is resolved


@pytest.mark.parametrize(
    ("times", "length"),
    [
        ((1, 1, 1), 256),
        ((3, 1, 1), 512),
        ((1, 3, 1), 1024),
        ((1, 1, 3), None),
        ((2, 2, 2), None),
        ((1.7, 1.66, 1.66), 512),  # 1.2 times as fast, or more: less may be noise
    ],
)
def test_a_crossover_holds_for_all_longer_lengths(times, length):
    lengths = (256, 512, 1024)
    rows = [made("bigbird", n, (float(t),)) for n, t in zip(lengths, times, strict=True)]
    rows += [made("dense", n, (2.0,)) for n in lengths]
    (found,) = result.crossovers(rows)
    assert (found.subject, found.baseline, found.length, found.longest) == ("bigbird", "dense", length, 1024)
    assert result.crossovers(rows[:3]) == ()


def test_the_whole_way(call, tmp_path):
    """Figures of JSON, Markdown and terminal are the same; the picture is XML; what is written reads back."""
    attentions = ",".join(spec.replace(",", ";") for spec in SMALL.values())
    code, stdout, stderr = call(
        "bench", "--lengths", "256,384", "--attentions", attentions, "--against", "sdpa,transformers",
        "--hidden-size", 32, "--num-heads", 4, "--repeats", 2, "--threads", 1,
        "--output-dir", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, stderr
    values = json.loads((tmp_path / "out" / "bench.json").read_text())
    found = result.BenchResult.from_dict(values)
    assert found.to_dict() == values
    assert found.command.startswith(
        "bakeoff bench --lengths 256,384 --attentions 'dense,longformer:window=32"
    )
    assert found.settings["lengths"] == [256, 384]
    assert len(found.gate) == 2 + 2 * 3  # performer's and linformer's reference; three pairs at two lengths
    assert len(found.rows) == 2 * 2 * (5 + 3)
    for row in found.rows:
        assert len(row.seconds) == 2
        assert row.tokens_per_second == pytest.approx(row.length / row.median)
        assert row.gemm_share == pytest.approx(row.flops / row.median / found.gemm_flops_per_second)
        assert row.memory_bytes > 4 * row.length * 32  # the output is among it
    for ratio in found.ratios:
        assert ratio.low <= ratio.median <= ratio.high
    assert {c.subject for c in found.crossovers} == {str(AttentionSpec.parse(s)) for s in SMALL.values()} - {
        "dense"
    }
    document = (tmp_path / "out" / "bench.md").read_text()
    assert f"{1000 * found.rows[0].median:,.2f}" in document
    assert f"{1000 * found.rows[0].median:,.2f}" in stdout
    assert "2 timed rounds" in document
    assert "(bench.svg)" in document
    ElementTree.fromstring((tmp_path / "out" / "bench.svg").read_text())


def test_a_padded_batch_in_bf16(tmp_path):
    spec = small(
        SMALL["longformer"], level="encoder", row_lengths=(200, 77), phases=("training",), dtype="bf16"
    )
    found = bench.bench(spec)
    assert {row.subject for row in found.rows} == {"longformer:global_tokens=2,window=32", "sdpa"}
    assert found.rows[0].tokens_per_second == pytest.approx(277 / found.rows[0].median)
    paths = bench.write(found, tmp_path)
    assert [path.name for path in paths] == ["bench.json", "bench.md"]  # one length has no line
    assert "200 + 77" in paths[1].read_text()


def test_the_picture_escapes_names():
    rows = [made(name, n, (n / 1e3,)) for name in ("<b>&", "dense") for n in (256, 512)]
    found = result.BenchResult(
        "", "", {}, {"level": "attention"}, 1e9, (), tuple(rows), (), result.crossovers(rows)
    )
    drawn = picture.picture(found)
    assert "<b>" not in drawn
    texts = [element.text for element in ElementTree.fromstring(drawn).iter()]
    assert texts.count("<b>&") == 2  # time and memory


def test_results_are_read_and_drawn_without_torch():
    code = (
        "import sys; from bakeoff.bench import BenchSpec, write; from bakeoff.bench.picture import picture;"
        "from bakeoff.bench.tables import tables; assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def refused(answer, *said):
    """One line on stderr, exit code 2, nothing else."""
    code, stdout, stderr = answer
    assert code == 2, stderr
    assert not stdout
    assert stderr.startswith("error: "), stderr
    assert len(stderr.splitlines()) == 1, stderr
    for part in said:
        assert part in stderr


def test_bad_input_gives_one_line(call, tmp_path, monkeypatch):
    out = ["--output-dir", tmp_path / "out"]
    for arguments, said in [
        (["--level", "atention"], "Did you mean 'attention'"),
        (["--phase", "train"], "Did you mean 'training'"),
        (["--lengths", "512,1e3"], "lengths are whole numbers"),
        (["--lengths", ""], "lengths is a list of at least one"),
        (["--lengths", "512,512"], "each once"),
        (["--row-lengths", "512,0"], "row_lengths must be at least 1"),
        (["--repeats", "0"], "repeats must be at least 1"),
        (["--threads", "99999999999"], "threads must be at least 1 and below 2^31"),
        (["--seed", "99999999999999999999999"], "seed must be at least 0 and below 2^32"),
        (["--num-heads", "5"], "multiple of num_heads"),
        (["--attentions", "longfomer"], "Did you mean 'longformer'"),
        (["--attentions", "longformer:windw=8"], "Did you mean 'window'"),
        (["--against", "transfomers"], "Did you mean 'transformers'"),
        (
            ["--attentions", "dense", "--against", "transformers"],
            "bigbird and longformer: add it to --attentions",
        ),
        (
            ["--lengths", "704", "--attentions", "bigbird", "--against", "transformers"],
            "lengths start above 704",
        ),
        (
            ["--lengths", "1024", "--attentions", "bigbird:global_tokens=65", "--against", "transformers"],
            "global_tokens of 64 or less",
        ),
        (
            ["--encoder", "modernbert", "--attentions", "longformer", "--against", "transformers"],
            "no modernbert",
        ),
        (["--attentions", "longformer:separate_global=false", "--against", "transformers"], "of their own"),
    ]:
        refused(call("bench", *arguments, *out), said)
    (tmp_path / "file").write_text("kept")
    refused(
        call("bench", "--output-dir", tmp_path / "file"), "cannot write to", "choose another --output-dir"
    )
    refused(call("bench", "--output-dir", tmp_path / "file" / "below"), "cannot write to")
    assert (tmp_path / "file").read_text() == "kept"
    if not torch.cuda.is_available():
        refused(call("bench", "--device", "cuda", *out), "no such device")
    installed("linformer")
    installed("performer-pytorch")
    learned = ["--attentions", "performer", "--against", "performer-pytorch"]
    refused(
        call("bench", "--lengths", "256", *learned, *out),
        "write performer:feature_map=random;global_tokens=0",
    )
    linformer = ["--attentions", "linformer:projected_length=96;global_tokens=0", "--against", "linformer"]
    refused(
        call("bench", "--lengths", "256", *linformer, *out), "multiples of projected_length (96), not 256"
    )

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    refused(call("bench", "--lengths", "192", *linformer, *out), "linformer is not installed", ".[peers]")
    assert not (tmp_path / "out").exists()


def test_a_failing_gate_writes_and_prints_nothing(call, tmp_path, monkeypatch):
    copied = peers._stock

    def wrong(model, implementation):
        base = copied(model, implementation)
        with torch.no_grad():
            base.encoder.layer[0].attention.self.query.weight[0] += 1
        return base

    monkeypatch.setattr(peers, "_stock", wrong)
    refused(
        call("bench", "--lengths", "128", "--attentions", "dense", "--hidden-size", 32, "--num-heads", 4,
             "--output-dir", tmp_path / "out"),
        "dense and sdpa, 128 tokens: the output differs by",
    )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_an_interrupted_benchmark_says_what_is_left(call, tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(timing, "gemm_rate", interrupt)
    code, _, stderr = call(
        "bench", "--lengths", "64", "--attentions", "dense", "--hidden-size", 32, "--num-heads", 4,
        "--output-dir", tmp_path / "out",
    )  # fmt: skip
    assert code == 130
    assert stderr.splitlines() == ["interrupted; nothing was written"]
    assert not (tmp_path / "out").exists()


def test_every_choice_is_known_to_the_spec():
    assert measure.DTYPES.keys() == set(bench.spec.DTYPES)
    assert subjects.FAMILIES.keys() == set(bench.spec.ENCODERS)
