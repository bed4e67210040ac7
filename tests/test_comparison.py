import dataclasses
import io
import json
import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

import fixture_runs
from bakeoff import comparison as comparing
from bakeoff import report, runs, stats
from bakeoff.comparison import compare, verdict
from bakeoff.errors import BakeoffError
from bakeoff.export import card
from bakeoff.metrics import METRICS
from bakeoff.text import markdown_escape, p_text
from fixture_runs import write_run

GOLDEN = """\
## imdb

evaluated on a sample of 200 of 12,432 rows

- dense and performer are tied (p = 0.50): dense has 85.00 % (79.39 to 89.29), and the other may be up to \
9.8 points behind.
- Choose dense: none of the tied is 1.2 × cheaper to train or to evaluate without being dearer in the other.
- 200 rows and 1 seed are few: they tell a difference of 10.4 points from chance four times in five, a \
smaller one less often.
- With one seed, intervals and p are for the evaluation rows alone; another seed may move figures further.
- Seconds are wall time; the records cannot see what else the machine did.

| attention         | train loss | train s | eval accuracy % | eval s | ECE % |    p | seeds |
|-------------------|-----------:|--------:|----------------:|-------:|------:|-----:|------:|
| dense             |      0.480 |   100.0 |    85.00 ± 4.95 |    5.0 |  3.08 | best |     1 |
| performer         |      0.480 |   100.0 |    82.50 ± 5.25 |    5.0 |  5.58 | 0.50 |     1 |
| always 'positive' |          – |       – |           55.50 |      – |     – |    – |     – |

| attention | parameters | of attention | train tokens/s | eval tokens/s | peak memory | cut % | as dense % |
|-----------|-----------:|-------------:|---------------:|--------------:|------------:|------:|-----------:|
| dense     |    22.00 M |       0.00 M |         10,000 |        20,000 |     512 MiB |  0.00 |       0.00 |
| performer |    22.00 M |       0.00 M |         10,000 |        20,000 |     512 MiB |  0.00 |       0.00 |

| accuracy % by tokens |       5 to 15 |      16 to 25 |      26 to 34 |      35 to 44 |
|----------------------|--------------:|--------------:|--------------:|--------------:|
| dense                | 80.00 ± 10.41 | 80.00 ± 10.90 | 80.00 ± 11.46 | 100.00 ± 3.57 |
| performer            | 80.00 ± 10.41 | 82.00 ± 10.51 |  88.89 ± 9.33 | 80.00 ± 10.90 |
"""


@pytest.fixture(scope="module")
def bakeoff(tmp_path_factory):
    return compare(fixture_runs.bakeoff(tmp_path_factory.mktemp("runs")))


def group_of(root, **kwargs):
    (group,) = compare(root, **kwargs).groups
    return group


def terminal(comparison, width=110):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    comparing.render_terminal(comparison, console)
    return console.file.getvalue()


def test_markdown_golden(bakeoff):
    text = comparing.render_markdown(bakeoff)
    assert text.startswith(GOLDEN)


def test_a_table_of_seeds_where_there_are_several(bakeoff):
    one, several = bakeoff.groups
    assert comparing.markdown_parts(one)["seeds"] == ""
    assert comparing.markdown_parts(several)["seeds"].splitlines()[:4] == [
        "| accuracy % by seed        |     1 |     2 | points behind the best |",
        "|---------------------------|------:|------:|-----------------------:|",
        "| dense                     | 90.00 | 90.00 |                      – |",
        "| longformer                | 89.00 | 89.00 |   1.00 (-2.20 to 4.20) |",
    ]
    assert "longformer                 89.00  89.00    1.00 (-2.20 to 4.20)" in terminal(bakeoff)


def test_a_seed_that_a_line_lacks_is_a_dash(tmp_path):
    for seed in (3, 12):
        write_run(tmp_path, "dense", range(40), seed=seed)
    write_run(tmp_path, "performer", range(41), seed=12)
    heading, _, dense, performer = comparing.markdown_parts(group_of(tmp_path))["seeds"].splitlines()
    assert "| accuracy % by seed |     3 |    12 |" in heading
    assert "| performer          |     – | 89.75 |" in performer
    assert "| dense              | 90.00 | 90.00 |" in dense


def test_rows_average_their_seeds_and_are_ranked(bakeoff):
    sst2 = bakeoff.groups[1]
    assert [row.label for row in sst2.rows] == ["dense", "longformer", "performer", "linformer"]
    assert [len(row.runs) for row in sst2.rows] == [2, 2, 2, 2]
    assert [row.accuracy.value for row in sst2.rows] == pytest.approx([0.9, 0.89, 0.8, 0.5])
    assert all(row.accuracy.low < row.accuracy.value < row.accuracy.high for row in sst2.rows)
    assert sst2.best.label == "dense"


def test_accuracy_by_length_is_that_of_the_rows_in_each_quartile(bakeoff):
    group = bakeoff.groups[1]
    assert group.lengths == ("5 to 15", "16 to 25", "26 to 34", "35 to 44")
    for row in group.rows:
        tokens = np.array(row.runs[0].predictions.tokens)
        for name, estimate in zip(group.lengths, row.by_length, strict=True):
            low, high = map(int, name.split(" to "))
            inside = (tokens >= low) & (tokens <= high)
            assert estimate.value == pytest.approx(row.correct[:, inside].mean())
            assert estimate.low < estimate.value < estimate.high


def test_texts_of_one_length_have_no_quartiles(tmp_path):
    group = group_of(write_run(tmp_path, "dense", range(40), rows=40, tokens=[7] * 40).parent)
    assert group.lengths == ()
    assert "by tokens" not in comparing.render_markdown(compare(tmp_path))


def test_verdict_names_the_tie_the_loser_the_coin_and_what_failed(bakeoff):
    said = bakeoff.groups[1].verdict
    assert said[0].startswith("dense and longformer are tied (p = 0.")
    assert any(
        s.startswith("performer trains 2.0 × faster, evaluates 2.5 × faster and loses 10.0 points")
        for s in said
    )
    assert any(
        s.startswith("longformer leaves nothing out and compresses nothing on 90 % of the texts")
        for s in said
    )
    (coin,) = [s for s in said if s.startswith("linformer")]
    assert "linformer learned nothing: 50.00 % against 55.25 % for always answering 'positive'" in coin
    assert "its largest probability lies within [0.51, 0.51]" in coin
    assert "training loss stayed at 0.69" in coin
    assert "random start of its 50,000 attention parameters" in coin
    assert "bigbird has no figures from 1 run: out of memory." in said
    assert not any("Choose longformer" in s for s in said)


def test_failed_runs_are_listed_with_their_errors(bakeoff):
    assert {(f.attention, f.status, f.error) for f in bakeoff.failures} == {
        ("bigbird", "failed", "RuntimeError: boom"),
        ("bigbird", "oom", "out of memory at 4,096 tokens"),
    }
    for text in (comparing.render_markdown(bakeoff), terminal(bakeoff)):
        assert "RuntimeError: boom" in text
        assert "out of memory at 4,096 tokens" in text


def test_terminal_shows_every_column_whole_and_every_verdict(bakeoff):
    text = terminal(bakeoff)
    for group in bakeoff.groups:
        for column in comparing.columns(group):
            assert column.title in text
            for row in group.rows:
                assert column.text(row) in text
        for sentence in group.verdict:
            assert sentence in " ".join(text.split())


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_narrow_terminal_gets_more_tables_and_loses_nothing(bakeoff, width):
    console = Console(width=width, file=io.StringIO())
    comparing.render_terminal(bakeoff, console)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for group in bakeoff.groups:
        for column in comparing.columns(group):
            assert column.title in text
        assert text.count(group.rows[0].title) >= 2


@pytest.mark.parametrize("width", [80, 100])
def test_long_names_of_rows_are_folded(tmp_path, width):
    for features in (64, 128):
        options = f"performer:feature_map=random,num_features={features}"
        write_run(tmp_path, options, recipe="plain" if features == 64 else "transfer")
    console = Console(width=width, file=io.StringIO())
    comparing.render_terminal(compare(tmp_path), console)
    text = console.file.getvalue()
    assert "…" not in text
    assert "num_features=128" in text
    assert max(map(len, text.splitlines())) <= width
    assert len([line for line in text.splitlines() if line.startswith("performer")]) <= 2 * 7


def test_json_is_plain_and_complete(bakeoff):
    values = comparing.to_json(bakeoff)
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    sst2 = values["groups"][1]
    assert sst2["rows"][0]["seeds"] == [1, 2]
    assert sst2["rows"][0]["to_best"] is None
    assert sst2["rows"][0]["metrics"]["accuracy"] == vars(bakeoff.groups[1].rows[0].accuracy)
    assert sst2["rows"][2]["to_best"]["value"] == pytest.approx(0.1)
    assert sst2["rows"][3]["fault"].startswith("learned nothing")
    assert len(values["failures"]) == 2


def test_what_saves_evaluation_at_the_price_of_training_is_not_chosen(tmp_path):
    write_run(tmp_path, "dense", range(40), train_seconds=100.0, eval_seconds=5.0)
    write_run(tmp_path, "linformer", range(41), train_seconds=130.0, eval_seconds=4.0)
    assert any(s.startswith("Choose dense: none of the tied") for s in group_of(tmp_path).verdict)
    assert (group_of(tmp_path).tied, group_of(tmp_path).choice) == (("dense", "linformer"), "dense")
    write_run(tmp_path / "b", "performer", range(42), train_seconds=110.0, eval_seconds=4.0)
    assert any(s.startswith("Choose performer: it evaluates 1.2 ×") for s in group_of(tmp_path).verdict)
    assert group_of(tmp_path).choice == "performer"


def test_a_cheaper_tied_row_is_chosen_and_small_ratios_are_no_difference(tmp_path):
    write_run(tmp_path, "dense", range(40))
    write_run(tmp_path, "performer", range(2, 43), train_seconds=50.0, eval_seconds=4.5)
    said = group_of(tmp_path).verdict
    difference = group_of(tmp_path).rows[1].to_best
    assert (
        "Choose performer: it trains 2.0 × faster than dense; it is 0.2 points behind dense, which may be "
        f"chance, but {100 * difference.high:.1f} points cannot be ruled out." in said
    )


def test_a_cheaper_row_that_is_the_best_is_chosen_without_a_loss(tmp_path):
    write_run(tmp_path, "dense", range(40))
    write_run(tmp_path, "performer", range(39), train_seconds=50.0)
    assert (
        "Choose performer: it trains 2.0 × faster than dense, and none is more accurate here."
        in group_of(tmp_path).verdict
    )


def test_a_row_that_approximates_nothing_here_is_never_chosen_over_dense(tmp_path):
    write_run(tmp_path, "dense", range(40))
    write_run(tmp_path, "longformer", range(2, 43), train_seconds=50.0, share_dense=1.0)
    said = group_of(tmp_path).verdict
    assert any(s.startswith("Choose dense: none of the tied that approximates anything here") for s in said)
    assert any("longformer leaves nothing out and compresses nothing on 100 %" in s for s in said)


def test_a_clear_winner(tmp_path):
    write_run(tmp_path, "dense", range(20))
    write_run(tmp_path, "performer", range(100))
    group = group_of(tmp_path)
    assert group.verdict[0].startswith("dense is the most accurate: 95.00 %")
    assert (group.tied, group.choice) == (("dense",), "dense")
    assert any(s.startswith("performer is no faster and loses 20.0 points") for s in group.verdict)


def test_seconds_of_different_machines_are_not_compared(tmp_path):
    write_run(tmp_path, "dense", range(20))
    write_run(tmp_path, "performer", range(100), train_seconds=1.0, environment={"device": "cuda"})
    text = " ".join(group_of(tmp_path).verdict)
    assert "so their seconds are not compared" in text
    assert "Seconds are wall time" not in text
    write_run(tmp_path / "tied", "dense", range(20))
    write_run(tmp_path / "tied", "performer", range(21), environment={"device": "cuda"})
    group = group_of(tmp_path / "tied")
    assert (group.tied, group.choice) == (("dense", "performer"), None)
    assert "×" not in text


def test_p_is_adjusted_for_every_pair_since_any_might_be_the_best(tmp_path):
    write_run(tmp_path, "dense", range(20))
    write_run(tmp_path, "performer", range(36))
    alone = group_of(tmp_path).rows[1].to_best.p
    write_run(tmp_path, "linformer", range(37))
    dense, performer, linformer = group_of(tmp_path).rows
    assert dense.to_best is None
    assert linformer.to_best.p == pytest.approx(3 * alone / 2)  # a row more on one side halves the mid-p
    assert performer.to_best.p == pytest.approx(2 * alone)


def differing(root, only_best, only_other, more=()):
    """Dense beats performer on `only_best` rows and loses on `only_other`; `more` answer as dense does."""
    write_run(root, "dense", range(only_other))
    write_run(root, "performer", range(100, 100 + only_best), train_seconds=50.0)
    for attention in more:
        write_run(root, attention, range(only_other))
    return group_of(root)


@pytest.mark.parametrize(
    ("only_best", "only_other", "more", "lost"),
    [
        (12, 4, (), True),  # p 0.049
        (13, 5, (), False),  # 0.064
        (12, 4, ["linformer"], False),  # three pairs: 0.147
        (21, 8, ["linformer"], True),  # 3 x 0.0161
        (16, 5, ["linformer"], False),  # 3 x 0.0169
    ],
)
def test_a_loss_is_claimed_on_one_side_of_five_per_cent_after_adjustment(
    tmp_path, only_best, only_other, more, lost
):
    group = differing(tmp_path, only_best, only_other, more)
    (performer,) = [row for row in group.rows if row.label == "performer"]
    text = " ".join(group.verdict)
    assert (performer.to_best.p < 0.05) == lost
    assert ("performer trains 2.0 × faster and loses" in text) == lost
    if not lost:
        size, reach = 100 * performer.to_best.value, 100 * performer.to_best.high
        assert f"others may be up to {reach:.1f}" in text or f"other may be up to {reach:.1f}" in text
        assert f"it is {size:.1f} points behind dense, which may be chance" in text
        assert f"but {reach:.1f} points cannot be ruled out" in text
    elif not more:
        assert text.startswith("dense is the most accurate")
        assert "ahead of every other (p = 0.049)" in text
        assert -0.0005 < performer.to_best.low < 0
        assert "loses 2.0 points (0.0 to 4.0; p = 0.049)" in text


def test_many_rows_are_not_called_few_and_what_is_equal_has_a_p_of_one(tmp_path):
    for attention in ("dense", "performer", "linformer"):
        write_run(tmp_path, attention, range(300), rows=3000)
    said = group_of(tmp_path).verdict
    assert said[0].startswith("dense, linformer and performer are tied (p = 1.00)")
    assert any(sentence.startswith("3,000 rows and 1 seed tell a difference of") for sentence in said)


def test_what_can_be_told_apart_allows_for_the_adjustment(tmp_path):
    two = differing(tmp_path / "two", 16, 5)
    three = differing(tmp_path / "three", 16, 5, ["linformer"])
    found = [row.to_best.smallest for row in three.rows if row.to_best]
    assert three.resolvable == pytest.approx(np.mean(found))
    assert max(found) > 1.1 * two.resolvable
    size = f"{100 * two.resolvable:.1f} points from chance four times in five, a smaller one less often."
    assert any(sentence.endswith(size) for sentence in two.verdict)


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (0.0004, "< 0.001"),
        (0.0494, "0.049"),
        (0.0496, "< 0.05"),
        (0.0502, "0.050"),
        (0.0996, "0.10"),
        (1, "1.00"),
    ],
)
def test_a_p_is_written_on_its_own_side_of_five_per_cent(p, text):
    assert p_text(p) == text


def test_no_label_becomes_an_address_or_a_formula_in_markdown():
    escaped = markdown_escape("me@evil.example xmpp:a@b.co https://x.y www.x.y $x^2$")
    assert escaped == ("me&#64;evil.example xmpp:a&#64;b.co https\\://x.y www\\.x.y \\$x^2\\$")


def test_of_many_classes_the_largest_probability_counts(tmp_path):
    """It is one of a hundred: those of all classes together say nothing."""
    classes, rows = 100, 400
    truth = [row % classes for row in range(rows)]
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(rows, classes)) * 0.1
    for row, right in enumerate(truth):  # one in twelve is right, all are sure
        logits[row, right if row % 12 == 0 else (right + 1) % classes] += 6
    names = [f"c{i}" for i in range(classes)]
    write_run(tmp_path, "dense", truth=truth, labels=names, logits=logits)
    [group] = compare(tmp_path).groups
    assert group.rows[0].fault is None


def test_seconds_of_more_processes_are_not_compared(tmp_path):
    machine = {"device": "cpu", "threads": 2, "dtype": "float32"}
    write_run(tmp_path, "dense", range(40), environment=machine)  # as the first records were
    write_run(tmp_path, "performer", range(41), train_seconds=20.0, environment=machine | {"processes": 8})
    [group] = compare(tmp_path).groups
    assert not group.same_machine
    assert any("differ in device, threads, processes or precision" in said for said in group.verdict)
    assert not any("faster" in said for said in group.verdict)
    write_run(tmp_path / "same", "dense", range(40), environment=machine)
    write_run(tmp_path / "same", "performer", range(41), environment=machine | {"processes": 1})
    assert compare(tmp_path / "same").groups[0].same_machine


def test_smaller_batches_for_want_of_memory_are_said(tmp_path):
    write_run(tmp_path, "performer", range(41))
    folder = write_run(tmp_path, "dense", range(40))
    record = runs.load(folder)
    runs.save(folder, dataclasses.replace(record, batches={"per_device_train_batch_size": 1}))
    [group] = compare(tmp_path).groups
    assert any(said.startswith("Batches of dense were made smaller") for said in group.verdict)


def test_different_evaluation_rows_are_never_compared(tmp_path):
    write_run(tmp_path, "dense", range(40), rows=400)
    write_run(tmp_path, "performer", range(10), rows=100, max_eval_samples=100)
    comparison = compare(tmp_path)
    assert [(group.name, group.n, len(group.rows)) for group in comparison.groups] == [
        ("sst2", 400, 1),
        ("sst2", 100, 1),
    ]
    assert "sst2 was evaluated on 2 different sets of rows" in comparison.notes[0]


@pytest.mark.parametrize(
    "change", [{"texts": [f"other {i}" for i in range(400)]}, {"labels": ("bad", "good")}, {"positive": 0.5}]
)
def test_same_row_numbers_of_other_data_are_never_compared(tmp_path, change):
    write_run(tmp_path, "dense", range(40))
    write_run(tmp_path, "performer", range(40), **change)
    assert len(compare(tmp_path).groups) == 2


def test_rows_are_told_apart_by_what_differs_and_by_nothing_else(tmp_path):
    write_run(tmp_path, "longformer:window=16", range(40))
    write_run(tmp_path, "longformer:window=32", range(41))
    write_run(tmp_path, "dense", range(42))
    assert {row.label for row in group_of(tmp_path).rows} == {
        "longformer (window=16)",
        "longformer (window=32)",
        "dense",
    }
    write_run(tmp_path, "dense", range(43), learning_rate=1e-4)
    assert {row.label for row in group_of(tmp_path).rows} == {
        "longformer (window=16, learning_rate=null)",
        "longformer (window=32, learning_rate=null)",
        "dense (learning_rate=null)",
        "dense (learning_rate=0.0001)",
    }


def test_a_field_younger_than_a_record_tells_no_rows_apart(tmp_path):
    write_run(tmp_path, "dense", range(40))
    write_run(tmp_path, "longformer", range(41))
    for number, path in enumerate(sorted(tmp_path.glob("*/run.json"))):
        record = json.loads(path.read_text())
        record["spec"] |= {"eval_steps": None} if number else {}
        path.write_text(json.dumps(record))
    assert {row.label for row in group_of(tmp_path).rows} == {"dense", "longformer"}


def test_other_training_rows_make_another_row_and_a_note(tmp_path):
    write_run(tmp_path, "dense", range(40))
    write_run(tmp_path, "dense", range(41), fingerprint="e" * 64, folder="again")
    group = group_of(tmp_path)
    assert {row.label for row in group.rows} == {"dense (data=ffffffff)", "dense (data=eeeeeeee)"}
    assert any("were trained on other rows" in note for note in group.notes)


def test_a_repeated_seed_counts_once_and_the_later_run_stands(tmp_path):
    write_run(tmp_path, "dense", range(40), run_id="early")
    write_run(tmp_path, "dense", range(20), run_id="late", folder="late", started="2026-02-01T00:00:00Z")
    group = group_of(tmp_path)
    assert [run.record.id for run in group.rows[0].runs] == ["late"]
    assert group.notes == ("early is left out: a later run has the same settings and seed.",)


def test_several_folders_and_the_same_folder_twice(tmp_path):
    write_run(tmp_path / "a", "dense", range(40))
    write_run(tmp_path / "b", "performer", range(40))
    (group,) = compare([tmp_path / "a", tmp_path / "b", tmp_path / "a"]).groups
    assert len(group.rows) == 2
    assert group.notes == ()


def test_a_good_run_without_usable_predictions_is_listed(tmp_path):
    (write_run(tmp_path, "dense", range(40)) / runs.PREDICTIONS).unlink()
    unusable = {
        "labels outside 0 to 1": runs.Predictions([0], [5], [[0.0, 1.0]], [3], ["x"]),
        "logits that do not number 2": runs.Predictions([0], [1], [[0.0, 1.0, 2.0]], [3], ["x"]),
        "logits that are no table": runs.Predictions([0, 1], [1, 1], [[0.0, 1.0], [2.0]], [3, 3], ["x", "y"]),
        "no rows": runs.Predictions([], [], [], [], []),
    }
    for i, predictions in enumerate(unusable.values()):
        predictions.save(write_run(tmp_path, "performer", range(40), seed=i))
    comparison = compare(tmp_path)
    assert comparison.groups == ()
    assert [failure.status for failure in comparison.failures] == ["no predictions", *["unusable"] * 4]
    for problem, failure in zip(unusable, comparison.failures[1:], strict=True):
        assert problem in failure.error


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"schema": 1, "id"', "not a run record"),
        (b"\xff\xfe", "not a run record"),
        (b"[]", "a record is a JSON object"),
        (b'{"schema": 999}', "newest known"),
        (b'{"schema": 1, "mood": "good"}', "unknown fields: mood"),
    ],
)
def test_an_unreadable_record_is_listed_and_stops_nothing(tmp_path, content, reason):
    write_run(tmp_path, "dense", range(40))
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / runs.RECORD).write_bytes(content)
    comparison = compare(tmp_path)
    assert [row.label for row in comparison.groups[0].rows] == ["dense"]
    (failure,) = comparison.failures
    assert (failure.id, failure.status) == ("torn", "unreadable")
    assert reason in failure.error
    assert str(tmp_path / "torn" / runs.RECORD) in failure.error
    for text in (comparing.render_markdown(comparison).replace("\\", ""), terminal(comparison, width=1000)):
        assert f"torn: unreadable. {failure.error}" in text


def test_no_runs_is_one_clear_error(tmp_path):
    with pytest.raises(BakeoffError, match=r"no runs below .*bakeoff run"):
        compare(tmp_path)


def fault_of(root):
    return group_of(root).rows[0].fault


def test_one_class_only_is_named(tmp_path):
    write_run(tmp_path, "dense", logits=np.tile([0.0, 3.0], (400, 1)), losses=(0.69, 0.4, 0.2))
    fault = fault_of(tmp_path)
    assert "it answers 'positive' to every row" in fault
    assert "The training loss fell to 0.20" in fault
    assert "evaluation rows of another kind" in fault


def test_divergence_is_named(tmp_path):
    write_run(
        tmp_path, "dense", logits=np.full((400, 2), math.nan), losses=(0.69, math.nan), learning_rate=0.1
    )
    fault = fault_of(tmp_path)
    assert "so training diverged" in fault
    assert "lower the learning rate (0.1)" in fault
    json.dumps(comparing.to_json(compare(tmp_path)), allow_nan=False)


def test_a_small_but_certain_gain_is_learning(tmp_path):
    rows = 4000
    wrong = range(0, rows, 3)
    write_run(tmp_path, "dense", wrong, rows=rows)
    assert fault_of(tmp_path) is None


def test_a_confident_model_no_better_than_the_majority_is_named(tmp_path):
    write_run(tmp_path, "dense", range(100, 290))
    assert "its right answers may be chance" in fault_of(tmp_path)


def test_what_is_known_of_a_rare_class_is_learning_without_more_accuracy(tmp_path):
    """30 of 50 are found, for 30 false alarms: as accurate as never to answer the rare label."""
    names = ("accuracy", "f1")
    write_run(tmp_path, "dense", [*range(20), *range(50, 80)], rows=1000, positive=0.05, names=names)
    write_run(tmp_path, "performer", [*range(40), 50], rows=1000, positive=0.05, names=names)
    group = group_of(tmp_path)
    assert [row.fault for row in group.rows] == [None, None]
    like = "dense is not shown to be more accurate than always answering 'negative', 95.00 %"
    assert any(sentence.startswith(like) for sentence in group.verdict)
    assert not any(sentence.startswith("performer is not shown") for sentence in group.verdict)


@pytest.mark.parametrize("positive", [0.5, 0.8])
def test_up_to_one_run_in_twenty_that_knows_nothing_passes(positive):
    rng, passed = np.random.default_rng(0), 0
    for _ in range(400):
        labels = (rng.random(300) < positive).astype(int)
        answers = (rng.random(300) < rng.choice([0.5, positive])).astype(int)
        run = SimpleNamespace(labels=labels, predicted=answers, correct=labels == answers)
        passed += not verdict._may_be_chance(run, 0.05)
    assert passed / 400 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 400)


@pytest.mark.parametrize("seeds", [1, 5])
def test_a_line_that_learned_a_little_is_not_the_likelier_to_fail_the_more_seeds_it_has(tmp_path, seeds):
    """56 % of 872 balanced rows: 1 in 20 of such seeds is not told from chance by itself."""
    rng = np.random.default_rng(0)
    for trial in range(20):
        root = tmp_path / str(trial)
        for seed in range(seeds):
            wrong = np.flatnonzero(rng.random(872) > 0.56)
            write_run(root, "dense", wrong, rows=872, positive=0.5, seed=seed)
    assert sum(fault_of(tmp_path / str(trial)) is not None for trial in range(20)) <= 4


def test_a_line_that_knows_nothing_does_not_pass_the_likelier_with_more_seeds():
    rng, passed, labels = np.random.default_rng(0), 0, np.arange(300) % 2
    for _ in range(200):
        line = [coin(labels, rng.integers(0, 2, 300)) for _ in range(5)]
        passed += verdict.fault(line, 0.5) is None
    assert passed / 200 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 200)


def test_what_tells_a_single_seed_from_chance_is_not_enough_for_one_of_two():
    labels, row = np.arange(300) % 2, np.arange(300) // 2
    little = coin(labels, np.where(row < 84, labels, 1 - labels))  # 168 right: p between 0.025 and 0.05
    nothing = coin(labels, np.where(row < 75, labels, 1 - labels))
    assert verdict.fault([little], 0.5) is None
    assert verdict.fault([little, nothing], 0.5).startswith("learned nothing: ")


def coin(labels, answers):
    """What `verdict.fault` asks of a run whose logits are as sure as can be."""
    return SimpleNamespace(
        labels=labels, predicted=answers, correct=labels == answers, logits=np.eye(2)[answers] * 9,
        probabilities=np.eye(2)[answers], data=SimpleNamespace(labels=("a", "b"), splits={"train": SPLIT}),
        record=SimpleNamespace(history=(), train_loss=None, spec={}),
    )  # fmt: skip


SPLIT = SimpleNamespace(label_counts={"a": 150, "b": 150})


def test_seeds_that_differ_are_not_like_the_majority_for_it(tmp_path):
    """79.8 % in the mean of two seeds some points apart: with so few, the mean alone tells nothing."""
    for seed, wrong in ((1, 250), (2, 150)):
        write_run(tmp_path, "dense", range(0, 2 * wrong, 2), rows=1000, positive=0.5, seed=seed)
        write_run(tmp_path, "performer", range(1, 2 * wrong, 2), rows=1000, positive=0.5, seed=seed)
    assert not any("is not shown to be" in sentence for sentence in group_of(tmp_path).verdict)


def test_a_seed_at_chance_among_good_ones_is_named(tmp_path):
    rng = np.random.default_rng(0)
    for seed in range(4):
        write_run(tmp_path, "dense", range(40), seed=seed)
    write_run(tmp_path, "dense", np.flatnonzero(rng.random(400) > 0.5), seed=4)
    write_run(tmp_path, "performer", range(100), seed=0)
    write_run(tmp_path, "linformer", range(160), seed=0)
    group = group_of(tmp_path)
    (dense,) = [row for row in group.rows if row.attention == "dense"]
    assert dense.fault.startswith("learned nothing in 1 of 5 seeds")
    assert "ahead of every other that learned in all of its runs" in group.verdict[0]


def test_runs_of_other_weights_in_the_same_place_are_other_lines(tmp_path):
    for seed, sha in ((1, "a" * 64), (2, "b" * 64)):
        folder = write_run(tmp_path, "dense", range(20), seed=seed)
        record = json.loads((folder / "run.json").read_text())
        record["model"]["base_sha256"] = sha
        (folder / "run.json").write_text(json.dumps(record))
    names = {row.label for row in group_of(tmp_path).rows}
    assert names == {f"dense (model_name_or_path=minilm@{c * 8})" for c in "ab"}


def test_texts_of_other_tokens_have_no_accuracy_by_them(tmp_path):
    write_run(tmp_path, "dense", range(20))
    write_run(tmp_path, "performer", range(20), tokens=[9 + i % 40 for i in range(400)])
    group = group_of(tmp_path)
    assert group.lengths == ()
    assert "These encoders' tokens differ, so there is no accuracy by tokens." in group.notes


@pytest.mark.parametrize("loss", ["-Infinity", "1.7e308", "-1.0"])
def test_a_training_loss_that_none_has_makes_one_run_unusable(tmp_path, loss):
    write_run(tmp_path, "performer", range(20))
    for seed in (1, 2):
        path = write_run(tmp_path, "dense", range(20), seed=seed) / "run.json"
        record = json.loads(path.read_text())
        record["train_loss"] = float(loss)
        path.write_text(json.dumps(record))
    found = compare(tmp_path)
    assert [row.label for row in found.groups[0].rows] == ["performer"]
    assert {failure.status for failure in found.failures} == {"unusable"}


def test_one_seed_of_two_that_did_not_learn(tmp_path):
    write_run(tmp_path, "dense", range(20), seed=1)
    write_run(tmp_path, "dense", range(0, 400, 2), seed=2)
    assert fault_of(tmp_path).startswith("learned nothing in 1 of 2 seeds")
    assert (
        group_of(tmp_path).verdict[0]
        == "No attention learned the task in all of its runs, so there is nothing to choose."
    )
    assert (group_of(tmp_path).tied, group_of(tmp_path).choice) == ((), None)


def test_one_seed_beside_several_is_said_of_that_line(tmp_path):
    for seed in (1, 2, 3):
        write_run(tmp_path, "dense", range(20 + seed), seed=seed)
    write_run(tmp_path, "performer", range(10, 40), seed=1)
    said = " ".join(group_of(tmp_path).verdict)
    assert "There is one seed of performer: intervals are for the evaluation rows alone there" in said
    assert "With one seed," not in said


def test_the_same_seeds_are_paired_in_whatever_order_they_were_made(tmp_path):
    """Wrong answers of seeds that differ by far more than the two mechanisms do."""
    for order, (name, more) in zip(((1, 2, 3), (3, 1, 2)), (("dense", 0), ("performer", 8)), strict=True):
        for minute, seed in enumerate(order):
            folder = write_run(tmp_path, name, range(30 * seed, 60 * seed + more + seed % 2), seed=seed)
            record = json.loads((folder / "run.json").read_text())
            record["started"] = f"2026-01-01T00:0{minute}:00+00:00"
            (folder / "run.json").write_text(json.dumps(record))
    dense, performer = group_of(tmp_path).rows
    expected = stats.paired_difference(dense.correct, performer.correct, same_seeds=True)
    assert performer.to_best == expected
    assert expected.p < 0.01 < 0.5 < stats.paired_difference(dense.correct, performer.correct).p
    write_run(tmp_path, "performer", range(10, 40), seed=4)
    dense, performer = group_of(tmp_path).rows
    assert performer.to_best == stats.paired_difference(dense.correct, performer.correct)


def test_seeds_of_one_file_under_two_names_are_one_line(tmp_path):
    for seed, name in ((1, "a.csv"), (2, "./a.csv")):
        folder = write_run(tmp_path, "dense", range(20), seed=seed)
        record = json.loads((folder / "run.json").read_text())
        record["spec"]["train_file"] = record["spec"]["eval_file"] = name
        (folder / "run.json").write_text(json.dumps(record))
    [row] = group_of(tmp_path).rows
    assert (row.label, len(row.runs)) == ("dense", 2)


TITLED = [name for name, measure in METRICS.items() if measure.title]


@pytest.mark.parametrize("name", TITLED)
def test_a_metric_of_a_task_is_shown_with_its_interval(tmp_path, name):
    folder = write_run(tmp_path, "dense", range(40), names=("accuracy", name))
    group = group_of(tmp_path)
    assert group.rows[0].metrics.keys() == {"accuracy", name}
    found = group.rows[0].metrics[name]
    assert found.value == pytest.approx(group.rows[0].runs[0].record.metrics[name].value)
    assert found.low < found.value < found.high
    titles = {column.title for column in comparing.columns(group)}
    assert titles & {METRICS[other].title for other in TITLED} == {
        METRICS["accuracy"].title,
        METRICS[name].title,
    }
    for path in report.write(tmp_path, tmp_path / "report")[:2]:
        assert METRICS[name].title in path.read_text(encoding="utf-8")
    card.write(
        tmp_path / "README.md", folder, "onnx",
        columns=1, difference=0.0, speed=[], note="", environment={"device": "cpu", "threads": 1},
    )  # fmt: skip
    shown = [f"{100 * share:.2f}" for share in (found.value, found.low, found.high)]
    line = f"| {name} | {shown[0]} % | {shown[1]} to {shown[2]} % |"
    assert line in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_f1_without_an_error_rests_on_the_rows_of_the_rarer_class(tmp_path):
    write_run(tmp_path, "dense", names=("accuracy", "f1"), positive=0.05)
    row = group_of(tmp_path).rows[0]
    f1 = row.metrics["f1"]
    assert (f1.value, f1.high) == pytest.approx((1, 1), abs=1e-12)
    assert f1.low == pytest.approx(20 / (20 + 1.96**2), abs=1e-4)  # Wilson's, of 20 out of 20
    assert row.accuracy.low == pytest.approx(400 / (400 + 1.96**2), abs=1e-4)


def test_three_classes(tmp_path):
    truth = [i % 3 for i in range(300)]
    write_run(tmp_path, "dense", range(30), labels=("a", "b", "c"), truth=truth)
    write_run(
        tmp_path, "performer", labels=("a", "b", "c"), truth=truth, logits=np.tile([0.01, 0, 0], (300, 1))
    )
    group = group_of(tmp_path)
    assert group.best.accuracy.value == pytest.approx(0.9)
    assert "it answers 'a' to every row" in group.rows[1].fault


HOSTILE = "[red]x[/red] [/] | `a` <b> \x1b[31m\n\u202e**y**"


def test_hostile_text_is_shown_and_not_obeyed(tmp_path):
    write_run(tmp_path, "dense", range(40), run_id=HOSTILE, labels=("neg", HOSTILE), folder="a")
    write_run(tmp_path, "performer", status="failed", error=HOSTILE, run_id=HOSTILE, folder="b")
    comparison = compare(tmp_path)
    text = terminal(comparison)
    assert "[red]x[/red] [/] | `a` <b> [31m **y**" in text
    assert "\u202e" not in text
    assert "\x1b[31m" not in text
    markdown = comparing.render_markdown(comparison)
    assert r"\[red\]x\[/red\] \[/\] \| \`a\` \<b\> \[31m \*\*y\*\*" in markdown
    tables = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in tables} == {6, 9}


def test_nothing_heavy_is_imported():
    code = (
        "import sys, bakeoff.comparison, bakeoff.report; "
        "assert not {'torch', 'transformers', 'datasets', 'plotly', 'sklearn', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
