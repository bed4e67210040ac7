"""What a comparison means, in plain English: what to choose, how sure that is, and what it costs.

Rules, in one place:
- two rows are *tied* when the paired test against the best does not tell them apart at 5 %, after Holm; of
  their difference is said how large it may be, never that there is none;
- seconds are compared on one machine only, and ratios under `SAME_SPEED` are called no different;
- where a mechanism leaves nothing out and compresses nothing, its ties and wins are no finding;
- a run that learned nothing is named with the likely cause, and never chosen.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from bakeoff import metrics, stats
from bakeoff.comparison.rows import Failure, Group, Row, Run
from bakeoff.text import p_text, percent, plain

ALPHA = stats.ALPHA
SAME_SPEED = 1.2  # on shared machines, repeated runs differ by up to about this much
COLLAPSED = 0.02  # the largest probability stays this close to 1 / classes
SMALL_GAIN = 0.1  # of the way from the baseline to no error
UNMOVED = 0.97  # of the loss of a constant answer
COVERED = 0.5  # share of texts with nothing left out: from here on a row shows no approximation
FEW = 0.03  # a smallest difference above this deserves a warning
_STATUS = {"oom": "out of memory"}
_DIVERGED = "its loss is not a number, so training diverged"


def fault(seeds: Sequence[Run], baseline: float) -> str | None:
    """Why a line's runs count as having learned nothing, with the likely cause; None where all learned.

    A run did not learn when it diverged, when it answers one class only, or when its probabilities stay at
    1 / classes while it gains next to nothing. Nor when its right answers may be chance; but where another
    seed's are not, only if it is worse than the best seed by more than chance, or a line would be the
    likelier to fail the more seeds it has.
    """
    best = max(seeds, key=lambda run: run.correct.sum())
    by_chance = [_may_be_chance(run, ALPHA / len(seeds)) for run in seeds]
    found = []
    for run, may_be in zip(seeds, by_chance, strict=True):
        if (sign := _collapse(run, baseline)) is not None:
            found.append((run, sign))
        elif may_be and (all(by_chance) or stats.mcnemar(run.correct, best.correct) < ALPHA / len(seeds)):
            found.append((run, "its right answers may be chance"))
    if not found:
        return None
    run, sign = found[0]
    where = "" if len(found) == len(seeds) else f" in {len(found)} of {len(seeds)} seeds"
    if sign == _DIVERGED:
        rate = run.record.spec.get("learning_rate")
        return f"learned nothing{where}: {sign}; lower the learning rate ({rate})."
    majority, _ = metrics.majority_baseline(run.labels)
    against = f"{percent(baseline)} % for always answering '{run.data.labels[majority]}'"
    reached = percent(float(run.correct.mean()))
    return plain(f"learned nothing{where}: {reached} % against {against}; {sign}. {_cause(run)}")


def _collapse(run: Run, baseline: float) -> str | None:
    """A sign that training came to nothing, whatever the accuracy."""
    if not np.isfinite(run.logits).all() or not all(map(math.isfinite, _losses(run))):
        return _DIVERGED
    low, high = np.quantile(run.probabilities.max(axis=1), [0.01, 0.99])
    classes = run.logits.shape[1]
    answers = np.unique(run.predicted)
    if len(answers) == 1:
        return f"it answers '{run.data.labels[answers[0]]}' to every row"
    gain = float(run.correct.mean()) - baseline
    if high <= 1 / classes + COLLAPSED and gain < SMALL_GAIN * (1 - baseline):
        return f"its largest probability lies within [{low:.2f}, {high:.2f}]"
    return None


def _may_be_chance(run: Run, alpha: float) -> bool:
    """Whether it is not shown to be better than the majority's answer, nor than its own answers at random."""
    if _beats_majority(run, alpha):
        return False
    return stats.agreement(run.labels, run.predicted) >= alpha / 2  # which looks to one side


def _beats_majority(run: Run, alpha: float) -> bool:
    always = run.labels == metrics.majority_baseline(run.labels)[0]
    return bool(run.correct.sum() > always.sum()) and stats.mcnemar(run.correct, always) < alpha


def _losses(run: Run) -> list[float]:
    return [entry["loss"] for entry in run.record.history if "loss" in entry]


def sentences(group: Group, missing: Iterable[Failure] = ()) -> tuple[str, ...]:
    """The verdict on one table, the most important sentence first."""
    learned = [row for row in group.rows if row.fault is None]
    said: list[str] = []
    if learned:
        equals = tied(group)
        said += [_standing(group, equals, learned), *_choice(group, equals)]
        said += [_loser(group, row, row.to_best) for row in learned if row.to_best and row not in equals]
        said += [
            f"{row.label} is not shown to be more accurate than always answering '{group.majority}', "
            f"{percent(group.baseline)} %; what it knows of the other labels, accuracy does not show here."
            for row in learned
            if _is_like_the_majority(row)
        ]
        said += [
            f"{row.label} leaves nothing out and compresses nothing on {100 * row.share_dense:.0f} % of the "
            "texts, which are short for it: there it has nothing to save, and the comparison shows nothing "
            "about its approximation."
            for row in learned
            if _covers_texts(row)
        ]
    else:
        said.append("No attention learned the task in all of its runs, so there is nothing to choose.")
    said += [f"{row.label} {row.fault}" for row in group.rows if row.fault]
    said += _absences(missing)
    said += _doubts(group, learned)
    return tuple(said)


def tied(group: Group) -> list[Row]:
    """The best of the rows that learned, and those that the paired test does not tell from it."""
    learned = [row for row in group.rows if row.fault is None]
    return [row for row in learned if row.to_best is None or row.to_best.p >= ALPHA]


def choice(group: Group) -> Row | None:
    """Which of the tied to take: the cheapest in one way and dearer in none, else dense, else the best.

    None where no row learned, or where several are tied and their seconds are of different machines.
    """
    equals = tied(group)
    if len(equals) < 2 or not group.same_machine:
        return equals[0] if len(equals) == 1 else None
    usual = _usual(group, equals)
    for seconds, other in ((_train_seconds, _eval_seconds), (_eval_seconds, _train_seconds)):
        fair = [row for row in _own(equals) if _ratio(other(row), other(usual)) < SAME_SPEED]
        cheap = min(fair, key=seconds, default=usual)
        if _ratio(seconds(usual), seconds(cheap)) >= SAME_SPEED:
            return cheap
    return usual


def _usual(group: Group, equals: Sequence[Row]) -> Row:
    return next((row for row in equals if row.attention == "dense"), group.best)


def _own(equals: Sequence[Row]) -> Sequence[Row]:
    """Those that approximate something here, if there are any."""
    return [row for row in equals if not _covers_texts(row)] or equals


def _absences(missing: Iterable[Failure]) -> list[str]:
    """Which attentions have runs without figures; the runs and their errors are listed elsewhere."""
    counts = Counter((failure.attention, failure.status) for failure in missing)
    return [
        f"{attention} has no figures from {count} run{'s' if count > 1 else ''}: "
        f"{_STATUS.get(status, status)}."
        for (attention, status), count in counts.items()
    ]


def _standing(group: Group, equals: Sequence[Row], learned: Sequence[Row]) -> str:
    best = group.best
    figure = (
        f"{percent(best.accuracy.value)} % ({percent(best.accuracy.low)} to {percent(best.accuracy.high)})"
    )
    if len(learned) == 1:
        return f"{best.label} reaches {figure}; nothing else to compare it with learned the task."
    if len(equals) == 1:
        worst = max(row.to_best.p for row in learned if row.to_best)
        among = "" if len(learned) == len(group.rows) else " that learned in all of its runs"
        return f"{best.label} is the most accurate: {figure}, ahead of every other{among} ({_p(worst)})."
    others = [row.to_best for row in equals if row.to_best]
    lowest, reach = min(other.p for other in others), max(other.high for other in others)
    sign = "=" if len(others) == 1 or p_text(lowest) == "1.00" else "≥"
    behind = f"the other{'s' * (len(others) > 1)} may be up to {_points(reach)} behind"
    names = _listed([row.label for row in equals])
    return f"{names} are tied (p {sign} {p_text(lowest)}): {best.label} has {figure}, and {behind}."


def _choice(group: Group, equals: Sequence[Row]) -> list[str]:
    """`choice` with its reason, where there is something to choose from."""
    chosen, usual = choice(group), _usual(group, equals)
    if chosen is None or len(equals) == 1:
        return []
    if chosen is not usual:
        return [
            f"Choose {chosen.label}: it {_speed(usual, chosen)} than {usual.label}{_risk(group, chosen)}."
        ]
    all_own = len(_own(equals)) == len(equals)
    which = "none of the tied" if all_own else "none of the tied that approximates anything here"
    cheaper = f"{SAME_SPEED} × cheaper to train or to evaluate without being dearer in the other"
    return [f"Choose {usual.label}: {which} is {cheaper}."]


def _risk(group: Group, row: Row) -> str:
    """What taking `row`, which is tied, may cost in accuracy."""
    if row.to_best is None:
        return ", and none is more accurate here"
    behind, reach = _points(row.to_best.value), _points(row.to_best.high)
    return f"; it is {behind} behind {group.best.label}, which may be chance, but {reach} cannot be ruled out"


def _loser(group: Group, row: Row, difference: stats.Difference) -> str:
    cost = f"{_speed(group.best, row)} and " if group.same_machine else ""
    span = f"{100 * difference.low:z.1f} to {100 * difference.high:z.1f}; {_p(difference.p)}"
    return f"{row.label} {cost}loses {_points(difference.value)} ({span}) to {group.best.label}."


def _doubts(group: Group, learned: Sequence[Row]) -> list[str]:
    said = []
    if group.resolvable is not None:
        size, seeds = _points(group.resolvable), min(len(row.runs) for row in learned)
        shown = f"{group.n:,} rows and {seeds} seed{'s' if seeds > 1 else ''}"
        few = "are few: they " if group.resolvable > FEW else ""
        said.append(
            f"{shown} {few}tell a difference of {size} from chance four times in five, a smaller one less "
            "often."
        )
    single = [row.label for row in learned if len(row.runs) == 1]
    if single and len(single) == len(learned):
        said.append(
            "With one seed, intervals and p are for the evaluation rows alone; another seed may move figures "
            "further."
        )
    elif single:
        said.append(
            f"There is one seed of {_listed(single)}: intervals are for the evaluation rows alone there, and "
            "p takes other seeds to spread as those of the line compared with."
        )
    if not group.same_machine:
        said.append(
            "The runs differ in device, threads, processes or precision, so their seconds are not compared."
        )
    elif len(learned) > 1:  # then a sentence above speaks of speed
        said.append("Seconds are wall time; the records cannot see what else the machine did.")
    smaller = [row.label for row in group.rows if any(run.record.batches for run in row.runs)]
    if smaller:
        said.append(
            f"Batches of {_listed(smaller)} were made smaller for want of memory: the same steps, in more "
            "time."
        )
    cut = max((row.share_truncated for row in group.rows), default=0.0)
    if cut >= 0.1:
        said.append(f"Up to {100 * cut:.0f} % of the evaluation texts were cut at the longest length taken.")
    return said


def _is_like_the_majority(row: Row) -> bool:
    return not any(_beats_majority(run, ALPHA / len(row.runs)) for run in row.runs)


def _cause(run: Run) -> str:
    """The likeliest cause, from how the training loss went against that of a constant answer."""
    losses = _losses(run)
    counts = np.array(list(run.data.splits["train"].label_counts.values()), dtype=float)
    shares = counts[counts > 0] / counts.sum()
    constant = float(-(shares * np.log(shares)).sum())
    last = losses[-1] if losses else run.record.train_loss
    if last is None:
        return "No training loss was recorded to tell the cause."
    if last < UNMOVED * constant:
        return (
            f"The training loss fell to {last:.2f}, so it fits its training rows: too few of them, "
            "too many epochs, or evaluation rows of another kind."
        )
    steps = max((int(entry["step"]) for entry in run.record.history if "step" in entry), default=0)
    state = run.model.attention_parameters
    rate = run.record.spec.get("learning_rate")
    start = f", or a random start of its {state:,} attention parameters (try a warm start)" if state else ""
    return (
        f"The training loss stayed at {last:.2f} (a constant answer has {constant:.2f}): "
        f"too few steps ({steps:,}), a learning rate too low or too high ({rate}){start}."
    )


def _covers_texts(row: Row) -> bool:
    return row.attention != "dense" and row.share_dense >= COVERED


def _speed(base: Row, row: Row) -> str:
    """What `row` does faster or slower than `base`, in training and in evaluation."""
    words = []
    for verb, seconds in (("trains", _train_seconds), ("evaluates", _eval_seconds)):
        ratio = _ratio(seconds(base), seconds(row))
        if ratio >= SAME_SPEED:
            words.append(f"{verb} {ratio:.1f} × faster")
        elif 1 / ratio >= SAME_SPEED:
            words.append(f"{verb} {1 / ratio:.1f} × slower")
    return ", ".join(words) or "is no faster"


def _train_seconds(row: Row) -> float:
    return row.train_seconds


def _eval_seconds(row: Row) -> float:
    return row.eval_seconds


def _ratio(other: float, mine: float) -> float:
    """Below the clock's resolution both count as one millisecond."""
    return max(other, 1e-3) / max(mine, 1e-3)


def _points(share: float) -> str:
    return f"{100 * share:.1f} points"


def _p(p: float) -> str:
    text = p_text(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
