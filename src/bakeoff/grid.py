"""Many runs, one after another or over a cluster, each in a process of its own.

A cell that runs out of memory or is killed takes nothing with it: it gets a record, and the grid goes on.
Memory is measured for the cell alone. What is done is skipped, what was cut off resumes. Several grids on one
folder share the work: a cell that another process is making is left to it, and waited for in the end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from bakeoff import cluster, env, runs
from bakeoff.errors import BakeoffError, BusyError
from bakeoff.spec import RunSpec

if TYPE_CHECKING:
    from bakeoff.training.callbacks import Watch

_PATIENCE = 1.0  # seconds between two looks at runs that other processes are making
_INTERRUPTED = 130  # as a shell reports SIGINT


def check(specs: Sequence[RunSpec]) -> None:
    """Resolve every spec before the first one trains. Raises `BakeoffError` at the first that cannot run."""
    if env.processes() > 1:
        raise BakeoffError("torchrun is for a single run; start a grid plainly, once a GPU if need be.")
    for spec in specs:
        runs.output_folder(spec)
        runs.finished(spec)  # a damaged record would end the grid when its turn comes
    code, result = _in_child(_resolve, specs)
    if isinstance(result, BakeoffError):
        raise result
    if code:
        raise BakeoffError(
            f"checking the grid ended with exit code {code}; try bakeoff check on one of its runs."
        )


def prepare(spec: RunSpec) -> None:
    """Resolve a run and read its data, in a process of its own. Raises `BakeoffError` where that fails."""
    check([spec])
    if isinstance(result := _in_child(_prepare, spec)[1], BakeoffError):
        raise result


def run(
    specs: Iterable[RunSpec], *, progress: bool = True, watch: Watch | None = None, ray: str | None = None
) -> Iterator[tuple[RunSpec, runs.RunRecord]]:
    """Make every run that is not made yet; yields each record as it comes.

    Args:
        specs: what to run.
        progress: whether to show bars.
        watch: as for `train.run`; it is called in this process. Not with `ray`.
        ray: the address of a Ray cluster that makes the runs in parallel, as `cluster.each` takes it.
    """
    if ray is not None:
        assert watch is None  # noqa: S101  # a call from the cluster would be needed
        for spec, made in cluster.each(_one, specs, ray):
            if isinstance(made, cluster.LostError):  # the run itself may have been done by then
                made = runs.finished(spec) or _lost(spec, made)
            yield spec, made
        return
    waiting = deque(specs)
    elsewhere = 0  # of those that wait, one after another, found in the hands of another process
    while waiting:
        spec = waiting.popleft()
        try:
            record = _cell(spec, progress, watch)
        except BusyError:
            waiting.append(spec)
            elsewhere += 1
            if elsewhere >= len(waiting):
                time.sleep(_PATIENCE)
            continue
        elsewhere = 0
        yield spec, record


def _one(spec: RunSpec) -> runs.RunRecord:
    """One run in a worker of a cluster. Whoever worked at it before and died lets go of it in a while."""
    [(_, record)] = run([spec], progress=False)
    return record


def _cell(spec: RunSpec, progress: bool, watch: Watch | None) -> runs.RunRecord:
    """One run, made in a process of its own. Raises `BusyError` where another process is making it."""
    if (done := runs.finished(spec)) is not None:
        return done
    if os.path.lexists(folder := runs.output_folder(spec) / spec.run_id()):
        with runs.lock(folder):  # before a child reads all data only to find out
            pass
    started, clock = datetime.datetime.now(datetime.UTC), time.perf_counter()
    code, result = _in_child(_train, spec, progress, answer=watch)
    if isinstance(result, runs.RunRecord):
        return result
    if isinstance(result, BusyError):
        raise result
    if code == _INTERRUPTED:
        raise KeyboardInterrupt
    error = f"the process ended with exit code {code}"
    if killed := code == -9:
        error = "killed by the system, most likely for memory; a smaller batch or max_length needs less"
    if isinstance(result, BakeoffError):
        error = str(result)
    return _failed(spec, "oom" if killed else "failed", error, started, time.perf_counter() - clock)


def _lost(spec: RunSpec, error: cluster.LostError) -> runs.RunRecord:
    return _failed(spec, "failed", str(error), datetime.datetime.now(datetime.UTC), 0.0)


def _failed(
    spec: RunSpec, status: runs.Status, error: str, started: datetime.datetime, seconds: float
) -> runs.RunRecord:
    """Write the record of a run whose process could not."""
    record = runs.RunRecord(
        id=spec.run_id(),
        status=status,
        digest=spec.digest(),
        spec=spec.to_dict(),
        started=started.isoformat(timespec="seconds"),
        seconds=seconds,
        environment={},
        error=error,
    )
    folder = runs.output_folder(spec) / spec.run_id()
    folder.mkdir(exist_ok=True)
    runs.save(folder, record)
    return record


def _resolve(specs: Sequence[RunSpec]) -> None:
    from bakeoff import tasks
    from bakeoff.training import preparation

    for spec in specs:
        preparation.resolve(spec)
        if spec.task is not None:
            tasks.get(spec.task)


def _prepare(spec: RunSpec) -> None:
    from bakeoff.training import preparation

    preparation.prepare(spec, runs.encoded_folder(spec))


def _train(spec: RunSpec, progress: bool, ask: Watch | None = None) -> runs.RunRecord:
    from bakeoff.training import train

    return train.run(spec, progress=progress, watch=ask)


@dataclasses.dataclass(frozen=True)
class _Question:
    """What a child asks before it goes on."""

    arguments: tuple[Any, ...]


def _in_child(
    function: Callable[..., Any], *arguments: Any, answer: Callable[..., Any] | None = None
) -> tuple[int | None, Any]:
    """Call `function` in a fresh process: its exit code, and its result, a `BakeoffError` or None.

    With `answer`, the function gets one argument more: a function that calls `answer` in this process.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bakeoff.training.train"])  # once, not once a cell
    ours, theirs = context.Pipe()
    orphaned, alive = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(theirs, orphaned, function, arguments, answer is not None))
    process.start()
    theirs.close()
    orphaned.close()
    try:
        while isinstance(result := _received(ours), _Question):
            assert answer is not None  # noqa: S101  # or it could not ask
            said = answer(*result.arguments)
            with contextlib.suppress(ConnectionError):  # it may have died, which the next look tells
                ours.send(said)
    except BaseException:  # we are interrupted, and so shall the child be
        alive.close()
        ours.close()  # it may be waiting for an answer
        process.join()
        raise
    process.join()
    alive.close()
    return process.exitcode, result


def _received(connection: Connection) -> Any:
    """What the other end said; None where it died without a word, or listens no more."""
    try:
        return connection.recv()
    except (EOFError, ConnectionError):
        return None


def _call(
    parent: Connection,
    orphaned: Connection,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    asks: bool,
) -> None:
    from bakeoff.logs import quiet

    def ask(*question: Any) -> Any:
        with contextlib.suppress(ConnectionError):  # it was interrupted; SIGTERM is on its way here
            parent.send(_Question(question))
        return _received(parent)

    if (
        cluster.IN_TASK in os.environ
    ):  # Ray kills what it finds in its worker's group, in the middle of a step
        os.setpgrp()
    quiet()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt_once)
    threading.Thread(target=_stop_when, args=(orphaned,), daemon=True).start()
    try:
        result = function(*arguments, *([ask] if asks else []))
    except BakeoffError as error:
        result = error
    except KeyboardInterrupt:
        raise SystemExit(_INTERRUPTED) from None
    with contextlib.suppress(ConnectionError):  # as above
        parent.send(result)


def _interrupt_once(*_: Any) -> None:
    """Ctrl-C reaches this process and its parent; the second signal must not fall into the first's record."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _stop_when(orphaned: Connection) -> None:
    """End this cell when the grid that started it is gone, or interrupted: its end of the pipe closes."""
    try:
        orphaned.recv()
    except EOFError:  # no harm where the cell has ended: the signal finds no one
        os.kill(os.getpid(), signal.SIGTERM)
