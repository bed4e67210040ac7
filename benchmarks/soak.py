"""Small runs for hours, by a grid and in one process: does memory grow, is anything left or lost?

    python benchmarks/soak.py bench/soak --hours 2

A round is every mechanism by `grid.run`, in processes of their own, then by `run` in the soaked process
itself, which lives through all rounds, and a comparison of what the round made. After each round the process
is measured; the first rounds, in which caches fill, are not counted. In the end every record is read again.
Writes rounds.jsonl as it goes, and soak.md. Ends with exit code 1 where something grew, was lost or is left.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import typer

ATTENTIONS = (
    "dense",
    "longformer:window=16",
    "bigbird:block_size=4,num_random_blocks=1",
    "performer:global_tokens=1",
    "linformer:projected_length=16,global_tokens=1",
)
COMMON = {
    "task": "rotten_tomatoes",
    "max_train_samples": 96,
    "max_eval_samples": 64,
    "max_length": 64,
    "num_train_epochs": 1,
    "save_model": False,
}
WARM_UP = 5  # rounds
GRACE = 10  # seconds that a helper has to see that its process has ended
ALLOWED = 50 * 2**20  # bytes of growth
MEASURES = ("memory of the process", "memory of its helpers", "open files", "threads", "processes")


def main(output_dir: Path, hours: float = 2.0) -> None:
    """Soak a process, and say what became of it, its files and its records."""
    output_dir.mkdir(parents=True)
    command = [sys.executable, __file__, "--one", str(output_dir), str(hours)]
    process = subprocess.Popen(command, start_new_session=True)  # noqa: S603
    code = process.wait()
    time.sleep(GRACE)
    left = [p.info["cmdline"] for p in psutil.process_iter(["cmdline"]) if _session(p.pid) == process.pid]
    rounds = [json.loads(line) for line in (output_dir / "rounds.jsonl").read_text().splitlines()]
    counted = rounds[WARM_UP:]
    tenth = max(1, len(counted) // 10)
    lost, seconds = _lost(output_dir), rounds[-1]["seconds"]
    lines = [f"| {len(rounds)} rounds, {_made(rounds)} runs, {seconds / 3600:.2f} h | begin | end | most |"]
    lines.append("|---|---:|---:|---:|")
    grown = []
    for measure in MEASURES:
        values = [r[measure] for r in counted]
        begin, end = (statistics.median(part) for part in (values[:tenth], values[-tenth:]))
        if end - begin > (ALLOWED if "memory" in measure else 0):
            grown.append(measure)
        scale, form = (2**20, ".1f") if "memory" in measure else (1, "g")
        unit = ", MiB" if "memory" in measure else ""
        lines.append(
            f"| {measure}{unit} |" + "".join(f" {v / scale:{form}} |" for v in (begin, end, max(values)))
        )
    lines += [
        "",
        f"Records lost: {len(lost)}. Processes left: {len(left)}. Grown: {', '.join(grown) or 'none'}.",
    ]
    (output_dir / "soak.md").write_text("\n".join(lines) + "\n")
    print("\n".join([*lines, *lost, *map(str, left)]))
    raise SystemExit(code or bool(grown or lost or left))


def _made(rounds: list[dict[str, Any]]) -> int:
    return sum(len(r["runs"]) for r in rounds)


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def _lost(output_dir: Path) -> list[str]:
    """What is wrong with the records of all rounds: missing, unreadable, not ok, more than a record."""
    from bakeoff import runs

    wrong = []
    for line in (output_dir / "rounds.jsonl").read_text().splitlines():
        for name in json.loads(line)["runs"]:
            folder = output_dir / name
            try:
                record, predictions = runs.load(folder), runs.Predictions.load(folder)
            except runs.BakeoffError as error:
                wrong.append(str(error))
                continue
            if record.status != "ok" or len(predictions.ids) != COMMON["max_eval_samples"]:
                wrong.append(f"{folder}: {record.status}, {record.error}")
            if more := {p.name for p in folder.iterdir()} - {runs.RECORD, runs.PREDICTIONS, ".lock"}:
                wrong.append(f"{folder} holds more: {', '.join(more)}")
    return wrong


def one(output_dir: Path, hours: float) -> None:
    """The process that is soaked."""
    import bakeoff
    from bakeoff import grid
    from bakeoff.logs import quiet
    from bakeoff.spec import RunSpec

    quiet()
    this, started = psutil.Process(), time.monotonic()
    for number in itertools.count():
        folder = output_dir / f"round-{number}"

        def specs(way: str) -> list[RunSpec]:
            values = {**COMMON, "output_dir": str(folder / way), "seed": number}  # noqa: B023
            return [RunSpec.from_dict({**values, "attention": attention}) for attention in ATTENTIONS]

        for _ in grid.run(specs("grid"), progress=False):
            pass
        for spec in specs("alone"):
            bakeoff.run(spec, progress=False)
        bakeoff.compare(folder)
        children = this.children(recursive=True)
        measured = {
            "round": number,
            "seconds": time.monotonic() - started,
            "memory of the process": this.memory_info().rss,
            "memory of its helpers": sum(child.memory_info().rss for child in children),
            "open files": this.num_fds(),
            "threads": this.num_threads(),
            "processes": len(children),
            "runs": [
                str(Path(s.output_dir, s.run_id()).relative_to(output_dir))
                for way in ("grid", "alone")
                for s in specs(way)
            ],
        }
        with (output_dir / "rounds.jsonl").open("a") as file:
            file.write(json.dumps(measured) + "\n")
        if measured["seconds"] > hours * 3600 and number >= WARM_UP:
            return


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(Path(sys.argv[2]), float(sys.argv[3]))
    else:
        typer.run(main)
