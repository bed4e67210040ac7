"""Published datasets: from a local mirror of the Hub where one is given, else from the Hub itself."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from bakeoff.errors import BakeoffError, one_line
from bakeoff.tasks import files
from bakeoff.tasks.base import Part, Rows, Task

MIRROR = "BAKEOFF_DATA_DIR"
UNLABELLED = "-1"  # what the Hub's test splits, and rows without a verdict, hold in the label column
_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class Hub:
    """A dataset on the Hugging Face Hub at a pinned revision, in the Hub's one-parquet-a-split layout."""

    hub_id: str
    config: str
    revision: str
    train_split: str
    eval_split: str

    def source(self, data_dir: str | None = None) -> str:
        """The dataset with its revision, and whether a mirror stands in for it."""
        source = f"{self.hub_id} {self.config}@{self.revision[:12]} ({self.train_split}, {self.eval_split})"
        return f"{source}, local mirror" if _mirror(data_dir) else source

    def read(self, task: Task, part: Part, data_dir: str | None = None) -> Rows:
        """The labelled rows of the part's split, with the labels named as the task names them."""
        split = self.train_split if part == "train" else self.eval_split
        mirror = _mirror(data_dir)
        path = _mirrored(mirror, task.name, split) if mirror else self._download(task, split)
        *texts, labels = files.read(path, (*task.text_columns, task.label_column))
        names = dict(enumerate(task.labels)) | {int(UNLABELLED): None}
        rows = {}
        for number, (row, label) in enumerate(zip(zip(*texts, strict=True), labels, strict=True)):
            try:
                name = names[int(str(label))]
            except (ValueError, KeyError):
                raise BakeoffError(
                    f"{path}: data row {number + 1}: the label is {label!r}; it must be 0 to "
                    f"{len(task.labels) - 1}, or {UNLABELLED} for none."
                ) from None
            if None in row:
                raise BakeoffError(f"{path}: data row {number + 1} has no text.")
            if name is not None:
                rows[number] = (row, name)
        if not rows:
            raise BakeoffError(f"{path}: no row has a label (all are {UNLABELLED}); take another split.")
        return rows

    def _download(self, task: Task, split: str) -> Path:
        """The split's file in the Hub's cache, fetched on first use."""
        from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

        file = f"{self.config}/{split}-00000-of-00001.parquet"
        cached = try_to_load_from_cache(self.hub_id, file, revision=self.revision, repo_type="dataset")
        if isinstance(cached, str):
            return Path(cached)
        try:
            # The download retries for half a minute where there is no network; this request does not.
            HfApi().dataset_info(self.hub_id, revision=self.revision, timeout=_SECONDS)
            return Path(hf_hub_download(self.hub_id, file, revision=self.revision, repo_type="dataset"))
        except Exception as error:  # of the HTTP library, which differs between versions of the Hub's client
            columns = ", ".join((*task.text_columns, task.label_column))
            reason = one_line((str(error).splitlines() or [""])[0])
            raise BakeoffError(
                f"task {task.name!r}: no local mirror is given and the Hugging Face Hub cannot be reached "
                f"({type(error).__name__}: {reason}); put the data in "
                f"DIR/{task.name}/{self.train_split}.parquet and DIR/{task.name}/{self.eval_split}.parquet "
                f"(or {_others()}; columns {columns}) and give --data-dir DIR or set {MIRROR}=DIR."
            ) from error


def _mirror(data_dir: str | None) -> Path | None:
    folder = data_dir or os.environ.get(MIRROR)
    return Path(folder) if folder else None


def _mirrored(mirror: Path, task: str, split: str) -> Path:
    for suffix in files.READERS:
        if (path := mirror / task / f"{split}{suffix}").is_file():
            return path
    raise BakeoffError(
        f"the local mirror lacks task {task!r}: expected {mirror / task / split}.parquet (or {_others()}); "
        f"correct --data-dir or {MIRROR}, or leave both out to use the Hub."
    )


def _others() -> str:
    return ", ".join(suffix for suffix in files.READERS if suffix != ".parquet")
