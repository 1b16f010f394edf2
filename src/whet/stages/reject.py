"""Rejection sampling: draw, keep the verified answers as data for a later sft stage."""

from whet import config
from whet.data import responses
from whet.model.policy import Policy
from whet.rollout import dataset
from whet.rollout.context import Context
from whet.types import Group, Problem


def run(policy: Policy, stage: config.Reject, context: Context) -> None:
    """Writes verified responses to STAGE/data.jsonl, as conversations."""

    def select(group: Group) -> list[tuple[Problem, str]]:
        return [(group.prompt.problem, text) for text in accepted(group, stage)]

    dataset.draw(policy, stage, context, select, responses.write, dataset.RESPONSES)


def accepted(group: Group, stage: config.Reject) -> list[str]:
    """The right, finished, different answers of a group, at most `per_prompt`."""
    rows = zip(group.samples, group.texts, group.scores, strict=True)
    right = [(s.length, text) for s, text, c in rows if c.correct and s.finish == "stop"]
    if stage.choose == "shortest":
        right.sort(key=lambda row: row[0])
    return list(dict.fromkeys(text for _, text in right))[: stage.per_prompt]
