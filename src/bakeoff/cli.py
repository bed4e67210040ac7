"""The command line: parse, call, print."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import inspect
import io
import json
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bakeoff import env
from bakeoff.errors import BakeoffError, FailedError, printable
from bakeoff.spec import AttentionSpec, GridSpec, RunSpec, load_yaml
from bakeoff.version import __version__

if TYPE_CHECKING:
    from bakeoff import runs

app = typer.Typer(
    name="bakeoff",
    add_completion=False,
    rich_markup_mode=None,  # whose tables cut the names of flags that one has to type
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
#: What the command line is parsed with raises: click's, which newer Typers carry in themselves.
_USAGE: Any = typer.BadParameter.__mro__[2]
out = Console()
err = Console(stderr=True)

#: Every field of a run as a flag: (flag, help). The table is the flags of run, check and grid.
FLAGS: dict[str, tuple[str, str]] = {
    "task": ("--task", "A task by name; bakeoff ls tasks lists them."),
    "train_file": ("--train", "Your own training file: csv, tsv, jsonl or parquet."),
    "eval_file": ("--eval", "Your own evaluation file."),
    "text_columns": ("--text-column", "The text's column in your files; give it twice for pairs."),
    "label_column": ("--label-column", "The label's column in your files; labels are read as text."),
    "data_dir": ("--data-dir", "A local mirror of the Hub's tasks: DIR/sst2/train.parquet and so on."),
    "max_train_samples": ("--max-train-samples", "Train on a sample of this many rows."),
    "max_eval_samples": ("--max-eval-samples", "Evaluate on a sample of this many rows."),
    "held_out_samples": (
        "--held-out-samples",
        "Judge on so many training rows, held out, in place of the evaluation split.",
    ),
    "model_name_or_path": ("--model", "The encoder: minilm, a folder, or a Hub id."),
    "attention": ("--attention", "The mechanism, with options as in longformer:window=64."),
    "attention_dropout": ("--attention-dropout", "Dropout on attention probabilities."),
    "max_length": ("--max-length", "Truncate to this many tokens; by default 512 or what the encoder holds."),
    "extend_positions": (
        "--extend-positions/--no-extend-positions",
        "Copy learned positions where --max-length exceeds them.",
    ),
    "recipe": ("--recipe", "How the mechanism comes into its place; bakeoff ls recipes lists them."),
    "learning_rate": ("--learning-rate", "By default 2e-5, and 1e-4 for encoders of hidden size up to 512."),
    "per_device_train_batch_size": ("--per-device-train-batch-size", "Rows a step and device."),
    "per_device_eval_batch_size": ("--per-device-eval-batch-size", "Rows a batch in evaluation."),
    "gradient_accumulation_steps": ("--gradient-accumulation-steps", "Batches a step."),
    "num_train_epochs": ("--num-train-epochs", "Passes over the training rows; by default 3."),
    "weight_decay": ("--weight-decay", "AdamW's weight decay."),
    "warmup_steps": ("--warmup-steps", "Steps of warm-up; below 1, a share of all steps."),
    "lr_scheduler_type": ("--lr-scheduler-type", "Trainer's name of a learning-rate schedule."),
    "max_grad_norm": ("--max-grad-norm", "Clip gradients to this norm."),
    "seed": ("--seed", "Of the head, the order of rows, dropout, and random attention patterns."),
    "bf16": ("--bf16/--no-bf16", "Train in bfloat16 autocast."),
    "gradient_checkpointing": (
        "--gradient-checkpointing/--no-gradient-checkpointing",
        "Recompute activations: less memory, more time.",
    ),
    "save_steps": ("--save-steps", "Steps between checkpoints; an interrupted run resumes from the last."),
    "eval_steps": ("--eval-steps", "Evaluate every so many steps of training; below 1, a share of all."),
    "max_memory": (
        "--max-memory",
        "What a run may take, such as 8GiB; smaller batches make one step to fit.",
    ),
    "output_dir": ("--output-dir", "The folder that holds the runs."),
    "report_to": ("--report-to", "A tracker, as transformers names it: tensorboard, trackio, wandb, mlflow."),
    "save_model": ("--save-model/--no-save-model", "Keep the trained model beside the record."),
}


def _takes_spec_flags(*without: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command all run fields as flags; those given arrive as the mapping `flags`."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        hints = typing.get_type_hints(RunSpec)
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "flags"]
        parameters = []
        for field in dataclasses.fields(RunSpec):
            if field.name in without:
                continue
            flag, text = FLAGS[field.name]
            hint = hints[field.name]
            kind: Any = str if field.name == "attention" else list[str] if hint == tuple[str, ...] else hint
            default = field.default
            shows = isinstance(default, int | float | str) and not isinstance(default, bool)
            option = typer.Option(
                flag, help=f"{text} [default: {default}]" if shows else text, show_default=False
            )
            parameters.append(
                inspect.Parameter(
                    field.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=None,
                    annotation=Annotated[kind | None, option],
                )
            )

        @functools.wraps(command)
        def wrapper(**arguments: Any) -> None:
            names = {p.name for p in parameters}
            flags = {k: v for k, v in arguments.items() if k in names and v not in (None, [])}
            command(**{k: v for k, v in arguments.items() if k not in names}, flags=flags)

        wrapper.__signature__ = inspect.Signature([*own, *parameters])  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in [*own, *parameters]}
        return wrapper

    return decorate


Ray = Annotated[
    str | None,
    typer.Option(
        help="Make runs in parallel on a Ray cluster: its address, auto, or local to start one.",
        show_default=False,
    ),
]
SpecFile = Annotated[
    Path | None, typer.Argument(help="A YAML run file; flags override its fields.", show_default=False)
]


def _examples(*commands: str) -> str:
    """To stand below a command's help, each on a line however long: the mark forbids to rewrap it."""
    return "\b\nExamples:\n" + "\n".join(f"  {command}" for command in commands)


def _version(asked: bool) -> None:
    if asked:
        _print(f"bakeoff {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Fine-tune, evaluate and compare efficient-attention text encoders against dense attention."""
    if context.invoked_subcommand is None:
        sys.stderr.write(f"{context.get_help()}\n")
        raise typer.Exit(2)


@app.command(
    epilog=_examples(
        "bakeoff run --task rotten_tomatoes --attention linformer:projected_length=32",
        "bakeoff run --task sst2 --attention performer --data-dir mirror --seed 1",
        "bakeoff run --train a.csv --eval b.csv --text-column review --label-column stars",
        "bakeoff run run.yaml --learning-rate 3e-5",
    )
)
@_takes_spec_flags()
def run(spec_file: SpecFile = None, *, flags: dict[str, Any]) -> None:
    """Fine-tune and evaluate one encoder on one task. Done runs are skipped, interrupted ones resume."""
    spec = _spec(spec_file, flags)
    _quiet()
    from bakeoff.training import train

    try:
        with _interruptible():
            record = train.run(spec)
    finally:
        env.leave_all()
    if env.is_first_process():
        _say(spec, record)
        _print(str(Path(spec.output_dir) / record.id))
    if record.status != "ok":
        raise typer.Exit(1)


@app.command(
    epilog=_examples(
        "bakeoff grid --tasks sst2,imdb --attentions dense,longformer:window=64,performer --seeds 1,2,3",
        "bakeoff grid --train a.csv --eval b.csv --text-column a --label-column b --attentions dense,bigbird",
        "bakeoff grid grid.yaml --output-dir runs/study",
    )
)
@_takes_spec_flags("task", "attention", "seed")
def grid(
    grid_file: Annotated[
        Path | None, typer.Argument(help="A YAML grid file; flags override its fields.", show_default=False)
    ] = None,
    *,
    tasks: Annotated[
        str | None, typer.Option(help="Tasks, separated by commas; none for own files.", show_default=False)
    ] = None,
    attentions: Annotated[
        str | None,
        typer.Option(
            help="Mechanisms, separated by commas; their options, and lists in these, with ;",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds, separated by commas.", show_default=False)] = None,
    ray: Ray = None,
    flags: dict[str, Any],
) -> None:
    """Run every combination of tasks, attentions and seeds. Then compare them."""
    values = {**(load_yaml(grid_file) if grid_file else {}), **flags}
    if isinstance(special := values.get("per_task"), dict):
        values["per_task"] = {
            task: {k: v for k, v in fields.items() if k not in flags} if isinstance(fields, dict) else fields
            for task, fields in special.items()
        }
    if tasks:
        values["tasks"] = _split(tasks)
    if attentions:
        values["attentions"] = _attentions(attentions)
    if seeds:
        values["seeds"] = _integers("seeds", seeds)
    specs = list(GridSpec.from_dict(values, str(grid_file or "grid")).runs())
    from bakeoff import grid as cells

    cells.check(specs)
    bad = 0
    with _interruptible():
        for number, (spec, record) in enumerate(cells.run(specs, ray=ray), start=1):
            _say(spec, record, f"[{number}/{len(specs)}] ")
            bad += record.status != "ok"
    _compare([Path(specs[0].output_dir)])
    if bad:
        raise FailedError(f"{bad} of {len(specs)} runs did not end well; start the grid again to retry them.")


@app.command(
    epilog=_examples(
        "bakeoff sweep studies/sweeps/performer.yaml --data-dir mirror",
        "bakeoff sweep sweep.yaml --storage postgresql://host/db  (on every machine that is to take part)",
    )
)
@_takes_spec_flags("seed", "save_model", "held_out_samples", "eval_steps")
def sweep(
    sweep_file: Annotated[Path, typer.Argument(help="A YAML sweep file; flags override its fields.")],
    *,
    n_trials: Annotated[int | None, typer.Option(help="Trials in all.", show_default=False)] = None,
    storage: Annotated[
        str | None,
        typer.Option(help="A database URL as Optuna takes it; by default SQLite.", show_default=False),
    ] = None,
    ray: Ray = None,
    flags: dict[str, Any],
) -> None:
    """Search run fields with Optuna. By held-out training rows; the best is made again over seeds."""
    from bakeoff import sweep as sweeps

    values = {**load_yaml(sweep_file), **flags}
    if n_trials is not None:
        values["n_trials"] = n_trials
    spec = sweeps.SweepSpec.from_dict(values, str(sweep_file))
    bad = 0
    with _interruptible():
        trials = functools.partial(_say, prefix="trial: ")
        for made, record in sweeps.run(spec, storage=storage, say=trials, ray=ray):
            _say(made, record)
            bad += record.status != "ok"
    if bad:
        raise FailedError(f"{bad} runs of the best trial did not end well; start the sweep again.")
    _compare([spec.folder / sweeps.BEST])
    _print(str(spec.folder / sweeps.REPORT))


@app.command(
    epilog=_examples(
        "bakeoff compare runs",
        "bakeoff compare runs --format markdown > table.md",
    )
)
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    format: Annotated[str, typer.Option(help="terminal, markdown or json.")] = "terminal",
) -> None:
    """Compare runs. A table a task, with intervals, paired tests and a plain verdict."""
    _compare(runs, format)


@app.command(
    epilog=_examples(
        "bakeoff report runs --output-dir report",
        "bakeoff report runs --bench bench",
    )
)
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    output_dir: Annotated[Path, typer.Option(help="Where report.html and report.md go.")] = Path("report"),
    bench: Annotated[
        list[Path] | None,
        typer.Option(help="A bench.json or its folder: adds time and memory by length; may be repeated."),
    ] = None,
) -> None:
    """Write the comparison as Markdown and as an HTML page. The page is self-contained, with plots."""
    from bakeoff import report as reports

    for path in reports.write(runs, output_dir, bench or ()):
        _print(str(path))


@app.command(
    epilog=_examples(
        "bakeoff convert minilm --attention performer --output minilm-performer",
        "bakeoff convert minilm --attention longformer:window=256 --max-length 4096 --output minilm-4096",
    )
)
def convert(
    base: Annotated[str, typer.Argument(help="A dense encoder: minilm, a folder, or a Hub id.")],
    attention: Annotated[str, typer.Option(help="The mechanism, with options as in longformer:window=64.")],
    output: Annotated[Path, typer.Option(help="A new folder for the converted encoder.")],
    max_length: Annotated[
        int | None, typer.Option(help="Make room for this many tokens.", show_default=False)
    ] = None,
    head: Annotated[str, typer.Option(help="classification or masked-lm.")] = "classification",
    seed: Annotated[int, typer.Option(help="Of random features and random blocks.")] = 0,
) -> None:
    """Give a pretrained encoder another attention. Warm-started, and loadable by AutoModel."""
    _quiet()
    from bakeoff import checkpoints
    from bakeoff.encoder.discovery import dispatched
    from bakeoff.errors import unknown

    if head not in checkpoints.HEADS:
        raise unknown("head", head, checkpoints.HEADS)
    chosen = AttentionSpec.parse(attention)
    model = checkpoints.convert(
        base,
        chosen.name,
        output,
        attention_options=chosen.options,
        max_length=max_length,
        head=head,
        seed=seed,
    )
    layers = dispatched(model.sites)
    _print(f"{output}: {chosen} on {layers} layers of {base}, room for {model.max_tokens} tokens")


@app.command(
    epilog=_examples(
        'bakeoff predict runs/sst2-dense-s42-1a2b3c4d "A gripping story." "Two hours I want back."',
        "bakeoff predict RUN --file reviews.csv --text-column review --output labels.jsonl",
        "tail -f lines.txt | bakeoff predict RUN -",
    )
)
def predict(
    model: Annotated[Path, typer.Argument(help="A run's folder, or a trained model's.")],
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts; - reads a text a line from stdin.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="A csv, tsv, jsonl or parquet file, of any size.", show_default=False),
    ] = None,
    text_column: Annotated[
        list[str] | None, typer.Option(help="The text's column; twice for pairs.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Write the file's lines here; started again, go on where it stopped.", show_default=False
        ),
    ] = None,
) -> None:
    """Label texts with a trained run: a JSON object a line, in order."""
    if (file is None) == (not texts):
        raise BakeoffError("give texts, or - for stdin, or --file with --text-column; one of them.")
    if file is None and text_column:
        raise BakeoffError("--text-column is for --file; texts given here have no columns.")
    if file is not None and not text_column:
        raise BakeoffError("--file needs --text-column, the column that holds the text.")
    if file is None and output is not None:
        raise BakeoffError("--output is for --file, which can be read again; send these lines to it with >.")
    _quiet()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # JSON is, whatever the terminal takes
    from bakeoff import predict as labels

    left = "what was written stands" if output is None else "start it again to go on where it stopped"
    with _interruptible(left):
        if file is not None:
            made = labels.label_file(model, file, text_column or [], output)
            if output is not None:
                _print(f"{output}: {made:,} rows labelled")
            return
        classify = labels.Classifier(model)
        for given in _stdin() if texts == ["-"] else [texts or []]:
            sys.stdout.writelines(prediction.line() for prediction in classify(given))
            sys.stdout.flush()


@app.command(
    name="try",
    epilog=_examples(
        "bakeoff try runs",
        "bakeoff try runs/sst2-dense-s1-1a2b3c4d runs/sst2-performer-s1-5e6f7a8b --port 0 --open",
    ),
)
def try_(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or of models.")],
    port: Annotated[int, typer.Option(help="Of 127.0.0.1; 0 for any that is free.")] = 8765,
    open: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Put texts to trained mechanisms on a local page. See what each says, and what it reads."""
    _quiet()
    from bakeoff import playground

    listening = playground.listen(port)
    candidates = playground.load(runs)
    for candidate in candidates:
        if candidate.fault:
            err.print(
                _text(f"left out: {candidate.name} ({candidate.where}): {candidate.fault}"), soft_wrap=True
            )
    address = "http://{}:{}/".format(*listening.getsockname())
    _print(f"{address}  (Ctrl-C ends)")
    if open:
        import webbrowser

        webbrowser.open(address)
    with contextlib.suppress(KeyboardInterrupt):
        playground.serve(candidates, listening)


@app.command(
    epilog=_examples(
        "bakeoff export runs/sst2-performer-s42-1a2b3c4d --format onnx --output sst2-onnx",
        "bakeoff export RUN --format safetensors --output sst2-performer",
    )
)
def export(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    format: Annotated[str, typer.Option(help="onnx, torch-export or safetensors.")],
    output: Annotated[Path, typer.Option(help="A new folder for model, tokenizer and card.")],
) -> None:
    """Write a trained run for others, with a model card. Graph or weights, held equal to the run's model."""
    _quiet()
    from bakeoff import export as exporting

    with _interruptible("nothing was written"):
        exported = exporting.export(run, format, output)
    _print(f"{exported.folder}: logits within {exported.difference:.1e} of the trained model's")
    for speed in exported.speed:
        figures = f"{speed.median:.2f} ms a text ({speed.low:.2f} to {speed.high:.2f})"
        _print(f"  {speed.tokens} tokens, {speed.what}: {figures}")


@app.command(
    epilog=_examples(
        "bakeoff check --task imdb --max-length 1024 --extend-positions --data-dir mirror",
        "bakeoff check run.yaml",
    )
)
@_takes_spec_flags()
def check(spec_file: SpecFile = None, *, flags: dict[str, Any]) -> None:
    """Validate a run without training it. The spec, the data, the encoder and its dispatch."""
    spec = _spec(spec_file, flags)
    done = _finished(spec)
    _quiet()
    from bakeoff.training import preparation

    prepared = preparation.prepare(spec)
    data = prepared.data
    table = Table(show_header=False, box=None)
    for name, value in {
        "run": spec.run_id(),
        "encoder": f"{prepared.base.family}, {prepared.base.layers} attention layers, "
        f"positions for {prepared.base.max_tokens} tokens",
        "attention": str(prepared.spec.attention),
        "data": f"{data.task}, from {data.source}" + (" (sample)" if data.sampled else ""),
        "labels": ", ".join(data.labels),
        **{
            part: f"{split.rows:,} of {split.rows_available:,} rows; {_lengths(split)}"
            for part, split in data.splits.items()
        },
        "training": f"recipe {spec.recipe}, learning_rate {prepared.spec.learning_rate:g}, batch "
        f"{spec.per_device_train_batch_size} x {spec.gradient_accumulation_steps}, "
        f"{prepared.spec.num_train_epochs:g} epochs",
        "done": "yes" if done else "no",
    }.items():
        table.add_row(_text(name, style="bold"), _text(value))
    out.print(table)


@app.command(
    epilog=_examples(
        "bakeoff bench --lengths 1024,4096 --attentions dense,longformer:window=256 --against transformers",
        "bakeoff bench --level encoder --phase inference --row-lengths 4096,1300 --attentions bigbird",
    )
)
def bench(
    level: Annotated[str, typer.Option(help="attention or encoder.")] = "attention",
    phase: Annotated[str, typer.Option(help="inference, training, or both.")] = "inference,training",
    lengths: Annotated[str, typer.Option(help="Tokens a row, separated by commas.")] = "1024,2048,4096",
    attentions: Annotated[
        str, typer.Option(help="Mechanisms, separated by commas; their options, and lists in these, with ;")
    ] = "dense,longformer,bigbird,performer,linformer",
    against: Annotated[
        str,
        typer.Option(help="sdpa, transformers, performer-pytorch, linformer, linformer-pytorch; by commas."),
    ] = "sdpa",
    batch_size: Annotated[int, typer.Option(help="Rows a batch.")] = 1,
    row_lengths: Annotated[
        str,
        typer.Option(
            help="One padded batch with these real lengths, in place of --lengths and --batch-size."
        ),
    ] = "",
    encoder: Annotated[str, typer.Option(help="bert or modernbert, with random weights.")] = "bert",
    hidden_size: Annotated[int, typer.Option(help="Of the encoder.")] = 384,
    num_heads: Annotated[int, typer.Option(help="Of the encoder.")] = 12,
    num_layers: Annotated[int, typer.Option(help="Of the encoder, at the encoder level.")] = 4,
    intermediate_size: Annotated[int, typer.Option(help="Of the encoder.")] = 1536,
    repeats: Annotated[int, typer.Option(help="Timed rounds.")] = 5,
    dtype: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    threads: Annotated[int | None, typer.Option(help="PyTorch's.", show_default=False)] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Of weights, inputs and random patterns.")] = 0,
    output_dir: Annotated[Path, typer.Option(help="Where bench.json, bench.md and bench.svg go.")] = Path(
        "bench"
    ),
) -> None:
    """Time mechanisms against other implementations. Those in use, once outputs are held equal."""
    from bakeoff import bench as benchmark
    from bakeoff.bench.result import command_line
    from bakeoff.bench.tables import check_folder, render_terminal

    spec = benchmark.BenchSpec(
        level=level,
        phases=tuple(_split(phase)),
        lengths=_integers("lengths", lengths),
        attentions=_attentions(attentions),
        against=tuple(_split(against)),
        batch_size=batch_size,
        row_lengths=_integers("row lengths", row_lengths),
        encoder=encoder,
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_layers=num_layers,
        intermediate_size=intermediate_size,
        repeats=repeats,
        dtype=dtype,
        threads=threads,
        device=device,
        seed=seed,
    )
    check_folder(output_dir)
    _quiet()
    with _interruptible("nothing was written"):
        result = benchmark.bench(spec, command_line(sys.argv[1:]))
    render_terminal(result, out)
    for path in benchmark.write(result, output_dir):
        _print(str(path))


@app.command(
    epilog=_examples(
        "bakeoff draw longformer:window=8 --length 64",
        "bakeoff draw bigbird:block_size=4 --seed 1 --output bigbird.png",
    )
)
def draw(
    attention: Annotated[str, typer.Argument(help="The mechanism, with options as in longformer:window=8.")],
    length: Annotated[int, typer.Option(help="Tokens, 2 to 2,048.")] = 64,
    scores: Annotated[
        str | None,
        typer.Option(
            help="equal or gaussian; by default equal where that shows a pattern.", show_default=False
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of Gaussian scores, random blocks and random features.")] = 0,
    output: Annotated[
        Path | None, typer.Option(help="A PNG file, in place of the terminal.", show_default=False)
    ] = None,
) -> None:
    """Draw a mechanism's attention weights beside dense ones."""
    from bakeoff import draw as drawings

    drawing = drawings.draw(attention, length, scores=scores, seed=seed)
    if output is None:
        drawings.render_terminal(drawing, out)
    else:
        drawings.write_png(drawing, output)
        _print(str(output))


@app.command(
    epilog=_examples(
        "bakeoff ls tasks",
        "bakeoff ls attentions",
        "bakeoff ls recipes",
        "bakeoff ls runs",
    )
)
def ls(
    what: Annotated[str, typer.Argument(help="tasks, attentions, recipes, or a folder of runs.")] = "tasks",
) -> None:
    """List tasks, attentions, recipes, or the runs in a folder."""
    table = Table(box=None)
    if what == "tasks":
        from bakeoff import tasks

        rows: list[dict[str, str]] = tasks.describe()
    elif what == "attentions":
        from bakeoff.attention import ATTENTIONS, options_of

        rows = [
            {
                "name": name,
                "options": ", ".join(f"{k}={v}" for k, v in options_of(name).items()),
                "what": (inspect.getdoc(mechanism) or "").splitlines()[0],
                "paper": mechanism.paper,
            }
            for name, mechanism in ATTENTIONS.items()
        ]
    elif what == "recipes":
        from bakeoff.recipes import RECIPES

        rows = [{"name": name, "what": recipe.description} for name, recipe in RECIPES.items()]
    else:
        from bakeoff import runs

        rows = [
            {"run": folder.name, "status": "unreadable", "accuracy": "", "seconds": "", "error": str(record)}
            if isinstance(record, BakeoffError)
            else {
                "run": record.id,
                "status": record.status,
                "accuracy": f"{record.metrics['accuracy'].value:.4f}" if "accuracy" in record.metrics else "",
                "seconds": f"{record.seconds:.0f}",
                "error": record.error or "",
            }
            for folder, record in runs.find(Path(what))
        ]
    if not rows:
        raise BakeoffError(f"{what} holds no runs yet.")
    if not out.is_terminal:  # whoever reads it wants a line each, with names whole
        for row in rows:
            sys.stdout.write("\t".join(map(printable, row.values())) + "\n")
        return
    for number, name in enumerate(rows[0]):
        table.add_column(name, overflow="fold", no_wrap=number == 0)
    for row in rows:
        table.add_row(*(_text(value) for value in row.values()))
    out.print(table)


def main() -> None:
    """Run the command line; bad input is one line on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):  # a folder's name need not be in the terminal's encoding
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        raise SystemExit(app(prog_name="bakeoff", standalone_mode=False))
    except BakeoffError as error:
        err.print(_text(f"error: {error}"), soft_wrap=True)
        raise SystemExit(1 if isinstance(error, FailedError) else 2) from None
    except _USAGE as error:
        where = error.ctx.command_path if getattr(error, "ctx", None) else "bakeoff"
        said = " ".join(error.format_message().split()).removesuffix(".")
        err.print(_text(f"error: {said}; see {where} --help."), soft_wrap=True)
        raise SystemExit(2) from None
    except typer.Abort:  # what the parser makes of an end of input
        err.print("aborted")
        raise SystemExit(1) from None
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        raise SystemExit(1) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO):
            err.print(_text(f"error: the output cannot be written ({error.strerror})."), soft_wrap=True)
            sys.stdout = None  # which would try again at exit
            raise SystemExit(2) from None
        if error.errno == errno.ENAMETOOLONG:
            said = f"the name that begins with {str(error.filename)[:40]!r} is too long for a path."
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR) and error.filename:
            said = f"{error.filename}: {error.strerror}; choose a path that can be reached."
        else:
            raise
        err.print(_text(f"error: {said}"), soft_wrap=True)
        raise SystemExit(2) from None


def _print(text: str) -> None:
    """A line as it is, however wide: what is piped may be a path."""
    out.print(_text(text), soft_wrap=True)


def _text(text: str, style: str = "") -> Text:
    """What is printed as it is: no markup, and no character that would steer the terminal."""
    return Text(printable(text), style=style)


def _spec(spec_file: Path | None, flags: dict[str, Any]) -> RunSpec:
    values = load_yaml(spec_file) if spec_file else {}
    for field, kind in (("tasks", "grid"), ("attentions", "grid"), ("search", "sweep")):
        if field in values:
            raise BakeoffError(f"{spec_file} is a {kind} file, by its {field!r}; give it to bakeoff {kind}.")
    return RunSpec.from_dict({**values, **flags}, str(spec_file or "run"))


@contextlib.contextmanager
def _interruptible(left: str = "start it again to go on where it stopped") -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        err.print(f"interrupted; {left}")
        raise typer.Exit(130) from None


def _quiet() -> None:
    from bakeoff.logs import quiet

    quiet()


def _finished(spec: RunSpec) -> bool:
    from bakeoff import runs

    return runs.finished(spec) is not None


def _say(spec: RunSpec, record: runs.RunRecord, prefix: str = "") -> None:
    if record.status != "ok":
        err.print(_text(f"{prefix}{record.id}: {record.status}: {record.error}"), soft_wrap=True)
        return
    figures = " ".join(f"{name} {metric.value:.4f}" for name, metric in record.metrics.items())
    cost = record.cost
    seconds = f"trained {cost.train_seconds:.0f} s, evaluated {cost.eval_seconds:.0f} s" if cost else ""
    line = f"{prefix}{spec.task_name} {spec.attention} seed {spec.seed}: {figures} ({seconds})"
    _print(line)
    if record.data is not None:
        for part, split in record.data.splits.items():
            out.print(_text(f"  {part}: {split.rows:,} rows; {_lengths(split)}", style="dim"), soft_wrap=True)


def _lengths(split: runs.Split) -> str:
    half, most, all_ = (split.token_quantiles[q] for q in ("0.5", "0.95", "1.0"))
    cut = f"{100 * split.share_truncated:.1f} % truncated"
    return f"tokens: half up to {half}, 95 % up to {most}, longest {all_}; {cut}"


def _compare(folders: list[Path], format: str = "terminal") -> None:
    from bakeoff import comparison

    if format not in ("terminal", "markdown", "json"):
        from bakeoff.errors import unknown

        raise unknown("format", format, ("terminal", "markdown", "json"))
    compared = comparison.compare(folders)
    if format == "terminal":
        comparison.render_terminal(compared, out)
    elif format == "markdown":
        sys.stdout.write(comparison.render_markdown(compared))
    else:
        json.dump(comparison.to_json(compared), sys.stdout, indent=2, ensure_ascii=False)
        sys.stdout.write("\n")


def _stdin() -> Iterator[list[str]]:
    """The lines of stdin as they come: together, those that are there."""
    rest, number = b"", 1
    stdin = typing.cast(io.BufferedReader, sys.stdin.buffer)
    while chunk := stdin.read1(1 << 16):
        *lines, rest = (rest + chunk).split(b"\n")
        yield [_line(number + i, line) for i, line in enumerate(lines)]
        number += len(lines)
    if rest:
        yield [_line(number, rest)]


def _line(number: int, line: bytes) -> str:
    try:
        return line.removesuffix(b"\r").decode()
    except UnicodeDecodeError:
        raise BakeoffError(f"line {number} of stdin is not UTF-8.") from None


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _attentions(text: str) -> tuple[AttentionSpec, ...]:
    parts = _split(text)
    for part in parts:
        if "=" in part.partition(":")[0]:
            raise BakeoffError(
                f"attentions: {part!r} is no mechanism; separate the options of one with ;, as in "
                "longformer:window=64;global_tokens=1."
            )
    return tuple(AttentionSpec.parse(part.replace(";", ",")) for part in parts)  # of lists as well


def _integers(name: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in _split(text))
    except ValueError:
        raise BakeoffError(f"{name} are whole numbers, not {text!r}.") from None
