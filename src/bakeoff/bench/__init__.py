"""Time attention mechanisms against what people would otherwise use, after holding them equal.

`bench` measures; a result is read, tabled and drawn without torch.
"""

from __future__ import annotations

import datetime
import importlib.metadata

from bakeoff.bench.result import BenchResult
from bakeoff.bench.spec import BenchSpec
from bakeoff.bench.tables import write
from bakeoff.errors import BakeoffError

__all__ = ["BenchResult", "BenchSpec", "bench", "write"]


def bench(spec: BenchSpec, command: str = "") -> BenchResult:
    """Hold every mechanism to a peer or to its reference, then time all that the spec names.

    Args:
        spec: what to time.
        command: the command line, to be told in the result.

    Raises:
        BakeoffError: an attention or a peer cannot be had, or two that should agree do not.
    """
    import torch
    from tqdm import tqdm

    from bakeoff import env
    from bakeoff.bench import gate, measure, result, timing

    peers = measure.chosen_peers(spec)
    if spec.device == "cuda" and not torch.cuda.is_available():
        raise BakeoffError("--device cuda: PyTorch finds no such device; use --device cpu.")
    threads = torch.get_num_threads()
    torch.set_num_threads(spec.threads or threads)
    try:
        unpaired = [a for a in spec.attentions if all(peer.attention != a.name for peer in peers)]
        lines = [gate.equal_to_reference(spec, attention) for attention in unpaired]
        gemm = timing.gemm_rate(measure.DTYPES[spec.dtype], spec.device)
        rows: list[result.Row] = []
        with tqdm(
            total=spec.repeats * len(spec.phases) * len(spec.batches()), unit="round", disable=None
        ) as progress:
            for row_lengths in spec.batches():
                progress.set_description(f"{max(row_lengths)} tokens")
                held, timed = measure.measure(spec, peers, row_lengths, gemm, progress.update)
                lines, rows = lines + held, rows + timed
        environment = env.describe(spec.dtype)
    finally:
        torch.set_num_threads(threads)
    versions = {peer.distribution: importlib.metadata.version(peer.distribution) for peer in peers}
    return BenchResult(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=command,
        environment=environment | versions,
        settings=spec.to_dict(),
        gemm_flops_per_second=gemm,
        gate=tuple(lines),
        rows=tuple(rows),
        ratios=result.ratios(rows),
        crossovers=result.crossovers(rows),
    )
