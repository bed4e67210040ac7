"""Tiny random encoders of every tested family, and of the layouts of two Hub checkpoints."""

import torch
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BigBirdConfig,
    LongformerConfig,
    LongformerForSequenceClassification,
)

_SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 60,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}

FAMILIES = {
    "bert": _SMALL,
    "roberta": _SMALL | {"max_position_embeddings": 514},
    "distilbert": {
        "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64, "vocab_size": 60,
        "dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0,
    },
    "electra": _SMALL,
    "modernbert": _SMALL | _TOKENS | {"global_attn_every_n_layers": 3, "local_attention": 8},
    "eurobert": _SMALL | _TOKENS | {"num_key_value_heads": 2, "mask_token_id": 3},
    "albert": _SMALL | {"embedding_size": 16},
    "xlm-roberta": _SMALL | {"max_position_embeddings": 514},
}  # fmt: skip

#: Options of each mechanism for which a few tokens are many.
SMALL = {
    "dense": {},
    "longformer": {"window": 4, "global_tokens": 2},
    "bigbird": {"block_size": 2, "num_random_blocks": 1},
    "performer": {"num_features": 16, "global_tokens": 2},
    "linformer": {"projected_length": 6, "global_tokens": 2},
}

#: Families that do not dispatch; deberta and fnet accept an attention's name and never call it.
REFUSED = ["deberta", "deberta-v2", "fnet", "yoso", "mpnet", "roformer", "nystromformer", "convbert"]

#: Decoders that dispatch, and whose configs do not say what they are.
DECODERS = ["gpt2", "llama", "qwen3", "mistral", "gemma2"]

HEADS = {"classification": AutoModelForSequenceClassification, "masked-lm": AutoModelForMaskedLM}


def config(family, **changes):
    return AutoConfig.for_model(family, **(FAMILIES.get(family, _SMALL) | changes))


def save(folder, family, head="classification", seed=0, **changes):
    """A random model of `family` on disk; weights spread enough for attention to matter."""
    torch.manual_seed(seed)
    model = HEADS[head].from_config(config(family, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return model


def batch(B=2, N=20, vocab=60, side="right", seed=0):
    """Token ids and a mask with every row but the first padded."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, vocab, (B, N), generator=generator)
    keep = torch.arange(N) < torch.tensor([N] + [N - 3 * i for i in range(1, B)])[:, None]
    if side == "left":
        keep = keep.flip(1)
    return {"input_ids": ids.where(keep, 0), "attention_mask": keep.long()}


#: Of random checkpoints in the layouts of the Hub's Longformer and BigBird.
_LAYOUT = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def longformer_config():
    """The layout of allenai/longformer-base-4096, smaller."""
    tokens = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
    return LongformerConfig(
        **_LAYOUT, **tokens, max_position_embeddings=258, attention_window=[16, 32], type_vocab_size=1
    )


def bigbird_config(**changes):
    """The layout of google/bigbird-roberta-base, smaller."""
    return BigBirdConfig(
        **_LAYOUT, max_position_embeddings=256, block_size=4, num_random_blocks=2, sep_token_id=58, **changes
    )


def randomised(model):
    """Weights spread enough for every part of the model to matter."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.3) if parameter.dim() == 2 else parameter.add_(
                torch.randn_like(parameter) / 10
            )
            if "position_embeddings" in name and isinstance(model, LongformerForSequenceClassification):
                parameter[1] = 0
    return model.eval()
