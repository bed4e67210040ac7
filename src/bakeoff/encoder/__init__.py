"""The bridge to transformers: any encoder that dispatches its attention, with any mechanism in it.

A converted model is a `BakeoffForSequenceClassification` or a `BakeoffForMaskedLM`, of a model type of its
own ("bakeoff"), so that it saves and loads exactly, and fails loudly where this library is missing instead
of turning dense. Inside stands the family's own model with its own weights under their own names, and on each
attention layer one submodule more, `bakeoff`: the mechanism with its state. `discovery` finds those layers,
one registered attention function, in `dispatch`, calls the mechanism, and `hooks` on the layers pack padding
away. Importing this registers the model type and the attention function.
"""

from bakeoff.encoder.config import NAME, BakeoffConfig
from bakeoff.encoder.model import BakeoffForMaskedLM, BakeoffForSequenceClassification

__all__ = ["NAME", "BakeoffConfig", "BakeoffForMaskedLM", "BakeoffForSequenceClassification"]
