"""The runs that a text is put to: loaded, or with the reason why not."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

from bakeoff import runs
from bakeoff.errors import BakeoffError
from bakeoff.predict import Classifier
from bakeoff.spec import RunSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A trained model, or `fault`: why there is none."""

    name: str  # its mechanism with options
    where: str  # its task and seed, or its folder
    classifier: Classifier | None = None
    fault: str | None = None

    @property
    def texts(self) -> int | None:
        """How many texts its task has, one or two; None where no record says so."""
        return self.classifier.columns if self.classifier else None

    @property
    def labels(self) -> list[str]:
        """The classes, in the order of their numbers."""
        names = self.classifier.model.config.id2label if self.classifier else {}
        return [names[index] for index in sorted(names)]

    @property
    def layers(self) -> int:
        """Attention layers, those that share their weights counted each."""
        return sum(site.calls for site in self.classifier.model.sites) if self.classifier else 0


def load(folders: Iterable[Path]) -> list[Candidate]:
    """Every run in the folders, or the models that they are themselves.

    Raises:
        BakeoffError: there is no run, or none whose model can be loaded; with the first reason.
    """
    found = [candidate for folder in folders for candidate in _load(folder)]
    if not found:
        raise BakeoffError("there are no runs in these folders; make some with bakeoff grid.")
    if all(candidate.fault for candidate in found):
        raise BakeoffError(f"none of {len(found)} runs can be tried; {found[0].where}: {found[0].fault}")
    return found


def _load(folder: Path) -> Iterator[Candidate]:
    if (folder / "config.json").is_file() and not (folder / runs.RECORD).exists():
        classifier, fault = _classifier(folder)
        name = classifier.model.config.attention if classifier else folder.name
        yield Candidate(name=name, where=str(folder), classifier=classifier, fault=fault)
        return
    for path, record in runs.find(folder):
        if isinstance(record, BakeoffError):
            yield Candidate(name=path.name, where=str(path), fault=str(record))
            continue
        name, where = record.id, str(path)
        with contextlib.suppress(BakeoffError):  # a record of other times: its model may still load
            spec = RunSpec.from_dict(dict(record.spec))
            name, where = str(spec.attention), f"{spec.task_name}, seed {spec.seed}"
        classifier, fault = _classifier(path)
        if classifier is None and record.status != "ok":
            fault = f"the run {record.status}: {record.error}"
        yield Candidate(name=name, where=where, classifier=classifier, fault=fault)


def _classifier(folder: Path) -> tuple[Classifier | None, str | None]:
    try:
        classifier = Classifier(folder)
        # What a first call sets up is no part of the time of a text; and a model of infinities says so here.
        list(classifier([("warm-up",) * (classifier.columns or 1)]))
    except BakeoffError as error:
        return None, str(error)
    classifier.model.requires_grad_(False)
    return classifier, None
