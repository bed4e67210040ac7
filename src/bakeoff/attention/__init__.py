"""The mechanisms: one file each, the table below, and `reference.py` as their specification.

To add one: a module with a subclass of `base.Attention`, a line in `ATTENTIONS`, a function in
`reference.REFERENCES`. The tests iterate over both tables.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from bakeoff.attention.base import Attention, Layer
from bakeoff.attention.bigbird import BigBird
from bakeoff.attention.dense import Dense
from bakeoff.attention.linformer import Linformer
from bakeoff.attention.longformer import Longformer
from bakeoff.attention.performer import Performer
from bakeoff.errors import BakeoffError, unknown

ATTENTIONS: dict[str, type[Attention]] = {
    "dense": Dense,
    "longformer": Longformer,
    "bigbird": BigBird,
    "performer": Performer,
    "linformer": Linformer,
}


def options_of(name: str) -> dict[str, Any]:
    """The options of a mechanism with their defaults: its constructor's keywords."""
    if name not in ATTENTIONS:
        raise unknown("attention", name, ATTENTIONS)
    parameters = inspect.signature(ATTENTIONS[name].__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def resolve_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a mechanism, defaults filled in; an unknown name or a wrong type is an error."""
    defaults = options_of(name)
    for key, value in options.items():
        if key not in defaults:
            raise BakeoffError(
                f"attention {name}: {unknown('option', key, defaults) if defaults else 'has no options.'}"
            )
        kind = type(defaults[key])
        values = value if isinstance(value, list | tuple) else [value]  # a list gives one value a layer
        if not values or not all(type(v) is kind for v in values):
            raise BakeoffError(f"attention {name}: {key} must be {kind.__name__}, not {value!r}.")
    return defaults | {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}


def build(name: str, layer: Layer, options: Mapping[str, Any]) -> Attention:
    """The mechanism `name` for one layer; an option given as a list is indexed by the layer."""
    chosen = {}
    for key, value in resolve_options(name, options).items():
        if isinstance(value, list | tuple):
            if layer.index >= len(value):
                raise BakeoffError(
                    f"attention {name}: {key} lists {len(value)} values; layer {layer.index} has none."
                )
            value = value[layer.index]
        chosen[key] = value
    return ATTENTIONS[name](layer, **chosen)


__all__ = ["ATTENTIONS", "Attention", "Layer", "build", "options_of", "resolve_options"]
