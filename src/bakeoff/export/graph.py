"""Graphs of a trained classifier: tracing, writing, and holding what was written to the model."""

from __future__ import annotations

import functools
import io
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bakeoff.bench import timing
from bakeoff.checkpoints import load_weights
from bakeoff.encoder import BakeoffForSequenceClassification
from bakeoff.encoder.packing import Traced, to_front

#: Logits (B, classes) of the inputs that a tokenizer gives.
Logits = Callable[[Mapping[str, Tensor]], Tensor]


class Inputs:
    """A model, and inputs that it takes.

    Args:
        model: a classifier of ours, on the CPU.
        tokenizer: its tokenizer.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        encoded = tokenizer(["a"])
        self.names = [n for n in ("input_ids", "attention_mask", "token_type_ids") if n in encoded]
        self._types = getattr(model.config.encoder_config(), "type_vocab_size", 0) or 2
        special = {tokenizer.pad_token_id, *tokenizer.all_special_ids}
        self._ids = torch.tensor([i for i in range(len(tokenizer)) if i not in special] or [0])

    def batch(self, lengths: tuple[int, ...], side: str = "right") -> dict[str, Tensor]:
        """Random rows of these lengths, padded on `side`; the second half of each is a second text."""
        generator = torch.Generator().manual_seed(hash(lengths) % 2**32)  # of whole numbers: always the same
        B, N = len(lengths), max(lengths)
        real = torch.arange(N) < torch.tensor(lengths)[:, None]
        ids = self._ids[torch.randint(len(self._ids), (B, N), generator=generator)]
        second = torch.arange(N) >= torch.tensor(lengths)[:, None] // 2
        given = {
            "input_ids": ids.where(real, self.tokenizer.pad_token_id),
            "attention_mask": real.long(),
            "token_type_ids": (second & real).long().clamp(max=self._types - 1),
        }
        if side == "left":
            rows = [torch.arange(N).roll(N - length) for length in lengths]
            given = {name: x.gather(1, torch.stack(rows)) for name, x in given.items()}
        return {name: given[name] for name in self.names}

    def logits(self, given: Mapping[str, Tensor]) -> Tensor:
        """The model's own."""
        with torch.inference_mode():
            return self.model(**given).logits


class _Graph(nn.Module):
    """A classifier as tensors to a tensor, real tokens brought to the front on whichever side padding is."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        keep_BN = attention_mask.bool()
        order_BN, length_B = to_front(keep_BN), keep_BN.sum(1)
        given = {"input_ids": input_ids.gather(1, order_BN)}
        if token_type_ids is not None:
            given["token_type_ids"] = token_type_ids.gather(1, order_BN)
        N = input_ids.shape[1]
        real_BN = torch.arange(N, device=input_ids.device) < length_B[:, None]
        rows = Traced(length_B, first_only=self.model.first_only, tokens=N)
        return self.model(**given, attention_mask=real_BN.long(), rows=rows).logits


def trace(inputs: Inputs) -> torch.export.ExportedProgram:
    """The model as one graph for every batch size, and every length up to the encoder's."""
    batch = torch.export.Dim("batch", min=1)
    tokens = torch.export.Dim("tokens", min=1, max=inputs.model.max_tokens)
    longest = min(24, inputs.model.max_tokens)
    example = inputs.batch((longest, max(1, longest - 5), max(1, longest - 9)))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            _Graph(inputs.model).eval(),
            (),
            kwargs=example,
            dynamic_shapes={name: {0: batch, 1: tokens} for name in example},
            # That whole blocks hold all tokens is true but not proven: a graph asserts it when it runs.
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    program.example_inputs = None  # they would be saved as a pickle
    for node in program.graph.nodes:  # paths of this machine's files
        node.meta.pop("stack_trace", None)
    return program


def write_safetensors(inputs: Inputs, folder: Path) -> tuple[Logits, dict[str, str]]:
    """The model as it is; returns the logits of what was written."""
    try:
        inputs.model.save_pretrained(folder)
    except SafetensorError as error:  # how it says that a disk is full
        raise OSError(str(error)) from None
    model = load_weights(BakeoffForSequenceClassification, folder, complete=True).eval()
    return Inputs(model, inputs.tokenizer).logits, {}


def write_torch_export(inputs: Inputs, folder: Path) -> tuple[Logits, dict[str, str]]:
    """`model.pt2` and the family's config; returns the logits of what was written."""
    program = trace(inputs)
    path = folder / "model.pt2"
    written = io.BytesIO()  # where it cannot write to a file, PyTorch ends the process
    torch.export.save(program, written)
    path.write_bytes(written.getbuffer())
    inputs.model.config.encoder_config().save_pretrained(folder)
    module = torch.export.load(path).module()

    def logits(given: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return module(**given)

    return logits, {}


def write_onnx(inputs: Inputs, folder: Path) -> tuple[Logits, dict[str, str]]:
    """`model.onnx` and the family's config; returns the logits of what was written."""
    import onnxruntime

    path = folder / "model.onnx"
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    bytes_ = sum(p.numel() * p.element_size() for p in inputs.model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            trace(inputs),
            f=path,
            dynamo=True,
            input_names=inputs.names,
            output_names=["logits"],
            external_data=bytes_ > 1 << 30,  # one file holds up to 2 GiB
            verbose=False,
        )
    inputs.model.config.encoder_config().save_pretrained(folder)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def logits(given: Mapping[str, Tensor]) -> Tensor:
        (out,) = session.run(["logits"], {name: x.numpy() for name, x in given.items()})
        return torch.from_numpy(out)

    return logits, {name: metadata.version(name) for name in ("onnx", "onnxscript", "onnxruntime")}


WRITERS: dict[str, Callable[[Inputs, Path], tuple[Logits, dict[str, str]]]] = {
    "safetensors": write_safetensors,
    "onnx": write_onnx,
    "torch-export": write_torch_export,
}


def difference(inputs: Inputs, exported: Logits, sides: Sequence[str]) -> float:
    """The largest difference between two models' logits, as a share of the largest logit, or of 1.

    Over rows of 1 token to all that the encoder holds, alone and together, padded on each of `sides`. All are
    held to the model's own padded on the right: on the left, a classifier that reads the first token reads
    padding, and a graph, which brings real tokens to the front, does not.
    """
    longest = inputs.model.max_tokens
    lengths = sorted({min(n, longest) for n in (1, 2, 3, 7, 16, 17, 31, 64, 65, 129, 150, longest)})
    batches: list[tuple[int, ...]] = [(n,) for n in lengths]
    batches += [(n, max(1, n // 3), 1) for n in (lengths[-1], lengths[len(lengths) // 2])]
    worst = 0.0
    for batch in batches:
        wanted = inputs.logits(inputs.batch(batch))
        scale = max(1.0, float(wanted.abs().max()))
        for side in sides if len(batch) > 1 else sides[:1]:
            apart = float((exported(inputs.batch(batch, side)) - wanted).abs().max()) / scale
            worst = worst if apart <= worst or worst != worst else apart  # NaN stays
    return worst


def seconds(inputs: Inputs, exported: Logits, tokens: int, name: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round for one text of `tokens` tokens, by the model itself and as exported."""
    given = inputs.batch((tokens,))
    steps = {"eager": functools.partial(inputs.logits, given), name: functools.partial(exported, given)}
    return timing.rounds(steps, rounds, "cpu", lambda: None)
