"""Measurement of a model: one harness for gates, recipes, `whet eval` and comparisons.

It gives pass@1 with an interval over problems, unbiased pass@k, the majority vote, truncation, the
lengths of right and of wrong answers, the share and accuracy of each mode of answering, and the
accuracy of each task of a mixture. The sampling settings stand beside every score
(arXiv:2504.07086).
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
from whet.types import Group, Progress, Sampling

GATE_SPLIT = "train"  # a gate may look as often as it likes without spending the test split
RATES = ("length", "length_right", "length_wrong", "truncated", "unparsed", "errors")
PASS_AT = (1, 2, 4, 8, 16, 32, 64, 128, 256)
Table = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Measured:
    """One model on one set of problems.

    Where the thinking switch was measured both ways, `off` has the same problems without thinking.
    """

    groups: list[Group]
    figures: dict[str, Any]
    off: "Measured | None" = None

    @property
    def correct(self) -> list[list[bool]]:
        """[problems][samples], without the samples whose verifier failed."""
        return [[c.correct for c in g.usable.scores] for g in self.groups]


def measure(
    policy: Policy, context: Context, spec: config.Evaluation, progress: Progress | None = None
) -> Measured:
    """Draws spec.samples answers to spec.problems test problems and sums them up.

    Where the thinking switch is measured both ways, the figures are those with thinking, and
    `figures["thinking"]` has {on, off}.
    """
    sampling = Sampling(
        spec.samples, spec.temperature, spec.max_tokens, spec.top_p, spec.top_k, spec.seed
    )
    engine = context.engine(policy, context.chat)

    def one_way(thinking: bool | None) -> Measured:
        prompts = context.some("test", spec.problems, spec.seed, thinking)
        groups = rollout(engine, context.reward, prompts, sampling, progress)
        return Measured(groups, figures(groups, context, sampling))

    on, *rest = [one_way(thinking) for thinking in measured(spec.thinking, context.ask.thinking)]
    if not rest:
        return on
    both = {"on": on.figures, "off": rest[0].figures}
    return Measured(on.groups, {**on.figures, "thinking": both}, rest[0])


def figures(groups: Sequence[Group], context: Context, sampling: Sampling) -> dict[str, Any]:
    """The summary of one measurement; every value is plain data."""
    usable = [g.usable for g in groups if g.usable.scores]
    counts = [[c.correct for c in g.scores] for g in usable]
    rates = describe(groups, context.task)
    fewest = min((len(row) for row in counts), default=0)
    summary: dict[str, Any] = {
        **(accuracy(counts) if counts else dict.fromkeys(("accuracy", "low", "high"))),
        "n": len(counts),
        "sampling": asdict(sampling),
        **{name: rates.get(name) for name in RATES},
        "tokens": sum(s.length for g in groups for s in g.samples),
        "pass_at": {
            str(k): mean([statistics.pass_at_k(len(row), sum(row), k) for row in counts])
            for k in PASS_AT
            if k <= fewest
        },
        "modes": modes(groups, context),
        "parts": {
            name.removeprefix("part_"): value
            for name, value in rates.items()
            if name.startswith("part_")
        },
    }
    if sampling.n > 1 and counts:
        summary["majority"] = mean([vote(g) for g in usable])
    if tasks := by_task(usable):
        summary["by_task"] = tasks
    return summary


def accuracy(counts: Sequence[Sequence[bool]]) -> dict[str, float]:
    """pass@1 over problems [problems][samples], with its 95 % interval."""
    interval = statistics.mean_with_interval([[float(c) for c in row] for row in counts])
    return {"accuracy": interval.mean, "low": interval.low, "high": interval.high}


def by_task(usable: Sequence[Group]) -> Table:
    """Accuracy, problems and mean length (tokens) of each task of a mixture; empty for one task."""
    groups: dict[str, list[Group]] = {}
    for g in usable:
        groups.setdefault(g.prompt.problem.task, []).append(g)
    if len(groups) < 2:
        return {}
    return {
        task: {
            **accuracy([[c.correct for c in g.scores] for g in own]),
            "n": len(own),
            "length": mean([float(s.length) for g in own for s in g.samples]),
        }
        for task, own in sorted(groups.items())
    }


def vote(group: Group) -> float:
    """Majority vote over the answers of a group."""
    votes = [
        None if c.status == "unparsed" else ballot(text)
        for text, c in zip(group.texts, group.scores, strict=True)
    ]
    return statistics.majority(votes, [c.correct for c in group.scores])


def ballot(text: str) -> str:
    """The answer of a text, for a vote: the part after the thinking; in prose, its final answer.

    >>> ballot("<think>1+1</think>2"), ballot("So it is 5 apples.\\n#### 5")
    ('2', '5')
    >>> ballot("Five and no more: \\\\boxed{5}")
    '5'
    """
    answer = (concluded(text) or text).strip()
    return (final_answer(text) or answer) if len(answer.split()) > 1 else answer


def modes(groups: Sequence[Group], context: Context) -> Table:
    """Share, accuracy and count of each mode of answering; empty where the task has no modes."""
    task = context.task
    if not task.modes:
        return {}
    right: dict[str, list[bool]] = {mode: [] for mode in task.modes}
    others: dict[str, list[bool]] = {}
    for group in (g.usable for g in groups):
        for text, score in zip(group.texts, group.scores, strict=True):
            mode = task.mode(group.prompt.problem, text)
            (right if mode in right else others).setdefault(mode, []).append(score.correct)
    total = sum(len(row) for row in (*right.values(), *others.values()))
    return {
        mode: {
            "share": len(row) / total if total else 0.0,
            "accuracy": mean(row) if row else None,
            "n": len(row),
        }
        for mode, row in (*right.items(), *sorted(others.items()))
    }


def accuracy_by_mode(
    policy: Policy, context: Context, gate: config.Gate, seed: int
) -> dict[str, tuple[float, int]]:
    """(accuracy, number of answers) of each mode, for gates: training problems, temperature 1."""
    prompts = context.some(GATE_SPLIT, gate.samples, seed)
    sampling = Sampling(n=1, temperature=1.0, max_tokens=gate.max_tokens, seed=seed)
    groups = rollout(context.engine(policy, context.chat), context.reward, prompts, sampling)
    return {m: (row["accuracy"] or 0.0, row["n"]) for m, row in modes(groups, context).items()}


def gain(
    before_name: str, before: Measured, after_name: str, after: Measured
) -> dict[str, Any] | None:
    """The gain in accuracy from one model to another, its two parts, and the paired test.

    The parts are choosing another mode, and reasoning better within a mode; they are absent where
    the task has no modes. None where a model has no accuracy.
    """
    old, new = before.figures, after.figures
    if old["accuracy"] is None or new["accuracy"] is None:
        return None
    figures: dict[str, Any] = {
        "before": before_name,
        "after": after_name,
        "total": new["accuracy"] - old["accuracy"],
    }
    if old["modes"] and new["modes"]:
        shares = (
            {mode: (row["share"], row["accuracy"]) for mode, row in side["modes"].items()}
            for side in (old, new)
        )
        figures |= asdict(statistics.decompose(*shares))
    return figures | {"paired": paired(before, after)}


def paired(one: Measured, other: Measured) -> dict[str, Any]:
    """The exact test of `other` being better than `one` on the problems that both have answered."""
    answers = {g.prompt.id: row for g, row in zip(one.groups, one.correct, strict=True)}
    pairs = [
        (answers[g.prompt.id], row)
        for g, row in zip(other.groups, other.correct, strict=True)
        if answers.get(g.prompt.id) and row
    ]
    if not pairs:
        return {"n": 0}
    test = statistics.paired([a for a, _ in pairs], [b for _, b in pairs])
    return {"n": len(pairs), **asdict(test)}
