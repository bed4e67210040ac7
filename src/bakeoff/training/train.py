"""One run, from a spec to its record: prepare, fine-tune, evaluate, write."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bakeoff import checkpoints, env, metrics, predict, runs
from bakeoff.attention import Attention
from bakeoff.errors import BakeoffError, one_line
from bakeoff.spec import RunSpec, parse_size
from bakeoff.training import interrupts
from bakeoff.training.callbacks import Stopped, Watch, history, mean_loss
from bakeoff.training.fine_tuning import fine_tune
from bakeoff.training.preparation import Prepared, prepare

CHECKPOINTS = "checkpoints"
_PREVIEW = 400  # characters of each evaluation text kept with its prediction


def run(spec: RunSpec, *, progress: bool = True, watch: Watch | None = None) -> runs.RunRecord:
    """Train and evaluate one run, or return its record if it was made before; resume it if it was cut off.

    The record is written for every outcome. Failures do not raise: their record has a status and an error.

    Args:
        spec: what to run.
        progress: whether to show bars.
        watch: is told of every evaluation during training (`eval_steps`), and may end the run there.

    Raises:
        BakeoffError: the input is bad, and nothing was trained; or a file could not be written, and the run
            resumes.
        KeyboardInterrupt: after a record of status `cancelled` was written.
    """
    if (done := runs.finished(spec)) is not None:
        return done
    started, clock = datetime.datetime.now(datetime.UTC), time.perf_counter()
    prepared = prepare(spec, runs.encoded_folder(spec))
    folder = runs.output_folder(spec) / spec.run_id()
    with interrupts.terminable(), runs.lock(folder) if env.is_first_process() else contextlib.nullcontext():
        return runs.finished(spec) or _record(spec, prepared, folder, started, clock, progress, watch)


def _record(
    spec: RunSpec,
    prepared: Prepared,
    folder: Path,
    started: datetime.datetime,
    clock: float,
    progress: bool,
    watch: Watch | None,
) -> runs.RunRecord:
    """Make a run and write what came of it."""
    record = runs.RunRecord(
        id=folder.name,
        status="failed",
        digest=spec.digest(),
        spec=prepared.spec.to_dict(),
        started=started.isoformat(timespec="seconds"),
        seconds=0.0,
        environment=env.describe("bf16" if spec.bf16 else "fp32"),
        data=prepared.data,
    )
    interrupted = False
    try:
        fresh = env.reset_peak_memory()
        with env.memory_limit(parse_size(spec.max_memory, "max_memory") if spec.max_memory else None):
            model = prepared.load_model()
            record = dataclasses.replace(record, model=_describe(model, prepared))
            record = _train(prepared, model, folder, record, progress, watch, fresh)
    except KeyboardInterrupt:
        record = dataclasses.replace(record, status="cancelled", error="interrupted; run it again to resume")
        interrupted = True
    except Stopped as stop:
        record = dataclasses.replace(record, status="stopped", error=str(stop), history=stop.history)
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    except BakeoffError:  # an encoder whose weights are bad input, or a full disk
        raise
    except Exception as error:  # whatever else went wrong belongs into the record
        record = dataclasses.replace(
            record,
            status="oom" if env.is_out_of_memory(error) else "failed",
            error=f"{type(error).__name__}: {one_line(error)}",
        )
    record = dataclasses.replace(record, seconds=time.perf_counter() - clock)
    if env.is_first_process():
        runs.save(folder, record)
    if record.status == "ok" and env.is_first_process():
        for name in (CHECKPOINTS, f"unusable-{CHECKPOINTS}"):
            shutil.rmtree(folder / name, ignore_errors=True)
    if interrupted:
        raise KeyboardInterrupt
    return record


def _train(
    prepared: Prepared,
    model: PreTrainedModel,
    folder: Path,
    record: runs.RunRecord,
    progress: bool,
    watch: Watch | None,
    fresh_memory: bool,
) -> runs.RunRecord:
    spec, task, tokenizer = prepared.spec, prepared.task, prepared.tokenizer
    rows, epochs = len(task.train.labels), spec.num_train_epochs
    if "tensorboard" in spec.report_to:  # by default it would lie among the checkpoints, and go with them
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")
    tuned = fine_tune(prepared, model, folder / CHECKPOINTS, progress=progress, watch=watch)

    clock = time.perf_counter()
    logits = predict.logits(
        model,
        tokenizer,
        prepared.eval.dataset,
        spec.per_device_eval_batch_size,
        bf16=spec.bf16,
        progress=progress,
    )
    eval_seconds = time.perf_counter() - clock
    memory, how = env.peak_memory(fresh_memory)

    if env.is_first_process():
        runs.Predictions(
            ids=task.eval.ids,
            labels=task.eval.labels,
            logits=logits.tolist(),
            tokens=prepared.eval.lengths,
            texts=[" ⏎ ".join(texts)[:_PREVIEW] for texts in task.eval.texts],
        ).save(folder)
    if spec.save_model and env.is_first_process():
        tokenizer.model_max_length = spec.max_length
        _save_model(model, tokenizer, folder / runs.MODEL)
    train_tokens, eval_tokens = (sum(part.dataset["length"]) for part in (prepared.train, prepared.eval))
    mean_length = round(eval_tokens / len(prepared.eval.lengths))
    return dataclasses.replace(
        record,
        status="ok",
        metrics=metrics.compute((*task.metrics, "loss"), task.eval.labels, logits.numpy()),
        train_loss=mean_loss(tuned.state),
        batches=tuned.batches,
        transfer=tuned.transfer,
        cost=runs.Cost(
            train_seconds=tuned.seconds,
            train_tokens_per_second=train_tokens * epochs / tuned.seconds,
            train_examples_per_second=rows * epochs / tuned.seconds,
            eval_seconds=eval_seconds,
            eval_tokens_per_second=eval_tokens / eval_seconds,
            eval_examples_per_second=len(prepared.eval.lengths) / eval_seconds,
            peak_memory_bytes=memory,
            attention_flops_per_eval_token=model.attention_flops(mean_length) / mean_length,
            how=f"wall time; tokens without padding; {how}",
        ),
        history=history(tuned.state),
    )


def _save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    temporary = folder.with_name(folder.name + ".tmp")
    for leftover in (temporary, folder):
        shutil.rmtree(leftover, ignore_errors=True)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    temporary.rename(folder)


def _describe(model: PreTrainedModel, prepared: Prepared) -> runs.Model:
    spec, mechanisms = prepared.spec, model.mechanisms()
    lengths = [min(length, prepared.data.max_length) for length in prepared.eval.lengths]
    path = checkpoints.resolve(spec.model_name_or_path)
    return runs.Model(
        base=spec.model_name_or_path,
        base_sha256=checkpoints.weights_sha256(path),
        family=prepared.base.family,
        attention=spec.attention.name,
        attention_options=dict(model.config.attention_options),
        attention_seed=model.config.attention_seed,
        layers=prepared.base.layers,
        parameters=model.num_parameters(),
        trainable_parameters=model.num_parameters(only_trainable=True),
        attention_parameters=sum(t.numel() for m in mechanisms for t in m.state_dict().values()),
        share_dense=_share_covered(mechanisms, lengths),
    )


def _share_covered(mechanisms: Sequence[Attention], lengths: Sequence[int]) -> float:
    """The share of texts for which no layer leaves anything out; a family's own local layers aside."""
    chosen = [m for m in mechanisms if not m.local]
    return sum(all(m.covers(length) for m in chosen) for length in lengths) / len(lengths)
