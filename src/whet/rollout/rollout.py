"""Rollout: prompts -> samples of the engine -> scores of the reward -> groups, and their figures."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

from whet.errors import DataError
from whet.rewards import Reward
from whet.types import Engine, Group, Problem, Progress, Prompt, Sample, Sampling, Score, Task


def rollout(
    engine: Engine,
    reward: Reward,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    progress: Progress | None = None,
) -> list[Group]:
    """P prompts -> P groups of `sampling.n` scored samples. One call scores all of them."""
    return score_groups(reward, prompts, engine.generate(prompts, sampling, progress))


def finite(score: Score) -> Score:
    """The score; an error in its place where a number is not finite.

    A single such number would spoil all advantages of its group.
    """
    odd = [f"its part {k} is {v}" for k, v in score.parts.items() if not math.isfinite(v)]
    if math.isfinite(score.value) and not odd:
        return score
    return Score(0.0, "error", reason=odd[0] if odd else f"the reward is {score.value}")


def score_groups(
    reward: Reward, prompts: Sequence[Prompt], drawn: Sequence[Sequence[Sample]]
) -> list[Group]:
    """The samples [P][G] with their scores, as groups.

    The reward reads whole answers: what the prompt has begun of one, then the completion.
    """
    flat = [
        (p.problem, replace(s, text=p.begun + s.text) if p.begun else s)
        for p, samples in zip(prompts, drawn, strict=True)
        for s in samples
    ]
    problems, answers = [p for p, _ in flat], [s for _, s in flat]
    scores = map(finite, reward.score(problems, [s.text for s in answers], answers))
    groups = [
        Group(p, tuple(samples), tuple(next(scores) for _ in samples))
        for p, samples in zip(prompts, drawn, strict=True)
    ]
    if next(scores, None) is not None:
        raise ValueError("rollout: the reward returned more scores than there are samples")
    return groups


def endless(
    task: Task, split: Literal["train", "test"], seed: int, block: int = 4096
) -> Iterator[Problem]:
    """Problems of a split without end, in an order that the seed fixes.

    A task that makes problems gives blocks of new ones; one of finite size gives epochs.
    """
    size = task.size(split)
    if size == 0:
        raise DataError(f"task {task.name}: its {split} split is empty")
    count = block if size is None else size
    epoch = 0
    while True:
        yield from task.problems(split, count, seed * 100_003 + epoch)
        epoch += 1


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def describe(groups: Sequence[Group], task: Task) -> dict[str, float]:
    """The figures of a rollout. Lengths are in tokens; a key is absent where no sample has it.

    Samples whose verifier failed are counted in `errors` and `timeouts` only.
    """
    total = sum(len(g.samples) for g in groups)
    usable = [g.usable for g in groups]
    rows = [(s, c) for g in usable for s, c in zip(g.samples, g.scores, strict=True)]
    figures = {"samples": float(total), "errors": (total - len(rows)) / total if total else 0.0}
    if late := sum(c.status == "timeout" for g in groups for c in g.scores):
        figures["timeouts"] = late / total  # part of the errors
    if not rows:
        return figures
    right = [s.length for s, c in rows if c.correct]
    wrong = [s.length for s, c in rows if not c.correct]
    figures |= {
        "reward": mean([c.value for _, c in rows]),
        "accuracy": len(right) / len(rows),
        "length": mean([s.length for s, _ in rows]),
        "truncated": mean([float(s.finish == "length") for s, _ in rows]),
        "unparsed": mean([float(c.status == "unparsed") for _, c in rows]),
        "groups_with_signal": mean([float(g.has_signal) for g in usable]),
    }
    if right:
        figures["length_right"] = mean(right)
    if wrong:
        figures["length_wrong"] = mean(wrong)
    for part in sorted({name for _, c in rows for name in c.parts}):
        figures[f"part_{part}"] = mean([c.parts[part] for _, c in rows if part in c.parts])
    if task.modes:
        modes = [task.mode(g.prompt.problem, text) for g in usable for text in g.texts]
        figures |= {f"share_{mode}": modes.count(mode) / len(modes) for mode in task.modes}
    return figures
