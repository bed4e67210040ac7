"""Recipes: what is done between the pretrained weights and the fine-tuned model, as data.

A new recipe is one row of `RECIPES`. A row that was released is not changed: runs know their recipe by its
name. What each is worth was measured: `docs/recipes.md`.
"""

from __future__ import annotations

import dataclasses

from bakeoff.errors import unknown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way from pretrained weights to a classifier.

    Attributes:
        description: in a line.
        dense_share: of fine-tuning's steps, made with dense attention before the mechanism takes its place.
        transfer_steps: steps of attention transfer when it does, for mechanisms with state to learn.
        transfer_tokens: real tokens a step, about; a step has one row at least.
        transfer_learning_rate: of the mechanism's state in that stage; it falls to zero linearly.
    """

    description: str
    dense_share: float = 0.0
    transfer_steps: int = 0
    transfer_tokens: int = 512
    transfer_learning_rate: float = 0.1


RECIPES: dict[str, Recipe] = {
    "plain": Recipe(description="Fine-tune at once."),
    "transfer": Recipe(
        description="Before fine-tuning, let the mechanism's own state learn to match dense attention.",
        transfer_steps=200,
    ),
    "late": Recipe(
        description="Fine-tune with dense attention for half of the steps, then transfer and go on.",
        dense_share=0.5,
        transfer_steps=200,
    ),
}


def get(name: str) -> Recipe:
    """The recipe called `name`."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]
