"""Several rewards as one: a weighted sum of named parts, each of which is logged."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from whet.errors import RewardError, did_you_mean
from whet.rewards.base import PaysByVerdict, Reward, RewardOptions
from whet.rewards.registry import load
from whet.types import Problem, Sample, Score, Task

# statuses that have a value; a timeout or an error never reaches an update
Paid = Literal["scored", "wrong", "unparsed"]


class PartOptions(RewardOptions):
    """What every part of a reward takes, whichever reward it is."""

    owner = "reward {name}"
    name: str = Field(description="the name under which the part is logged")
    weight: float = Field(default=1.0, description="factor of the part in the sum; 0: only logged")
    gate: str | None = Field(
        default=None,
        description="another part, which must pay more than one half for this one to count",
    )
    pays: dict[Paid, float] = Field(
        default={}, description="values of statuses instead of the reward's: { unparsed = -1.0 }"
    )
    clip: list[float] | None = Field(
        default=None, description="[low, high]: bounds of the part's value before its weight"
    )
    only: str | None = Field(
        default=None, description="task of a mix; the part is for its problems alone"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.clip is not None and (len(self.clip) != 2 or self.clip[0] > self.clip[1]):
            raise ValueError(f"clip = {self.clip}; it must be [low, high]")
        return self


COMMON = tuple(key for key in PartOptions.model_fields if key not in ("name", "weight"))


@dataclass(frozen=True, slots=True)
class Part:
    """One reward of a sum, with the options that every part has."""

    reward: Reward
    options: PartOptions

    @property
    def name(self) -> str:
        return self.options.name

    @property
    def is_plain(self) -> bool:
        """Whether the part alone is its reward, unchanged."""
        return self.options == PartOptions(name=self.name, gate=self.options.gate)

    def judges(self, task: str) -> bool:
        return self.options.only in (None, task)

    def covers(self, other: "Part") -> bool:
        """Whether it judges every problem that the other does."""
        return self.options.only in (None, other.options.only)

    def value(self, score: Score) -> float:
        """The part's value before its weight."""
        value = self.options.pays.get(score.status, score.value)  # type: ignore[call-overload]
        low, high = self.options.clip or (-math.inf, math.inf)
        return min(max(value, low), high)


@dataclass(frozen=True, slots=True)
class TaskReward:
    """The task's own verifier."""

    task: Task

    def score(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None = None,
    ) -> list[Score]:
        return self.task.score(problems, texts)


class CombinedReward:
    """The weighted sum of its parts; `Score.parts` holds each part's value before its weight.

    `parts["accuracy"]` and the status are those of the first verifier: a part with an accuracy of
    its own, or the part `task`. Without a verifier the status is the first part's, and there is no
    accuracy. Where any part times out or fails, the whole does: a sum that lacks a part would be
    another reward. A part that is for one task `only` does not belong to the sum for the problems
    of another: it is not asked, not logged, and cannot fail them.

    Raises RewardError for no parts, two of one name for the same problems, and a gate that is no
    other part or does not judge all that the part does.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        if not parts:
            raise RewardError("reward: no parts; give at least one [[reward]]")
        for i, part in enumerate(parts):
            if any(p.name == part.name and (p.covers(part) or part.covers(p)) for p in parts[:i]):
                raise RewardError(f"reward: two parts are named {part.name!r}")
            _check_gate(part, [p for p in parts if p is not part])
        self.parts = tuple(parts)

    def score(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None = None,
    ) -> list[Score]:
        """N problems and N responses -> N scores.

        Raises RewardError for a problem that no part judges, and for a part that pays by a verdict
        where no other part gives one.
        """
        rows: list[dict[int, Score]] = [{} for _ in texts]  # by part, of those that judge it
        # parts that pay by a verdict need the scores of the others
        last = [isinstance(part.reward, PaysByVerdict) for part in self.parts]
        for i in sorted(range(len(self.parts)), key=last.__getitem__):
            part = self.parts[i]
            at = [n for n, problem in enumerate(problems) if part.judges(problem.task)]
            if not at:
                continue
            drawn = None if samples is None else [samples[n] for n in at]
            batch = [problems[n] for n in at], [texts[n] for n in at], drawn
            if isinstance(part.reward, PaysByVerdict):
                verdicts = [self._verdict(part, rows[n]) for n in at]
                column = part.reward.score_given_verdicts(*batch, verdicts)
            else:
                column = part.reward.score(*batch)
            if len(column) != len(at):
                raise RewardError(
                    f"reward {part.name}: returned {len(column)} scores for {len(at)} responses"
                )
            for n, score in zip(at, column, strict=True):
                rows[n][i] = score
        orphan = next((p for p, row in zip(problems, rows, strict=True) if not row), None)
        if orphan is not None:
            raise RewardError(
                f"reward: no part judges problem {orphan.id!r} of task {orphan.task!r}"
            )
        return [self._sum([(self.parts[i], row[i]) for i in sorted(row)]) for row in rows]

    def _verdict(self, asking: Part, row: Mapping[int, Score]) -> Score:
        """The verdict on one response, for a part that pays by it: a failure, or the first
        verifier's score.
        """
        scores = [(self.parts[i], score) for i, score in row.items()]
        failures = [score for _, score in scores if not score.usable]
        verdict = next(iter(failures), None) or _verifier(scores)
        if verdict is None:
            raise RewardError(
                f"reward {asking.name} pays by a verifier's verdict and no other part gives one; "
                "add task or math"
            )
        return verdict

    def _sum(self, row: Sequence[tuple[Part, Score]]) -> Score:
        """The score of one response, from those of the parts that judge it."""
        values = {part.name: part.value(score) for part, score in row if score.usable}
        for _, score in row:
            if not score.usable:
                return Score(0.0, score.status, values, score.reason)
        value = math.fsum(
            part.options.weight * values[part.name]
            for part, _ in row
            if part.options.gate is None or values[part.options.gate] > 0.5
        )
        parts = {name: v for _, score in reversed(row) for name, v in score.parts.items()}
        parts.pop("accuracy", None)
        parts |= values
        verdict = _verifier(row)
        if verdict is None:
            return Score(value, row[0][1].status, parts)
        accuracy = verdict.parts.get("accuracy", verdict.value)
        return Score(value, verdict.status, {**parts, "accuracy": accuracy})


def _verifier(row: Sequence[tuple[Part, Score]]) -> Score | None:
    """The first score that says whether the answer is right."""
    return next(
        (score for part, score in row if part.name == "task" or "accuracy" in score.parts), None
    )


def _check_gate(part: Part, others: Sequence[Part]) -> None:
    gate = part.options.gate
    if gate is None:
        return
    gates = [other for other in others if other.name == gate]
    if not gates:
        known = [other.name for other in others]
        hint = did_you_mean(gate, known) if known else "; there is no other part"
        raise RewardError(f"reward {part.name}: gate {gate!r} is no other part{hint}")
    if not any(other.covers(part) for other in gates):
        task = gates[0].options.only
        raise RewardError(
            f"reward {part.name}: its gate {gate!r} judges only {task}; "
            f"give this part only = {task!r} too"
        )


def combined(parts: Sequence[tuple[str, float, Mapping[str, Any]]], task: Task) -> Reward:
    """The reward of a recipe: (name, weight, options) of each part; the name `task` is the task's
    own verifier.

    The options are the reward's own and those of `PartOptions`. A part is logged under its name,
    your own function's under the function's name. One part of weight 1 stays as it is. Raises
    RewardError for what cannot be loaded or combined.
    """
    tasks: tuple[str, ...] = getattr(task, "tasks", (task.name,))  # of a mix, all of its parts
    labels = [name.rpartition(":")[2] for name, _, _ in parts]
    built: list[Part] = []
    for (name, weight, options), label in zip(parts, labels, strict=True):
        common = {key: value for key, value in options.items() if key in COMMON}
        own = {key: value for key, value in options.items() if key not in COMMON}
        if name == "task" and own:
            raise RewardError(
                f"reward task: unknown option {next(iter(own))!r}; "
                f"it takes none but {', '.join(COMMON)}"
            )
        reward = TaskReward(task) if name == "task" else load(name, **own)
        unique = label if labels.count(label) == 1 else name
        shared = PartOptions(name=unique, weight=weight, **common)
        if not any(shared.only in (None, known) for known in tasks):
            raise RewardError(
                f"reward {unique}: only = {shared.only!r} is no task of this recipe"
                f"{did_you_mean(str(shared.only), tasks)}"
            )
        built.append(Part(reward, shared))
    whole = CombinedReward(built)
    # of a mix, the tasks that pose problems in the recipe itself, not only in one stage
    for name in getattr(task, "posing", tasks):
        if not any(part.judges(name) for part in built):
            raise RewardError(f"reward: every part is for another task only, none for {name}")
    return built[0].reward if len(built) == 1 and built[0].is_plain else whole
