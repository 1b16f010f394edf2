"""A recipe rehearsed: every stage for a step or two, on a handful of samples, so that what one
hands to the next is seen to fit.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from whet import config
from whet.model.pretrained import HUB_ID
from whet.pipeline.pipeline import Pipeline
from whet.preflight import fake_hub
from whet.rewards import Reward
from whet.rollout.context import Context
from whet.types import Problem, Sample, Score

LENGTH = 24  # tokens of a response
FEWER = {
    "batch": 4,
    "prompts": 2,
    "samples": 4,
    "pool": 8,
    "probe": 1,
    "probe_every": 1,
    "micro_tokens": 4096,
}
MORE = {"problems": 8, "samples": 32}  # of stages that keep the verified or ranked ones


class Rehearsed:
    """The recipe's reward, asked as it would be; what it pays is a coin's fall, so that an
    untrained model has groups to learn from.
    """

    def __init__(self, reward: Reward) -> None:
        self.reward = reward

    def score(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None = None,
    ) -> list[Score]:
        scores = self.reward.score(problems, texts, samples)
        rows = zip(problems, texts, scores, strict=True)
        return [
            fallen(f"{p.id} {i} {text}", s) if s.usable else s
            for i, (p, text, s) in enumerate(rows)
        ]


def fallen(of: str, score: Score) -> Score:
    """The score as the coin that a text throws has it."""
    right = hashlib.sha256(of.encode("utf-8", "replace")).digest()[0] % 2
    return Score(
        float(right), "scored" if right else "wrong", {**score.parts, "accuracy": float(right)}
    )


class Rehearsal(Pipeline):
    """A pipeline whose stages are paid by `Rehearsed`."""

    def handed(self, stage: config.AnyStage) -> Context:
        context = super().handed(stage)
        return replace(context, reward=Rehearsed(context.reward))

    def told(self, stage: config.AnyStage) -> str:
        """What was seen of a stage that has run."""
        record = self.records[-1]
        length = "" if record.get("length") is None else f", length {record['length']:.3g}"
        return f"{stage.kind}: ran small in {record['seconds']:.1f} s{length}"


def small(recipe: config.Recipe) -> config.Recipe:
    """The same recipe with a step or two for each stage, and without gates."""
    held = recipe.model_dump(exclude_none=True)
    held["evaluation"] |= {"problems": 4, "samples": 1, "max_tokens": LENGTH}
    for stage, told in zip(recipe.stage, held["stage"], strict=True):
        told.pop("gate", None)
        keeps = isinstance(stage, config.Reject | config.Rank)
        for key, most in (FEWER | MORE if keeps else FEWER).items():
            if key in told and not (keeps and key == "samples"):
                told[key] = min(told[key], most)
        if not told.get("probe", 1):
            told.pop("probe_every")
        if keeps:
            told["samples"] = MORE["samples"]
        if "max_tokens" in told:
            told["max_tokens"] = LENGTH
        if "steps" in told:
            told["steps"] = min(told["steps"], 2)
        if isinstance(stage, config.Evaluate):
            told |= {"problems": 4, "samples": 1}
        if isinstance(stage, config.RL) and stage.row.warmup:
            told["override"] = {**stage.override, "warmup": 0}
    return config.Recipe.model_validate(held)


def offline(recipe: config.Recipe, folder: Path) -> config.Recipe:
    """The same recipe with a stand-in, made in `folder`, for every model and data set of the Hub.
    Raises ModelError for a model that has none.
    """
    held = recipe.model_dump(exclude_none=True)
    names = {s.name for s in recipe.stage}

    def model(name: str, scalar: bool = False) -> str:
        if (
            name in names
            or name in ("previous", "new", "start")
            or Path(name).expanduser().exists()
            or not HUB_ID.fullmatch(name)
        ):
            return name
        place = folder / "models" / (name.replace("/", "--") + ("--scalar" if scalar else ""))
        return str(place if place.exists() else fake_hub.checkpoint(name, place, scalar))

    if "path" in held["model"]:
        held["model"]["path"] = model(held["model"]["path"])
    held["task"] = _task(held["task"], folder / "data")
    for part in [*held["reward"], *(p for s in held["stage"] for p in s.get("reward", []))]:
        _judging(part, model)
    for stage in held["stage"]:
        for key in ("start", "reference"):
            if key in stage:
                stage[key] = model(stage[key])
        if "start" in stage.get("critic", {}):
            stage["critic"]["start"] = model(stage["critic"]["start"], scalar=True)
        if "models" in stage:
            stage["models"] = {model(name): share for name, share in stage["models"].items()}
        if isinstance(stage.get("data"), str) and stage["data"].startswith("hf:"):
            stage["data"] = str(fake_hub.rankings(folder / "data" / f"{stage['name']}.jsonl"))
    return config.Recipe.model_validate(held)


def _judging(part: dict[str, Any], model: Callable[..., str]) -> None:
    """A reward part's own model."""
    if part["name"] == "learned":
        part["model"] = model(part["model"], scalar=True)
    if part["name"] == "judge":
        for key in ("url", "key_env", "concurrent", "seconds", "retries", "body"):
            part.pop(key, None)
        part["model"] = model(part["model"])


def _task(given: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A task with files in place of the Hub's."""
    held = dict(given)
    if held["name"] == "mix":
        return held | {"parts": [_task(part, folder) for part in held["parts"]]}
    name = held["name"] if held["name"].startswith("hf:") else held.get("path", "")
    if held["name"] != "files" and not held["name"].startswith("hf:"):
        return held
    if held["name"] == "files" and not name.startswith("hf:") and Path(name).expanduser().exists():
        return held
    label = held.get("as", held["name"])
    path = fake_hub.problems(
        held,
        folder / f"{hashlib.sha256(str(sorted(given.items())).encode()).hexdigest()[:8]}.jsonl",
    )
    held.pop("test", None)
    held |= {"name": "files", "path": str(path), "test_share": 0.25}
    return held | ({"as": label} if "as" in given or "weight" in given else {})
