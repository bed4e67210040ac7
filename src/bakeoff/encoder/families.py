"""What has to be known of an encoder family by its name; the rest is found by running it."""

from __future__ import annotations

#: Families whose classifier reads the first token alone, and the module of a layer in which attention's
#: output meets the residual: behind it, the last layer has work for that token only. One line a family.
FIRST_ONLY: dict[str, str] = {
    "bert": "attention.output",
    "camembert": "attention.output",
    "data2vec-text": "attention.output",
    "electra": "attention.output",
    "ernie": "attention.output",
    "roberta": "attention.output",
    "xlm-roberta": "attention.output",
}

#: A family's query, key and value projections on its attention module: one name each, or one fused.
#: Needed where a mechanism starts from their weights (Longformer's global projections). One line a family.
PROJECTIONS: dict[str, tuple[str, ...]] = {
    "albert": ("query", "key", "value"),
    "bert": ("query", "key", "value"),
    "camembert": ("query", "key", "value"),
    "data2vec-text": ("query", "key", "value"),
    "distilbert": ("q_lin", "k_lin", "v_lin"),
    "electra": ("query", "key", "value"),
    "ernie": ("query", "key", "value"),
    "eurobert": ("q_proj", "k_proj", "v_proj"),
    "modernbert": ("Wqkv",),
    "roberta": ("query", "key", "value"),
    "roberta-prelayernorm": ("query", "key", "value"),
    "xlm-roberta": ("query", "key", "value"),
}
