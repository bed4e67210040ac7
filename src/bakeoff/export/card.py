"""The model card of an exported run: its record in words, with the Hub's front matter. No torch here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from bakeoff import runs
from bakeoff.comparison.grouping import grouped
from bakeoff.comparison.reading import read
from bakeoff.comparison.rows import Failure, Run
from bakeoff.errors import BakeoffError
from bakeoff.text import markdown_escape, percent, plain

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_DATA = re.compile(r"([\w.-]+/[\w.-]+)(?: (\S+))?@([0-9a-f]{12}) .*")  # as tasks.hub writes its source

_TRAINING = (
    "recipe",
    "learning_rate",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "weight_decay",
    "warmup_steps",
    "lr_scheduler_type",
    "seed",
    "bf16",
)

#: How each format's folder is loaded, for the card: code that needs no more than it names.
LOADING = {
    "safetensors": """\
import bakeoff.encoder  # registers the model type; without it loading fails
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
{inputs}, padding=True, truncation=True, return_tensors="pt")
logits = model(**inputs).logits
print(model.config.id2label[int(logits[0].argmax())])""",
    "onnx": """\
import onnxruntime
from transformers import AutoConfig, AutoTokenizer

folder = "."  # this folder
tokenizer, config = AutoTokenizer.from_pretrained(folder), AutoConfig.from_pretrained(folder)
session = onnxruntime.InferenceSession(f"{{folder}}/model.onnx", providers=["CPUExecutionProvider"])
{inputs}, padding=True, truncation=True, return_tensors="np")
(logits,) = session.run(["logits"], dict(inputs))
print(config.id2label[int(logits[0].argmax())])""",
    "torch-export": """\
import torch
from transformers import AutoConfig, AutoTokenizer

folder = "."  # this folder
tokenizer, config = AutoTokenizer.from_pretrained(folder), AutoConfig.from_pretrained(folder)
model = torch.export.load(f"{{folder}}/model.pt2").module()
{inputs}, padding=True, truncation=True, return_tensors="pt")
logits = model(**inputs)
print(config.id2label[int(logits[0].argmax())])""",
}

_TEMPLATE = """\
# {{ task }}: {{ attention }}

{{ summary }}

## Evaluation

| metric | value | 95 % interval |
|---|---:|---|
{% for name, value, interval in metrics -%}
| {{ name }} | {{ value }} | {{ interval }} |
{% endfor %}
{% for sentence in evaluation -%}
- {{ sentence }}
{% endfor %}
## Load it

```python
{{ loading }}
```

{{ format_note }}

## What it is

| | |
|---|---|
{% for name, value in facts -%}
| {{ name }} | {{ value }} |
{% endfor %}
## Limits

{% for limit in limits -%}
- {{ limit }}
{% endfor %}
## Speed

{{ speed_note }}

| tokens | what | median ms | min | max |
|---:|---|---:|---:|---:|
{% for row in speed -%}
| {{ row.tokens }} | {{ row.what }} | {{ "%.2f" | format(row.median) }} | {{ "%.2f" | format(row.low) }} | \
{{ "%.2f" | format(row.high) }} |
{% endfor %}
## Licence

{{ licence }}
"""


def write(
    path: Path,
    folder: Path,
    format: str,
    *,
    columns: int,
    difference: float,
    environment: Mapping[str, Any],
    speed: Sequence[Any],
    note: str,
) -> None:
    """Write the card of the run in `folder` to `path`.

    Args:
        path: the card's file.
        folder: the run's folder.
        format: of the export, a key of `LOADING`.
        columns: texts an input has, 1 or 2.
        difference: the largest that was seen between logits of the export and of the run's model.
        environment: of the export, as `env.describe` gives it.
        speed: rows with tokens, what, and median, low and high in ms.
        note: what is to be said of the format.

    Raises:
        BakeoffError: the run did not end well, or its record is not whole.
    """
    run = read(folder, runs.load(folder))  # and none of those that may lie below it
    if isinstance(run, Failure):
        raise BakeoffError(f"{folder} is no run that ended well ({run.status}: {run.error}).")
    (group,) = grouped([run], [])
    (row,) = group.rows
    template = jinja2.Template(
        _TEMPLATE, keep_trailing_newline=True
    )  # what comes from data is escaped by _text
    environment_text = ", ".join(
        f"{name} {environment[name]}"
        for name in ("torch", "transformers", "onnxruntime", "bakeoff", "python")
        if name in environment
    )
    context: dict[str, Any] = {
        "task": _text(run.data.task),
        "attention": _text(run.model.attention),
        "summary": _text(
            f"A {run.model.family} encoder with {run.model.attention} attention, fine-tuned with bakeoff to "
            f"tell {', '.join(run.data.labels)} apart."
        ),
        "metrics": _metrics(run, row),
        "evaluation": [
            _text(sentence)
            for sentence in (
                f"{group.evaluated}.",
                f"Always answering {group.majority!r} has an accuracy of {percent(group.baseline)} %.",
                *([f"{row.label} {row.fault.rstrip('.')}."] if row.fault else []),
            )
        ],
        "loading": LOADING[format].format(
            inputs='inputs = tokenizer(["A text."]' + (', ["Its pair."]' if columns == 2 else "")
        ),
        "format_note": _text(
            f"{note} Its logits were held to those of the trained model over several batch sizes and "
            f"lengths: they differ by {difference:.1e} at most."
        ),
        "facts": [(_text(name), _text(value)) for name, value in _facts(run)],
        "limits": [_text(limit) for limit in _limits(run)],
        "speed_note": _text(
            f"One text a call, on {environment['device']} with {environment['threads']} thread(s); "
            f"{environment_text}."
        ),
        "speed": speed,
        "licence": _text(
            f"This card states none: what holds follows from the licence of the base, {_base(run)}, and "
            "from that of the data. Check both, and add a license to the front matter, before you publish."
        ),
    }
    ModelCard(f"---\n{_data(run, format).to_yaml()}\n---\n\n{template.render(context)}").save(path)


def _base(run: Run) -> str:
    """Its name; of a folder the last part, since the rest is this machine's."""
    return run.model.base if run.model.base_sha256 is None else Path(run.model.base).name


def _text(value: object) -> str:
    return markdown_escape(plain(str(value)))


def _data(run: Run, format: str) -> ModelCardData:
    """The front matter, which the Hub reads; YAML is huggingface_hub's to write."""
    hub = _HUB_DATA.fullmatch(run.data.source)
    # A folder has a hash; what has none and looks like one is a Hub id.
    on_hub = run.model.base_sha256 is None and _HUB_ID.fullmatch(run.model.base)
    split = run.data.splits["eval"]
    results = [
        EvalResult(
            task_type="text-classification",
            task_name="Text Classification",
            dataset_type=hub[1] if hub else plain(run.data.task),
            dataset_name=plain(run.data.task),
            dataset_config=hub[2] if hub else None,
            dataset_revision=hub[3] if hub else None,
            dataset_args={"rows": split.rows, "rows_available": split.rows_available},
            metric_type=name,
            metric_name=name,
            metric_value=metric.value,
        )
        for name, metric in run.record.metrics.items()
    ]
    return ModelCardData(
        model_name=plain(run.record.id),
        library_name={"safetensors": "bakeoff", "onnx": "onnxruntime", "torch-export": "pytorch"}[format],
        pipeline_tag="text-classification",
        base_model=run.model.base if on_hub else None,
        datasets=hub[1] if hub else None,
        tags=["bakeoff", plain(run.model.attention), plain(run.model.family)],
        metrics=[name for name in run.record.metrics if name != "loss"],
        eval_results=results,
    )


def _metrics(run: Run, row: Any) -> list[tuple[str, str, str]]:
    shown = []
    for name, metric in run.record.metrics.items():
        estimate = row.metrics.get(name)
        if estimate is None:
            shown.append((_text(name), f"{metric.value:.4f}", "–"))
        else:
            interval = f"{percent(estimate.low)} to {percent(estimate.high)} %"
            shown.append((_text(name), f"{percent(metric.value)} %", interval))
    return shown


def _facts(run: Run) -> list[tuple[str, object]]:
    model, data, spec = run.model, run.data, run.record.spec
    options = ", ".join(f"{name}={value}" for name, value in model.attention_options.items())
    return [
        ("run", run.record.id),
        ("base", _base(run)),
        ("SHA-256 of the base's weights", model.base_sha256 or "not known"),
        ("family", model.family),
        ("attention", f"{model.attention} on {model.layers} layers; {options or 'no options'}"),
        ("parameters", f"{model.parameters:,}, {model.attention_parameters:,} of them the mechanism's own"),
        ("data", f"{data.task}, from {data.source}"),
        ("SHA-256 of texts and labels", data.fingerprint),
        *(
            (f"{part} rows", f"{split.rows:,} of {split.rows_available:,}")
            for part, split in data.splits.items()
        ),
        ("labels", ", ".join(data.labels)),
        ("max_length", f"{data.max_length} tokens"),
        ("training", ", ".join(f"{name} {spec[name]}" for name in _TRAINING if name in spec)),
        ("trained", f"{run.record.started}, in {run.cost.train_seconds:.0f} s"),
    ]


def _limits(run: Run) -> list[str]:
    split = run.data.splits["eval"]
    return [
        f"Texts are cut after {run.data.max_length} tokens, as were {100 * split.share_truncated:.1f} % of "
        "those it was evaluated on.",
        "The intervals are for the evaluation rows alone: other texts, and another seed, may move the "
        "figures further.",
        "It was trained with one seed.",
        "The language is that of the data, which no one has stated here; in another it was not tested.",
        *(["Training or evaluation rows are a sample of what there is."] if run.data.sampled else []),
    ]
