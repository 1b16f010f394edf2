"""Measuring a model: the same harness for gates, recipes, `whet eval` and comparisons.

pass@1 with an interval over problems, unbiased pass@k, majority vote, truncation, lengths of right
and of wrong answers, the share and accuracy of each mode of answering, and the accuracy of each
task of a mixture. The sampling settings stand beside every score (arXiv:2504.07086).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from whet import config
from whet.config.thinking import measured
from whet.evaluation import statistics
from whet.model.policy import Policy
from whet.rewards.extract import concluded, final_answer
from whet.rollout.context import Context
from whet.rollout.rollout import describe, mean, rollout
from whet.types import Group, Progress, Sampling, Score

GATE_SPLIT = "train"  # a gate may look as often as it likes without spending the test split


@dataclass(frozen=True)
class Measured:
    """One model on one set of problems."""

    groups: list[Group]
    figures: dict[str, Any]
    off: "Measured | None" = (
        None  # the same problems with the thinking switch off, where it was measured both ways
    )

    @property
    def correct(self) -> list[list[bool]]:
        """[problems][samples], samples whose verifier failed left out."""
        return [[c.correct for c in g.usable.scores] for g in self.groups]


def measure(
    policy: Policy, context: Context, spec: config.Evaluation, progress: Progress | None = None
) -> Measured:
    """Draws spec.samples answers to spec.problems test problems and sums them up.

    Where the thinking switch is measured both ways, the figures are those with it on;
    `figures["thinking"]` has {on, off}.
    """
    sampling = Sampling(
        spec.samples, spec.temperature, spec.max_tokens, spec.top_p, spec.top_k, spec.seed
    )
    engine = context.engine(policy, context.chat)
    found: list[Measured] = []
    for thinking in measured(spec.thinking, context.ask.thinking):
        prompts = context.some("test", spec.problems, spec.seed, thinking)
        groups = rollout(engine, context.reward, prompts, sampling, progress)
        found.append(Measured(groups, figures(groups, context, sampling)))
    if len(found) == 1:
        return found[0]
    on, off = found
    return Measured(
        on.groups, {**on.figures, "thinking": {"on": on.figures, "off": off.figures}}, off
    )


def figures(groups: Sequence[Group], context: Context, sampling: Sampling) -> dict[str, Any]:
    """The summary of one measurement; every value is plain data."""
    usable = [g.usable for g in groups if g.usable.scores]
    counts = [[float(c.correct) for c in g.scores] for g in usable]
    told = describe(groups, context.task)
    interval = statistics.mean_with_interval(counts) if counts else None
    ks = [
        k
        for k in (1, 2, 4, 8, 16, 32, 64, 128, 256)
        if k <= min((len(c) for c in counts), default=0)
    ]
    found: dict[str, Any] = {
        "accuracy": interval.mean if interval else None,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "n": len(counts),
        "sampling": asdict(sampling),
        "length": told.get("length"),
        "length_right": told.get("length_right"),
        "length_wrong": told.get("length_wrong"),
        "truncated": told.get("truncated"),
        "unparsed": told.get("unparsed"),
        "errors": told["errors"],
        "tokens": sum(s.length for g in groups for s in g.samples),
        "pass_at": {
            str(k): mean([statistics.pass_at_k(len(c), int(sum(c)), k) for c in counts]) for k in ks
        },
        "modes": modes(groups, context),
        "parts": {
            name.removeprefix("part_"): value
            for name, value in told.items()
            if name.startswith("part_")
        },
    }
    if sampling.n > 1 and counts:
        found["majority"] = mean([vote(g) for g in usable])
    if parts := by_task(usable):
        found["by_task"] = parts
    return found


def by_task(usable: Sequence[Group]) -> dict[str, dict[str, float | int]]:
    """Accuracy with its interval, number of problems and mean length (tokens) of each task of a
    mixture; empty where there is one.
    """
    groups: dict[str, list[Group]] = {}
    for g in usable:
        groups.setdefault(g.prompt.problem.task, []).append(g)
    if len(groups) < 2:
        return {}
    table: dict[str, dict[str, float | int]] = {}
    for name, own in sorted(groups.items()):
        interval = statistics.mean_with_interval(
            [[float(c.correct) for c in g.scores] for g in own]
        )
        length = mean([float(s.length) for g in own for s in g.samples])
        told = {"accuracy": interval.mean, "low": interval.low, "high": interval.high}
        table[name] = {**told, "n": len(own), "length": length}
    return table


def vote(group: Group) -> float:
    """Majority vote over the answers a group gave."""
    votes = [
        None if c.status == "unparsed" else ballot(text)
        for text, c in zip(group.texts, group.scores, strict=True)
    ]
    return statistics.majority(votes, [c.correct for c in group.scores])


def ballot(text: str) -> str:
    """What an answer says, without how it says it: what follows the thinking; in prose, the final
    answer there.

    >>> ballot("<think>1+1</think>2"), ballot("So it is 5 apples.\\n#### 5"), ballot("Five and no more: \\\\boxed{5}")
    ('2', '5', '5')
    """
    said = (concluded(text) or text).strip()
    return (final_answer(text) or said) if len(said.split()) > 1 else said


def modes(groups: Sequence[Group], context: Context) -> dict[str, dict[str, float | int | None]]:
    """Share, accuracy and count of each mode of answering; empty where the task tells none apart."""
    task = context.task
    if not task.modes:
        return {}
    rows: list[tuple[str, Score]] = [
        (task.mode(g.prompt.problem, text), c)
        for g in (g.usable for g in groups)
        for text, c in zip(g.texts, g.scores, strict=True)
    ]
    names = [*task.modes, *sorted({m for m, _ in rows} - set(task.modes))]
    table: dict[str, dict[str, float | int | None]] = {}
    for name in names:
        given = [c.correct for m, c in rows if m == name]
        share = len(given) / len(rows) if rows else 0.0
        table[name] = {"share": share, "accuracy": mean(given) if given else None, "n": len(given)}
    return table


def accuracy_by_mode(
    policy: Policy, context: Context, gate: config.Gate, seed: int
) -> dict[str, tuple[float, int]]:
    """For gates: mode -> (accuracy, answers), over training problems at temperature 1."""
    prompts = context.some(GATE_SPLIT, gate.samples, seed)
    sampling = Sampling(n=1, temperature=1.0, max_tokens=gate.max_tokens, seed=seed)
    groups = rollout(context.engine(policy, context.chat), context.reward, prompts, sampling)
    return {
        m: (float(t["accuracy"] or 0.0), int(t["n"] or 0))
        for m, t in modes(groups, context).items()
    }


def gain(
    before_name: str, before: Measured, after_name: str, after: Measured
) -> dict[str, Any] | None:
    """What a gain in accuracy is made of: choosing another mode, or answering better in a mode; and
    the paired test.
    """
    a, b = before.figures, after.figures
    if a["accuracy"] is None or b["accuracy"] is None:
        return None
    told: dict[str, Any] = {
        "before": before_name,
        "after": after_name,
        "total": b["accuracy"] - a["accuracy"],
    }
    if a["modes"] and b["modes"]:
        split = statistics.decompose(
            {m: (t["share"], t["accuracy"]) for m, t in a["modes"].items()},
            {m: (t["share"], t["accuracy"]) for m, t in b["modes"].items()},
        )
        told |= {"choosing": split.choosing, "reasoning": split.reasoning}
    return told | {"paired": paired(before, after)}


def paired(one: Measured, other: Measured) -> dict[str, Any]:
    """An exact test on the same problems: is `other` better than `one`?"""
    by_id = {g.prompt.id: row for g, row in zip(one.groups, one.correct, strict=True)}
    pairs = [
        (by_id[g.prompt.id], row)
        for g, row in zip(other.groups, other.correct, strict=True)
        if by_id.get(g.prompt.id) and row
    ]
    if not pairs:
        return {"n": 0}
    test = statistics.paired([a for a, _ in pairs], [b for _, b in pairs])
    return {"n": len(pairs), **asdict(test)}
