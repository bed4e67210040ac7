"""A trained run as a folder for others: its model in one of `FORMATS`, tokenizer, config, and model card.

What is written is held to the run's own model before the folder takes its name: over batch sizes and lengths,
padded on either side, logits must agree, or nothing is left behind.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import statistics
from pathlib import Path

from bakeoff import runs
from bakeoff.errors import BakeoffError, missing, unknown

#: Formats, and what the card says of each.
FORMATS = {
    "safetensors": "The model as it was trained. It is of a model type of its own: loading needs bakeoff.",
    "onnx": "One ONNX graph for every batch size and length up to the encoder's; it needs onnxruntime alone.",
    "torch-export": "One graph for every batch size and length up to the encoder's, as torch.export saves "
    "it: the graph as JSON beside raw weights. It needs PyTorch alone.",
}
#: How far logits may differ, as a share of the largest, or of 1 where that is smaller.
TOLERANCE = 1e-4
_ROUNDS = 5
_SHORT = 32


@dataclasses.dataclass(frozen=True)
class Speed:
    """What a text of so many tokens takes, in ms over rounds in which all took turns."""

    tokens: int
    what: str
    median: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written where, how far its logits are from the run's, and how fast it is."""

    folder: Path
    difference: float
    speed: tuple[Speed, ...]


def export(folder: str | Path, format: str, output: str | Path) -> Exported:
    """Write the model of a run to a new folder.

    Args:
        folder: the run's folder.
        format: one of `FORMATS`.
        output: a folder that does not exist yet.

    Raises:
        BakeoffError: the run kept no model or did not end well, the folder exists, a package is missing, or
            the exported model computes something else.
    """
    run, target = Path(folder), Path(output)
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if os.path.lexists(target):
        raise BakeoffError(f"{target} exists; choose another --output.")
    record = runs.load(run)
    if record.status != "ok":
        raise BakeoffError(f"{run} did not end well ({record.status}); run it again.")
    if format == "onnx":
        _require_onnx()

    from bakeoff import env
    from bakeoff.export import card, graph
    from bakeoff.predict import Classifier

    classifier = Classifier(run)
    model, tokenizer = classifier.model.to("cpu"), classifier.tokenizer
    environment = env.describe("fp32") | {"device": env.processor()}  # whatever else the machine has
    temporary = target.with_name(target.name + ".tmp")
    try:
        temporary.mkdir(parents=True)
    except FileExistsError:
        raise BakeoffError(
            f"{temporary} is in the way, of another export or of one that was killed; move it away."
        ) from None
    except OSError as error:
        raise _unwritable(target, error) from None
    try:
        inputs = graph.Inputs(model, tokenizer)
        tokenizer.save_pretrained(temporary)
        exported, versions = graph.WRITERS[format](inputs, temporary)
        sides = ("right",) if format == "safetensors" else ("right", "left")
        difference = graph.difference(inputs, exported, sides)
        if not difference <= TOLERANCE:  # NaN neither
            raise BakeoffError(
                f"{format}: logits differ from the trained model's by {difference:.1e} (at most "
                f"{TOLERANCE:.0e} is allowed); nothing was written."
            )
        speed = tuple(
            Speed(tokens, what, *(1e3 * f(seconds) for f in (statistics.median, min, max)))
            for tokens in sorted({min(_SHORT, classifier.max_length), classifier.max_length})
            for what, seconds in graph.seconds(inputs, exported, tokens, format, _ROUNDS).items()
        )
        card.write(
            temporary / "README.md",
            run,
            format,
            columns=classifier.columns or 1,
            difference=difference,
            environment=environment | versions,
            speed=speed,
            note=FORMATS[format],
        )
        temporary.replace(target)
    except OSError as error:
        raise _unwritable(target, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Exported(target, difference, speed)


def _unwritable(target: Path, error: OSError) -> BakeoffError:
    return BakeoffError(f"cannot write {target} ({error.strerror or error}); choose another --output.")


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise missing("--format onnx needs ONNX", "export") from None
