"""Fine-tune, evaluate and compare efficient-attention text encoders against dense attention.

import bakeoff

spec = bakeoff.RunSpec(task="sst2", attention=bakeoff.AttentionSpec("longformer", {"window": 64}))
record = bakeoff.run(spec)
model = bakeoff.load("minilm", "performer", labels=["negative", "positive"])
comparison = bakeoff.compare("runs")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bakeoff.errors import BakeoffError
from bakeoff.spec import AttentionSpec, GridSpec, RunSpec
from bakeoff.version import __version__

if TYPE_CHECKING:
    from bakeoff.attention import ATTENTIONS
    from bakeoff.checkpoints import convert, load
    from bakeoff.comparison import compare
    from bakeoff.encoder import BakeoffConfig, BakeoffForMaskedLM, BakeoffForSequenceClassification
    from bakeoff.predict import Classifier
    from bakeoff.runs import Predictions, RunRecord
    from bakeoff.tasks import TASKS
    from bakeoff.training.train import run

#: What is imported on first use, since it brings torch or the scientific stack with it.
_LATE = {
    "ATTENTIONS": "bakeoff.attention",
    "BakeoffConfig": "bakeoff.encoder",
    "BakeoffForMaskedLM": "bakeoff.encoder",
    "BakeoffForSequenceClassification": "bakeoff.encoder",
    "Classifier": "bakeoff.predict",
    "Predictions": "bakeoff.runs",
    "RunRecord": "bakeoff.runs",
    "TASKS": "bakeoff.tasks",
    "compare": "bakeoff.comparison",
    "convert": "bakeoff.checkpoints",
    "load": "bakeoff.checkpoints",
    "run": "bakeoff.training.train",
}

__all__ = [
    "ATTENTIONS",
    "TASKS",
    "AttentionSpec",
    "BakeoffConfig",
    "BakeoffError",
    "BakeoffForMaskedLM",
    "BakeoffForSequenceClassification",
    "Classifier",
    "GridSpec",
    "Predictions",
    "RunRecord",
    "RunSpec",
    "__version__",
    "compare",
    "convert",
    "load",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module 'bakeoff' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LATE[name]), name)
    globals()[name] = value  # over the submodule of the same name, where there is one
    return value


def __dir__() -> list[str]:
    return __all__
