"""Rejection sampling: draw, keep what the verifier accepts, hand it to a later sft stage as data."""

import json
import time

from whet import config
from whet.context import Context
from whet.model.policy import Policy
from whet.rollout import describe, rollout
from whet.types import Group, Sampling, Update


def run(policy: Policy, stage: config.Reject, context: Context) -> None:
    """Fills context.data[stage.name] with verified responses, and writes them to STAGE/data.jsonl as messages."""
    began = time.perf_counter()
    prompts = context.some("train", stage.problems, context.seed)
    sampling = Sampling(stage.samples, stage.temperature, stage.max_tokens, seed=context.seed)
    groups = rollout(context.engine(policy, context.chat), context.reward, prompts, sampling)
    pairs = [(g.prompt.problem, text) for g in groups for text in kept(g, stage)]
    context.data[stage.name] = pairs
    folder = context.log.directory / stage.name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "data.jsonl").open("w", encoding="utf-8") as file:
        for problem, text in pairs:
            messages = [*problem.messages, {"role": "assistant", "content": text}]
            file.write(json.dumps({"id": problem.id, "messages": messages, "answer": problem.answer}) + "\n")
    values = describe(groups, context.task) | {"kept": float(len(pairs))}
    context.log.update(Update(stage.name, 1, values, {"sample": time.perf_counter() - began}), "reject")


def kept(group: Group, stage: config.Reject) -> list[str]:
    """The right, finished, different answers of a group, at most `per_prompt`."""
    right = [s for s, c in zip(group.samples, group.scores, strict=True) if c.correct and s.finish == "stop"]
    if stage.choose == "shortest":
        right.sort(key=lambda s: s.length)
    return list(dict.fromkeys(s.text for s in right))[: stage.per_prompt]
