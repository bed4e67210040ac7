"""The run files that come with the project: each is valid, and those that need the Hub run on its layouts."""

import csv
from pathlib import Path

import pytest
from transformers import BigBirdForPreTraining, LongformerForMaskedLM

import tiny
from bakeoff import checkpoints
from bakeoff.attention import ATTENTIONS
from bakeoff.spec import GridSpec, RunSpec, load_yaml
from bakeoff.sweep import SweepSpec, _values
from bakeoff.training import preparation, train
from encoders import bigbird_config, longformer_config, randomised

STUDIES = Path(__file__).parent.parent / "studies"
#: The Hub's layout of each base checkpoint, small and random: masked-LM weights, as the published ones are.
LAYOUTS = {
    "google/bigbird-roberta-base": lambda: BigBirdForPreTraining(bigbird_config()),
    "allenai/longformer-base-4096": lambda: LongformerForMaskedLM(longformer_config()),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_every_mechanism_has_a_valid_sweep(name):
    path = STUDIES / "sweeps" / f"{name}.yaml"
    sweep = SweepSpec.from_dict(load_yaml(path), str(path))
    preparation.resolve(sweep.best({name: _values(space)[-1] for name, space in sweep.search.items()})[0])
    assert sweep.best({})[0].attention.name == name
    assert f"bakeoff sweep studies/sweeps/{path.name}" in path.read_text()


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_grids_are_valid(path):
    cells = list(GridSpec.from_dict(load_yaml(path), str(path)).runs())
    if not path.stem.startswith("ablation") and not path.stem.endswith("-late"):
        assert {cell.attention.name for cell in cells} == ATTENTIONS.keys()
    for cell in cells:
        preparation.resolve(cell)
    assert f"bakeoff grid studies/{path.name}" in path.read_text() or path.stem == "demo"


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mirror")
    (folder / "sst2").mkdir()
    for split, rows in (("train", 96), ("validation", 32)):
        with (folder / "sst2" / f"{split}.csv").open("w", newline="") as file:
            lines = [(text, int(label == "pos")) for text, label in tiny.texts(rows, len(split))]
            csv.writer(file).writerows([("sentence", "label"), *lines])
    return folder


@pytest.mark.parametrize("path", sorted((STUDIES / "original").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_original_study_runs_on_the_layouts_of_its_checkpoints(path, mirror, tmp_path):
    values = load_yaml(path)
    hub = values["model_name_or_path"]
    assert (values["per_device_train_batch_size"], float(values["learning_rate"])) == (32, 2e-5)
    assert (values["num_train_epochs"], values["recipe"]) == (3, "plain")
    tiny.encoder(tmp_path / "base")  # for its tokenizer
    randomised(LAYOUTS[hub]()).save_pretrained(tmp_path / "base")
    assert checkpoints.load_config(tmp_path / "base").model_type == LAYOUTS[hub]().config.model_type
    here = {
        "model_name_or_path": str(tmp_path / "base"),
        "data_dir": str(mirror),
        "output_dir": str(tmp_path),
    }
    record = train.run(RunSpec.from_dict(values | here), progress=False)
    assert record.status == "ok", record.error
    assert record.model.attention == values["attention"]
    assert record.spec["max_length"] == 128
    assert record.history[-1]["epoch"] == 3
