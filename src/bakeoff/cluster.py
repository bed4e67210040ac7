"""Calls spread over a Ray cluster: a task each, in a worker process of its own, made again if that one dies.

Ray (Moritz et al., 2018, https://arxiv.org/abs/1712.05889) places the tasks, a GPU to each where the cluster
has some and a core where not. Its machines need this library and, under the same path, the folder in which
the call was made: what a task reads and writes are files there.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from bakeoff.errors import BakeoffError, missing, one_line

Item = TypeVar("Item")
Result = TypeVar("Result")

IN_TASK = "BAKEOFF_IN_RAY_TASK"  # in the environment of what a task starts
LOCAL = "local"  # as Ray names a cluster of this machine alone, for as long as it is needed
_RETRIES = 3  # of a task whose worker died
_SETTINGS = {  # of Ray, where the user has not set them
    "RAY_USAGE_STATS_ENABLED": "0",  # it would report home
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_task_oom_retries": str(_RETRIES),  # it would try for ever
    "RAY_memory_monitor_refresh_ms": "0",  # what is too large the system kills, and the grid records
    "RAY_worker_niceness": "0",  # seconds are recorded
}


class LostError(Exception):
    """A task's workers died as often as it may be tried."""


def each(
    function: Callable[[Item], Result], items: Iterable[Item], address: str
) -> Iterator[tuple[Item, Result | LostError]]:
    """Call `function` with every item, in parallel; yields the item and its result as they come.

    Args:
        function: what can be sent to another machine: a module's function, or a partial of one.
        items: its arguments, likewise.
        address: of a running cluster as Ray takes it, `auto` for this machine's, or `local` to start one.

    Raises:
        BakeoffError: Ray is not installed, there is no such cluster, or a call raised it.
    """
    with _connected(address) as ray:
        gpus = {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {}
        task = ray.remote(num_cpus=1, max_calls=1, max_retries=_RETRIES, **gpus)(_call)
        pending = {task.remote(os.getcwd(), function, item): item for item in items}
        while pending:
            (reference,), _ = ray.wait(list(pending))
            yield pending.pop(reference), _result(ray, reference)


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:  # what the call raised, or that it cannot be made there
        if isinstance(error.cause, BakeoffError):
            raise error.cause from None
        raise BakeoffError(
            f"a task on the cluster failed ({type(error.cause).__name__}: {_line(error.cause)}); its "
            "machines need this library in this version."
        ) from None
    except ray.exceptions.RayError as error:
        return LostError(f"its worker died {_RETRIES + 1} times ({_line(error)})")


def _call(folder: str, function: Callable[[Any], Any], item: Any) -> Any:
    try:
        os.chdir(folder)
    except OSError as error:
        raise BakeoffError(
            f"a machine of the cluster has no {folder} ({error.strerror}); share that folder among them all."
        ) from None
    os.environ[IN_TASK] = "1"
    return function(item)


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise missing("--ray needs Ray", "ray") from None
    local = {"include_dashboard": False} if address == LOCAL else {}
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        _reach(address)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **local)
    except Exception as error:  # OSError, ValueError, RuntimeError, by what is wrong with the address
        raise BakeoffError(
            f"--ray {address}: no Ray cluster there ({_line(error)}); start one with ray start --head, or "
            f"give --ray {LOCAL}."
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()  # ends the workers; a run in one of them saves and ends, since its parent is gone
        if threading.current_thread() is threading.main_thread():  # Ray has put its own in its place
            signal.signal(signal.SIGTERM, terminate)


def _reach(address: str) -> None:
    """Raise an `OSError` where nobody listens at HOST:PORT: Ray would try for minutes."""
    if found := re.fullmatch(r"(?:ray://)?([^/]+):(\d+)", address):
        socket.create_connection((found[1], int(found[2])), timeout=10).close()


def _line(error: Exception) -> str:
    return one_line(error)[:200]
