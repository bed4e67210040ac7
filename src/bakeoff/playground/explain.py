"""What a model attends to in a text: which tokens its answer rests on, and which token looks at which.

Attributions are integrated gradients: Sundararajan, Taly and Yan, 2017, "Axiomatic Attribution for Deep
Networks", https://arxiv.org/abs/1703.01365, equation 1, along the straight line from a text of padding
tokens, special tokens kept, to the text, summed over each token's embedding. They add up to what the text
changes in the answer (their proposition 1, completeness), as far as a sum over points gives the integral;
the gap is returned.

A pattern is the n x n weights with which a layer mixes its values (`bakeoff.attention.weights`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bakeoff.attention import Attention
from bakeoff.attention.weights import weights
from bakeoff.errors import BakeoffError
from bakeoff.predict import Classifier

#: Longer texts are not explained: gradients take memory by the token, patterns by its square.
MOST_TOKENS = 256
STEPS = 32  # the gap is then some 1e-5 of log-odds for a fine-tuned MiniLM
_AT_ONCE = 8  # points of the integral in a batch


@dataclasses.dataclass(frozen=True)
class Token:
    """A token as it stands in the text, with what stands before it; `special` is the tokenizer's own."""

    before: str
    text: str
    special: bool


@dataclasses.dataclass(frozen=True)
class Attribution:
    """What each token of a text adds to the log-odds of `label`."""

    label: str
    tokens: list[Token]
    values: list[float]
    total: float  # log-odds of the text minus those of padding alone
    gap: float  # of the values' sum to it


def attribute(classifier: Classifier, text: tuple[str, ...], steps: int = STEPS) -> Attribution:
    """Integrated gradients of the log-odds of the model's own label, log p / (1 - p).

    Raises:
        BakeoffError: the text has more than `MOST_TOKENS` tokens.
    """
    inputs, tokens = _encoded(classifier, text)
    model, ids_1N = classifier.model, inputs.pop("input_ids")
    special_N = torch.tensor([token.special for token in tokens], device=ids_1N.device)
    embed = model.get_input_embeddings()
    with torch.no_grad():
        end_NE = embed(ids_1N)[0]
        padding_E = embed(torch.full_like(ids_1N[0, :1], classifier.tokenizer.pad_token_id))
        start_NE = torch.where(special_N[:, None], end_NE, padding_E)
        logits_1C = model(inputs_embeds=end_NE[None], **inputs).logits
    if logits_1C.shape[1] == 1:
        raise BakeoffError("a model of one label has nothing to decide, and so nothing to explain.")
    label = int(logits_1C.argmax())

    def log_odds(points_SNE: Tensor) -> Tensor:
        given = {name: value.expand(len(points_SNE), -1) for name, value in inputs.items()}
        logits_SC = model(inputs_embeds=points_SNE, **given).logits
        others_SC = torch.cat((logits_SC[:, :label], logits_SC[:, label + 1 :]), 1)
        return logits_SC[:, label] - others_SC.logsumexp(1)

    sum_NE = torch.zeros_like(end_NE)
    middles_S = (torch.arange(steps, dtype=end_NE.dtype, device=end_NE.device) + 0.5) / steps
    for part_S in middles_S.split(_AT_ONCE):
        points_SNE = torch.lerp(start_NE, end_NE, part_S[:, None, None]).requires_grad_()
        sum_NE += torch.autograd.grad(log_odds(points_SNE).sum(), points_SNE)[0].sum(0)
    values_N = ((end_NE - start_NE) * sum_NE / steps).sum(1)
    with torch.no_grad():
        before, after = log_odds(torch.stack((start_NE, end_NE))).tolist()
    return Attribution(
        label=model.config.id2label[label],
        tokens=tokens,
        values=values_N.tolist(),
        total=after - before,
        gap=float(values_N.sum()) - (after - before),
    )


@torch.inference_mode()
def pattern(classifier: Classifier, text: tuple[str, ...], layer: int) -> tuple[Tensor, list[Token]]:
    """The (n, n) weights of a layer, mean over heads, row i of what token i takes; and the tokens.

    Args:
        classifier: the model.
        text: one or two texts.
        layer: from 0.

    Raises:
        BakeoffError: the text has more than `MOST_TOKENS` tokens, or the model fewer layers.
    """
    inputs, tokens = _encoded(classifier, text)
    calls: list[tuple[Attention, tuple[Any, ...], dict[str, Any]]] = []

    def remember(mechanism: Attention, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        calls.append((mechanism, args, given))

    hooks = [
        mechanism.register_forward_pre_hook(remember, with_kwargs=True)
        for mechanism in classifier.model.mechanisms()
    ]
    try:
        classifier.model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not 0 <= layer < len(calls):
        raise BakeoffError(f"there is no layer {layer}; the model has layers 0 to {len(calls) - 1}.")
    mechanism, (q_1HND, k_1HND, *_), given = calls[layer]
    return weights(mechanism, q_1HND, k_1HND, **given).mean(0), tokens


def _encoded(classifier: Classifier, text: tuple[str, ...]) -> tuple[dict[str, Tensor], list[Token]]:
    """What the model reads of a text, (1, n) each, without an attention mask; and its tokens."""
    columns, _ = classifier.encode([text])
    ids = columns["input_ids"][0]
    if len(ids) > MOST_TOKENS:
        raise BakeoffError(f"only texts of up to {MOST_TOKENS} tokens are explained; this has {len(ids)}.")
    device = classifier.model.device
    return {name: torch.tensor(rows, device=device) for name, rows in columns.items()}, _tokens(
        classifier, text, ids
    )


def _tokens(classifier: Classifier, text: tuple[str, ...], ids: Sequence[int]) -> list[Token]:
    tokenizer = classifier.tokenizer
    if not tokenizer.is_fast:  # it does not say where a token came from
        special = set(tokenizer.all_special_ids)
        names = tokenizer.convert_ids_to_tokens(ids)
        return [Token(" ", name, i in special) for i, name in zip(ids, names, strict=True)]
    found = tokenizer(
        *([part] for part in text), truncation="longest_first", max_length=classifier.max_length,
        return_offsets_mapping=True, verbose=False,
    )  # fmt: skip
    tokens, ends = [], [0] * len(text)
    names = tokenizer.convert_ids_to_tokens(ids)
    for name, part, (start, end) in zip(
        names, found.sequence_ids(0), found["offset_mapping"][0], strict=True
    ):
        if part is None:
            tokens.append(Token("", name, True))
            continue
        begin = max(start, ends[part])  # several tokens may be bytes of one character
        tokens.append(Token(text[part][ends[part] : begin], text[part][begin:end], False))
        ends[part] = max(end, ends[part])
    return tokens
