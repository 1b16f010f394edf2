"""Several rewards as one: a weighted sum of named parts, each of which is logged."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from whet.errors import RewardError, did_you_mean
from whet.rewards.registry import Judging, Reward, load
from whet.types import Problem, Sample, Score, Task

COMMON = ("gate", "pays", "clip", "only")  # options of every part
PAID = (
    "scored",
    "wrong",
    "unparsed",
)  # statuses that have a value; timeout and error never reach an update


@dataclass(frozen=True, slots=True)
class Part:
    """`weight` times what `reward` pays; with a gate, only where the part of that name pays more
    than one half.

    `only` leaves all problems but those of one task (`Problem.task`) to other parts. `pays`
    replaces what a score of that status (scored, wrong, unparsed) is worth; `clip` bounds it after.
    """

    name: str
    reward: Reward
    weight: float = 1.0
    gate: str | None = None
    pays: Mapping[str, float] = field(default_factory=dict[str, float])
    clip: tuple[float, float] | None = None
    only: str | None = None

    @property
    def plain(self) -> bool:
        """Whether the part alone is its reward, unchanged."""
        return self.weight == 1 and not self.pays and self.clip is None and self.only is None

    def judges(self, task: str) -> bool:
        return self.only is None or self.only == task

    def covers(self, other: "Part") -> bool:
        """Whether it judges every problem that the other does."""
        return self.only is None or self.only == other.only

    def worth(self, score: Score) -> float:
        value = self.pays.get(score.status, score.value)
        return value if self.clip is None else min(max(value, self.clip[0]), self.clip[1])


class TaskReward:
    """The task's own verifier."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def score(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None = None,
    ) -> list[Score]:
        return self.task.score(problems, texts)


class CombinedReward:
    """The weighted sum of its parts; each part's value before weighting stands in `Score.parts`
    under its name.

    `parts["accuracy"]` is what the first verifier says (a part with an accuracy of its own, else
    the part `task`), and the status is that verifier's; without a verifier both are the first
    part's, and there is no accuracy. A part of weight 0 is only logged. Where any part times out or
    fails, the whole does: a sum that lacks a part would be another reward. A part that is for one
    task `only` is no part of the sum for another's problems: not asked, not logged, and it cannot
    fail them. Raises RewardError for no parts, two of one name for the same problems, a weight that
    is not finite, and a gate that is no other part or does not judge all that the part does.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        if not parts:
            raise RewardError("reward: no parts; give at least one [[reward]]")
        for i, part in enumerate(parts):
            if any(p.name == part.name and (p.covers(part) or part.covers(p)) for p in parts[:i]):
                raise RewardError(f"reward: two parts are named {part.name!r}")
            if isinstance(part.weight, bool) or not math.isfinite(part.weight):
                raise RewardError(
                    f"reward {part.name}: weight {part.weight} is not a finite number"
                )
            others = [p for p in parts if p is not part]
            gates = [p for p in others if p.name == part.gate]
            if part.gate is not None and not gates:
                known = (
                    did_you_mean(part.gate, [p.name for p in others])
                    if others
                    else "; there is no other part"
                )
                raise RewardError(f"reward {part.name}: gate {part.gate!r} is no other part{known}")
            if gates and not any(gate.covers(part) for gate in gates):
                raise RewardError(
                    f"reward {part.name}: its gate {part.gate!r} judges only {gates[0].only}; give this part only = {gates[0].only!r} too"
                )
        self.parts = tuple(parts)

    def score(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None = None,
    ) -> list[Score]:
        """N problems and N completion texts -> N scores. Raises RewardError for a problem that no
        part judges.
        """
        rows: list[dict[int, Score]] = [
            {} for _ in texts
        ]  # by part, of those that judge the problem
        judging = [isinstance(part.reward, Judging) for part in self.parts]
        for i in sorted(
            range(len(self.parts)), key=lambda i: judging[i]
        ):  # they need the others first
            part = self.parts[i]
            at = [n for n in range(len(texts)) if part.judges(problems[n].task)]
            if not at:
                continue
            asked, said = [problems[n] for n in at], [texts[n] for n in at]
            drawn = None if samples is None else [samples[n] for n in at]
            if isinstance(part.reward, Judging):
                column = part.reward.given(
                    asked, said, drawn, self._verdicts(part, [rows[n] for n in at])
                )
            else:
                column = part.reward.score(asked, said, drawn)
            if len(column) != len(at):
                raise RewardError(
                    f"reward {part.name}: returned {len(column)} scores for {len(at)} responses"
                )
            for n, score in zip(at, column, strict=True):
                rows[n][i] = score
        lost = next((problems[n] for n, row in enumerate(rows) if not row), None)
        if lost is not None:
            raise RewardError(f"reward: no part judges problem {lost.id!r} of task {lost.task!r}")
        return [self._sum(row) for row in rows]

    def _verdicts(self, wanting: Part, rows: Sequence[Mapping[int, Score]]) -> list[Score]:
        """Each response's verdict: that of the first part, not itself in need of one, which says
        how accurate it was.
        """
        verdicts = []
        for row in rows:
            failed = next((score for score in row.values() if not score.usable), None)
            verdict = failed or next(
                (
                    s
                    for i, s in row.items()
                    if self.parts[i].name == "task" or "accuracy" in s.parts
                ),
                None,
            )
            if verdict is None:
                raise RewardError(
                    f"reward {wanting.name} pays by a verifier's verdict and no other part gives one; add task or math"
                )
            verdicts.append(verdict)
        return verdicts

    def _sum(self, given: Mapping[int, Score]) -> Score:
        row = [(part, given[i]) for i, part in enumerate(self.parts) if i in given]
        values = {part.name: part.worth(score) for part, score in row if score.usable}
        for _, score in row:
            if not score.usable:
                return Score(0.0, score.status, values, score.reason)
        value = math.fsum(
            part.weight * values[part.name]
            for part, _ in row
            if part.gate is None or values[part.gate] > 0.5
        )
        judge, accuracy = row[0][1], None
        for part, score in row:
            if "accuracy" in score.parts or part.name == "task":
                judge, accuracy = score, score.parts.get("accuracy", score.value)
                break
        inner = {
            name: v
            for _, score in reversed(row)
            for name, v in score.parts.items()
            if name != "accuracy"
        }
        return Score(
            value,
            judge.status,
            {**inner, **values, **({} if accuracy is None else {"accuracy": accuracy})},
        )


def combined(parts: Sequence[tuple[str, float, Mapping[str, Any]]], task: Task) -> Reward:
    """The reward of a recipe: (name, weight, options) of each part; the name `task` is the task's
    own verifier.

    Options of every part: `gate` names the part that must pay for this one to count; `pays` = {
    unparsed = -1.0 } replaces the value of a status; `clip` = [low, high] bounds the part's value
    before its weight; `only` names the task of a mix whose problems it is for. A part is logged
    under its name, your own function's under the function's name. One part of weight 1 stays as it
    is. Raises RewardError for what cannot be loaded or combined.
    """
    built: list[Part] = []
    tasks: tuple[str, ...] = getattr(task, "tasks", (task.name,))  # of a mix, all of its parts
    labels = [name.rpartition(":")[2] for name, _, _ in parts]
    for (name, weight, options), label in zip(parts, labels, strict=True):
        others = {key: value for key, value in options.items() if key not in COMMON}
        if name == "task" and others:
            raise RewardError(
                f"reward task: unknown option {next(iter(others))!r}; it takes none but gate, pays, clip and only"
            )
        reward = TaskReward(task) if name == "task" else load(name, **others)
        shown = label if labels.count(label) == 1 else name
        pays, clip = _pays(shown, options.get("pays", {})), _clip(shown, options.get("clip"))
        only = _only(shown, options.get("only"), tasks)
        built.append(Part(shown, reward, weight, options.get("gate"), pays, clip, only))
    whole = CombinedReward(built)
    for name in getattr(
        task, "posing", tasks
    ):  # of a mix, those that are not only there for a stage
        if not any(part.judges(name) for part in built):
            raise RewardError(f"reward: every part is for another task only, none for {name}")
    return built[0].reward if len(built) == 1 and built[0].plain else whole


def _pays(name: str, given: object) -> dict[str, float]:
    if not isinstance(given, Mapping):
        raise RewardError(
            f"reward {name}: pays = {given!r} is no table such as {{ unparsed = -1.0 }}"
        )
    for status, value in given.items():
        if status not in PAID:
            raise RewardError(
                f"reward {name}: pays has an unknown status {status!r}{did_you_mean(str(status), PAID)}"
            )
        if not _number(value):
            raise RewardError(f"reward {name}: pays.{status} = {value!r} is not a finite number")
    return {str(status): float(value) for status, value in given.items()}


def _clip(name: str, given: object) -> tuple[float, float] | None:
    if given is None:
        return None
    bounds = list(given) if isinstance(given, (list, tuple)) else []
    if len(bounds) != 2 or not all(_number(b) for b in bounds) or bounds[0] > bounds[1]:
        raise RewardError(f"reward {name}: clip = {given!r}; it must be [low, high]")
    return float(bounds[0]), float(bounds[1])


def _only(name: str, given: object, tasks: Sequence[str]) -> str | None:
    if given is None:
        return None
    if not isinstance(given, str) or given not in tasks:
        raise RewardError(
            f"reward {name}: only = {given!r} is no task of this recipe{did_you_mean(str(given), tasks)}"
        )
    return given


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
