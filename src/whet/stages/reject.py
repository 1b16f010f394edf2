"""Rejection sampling: draw, keep what the verifier accepts, hand it to a later sft stage as data."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from whet import config
from whet.data.rows import asked, read_rows
from whet.errors import DataError
from whet.model.policy import Policy
from whet.rollout.context import Context
from whet.rollout.rollout import describe, rollout
from whet.types import Group, Problem, Sampling, Update


def run(policy: Policy, stage: config.Reject, context: Context) -> None:
    """Fills context.data[stage.name] with verified responses, and writes them to STAGE/data.jsonl
    as messages.
    """
    began = time.perf_counter()
    prompts = context.some("train", stage.problems, context.seed)
    sampling = Sampling(stage.samples, stage.temperature, stage.max_tokens, seed=context.seed)
    engine = context.engine(policy, context.chat)
    groups = rollout(engine, context.reward, prompts, sampling, context.saves.drawing)
    pairs = [(g.prompt.problem, text) for g in groups for text in kept(g, stage)]
    context.data[stage.name] = pairs
    folder = context.log.directory / stage.name
    folder.mkdir(parents=True, exist_ok=True)
    write(pairs, folder / "data.jsonl")
    context.log.wrote(folder / "data.jsonl")
    values = describe(groups, context.task) | {"kept": float(len(pairs))}
    context.log.update(
        Update(stage.name, 1, values, {"sample": time.perf_counter() - began}), "reject"
    )


def write(pairs: Sequence[tuple[Problem, str]], path: Path) -> None:
    """One conversation a line, as `read` and the task `files` (messages = "messages") read them."""
    with path.open("w", encoding="utf-8") as file:
        for problem, text in pairs:
            messages = [*problem.messages, {"role": "assistant", "content": text}]
            line = {
                "id": problem.id,
                "messages": messages,
                "answer": problem.answer,
                "task": problem.task,
            }
            file.write(json.dumps(line | asked(problem.meta)) + "\n")


def read(path: Path) -> list[tuple[Problem, str]]:
    """What `write` wrote. Raises DataError where it is not whole."""
    pairs: list[tuple[Problem, str]] = []
    for row in read_rows(path, ["id", "messages"]):
        given, messages = row.values, row.values["messages"]
        if not isinstance(messages, list) or len(messages) < 2:
            raise DataError(f"{row.where}: messages must be a prompt and a response")
        problem = Problem(
            str(given["id"]),
            tuple(messages[:-1]),
            row.text("answer"),
            str(given.get("task", "")),
            asked(given),
        )
        pairs.append((problem, messages[-1]["content"]))
    return pairs


def kept(group: Group, stage: config.Reject) -> list[str]:
    """The right, finished, different answers of a group, at most `per_prompt`."""
    rows = zip(group.samples, group.texts, group.scores, strict=True)
    right = [(s.length, text) for s, text, c in rows if c.correct and s.finish == "stop"]
    if stage.choose == "shortest":
        right.sort(key=lambda row: row[0])
    return list(dict.fromkeys(text for _, text in right))[: stage.per_prompt]
