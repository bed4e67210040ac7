"""Encoding with a tokenizer small enough to count by hand."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import tokenizers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import DataCollatorWithPadding, PreTrainedTokenizerFast

from bakeoff import encode, runs
from bakeoff.tasks import Examples

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    inner = tokenizers.Tokenizer(WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = Whitespace()
    inner.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=6,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def examples(*texts: tuple[str, ...], labels: list[int] | None = None, available: int = 100) -> Examples:
    numbers = labels or [row % 2 for row in range(len(texts))]
    return Examples(ids=list(range(len(texts))), texts=list(texts), labels=numbers, rows_available=available)


def test_ids_lengths_and_truncation(tokenizer: Any) -> None:
    encoded = encode.encode(examples(("a b",), ("a b c d a b",), ("d",)), tokenizer, 5)
    assert encoded.dataset["input_ids"][:] == [[2, 4, 5, 3], [2, 4, 5, 6, 3], [2, 7, 3]]
    assert encoded.dataset["labels"][:] == [0, 1, 0]
    assert encoded.dataset["length"][:] == [4, 5, 3]
    assert encoded.lengths == [4, 8, 3]
    assert encoded.quantiles == {"0.5": 4, "0.95": 8, "1.0": 8}
    assert encoded.share_truncated == pytest.approx(1 / 3)


def test_a_text_of_just_the_length_is_not_truncated(tokenizer: Any) -> None:
    encoded = encode.encode(examples(("a b",), ("a b c",)), tokenizer, 5)
    assert encoded.share_truncated == 0
    assert encoded.dataset["length"][:] == encoded.lengths == [4, 5]


def test_pairs_lose_the_end_of_the_longer_text(tokenizer: Any) -> None:
    encoded = encode.encode(examples(("a", "b c d b c d"), ("a b c d", "d")), tokenizer, 6)
    assert encoded.dataset["input_ids"][:] == [[2, 4, 3, 5, 6, 3], [2, 4, 5, 3, 7, 3]]
    assert encoded.dataset["token_type_ids"][:] == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1]]
    assert encoded.lengths == [10, 8]
    assert encoded.share_truncated == 1


def test_type_ids_only_where_the_tokenizer_gives_them(tokenizer: Any) -> None:
    plain = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, model_input_names=["input_ids", "attention_mask"]
    )
    assert set(encode.encode(examples(("a",)), plain, 6).dataset.column_names) == {
        "input_ids",
        "labels",
        "length",
    }


def test_batches_join_in_order(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = examples(*[(" ".join("abcd"[: n % 4 + 1]) + " a" * (n % 3),) for n in range(25)])
    whole = encode.encode(rows, tokenizer, 5)
    monkeypatch.setattr(encode, "_BATCH", 4)
    parts = encode.encode(rows, tokenizer, 5)
    assert parts.dataset.to_dict() == whole.dataset.to_dict()
    assert parts.lengths == whole.lengths
    assert len(parts.dataset) == 25


def test_the_dataset_is_in_memory_and_feeds_the_collator(tokenizer: Any) -> None:
    encoded = encode.encode(examples(("a b",), ("c",)), tokenizer, 5)
    assert encoded.dataset.cache_files == []
    batch = DataCollatorWithPadding(tokenizer)([encoded.dataset[row] for row in range(2)])
    assert batch["input_ids"].tolist() == [[2, 4, 5, 3], [2, 6, 3, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]


def test_a_text_beyond_the_tokenizers_own_limit_is_no_matter(tokenizer: Any, capfd: Any) -> None:
    encoded = encode.encode(examples(("a " * 50,)), tokenizer, 40)
    assert encoded.lengths == [52]
    assert encoded.dataset["length"][:] == [40]
    assert capfd.readouterr().err == ""


def test_described_for_the_record(tokenizer: Any) -> None:
    rows = examples(("a b",), ("a b c d",), ("d",), labels=[2, 0, 2])
    found = encode.describe(encode.encode(rows, tokenizer, 5), rows, ("x", "y", "z"))
    assert found == runs.Split(
        rows=3,
        rows_available=100,
        token_quantiles={"0.5": 4, "0.95": 6, "1.0": 6},
        share_truncated=1 / 3,
        label_counts={"x": 1, "y": 0, "z": 2},
    )


def test_the_fingerprint_sees_texts_labels_order_and_parts() -> None:
    one, two = examples(("a", "b"), ("c", "d")), examples(("e", "f"))
    seen = encode.fingerprint(one, two)
    assert len(seen) == 64
    assert encode.fingerprint(examples(("a", "b"), ("c", "d"), available=7), two) == seen
    others = [
        (two, one),
        (one, one),
        (examples(("a", "b")), examples(("c", "d"), ("e", "f"), labels=[1, 0])),
        (examples(("a", "b"), ("c", "x")), two),
        (examples(("ab", ""), ("c", "d")), two),
        (examples(("a", "b"), ("c", "d"), labels=[1, 0]), two),
        (examples(("c", "d"), ("a", "b"), labels=[1, 0]), two),
    ]
    assert len({seen, *(encode.fingerprint(*pair) for pair in others)}) == len(others) + 1


def test_token_ids_are_kept_for_the_next_run(tokenizer: Any, tmp_path: Path, monkeypatch: Any) -> None:
    rows = examples(("a b",), ("a b c d a b",), ("d",))
    first = encode.encode(rows, tokenizer, 5, tmp_path / "kept")
    (kept,) = (tmp_path / "kept").iterdir()
    monkeypatch.setattr(encode, "_tokenize", None)  # whatever would tokenise again fails
    again = encode.encode(rows, tokenizer, 5, tmp_path / "kept")
    assert again.dataset[:] == first.dataset[:]
    assert dataclasses.replace(again, dataset=first.dataset) == first
    other_labels = dataclasses.replace(rows, labels=[1, 1, 1])
    others = [lowercase(tokenizer), *(copy.deepcopy(tokenizer) for _ in range(2))]
    others[1].truncation_side, others[2].split_special_tokens = "left", True
    for changed in (
        (other_labels, tokenizer, 5),
        (rows, tokenizer, 4),
        *((rows, other, 5) for other in others),
    ):
        with pytest.raises(TypeError):
            encode.encode(*changed, tmp_path / "kept")
    assert [*(tmp_path / "kept").iterdir()] == [kept]


@pytest.mark.parametrize("damage", ["cut", "other rows", "not arrow", "no lengths", "ids as text"])
def test_damaged_token_ids_are_made_anew(tokenizer: Any, tmp_path: Path, damage: str) -> None:
    rows = examples(("a b",), ("a b c d a b",), ("d",))
    first = encode.encode(rows, tokenizer, 5, tmp_path)
    (kept,) = tmp_path.iterdir()
    whole = kept.read_bytes()
    if damage == "other rows":
        encode.encode(examples(("a",)), tokenizer, 5, tmp_path / "other")
        next((tmp_path / "other").iterdir()).replace(kept)
    elif damage in ("no lengths", "ids as text"):
        with pa.OSFile(str(kept)) as file:
            table = pa.ipc.open_file(file).read_all()
        if damage == "no lengths":
            table = table.drop_columns("length")
        else:
            table = table.set_column(0, "input_ids", pa.array(["a", "b", "c"]))
        with pa.OSFile(str(kept), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    else:
        kept.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"nothing of the kind")
    assert encode.encode(rows, tokenizer, 5, tmp_path).dataset[:] == first.dataset[:]
    assert kept.stat().st_size == len(whole)


def test_a_folder_that_cannot_be_written_costs_time_alone(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    rows = examples(("a b",))
    made = encode.encode(rows, tokenizer, 5, tmp_path / "file")
    assert made.dataset[:] == encode.encode(rows, tokenizer, 5).dataset[:]


def lowercase(tokenizer: Any) -> Any:
    changed = copy.deepcopy(tokenizer)
    changed.backend_tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    return changed
