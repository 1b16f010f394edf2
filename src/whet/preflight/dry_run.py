"""Runs every stage of a recipe in small, to see that each accepts what those before it made."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from whet import config
from whet.pipeline.pipeline import Pipeline
from whet.rewards import Reward
from whet.types import Problem, Sample, Score

LENGTH = 24  # tokens of a response
LIMITS = {
    "batch": 4,
    "prompts": 2,
    "samples": 4,
    "pool": 8,
    "probe": 1,
    "probe_every": 1,
    "micro_tokens": 4096,
    "steps": 2,
}
SELECTING = {"problems": 8, "samples": 32}  # reject and rank need enough answers to keep some


class CoinReward:
    """Calls a reward, then replaces each usable score by a coin toss.

    An untrained model so gets groups to learn from. `signal` is the share of the problems whose
    answers may differ in reward; all answers to another problem get the same.
    """

    def __init__(self, reward: Reward, signal: float = 1.0) -> None:
        self.reward, self.signal = reward, signal

    def score(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None = None,
    ) -> list[Score]:
        scores = self.reward.score(problems, texts, samples)
        return [
            self._toss(f"{p.id} {i} {text}" if self._has_signal(p) else p.id, s) if s.usable else s
            for i, (p, text, s) in enumerate(zip(problems, texts, scores, strict=True))
        ]

    def _has_signal(self, problem: Problem) -> bool:
        return random.Random(f"signal {problem.id}").random() < self.signal

    @staticmethod
    def _toss(key: str, score: Score) -> Score:
        """Returns the score with value and accuracy 0 or 1, which the hash of `key` fixes."""
        right = hashlib.sha256(key.encode("utf-8", "replace")).digest()[0] % 2
        parts = {**score.parts, "accuracy": float(right)}
        return Score(float(right), "scored" if right else "wrong", parts)


class DryRun:
    """A run of a shrunk recipe in `directory`, stage by stage."""

    def __init__(self, recipe: config.Recipe, directory: Path) -> None:
        self.recipe, self.directory = shrink(recipe), directory

    @cached_property
    def pipeline(self) -> Pipeline:
        return Pipeline.of(
            self.recipe,
            self.directory,
            adapt=lambda context: replace(context, reward=CoinReward(context.reward)),
        )

    def run(self, name: str) -> str:
        """Runs the stage `name`, those before it having run. Returns a line on it for a person."""
        stage = next(s for s in self.recipe.stage if s.name == name)
        self.pipeline.run_stage(stage)
        record = self.pipeline.records[-1]
        length = "" if record.get("length") is None else f", length {record['length']:.3g}"
        return f"{stage.kind}: ran small in {record['seconds']:.1f} s{length}"


def shrink(recipe: config.Recipe) -> config.Recipe:
    """Returns the recipe with at most two steps a stage, few samples, short answers and no gates."""
    data = recipe.model_dump(exclude_none=True)
    data["evaluation"] |= {"problems": 4, "samples": 1, "max_tokens": LENGTH}
    for stage, table in zip(recipe.stage, data["stage"], strict=True):
        table.pop("gate", None)
        limits = LIMITS
        if isinstance(stage, config.Reject | config.Rank):
            limits = {**LIMITS, **SELECTING}
            table["samples"] = SELECTING["samples"]
        if isinstance(stage, config.Evaluate):
            limits = {**LIMITS, "problems": 4, "samples": 1}
        table |= {key: min(table[key], most) for key, most in limits.items() if key in table}
        if not table.get("probe", 1):
            table.pop("probe_every")
        if "max_tokens" in table:
            table["max_tokens"] = LENGTH
        if isinstance(stage, config.RL) and stage.row.warmup:
            table["override"] = {**stage.override, "warmup": 0}
    return config.Recipe.model_validate(data)
