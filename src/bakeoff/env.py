"""What a run ran on: versions, machine, threads, memory."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors", "numpy")


def describe(dtype: str) -> dict[str, Any]:
    """The environment section of a run record."""
    import torch

    from bakeoff.version import __version__

    cuda = torch.cuda.is_available()
    return {
        "bakeoff": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if cuda else processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": processes(),
        "dtype": dtype,
        **_git(),
    }


def processes() -> int:
    """How many processes train together, as torchrun or accelerate launch says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_first_process() -> bool:
    """Whether this is the process that writes and prints."""
    return rank() == 0


def wait_for_all() -> None:
    """Go on when all processes that train together have come here."""
    if processes() > 1:
        import torch

        torch.distributed.barrier()


def leave_all() -> None:
    """End this process's part in training together: at exit, threads of the group may abort it."""
    if processes() > 1:
        import torch

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def reset_peak_memory() -> bool:
    """Start measuring the peak anew, where the system lets us (CUDA, Linux); whether it did."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_memory(fresh: bool) -> tuple[int, str]:
    """Peak bytes, and how they were measured; `fresh` as `reset_peak_memory` returned it."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated(), "peak memory allocated on the device during the run"
    if fresh:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024, "peak resident set of the process during the run"
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak, "peak resident set of the process since it started"


@contextlib.contextmanager
def memory_limit(limit: int | None) -> Iterator[None]:
    """Let allocations beyond `limit` bytes fail: of the device, or of this process's own data (Linux)."""
    import torch

    if limit is None:
        yield
    elif torch.cuda.is_available():
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total))
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
    else:
        before = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, before)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, on the device or here."""
    import torch

    said = (
        "can't allocate memory",  # torch's allocator
        "Cannot allocate memory",  # the system, of a file to map
        "can't start new thread",  # Python, which has no room for its stack
        "could not create a primitive",  # oneDNN, which has none for its code, and says no more
        "CUDA error: out of memory",  # the driver, before torch's allocator is asked
        "STATUS_ALLOC_FAILED",  # cuBLAS and cuDNN, of their workspaces
    )
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(text in str(error) for text in said)


def processor() -> str:
    """This machine's, as a device."""
    cpuinfo, name = Path("/proc/cpuinfo"), platform.processor() or platform.machine()
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"cpu ({name})"


def _git() -> dict[str, Any]:
    """The commit that this library was run from, where it lies in a git checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603

    try:
        if not git("ls-files", "--", str(Path(__file__))):
            return {"git": None, "dirty": None}
        return {"git": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {"git": None, "dirty": None}
