"""Figures that are not to drift: of each mechanism alone, of tiny encoders, of tiny runs.

`python tests/golden.py` writes them to golden.json; CONTRIBUTING.md, "Change a number", says when. They are
made in float64: fp32 kernels round differently on every kind of processor, and 16 steps at a tiny model's
learning rate make 1e-5 of that. What is left is where the library itself computes in fp32, such as the loss.
"""

import contextlib
import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch

import encoders
import tiny
from bakeoff import checkpoints
from bakeoff.attention import Layer, build, longformer
from bakeoff.spec import AttentionSpec
from bakeoff.training import train

FILE = Path(__file__).with_suffix(".json")

#: As a run names them.
ATTENTIONS = {name: str(AttentionSpec(name, options)) for name, options in encoders.SMALL.items()} | {
    "performer random": "performer:num_features=16,feature_map=random,global_tokens=0",
}
ENCODERS = [(family, name) for family in ("bert", "modernbert") for name in ATTENTIONS]
RUNS = [
    *(("bert", name, "plain") for name in ATTENTIONS),
    ("bert", "performer", "transfer"),
    ("bert", "linformer", "late"),
    ("modernbert", "longformer", "plain"),
]

Figures = dict[str, float | list[float]]


@contextlib.contextmanager
def settings() -> Iterator[None]:
    """One thread, float64, and windows as windows, however short the text."""
    threads, load = torch.get_num_threads(), checkpoints.load
    torch.set_num_threads(1)
    try:
        with (
            mock.patch.object(checkpoints, "load", lambda *given, **named: load(*given, **named).double()),
            mock.patch.multiple(longformer, DENSE_UP_TO=0, DENSE_WINDOWS=0),
        ):
            yield
    finally:
        torch.set_num_threads(threads)


def save_encoders(folder: Path) -> None:
    """Of Python's random numbers: how torch and transformers draw a model may change with their version."""
    for family in {family for family, *_ in [*ENCODERS, *RUNS]}:
        path = tiny.encoder(folder / family / "encoder", family)
        model = encoders.HEADS["classification"].from_pretrained(path)
        rng = random.Random(family)
        with torch.no_grad():
            for _, parameter in sorted(model.named_parameters()):
                if parameter.dim() == 2:
                    drawn = [rng.gauss(0, 0.3) for _ in range(parameter.numel())]
                    parameter.copy_(torch.tensor(drawn).view_as(parameter))
        model.save_pretrained(path)


def attend(attention: str) -> Figures:
    """Each row's and head's output: a sum in which every number has its own weight."""
    spec = AttentionSpec.parse(ATTENTIONS[attention])
    H, D, E, N = 2, 8, 16, 24
    torch.manual_seed(0)  # longformer's global projections, which an encoder gives their weights
    mechanism = build(spec.name, Layer(1, H, H, D, E, 64, 3), spec.options).double().eval()
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, H, N, D, generator=generator, dtype=torch.float64) for _ in range(3))
    hidden = torch.randn(2, N, E, generator=generator, dtype=torch.float64)
    more = {"hidden_BNE": hidden} if "hidden_BNE" in mechanism.layer_inputs else {}
    with torch.no_grad():
        out_BHND = mechanism(q, k, v, torch.tensor([N, 17]), scaling=D**-0.5, **more)
    weight_ND = torch.arange(N * D, dtype=torch.float64).cos().view(N, D)
    return {"out": (out_BHND * weight_ND).sum((2, 3)).flatten().tolist()}


def encode(folder: Path, family: str, attention: str, dtype: torch.dtype = torch.float64) -> Figures:
    """The logits of padded rows."""
    spec = AttentionSpec.parse(ATTENTIONS[attention])
    path = folder / family / "encoder"
    model = checkpoints.load(path, spec.name, attention_options=spec.options).to(dtype).eval()
    with torch.no_grad():
        return {"logits": model(**encoders.batch(B=3)).logits.flatten().tolist()}


def run(folder: Path, family: str, attention: str, recipe: str) -> Figures:
    """The losses and metrics of 16 steps, two evaluations on the way, and the error of attention transfer."""
    changes = {"recipe": recipe, "num_train_epochs": 1, "eval_steps": 6}
    record = train.run(tiny.spec(folder / family, attention=ATTENTIONS[attention], **changes), progress=False)
    assert record.status == "ok", record.error
    return {
        "losses": [line["loss"] for line in record.history if "loss" in line],
        "evaluations": [line["eval_loss"] for line in record.history if "eval_loss" in line],
        "transfer": [line["error"] for line in record.transfer.history] if record.transfer else [],
        "train_loss": record.train_loss,
        **{name: metric.value for name, metric in record.metrics.items()},
    }


def main() -> None:
    with settings(), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_encoders(folder)
        made = {
            **{f"attention {attention}": attend(attention) for attention in ATTENTIONS},
            **{" ".join(("encoder", *case)): encode(folder, *case) for case in ENCODERS},
            **{" ".join(("run", *case)): run(folder, *case) for case in RUNS},
        }
    rounded = json.loads(json.dumps(made), parse_float=lambda digits: round(float(digits), 9))
    lines = (f"{json.dumps(case)}: {json.dumps(figures)}" for case, figures in rounded.items())
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
