"""What the tools around transformers do with a converted model is what they do with the family's own."""

import copy
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

import encoders
import tiny
from bakeoff import checkpoints
from bakeoff.attention import ATTENTIONS
from bakeoff.encoder import BakeoffConfig
from bakeoff.errors import BakeoffError
from bakeoff.training import preparation


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    for family in ("bert", "roberta", "distilbert"):
        encoders.save(root / family, family)
    return root


def load(folder, attention, **kwargs):
    return checkpoints.load(folder, attention, attention_options=encoders.SMALL[attention], **kwargs)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_layers_compiled_by_themselves_keep_every_row(folders, family):
    """The mark of what will be read of the last one does not leave its graph."""
    model, inputs = load(folders / family, "dense"), encoders.batch(B=3)
    with torch.no_grad():
        wanted = model(**inputs).logits
        for layer in model.base_model.encoder.layer:
            layer.compile(backend="eager")
        close(model(**inputs).logits, wanted)


class Doubled(nn.Linear):
    """As an adapter: what it gives is not what its weights say."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("train", [False, True])
def test_what_stands_in_a_global_projection_s_place_is_called(folders, train):
    plain, inputs = load(folders / "bert", "longformer"), encoders.batch()
    adapted = copy.deepcopy(plain)
    for place in plain.mechanisms():
        for projection in (place.key_global, place.value_global):
            with torch.no_grad():
                projection.weight.mul_(2)
                projection.bias.mul_(2)
    for place in adapted.mechanisms():
        for name in ("key_global", "value_global"):
            own = getattr(place, name)
            made = Doubled(own.in_features, own.out_features)
            made.load_state_dict(own.state_dict())
            setattr(place, name, made)
    close(adapted.train(train)(**inputs).logits, plain.train(train)(**inputs).logits)


@pytest.mark.parametrize("place", ["key_global", "value_global"])
def test_a_hook_on_a_global_projection_is_called(folders, place):
    model, inputs = load(folders / "bert", "longformer"), encoders.batch()
    with torch.no_grad():
        wanted = model(**inputs).logits
        for mechanism in model.mechanisms():
            getattr(mechanism, place).register_forward_hook(lambda module, args, output: output * 3)
        assert (model(**inputs).logits - wanted).abs().max() > 1e-2


@pytest.mark.parametrize("attention", sorted(ATTENTIONS))
def test_offloaded_weights(folders, attention):
    accelerate = pytest.importorskip("accelerate")
    model, inputs = load(folders / "bert", attention), encoders.batch()
    with torch.no_grad():
        wanted = model(**inputs).logits
        offloaded = accelerate.cpu_offload(model, execution_device="cpu")
        close(offloaded(**inputs).logits, wanted)


def test_trainer_takes_global_tokens_from_a_data_set(folders, tmp_path):
    model, inputs = load(folders / "bert", "longformer"), encoders.batch(B=4)
    some = torch.zeros_like(inputs["input_ids"])
    some[:, [3, 5]] = 1
    arguments = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)

    def predicted(**columns):
        rows = Dataset.from_dict({name: value.tolist() for name, value in (inputs | columns).items()})
        return torch.tensor(Trainer(model, arguments).predict(rows).predictions)

    with torch.no_grad():
        close(predicted(global_attention_mask=some), model(**inputs, global_attention_mask=some).logits)
    assert (predicted(global_attention_mask=some) - predicted()).abs().max() > 1e-2


def test_a_traced_graph_is_refused(folders):
    model = load(folders / "distilbert", "dense", max_length=20)
    with pytest.raises(BakeoffError, match=r"torch\.jit\.trace.*bakeoff export"):
        torch.jit.trace(model, encoders.batch()["input_ids"], strict=False)


class Mean(nn.Module):
    """A head that reads every token."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(32, 2)

    def forward(self, features, **kwargs):
        return self.out(features.mean(1))


def test_a_head_of_one_s_own_sees_every_token(folders):
    model, inputs = load(folders / "roberta", "dense"), encoders.batch()
    theirs = AutoModelForSequenceClassification.from_pretrained(folders / "roberta").eval()
    inputs = {
        name: value[:, :14] for name, value in inputs.items()
    }  # without padding, which the mean would see
    model.model.classifier = theirs.classifier = Mean()
    with torch.no_grad():
        close(model(**inputs).logits, theirs(**inputs).logits)


def test_the_kind_of_labels_is_found_kept_and_taken_from_the_config(folders, tmp_path):
    model, inputs = load(folders / "bert", "dense"), encoders.batch()
    model(**inputs, labels=torch.tensor([[0.0, 1.0], [1.0, 1.0]]))
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["problem_type"] == "multi_label_classification"
    model.config.problem_type = "regression"
    wanted = torch.tensor([[0.5, 2.0], [1.0, -1.0]])
    output = model(**inputs, labels=wanted)
    close(output.loss, nn.functional.mse_loss(output.logits, wanted))


def test_the_config_s_switches_reach_the_encoder(folders):
    model, inputs = load(folders / "bert", "performer"), encoders.batch()
    model.config.output_hidden_states = True
    assert len(model(**inputs).hidden_states) == 4
    model.config.return_dict = False
    assert isinstance(model(**inputs), tuple)
    assert not isinstance(model(**inputs, return_dict=True), tuple)


def test_freezing_the_base_leaves_the_head(folders):
    model = load(folders / "bert", "linformer")
    for parameter in model.base_model.parameters():
        parameter.requires_grad = False
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == ["model.classifier.weight", "model.classifier.bias"]


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_the_config_says_the_encoder_s_sizes(folders, family):
    config = load(folders / family, "dense").config
    sizes = [getattr(config, f"num_{what}") for what in ("hidden_layers", "attention_heads")]
    assert (config.hidden_size, config.vocab_size, *sizes) == (32, 60, 3, 4)
    assert not hasattr(BakeoffConfig(), "hidden_size")
    assert not hasattr(BakeoffConfig(encoder={"model_type": "nope"}), "hidden_size")
    assert "hidden_size" not in config.to_dict()  # it stands in `encoder`, once


@pytest.mark.parametrize(("asked", "bf16"), [("bf16", False), ("fp16", True)])
def test_accelerate_s_precision_and_the_run_s_have_to_agree(tmp_path, monkeypatch, asked, bf16):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    with pytest.raises(BakeoffError, match=rf"mixed precision {asked}.*make the two agree"):
        preparation.resolve(tiny.spec(tmp_path, bf16=bf16))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16" if bf16 else "no")
    preparation.resolve(tiny.spec(tmp_path, bf16=bf16))


def test_what_is_refused_in_a_folder_is_refused_on_the_hub(folders, tmp_path):
    """From its cache: a pickle as a shard, and an adapter, whose base would be read instead."""
    for name in ("shards", "adapter"):
        repository = tmp_path / "hub" / f"models--org--{name}"
        shutil.copytree(folders / "bert", repository / "snapshots" / ("a" * 40))
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("a" * 40)
    shards, adapter = (
        tmp_path / f"hub/models--org--{name}/snapshots/{'a' * 40}" for name in ("shards", "adapter")
    )
    (shards / "model.safetensors").rename(shards / "model-00001.bin")
    index = {"metadata": {}, "weight_map": {"bert.embeddings.word_embeddings.weight": "model-00001.bin"}}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    (adapter / "adapter_config.json").write_text("{}")
    code = (
        "import bakeoff\n"
        "for name in ('shards', 'adapter'):\n"
        "    try: bakeoff.load(f'org/{name}', 'dense')\n"
        "    except bakeoff.BakeoffError as error: print(error)\n"
    )
    offline = os.environ | {
        "HF_HOME": str(tmp_path),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
    }
    made = subprocess.run(
        [sys.executable, "-c", code], env=offline, capture_output=True, text=True, check=True
    )
    first, second = made.stdout.strip().splitlines()
    assert "names 'model-00001.bin', which is no safetensors file beside it" in first
    assert second.startswith("org/adapter is an adapter; merge it with its base")
