"""Many runs, one after another, each in a process of its own.

A cell that runs out of memory or is killed takes nothing with it: it gets a record, and the grid goes on.
Memory is measured for the cell alone. What is done is skipped, what was cut off resumes.
"""

from __future__ import annotations

import datetime
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

from bakeoff import runs
from bakeoff.errors import BakeoffError
from bakeoff.spec import RunSpec

_INTERRUPTED = 130  # as a shell reports SIGINT


def check(specs: Sequence[RunSpec]) -> None:
    """Resolve every spec before the first one trains. Raises `BakeoffError` at the first that cannot run."""
    for spec in specs:
        runs.output_folder(spec)
    code, result = _in_child(_resolve, specs)
    if isinstance(result, BakeoffError):
        raise result
    if code:
        raise BakeoffError(
            f"checking the grid ended with exit code {code}; try bakeoff check on one of its runs."
        )


def run(specs: Iterable[RunSpec], *, progress: bool = True) -> Iterator[tuple[RunSpec, runs.RunRecord]]:
    """Make every run that is not made yet; yields each record as it comes."""
    for spec in specs:
        record = runs.finished(spec)
        yield spec, record if record is not None else _cell(spec, progress)


def _cell(spec: RunSpec, progress: bool) -> runs.RunRecord:
    started, clock = datetime.datetime.now(datetime.UTC), time.perf_counter()
    code, result = _in_child(_train, spec, progress)
    if isinstance(result, runs.RunRecord):
        return result
    if code == _INTERRUPTED:
        raise KeyboardInterrupt
    killed = code == -9
    record = runs.RunRecord(
        id=spec.run_id(),
        status="oom" if killed else "failed",
        digest=spec.digest(),
        spec=spec.to_dict(),
        started=started.isoformat(timespec="seconds"),
        seconds=time.perf_counter() - clock,
        environment={},
        error=str(result)
        if isinstance(result, BakeoffError)
        else "killed by the system, most likely for memory; a smaller batch or max_length needs less"
        if killed
        else f"the process ended with exit code {code}",
    )
    folder = runs.output_folder(spec) / record.id
    folder.mkdir(exist_ok=True)
    runs.save(folder, record)
    return record


def _resolve(specs: Sequence[RunSpec]) -> None:
    from bakeoff import tasks, train

    for spec in specs:
        train.resolve(spec)
        if spec.task is not None:
            tasks.get(spec.task)


def _train(spec: RunSpec, progress: bool) -> runs.RunRecord:
    from bakeoff import train

    return train.run(spec, progress=progress)


def _in_child(function: Callable[..., Any], *arguments: Any) -> tuple[int | None, Any]:
    """Call `function` in a fresh process: its exit code, and its result, a `BakeoffError` or None."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bakeoff.train"])  # torch is imported once, not once a cell
    receiver, sender = context.Pipe(duplex=False)
    orphaned, alive = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(sender, orphaned, function, arguments))
    process.start()
    sender.close()
    orphaned.close()
    try:
        result = receiver.recv()
    except EOFError:  # it died without a word
        result = None
    except BaseException:  # we are interrupted, and so shall the child be
        alive.close()
        process.join()
        raise
    process.join()
    alive.close()
    return process.exitcode, result


def _call(
    sender: Connection, orphaned: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    from bakeoff.logs import quiet

    quiet()
    signal.signal(signal.SIGINT, _interrupt_once)
    threading.Thread(target=_stop_when, args=(orphaned,), daemon=True).start()
    try:
        sender.send(function(*arguments))
    except BakeoffError as error:
        sender.send(error)
    except KeyboardInterrupt:
        raise SystemExit(_INTERRUPTED) from None


def _interrupt_once(*_: Any) -> None:
    """Ctrl-C reaches this process and its parent; the second signal must not fall into the first's record."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _stop_when(orphaned: Connection) -> None:
    """End this cell, as Ctrl-C would, when the grid that started it is gone: its end of the pipe closes."""
    try:
        orphaned.recv()
    except EOFError:  # no harm where the cell has ended: the signal finds no one
        os.kill(os.getpid(), signal.SIGINT)
