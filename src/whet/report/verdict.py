"""Turns a run's summary into sentences."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from whet import format
from whet.format import count, points
from whet.report.read import listed, mapped, number

Stage = Mapping[str, Any]


# the sign keeps to its number at the end of a line
percent = partial(format.percent, space="\u00a0")


def interval(stage: Stage) -> str:
    """The 95 % interval, in per cent; empty where it is not known."""
    low, high = number(stage.get("low")), number(stage.get("high"))
    return (
        ""
        if low is None or high is None
        else f"[{100 * low:.1f},\u00a0{100 * high:.1f}]".replace("-", "−")
    )


def measured(stages: Sequence[Stage]) -> list[Stage]:
    return [s for s in stages if number(s.get("accuracy")) is not None]


def compared(summary: Mapping[str, Any]) -> tuple[Stage | None, Stage | None]:
    """The two measured stages that the verdict compares.

    They are those of the gain where the summary has one, else the first stage and the result.
    """
    stages = measured([s for s in listed(summary.get("stages")) if isinstance(s, dict)])
    by_name = {str(s.get("name")): s for s in stages}
    gain = mapped(summary.get("gain"))
    before, after = by_name.get(str(gain.get("before"))), by_name.get(str(gain.get("after")))
    if before and after:
        return before, after
    after = by_name.get(str(summary.get("result"))) or (stages[-1] if stages else None)
    before = (
        next((s for s in stages if s is not after), None)
        if after is not None and stages[0] is not after
        else None
    )
    return before, after


def split(total: float, choosing: float, reasoning: float) -> str:
    """The parts of a gain in one sentence; the arguments are shares.

    >>> split(0.711, 0.655, 0.056)[:76]
    'Of the 71.1 points gained, 65.5 come from choosing another way of answering '
    """
    if total > 0 and choosing >= 0 and reasoning >= 0:
        return (
            f"Of the {100 * total:.1f} points gained, {100 * choosing:.1f} come from choosing "
            f"another way of answering "
            f"and {100 * reasoning:.1f} from answering better within a way."
        )
    what = "gain" if total >= 0 else "loss"
    parts = [f"{100 * part:+.1f}".replace("-", "−") for part in (choosing, reasoning)]
    return (
        f"The {what} of {abs(100 * total):.1f} points is made of {parts[0]} from choosing another "
        f"way of answering "
        f"and {parts[1]} from how well each way is answered."
    )


def settings(stage: Stage) -> str:
    """How a stage's accuracy was measured, such as '1,000 test problems, temperature 1'."""
    sampling = mapped(stage.get("sampling"))
    n, temperature = number(stage.get("n")), number(sampling.get("temperature"))
    words = [f"{count(n)} test problem{'' if n == 1 else 's'}"] if n is not None else []
    if (drawn := number(sampling.get("n"))) is not None and drawn > 1:
        words.append(f"{drawn:.0f} answers each")
    if temperature is not None:
        words.append("greedy" if temperature == 0 else f"temperature {temperature:g}")
    if mapped(stage.get("thinking")):
        words.append("thinking on")
    return ", ".join(words)


def headline(summary: Mapping[str, Any]) -> str:
    """The comparison in one sentence.

    >>> base = {"name": "base", "accuracy": 0.17, "low": 0.15, "high": 0.19, "n": 1000}
    >>> rl = {"name": "rl", "accuracy": 0.88, "low": 0.86, "high": 0.9, "n": 1000}
    >>> headline({"task": "chain", "result": "rl", "stages": [base, rl]}).replace("\xa0", " ")[:83]
    'Accuracy on chain rose from 17.0 % [15.0, 19.0] (base) to 88.0 % [86.0, 90.0] (rl);'
    """
    before, after = compared(summary)
    task = str(summary.get("task") or "the task")
    if after is None:
        return f"No accuracy was measured on {task}: no stage of this run has been evaluated."
    if before is None:
        return (
            f"Accuracy of {after.get('name')} on {task} is {_figure(after)}; no earlier model "
            f"was measured."
        )
    a, b = number(before.get("accuracy")) or 0.0, number(after.get("accuracy")) or 0.0
    if a == b:
        moved = (
            f"is {_figure(before)} before ({before.get('name')}) and {_figure(after)} after "
            f"({after.get('name')})"
        )
    else:
        verb = "rose" if b > a else "fell"
        moved = (
            f"{verb} from {_figure(before)} ({before.get('name')}) to {_figure(after)} "
            f"({after.get('name')})"
        )
    return f"Accuracy on {task} {moved}; {_overlap(before, after)}."


def _figure(stage: Stage) -> str:
    return f"{percent(number(stage.get('accuracy')))}\u00a0{interval(stage)}".strip()


def overlapping(one: Stage, other: Stage) -> bool | None:
    """Whether the 95 % intervals share a point; None where one is not known."""
    bounds = [number(s.get(key)) for s in (one, other) for key in ("low", "high")]
    low, high, low2, high2 = bounds
    if low is None or high is None or low2 is None or high2 is None:
        return None
    return low <= high2 and low2 <= high


def _overlap(before: Stage, after: Stage) -> str:
    overlap = overlapping(before, after)
    if overlap is None:
        return "the 95\u00a0% intervals are not known"
    if overlap:
        return (
            "the 95\u00a0% intervals overlap, so these figures alone do not settle which is better"
        )
    return "the 95\u00a0% intervals do not overlap"


def details(summary: Mapping[str, Any]) -> list[str]:
    """Sentences beside the headline: how it was measured, the paired test, what would mislead."""
    before, after = compared(summary)
    sentences: list[str] = []
    if after is not None and (how := settings(after)):
        sentences.append(f"Measured on {how}.")
    if before is not None and after is not None:
        if _conditions(before) != _conditions(after):
            sentences.append(
                "The two were not measured with the same sampling settings: do not read the "
                "difference as a gain."
            )
        sentences += _paired(mapped(mapped(summary.get("gain")).get("paired")))
    if summary and not summary.get("result"):
        sentences.append("The run has not finished: it has no result yet.")
    return sentences


def _conditions(stage: Stage) -> tuple[Any, ...]:
    return stage.get("n"), mapped(stage.get("sampling"))


def _paired(test: Mapping[str, Any]) -> list[str]:
    p, n, difference = number(test.get("p")), number(test.get("n")), number(test.get("difference"))
    if p is None or difference is None or not n:
        return []
    chance = f"p\u00a0=\u00a0{p:.2g}" if p >= 1e-4 else "p below 0.0001"
    how = f" ({test['test']})" if test.get("test") else ""
    apart = " ".join(filter(None, (points(difference), interval(test))))
    return [f"Paired on the same {count(n)} problems the difference is {apart}, {chance}{how}."]
