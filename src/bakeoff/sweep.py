"""A search over run fields: trials are runs, Optuna chooses them, and the best is made again over seeds.

Trials are judged on rows held out of the training split, never on the evaluation split, so that the best
one's figure there stays honest. Each is a run in a process of its own, with a record like any other; one that
lags behind the others is stopped at an evaluation. Trials live in a database: a sweep that was interrupted
goes on, and several workers can share one.

Optuna (Akiba et al., 2019, https://arxiv.org/abs/1907.10902) chooses, by the tree-structured Parzen estimator
(Bergstra et al., 2011), and stops trials below the median of the others at the same step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from bakeoff import cluster, grid, runs
from bakeoff.errors import BakeoffError, FailedError, missing, one_line
from bakeoff.spec import NOT_IDENTITY, AttentionSpec, RunSpec

if TYPE_CHECKING:
    import optuna

TRIALS, BEST, REPORT, DATABASE = "trials", "best", "sweep.html", "sweep.db"  # below the sweep's folder
_LOCK = ".study.lock"
_HEARTBEAT = 30  # seconds; a worker that misses two is taken for dead, and its trial is made again
_BUSY = 60  # seconds that a worker waits for others to write
_FAILED = "failed"  # a trial's attribute: why its run did not end well
_ATTENTION = "attention."
_IDENTITY = "searched"  # a study's attribute: what its trials have in common
_NOT_SEARCHED = {"attention", "held_out_samples", "eval_steps", "seed", *NOT_IDENTITY}


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole where both are; evenly, or by their logarithm."""

    low: float
    high: float
    log: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepSpec:
    """What to search, and how long.

    Attributes:
        base: the run fields that all trials share.
        search: a `Range` or the choices by run field; a mechanism's options as `attention.OPTION`.
        n_trials: trials that end, well or not, over all workers and restarts.
        held_out_samples: training rows that trials are judged on.
        evaluations: of a trial on those rows; at each but the last it may be stopped.
        seeds: the best trial is made again with each, on the evaluation split.
        seed: of the search.
    """

    base: Mapping[str, Any]
    search: Mapping[str, Range | tuple[Any, ...]]
    n_trials: int = 20
    held_out_samples: int = 1000
    evaluations: int = 4
    seeds: tuple[int, ...] = (1, 2, 3)
    seed: int = 0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "sweep") -> SweepSpec:
        """Read the attributes by name; every other key is a run field that all trials share."""
        base = dict(values)
        names = {f.name for f in dataclasses.fields(cls)} - {"base"}
        own = {name: base.pop(name) for name in names & base.keys()}
        search = own.pop("search", None)
        if not isinstance(search, Mapping) or not search or not all(isinstance(key, str) for key in search):
            raise BakeoffError(
                f"{where}: a sweep needs 'search', a mapping of run fields to ranges or choices."
            )
        if not isinstance(base.get("output_dir") or "", str):
            raise BakeoffError(f"{where}: output_dir is a folder, not {base['output_dir']!r}.")
        for name in ("n_trials", "held_out_samples", "evaluations"):
            if name in own and (type(own[name]) is not int or own[name] < 1):
                raise BakeoffError(f"{where}: {name} is a whole number from 1 up, not {own[name]!r}.")
        seeds = own.get("seeds", cls.seeds)
        own["seeds"] = tuple(seeds) if isinstance(seeds, list | tuple) else ()
        if not own["seeds"] or not all(type(seed) is int for seed in (*own["seeds"], own.get("seed", 0))):
            raise BakeoffError(f"{where}: seeds are whole numbers, and there is one at least.")
        if taken := _NOT_SEARCHED & search.keys():
            raise BakeoffError(f"{where}: {min(taken)!r} cannot be searched.")
        sweep = cls(base=base, search={k: _space(k, v, where) for k, v in search.items()}, **own)
        first = sweep._first()
        sweep.best(first)
        for name, space in sweep.search.items():  # what can be checked before the first trial
            for value in _values(space):
                sweep.trial(first | {name: value}, where)
        sweep.trial({name: _values(space)[-1] for name, space in sweep.search.items()}, where)
        return sweep

    @property
    def folder(self) -> Path:
        """Where everything of the sweep lies."""
        return Path(self.base.get("output_dir") or "runs")

    def identity(self) -> str:
        """What trials of one study have in common: own files and encoders by what they hold, as in a run."""
        shared = {k: v for k, v in dataclasses.asdict(self).items() if k not in ("n_trials", "seeds", "seed")}
        shared["base"] = {k: str(v) for k, v in self.base.items() if k not in NOT_IDENTITY}
        shared["first"] = self.trial(self._first()).digest()
        return json.dumps(shared, sort_keys=True)

    def _first(self) -> dict[str, Any]:
        """The first value of every space."""
        return {name: _values(space)[0] for name, space in self.search.items()}

    def trial(self, chosen: Mapping[str, Any], where: str = "sweep") -> RunSpec:
        """The run of a trial."""
        watched = {"held_out_samples": self.held_out_samples, "eval_steps": 1 / self.evaluations}
        watched = watched if self.evaluations > 1 else {"held_out_samples": self.held_out_samples}
        return self._run({**watched, "save_model": False}, chosen, TRIALS, where)

    def best(self, chosen: Mapping[str, Any]) -> list[RunSpec]:
        """The runs of the best trial on the evaluation split, one a seed."""
        return [self._run({"seed": seed}, chosen, BEST, "sweep") for seed in self.seeds]

    def _run(self, fields: Mapping[str, Any], chosen: Mapping[str, Any], part: str, where: str) -> RunSpec:
        attention = AttentionSpec.parse(self.base.get("attention", "dense"))
        options = {k.removeprefix(_ATTENTION): v for k, v in chosen.items() if k.startswith(_ATTENTION)}
        return RunSpec.from_dict(
            {
                **self.base,
                **fields,
                **{k: v for k, v in chosen.items() if not k.startswith(_ATTENTION)},
                "attention": {"name": attention.name, "options": {**attention.options, **options}},
                "output_dir": str(self.folder / part),
            },
            where,
        )


def _space(name: str, value: Any, where: str) -> Range | tuple[Any, ...]:
    if isinstance(value, list | tuple) and len(value) > 1:
        if any(isinstance(choice, list | tuple | Mapping) for choice in value):
            raise BakeoffError(f"{where}: search {name!r} takes numbers and texts as choices, not {value!r}.")
        return tuple(value)
    if isinstance(value, Mapping) and {"low", "high"} <= value.keys() <= {"low", "high", "log"}:
        ends, log = (value["low"], value["high"]), value.get("log", False)
        try:
            low, high = (v if type(v) is int else math.nan if type(v) is bool else float(v) for v in ends)
        except (TypeError, ValueError, OverflowError):
            low = high = math.nan
        if low < high and type(log) is bool and (low > 0 or not log):
            return Range(low, high, log)
    raise BakeoffError(
        f"{where}: search {name!r} is a list of two or more choices, or {{low, high}} with low < high and "
        f"log: true for numbers above 0, not {value!r}."
    )


def _values(space: Range | tuple[Any, ...]) -> tuple[Any, ...]:
    """The choices, or the ends of the range."""
    return (space.low, space.high) if isinstance(space, Range) else space


def run(
    sweep: SweepSpec,
    *,
    storage: str | None = None,
    progress: bool = True,
    say: Callable[[RunSpec, runs.RunRecord], None] = lambda spec, record: None,
    ray: str | None = None,
) -> Iterator[tuple[RunSpec, runs.RunRecord]]:
    """Search, then make the best trial again over seeds: yields those records, and writes `sweep.html`.

    Args:
        sweep: what to search.
        storage: a database URL as Optuna takes it; by default an SQLite file in the sweep's folder.
        progress: whether to show bars.
        say: is told of every trial that this process made.
        ray: the address of a Ray cluster that makes trials in parallel, as `cluster.each` takes it.

    Raises:
        BakeoffError: Optuna is not installed, or the database cannot be had.
        FailedError: no trial ended well.
        KeyboardInterrupt: the sweep can be started again, and goes on.
    """
    runs.refuse_links(*(sweep.folder / name for name in (TRIALS, BEST, REPORT, DATABASE, _LOCK)))
    grid.prepare(sweep.trial(sweep._first()))
    study = _study(sweep, storage)
    while (missing := sweep.n_trials - len(_ended(study))) > 0:
        if ray is None:
            _trial(sweep, storage, progress, say)
            continue
        lost = []
        for _, made in cluster.each(functools.partial(_told, sweep, storage), range(missing), ray):
            if isinstance(made, cluster.LostError):
                lost.append(made)
                continue
            for spec, record in made:
                say(spec, record)
        if len(lost) == missing:
            raise FailedError(f"every trial was lost ({lost[0]}); start the sweep again.")
    if not (done := [trial for trial in _ended(study)[: sweep.n_trials] if trial.state.name == "COMPLETE"]):
        why = {trial.user_attrs.get(_FAILED, "") for trial in _ended(study)}
        raise FailedError(f"no trial of the sweep ended well: {'; '.join(sorted(why))}.")
    best = max(done, key=lambda trial: trial.value or 0.0)
    yield from grid.run(sweep.best(best.params), progress=progress, ray=ray)
    _write_report(study, sweep.folder / REPORT)


def _trial(
    sweep: SweepSpec,
    storage: str | None,
    progress: bool,
    say: Callable[[RunSpec, runs.RunRecord], None],
) -> None:
    """Make the next trial."""
    study = _study(sweep, storage)
    with _database():
        study.optimize(
            lambda trial: _judged(sweep, study, trial, progress, say), n_trials=1, catch=(_Failed,)
        )


def _told(sweep: SweepSpec, storage: str | None, number: int) -> list[tuple[RunSpec, runs.RunRecord]]:
    """Make the next trial in a worker of a cluster; what there is to say of it."""
    made: list[tuple[RunSpec, runs.RunRecord]] = []
    _trial(sweep, storage, False, lambda spec, record: made.append((spec, record)))
    return made


@contextlib.contextmanager
def _database() -> Iterator[None]:
    """One line for a database that fails during the search, as one that is busy for too long."""
    import optuna

    try:
        yield
    except optuna.exceptions.StorageInternalError as error:
        raise BakeoffError(
            f"the sweep's database failed ({one_line(error.__cause__ or error)}); start the sweep again: "
            "what is finished is kept."
        ) from None


class _Failed(Exception):  # noqa: N818  # Optuna's word for it
    """A trial whose run did not end well; the sweep goes on."""


def _study(sweep: SweepSpec, storage: str | None) -> optuna.Study:
    try:
        import optuna
    except ImportError:
        raise missing("sweeps need Optuna", "sweep") from None
    from sqlalchemy.engine import URL, make_url
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats have been, for years
    folder = runs.output_folder(sweep.trial(sweep._first())).parent
    url = storage or URL.create("sqlite", database=str(folder / DATABASE)).render_as_string()
    if storage is None and make_url(url).database != str(folder / DATABASE):  # SQLAlchemy 2.0 does not quote
        raise BakeoffError(
            f"{folder}: a database's address cannot hold this name; choose another --output-dir."
        )
    try:
        with FileLock(folder / _LOCK):  # two workers would make the tables twice
            study = optuna.create_study(
                study_name=folder.name,
                storage=optuna.storages.RDBStorage(
                    url,
                    engine_kwargs={} if storage else {"connect_args": {"timeout": _BUSY}},
                    heartbeat_interval=_HEARTBEAT,
                    heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(),
                ),
                pruner=optuna.pruners.MedianPruner(),
                direction="maximize",
                load_if_exists=True,
            )
            searched = study.user_attrs.get(_IDENTITY)
            if searched is None:
                study.set_user_attr(_IDENTITY, sweep.identity())
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError, ValueError) as error:
        reason = one_line(str(error).replace(url, _shown(url)))
        raise BakeoffError(
            f"{_shown(url)}: not a database for the sweep ({reason}); check --storage."
        ) from None
    if searched not in (None, sweep.identity()):
        raise BakeoffError(
            f"{_shown(url)} holds another sweep named {folder.name}; choose another --output-dir."
        )
    return study


def _shown(url: str) -> str:
    """A database URL without its password."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return "the URL given"


def _judged(
    sweep: SweepSpec,
    study: optuna.Study,
    trial: optuna.Trial,
    progress: bool,
    say: Callable[[RunSpec, runs.RunRecord], None],
) -> float:
    import optuna

    # By the trial's number, or workers that start together would all try the same.
    study.sampler = optuna.samplers.TPESampler(seed=(sweep.seed * 1_000_003 + trial.number) % 2**32)
    spec = sweep.trial({name: _suggest(trial, name, space) for name, space in sweep.search.items()})

    def watch(evaluation: int, figures: Mapping[str, float]) -> bool:
        trial.report(figures["eval_accuracy"], evaluation)
        return trial.should_prune()

    try:
        [(_, record)] = grid.run([spec], progress=progress, watch=watch)
    except KeyboardInterrupt:  # its run resumes when the sweep does
        study.enqueue_trial(trial.params)
        raise
    say(spec, record)
    if record.status == "stopped":
        raise optuna.TrialPruned
    if record.status != "ok":
        trial.set_user_attr(_FAILED, f"{record.id}: {record.status}: {record.error}")
        raise _Failed
    return record.metrics["accuracy"].value


def _suggest(trial: optuna.Trial, name: str, space: Range | tuple[Any, ...]) -> Any:
    if not isinstance(space, Range):
        return trial.suggest_categorical(name, space)
    if isinstance(space.low, int) and isinstance(space.high, int):
        return trial.suggest_int(name, space.low, space.high, log=space.log)
    return trial.suggest_float(name, space.low, space.high, log=space.log)


def _ended(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Trials that count, in the order in which they ended, so that all workers agree which are the first.

    Not those of a worker that died or was interrupted, which are made again.
    """
    with _database():
        trials = study.get_trials(deepcopy=False)
    ended = [
        trial
        for trial in trials
        if trial.datetime_complete is not None
        and (trial.state.name in ("COMPLETE", "PRUNED") or _FAILED in trial.user_attrs)
    ]
    return sorted(ended, key=lambda trial: (trial.datetime_complete, trial.number))


def _write_report(study: optuna.Study, path: Path) -> None:
    """The search as one page: its course, what mattered, and each field against the outcome."""
    import optuna
    from optuna import visualization

    plots = [visualization.plot_optimization_history(study), visualization.plot_slice(study)]
    trials = study.get_trials(deepcopy=False)
    if len({t.value for t in trials if t.state.name == "COMPLETE"}) > 1 and len(study.best_params) > 1:
        # The default of Optuna 4 needs scikit-learn.
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        plots.insert(1, visualization.plot_param_importances(study, evaluator))
    parts = [plot.to_html(full_html=False, include_plotlyjs=index == 0) for index, plot in enumerate(plots)]
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Sweep</title>{"".join(parts)}</html>'
    runs.write_texts(path.parent, {path.name: page})
